// Contends one sync.RWMutex a fixed number of times, so that the number of probe hits is known.
//
// It reads commands from standard input, one per line, and answers with nanoseconds of CPU time per operation. Probes run
// on the account of who hits them, so CPU time holds their cost, and other load on the machine does not blur it.
//
//	free N    Lock and Unlock without contention: N x { RWMutex.Lock, RWMutex.Unlock }
//	wait N    the lock is held while another goroutine wants it: N x { RWMutex.Lock twice, RWMutex.Unlock twice,
//	          semacquire1 once (it parks), readyWithTime once }
//
// The lock is released only when its waiter is counted, which it is just before it calls semacquire1. The hand-over in
// between uses channels, which touch none of these functions.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

var mu sync.RWMutex

func free(n int) {
	for i := 0; i < n; i++ {
		mu.Lock()
		mu.Unlock()
	}
}

// waiters reads the number of waiters from the state of the RWMutex's inner Mutex, its first word.
func waiters() int32 {
	return atomic.LoadInt32((*int32)(unsafe.Pointer(&mu))) >> 3
}

func wait(n int) {
	want := make(chan struct{})
	done := make(chan struct{})
	go func() {
		for range want {
			mu.Lock()
			mu.Unlock()
			done <- struct{}{}
		}
	}()
	for i := 0; i < n; i++ {
		mu.Lock()
		want <- struct{}{}
		for waiters() == 0 {
			runtime.Gosched()
		}
		mu.Unlock()
		<-done
	}
	close(want)
}

// cpu is the CPU time this process has used, in nanoseconds.
func cpu() int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		fmt.Fprintln(os.Stderr, "getrusage:", err)
		os.Exit(1)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

func main() {
	runtime.GOMAXPROCS(1)
	fmt.Println("pid", os.Getpid())
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var mode string
		var n int
		if _, err := fmt.Sscan(lines.Text(), &mode, &n); err != nil || n < 1 {
			fmt.Fprintln(os.Stderr, "want: free N or wait N; got:", lines.Text())
			os.Exit(2)
		}
		run, ok := map[string]func(int){"free": free, "wait": wait}[mode]
		if !ok {
			fmt.Fprintln(os.Stderr, "unknown mode:", mode)
			os.Exit(2)
		}
		begin := cpu()
		run(n)
		fmt.Println(float64(cpu()-begin) / float64(n))
	}
}
