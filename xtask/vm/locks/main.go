// Contends locks and keeps its own log, for the tests of the kernel half. It reads commands from standard input.
//
//	run N     N rounds of a held RWMutex and a held Mutex, each with a waiter; a log line for each acquisition, then "done"
//	park      a goroutine holds a lock for good, others wait for it; "parked" once they do
//	panic     parks, then a goroutine panics: the process dies with waits in flight
//	exec      parks, then this process becomes another program (itself, which waits for commands)
//
// A log line: kind goid lock before got released, times in ns of CLOCK_MONOTONIC, kind W (RWMutex.Lock), R (RLock) or
// M (Mutex.Lock).
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

var (
	rw  sync.RWMutex
	mu  sync.Mutex
	out = make(chan string, 1024)
)

func now() int64 {
	var t syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&t)), 0)
	return t.Nano()
}

func goid() uint64 {
	var buf [64]byte
	fields := bytes.Fields(buf[:runtime.Stack(buf[:], false)])
	id, _ := strconv.ParseUint(string(fields[1]), 10, 64)
	return id
}

// take locks, holds for a while, unlocks, and logs.
func take(kind string, lock unsafe.Pointer, hold time.Duration, acquire, release func()) {
	id := goid()
	before := now()
	acquire()
	got := now()
	time.Sleep(hold)
	released := now()
	release()
	out <- fmt.Sprintf("%s %d %d %d %d %d", kind, id, uintptr(lock), before, got, released)
}

func run(n int) {
	for i := 0; i < n; i++ {
		var all sync.WaitGroup
		start := func(wait time.Duration, f func()) {
			all.Add(1)
			go func() {
				defer all.Done()
				time.Sleep(wait)
				f()
			}()
		}
		const hold, step = 800 * time.Millisecond, 30 * time.Millisecond
		start(0, func() { take("W", unsafe.Pointer(&rw), hold, rw.Lock, rw.Unlock) })
		start(step, func() { take("R", unsafe.Pointer(&rw), hold, rw.RLock, rw.RUnlock) })
		start(2*step, func() { take("W", unsafe.Pointer(&rw), hold, rw.Lock, rw.Unlock) })
		start(0, func() { take("M", unsafe.Pointer(&mu), hold, mu.Lock, mu.Unlock) })
		start(step, func() { take("M", unsafe.Pointer(&mu), hold, mu.Lock, mu.Unlock) })
		all.Wait()
	}
}

func park() {
	held := make(chan bool)
	go func() {
		rw.Lock()
		held <- true
		select {}
	}()
	<-held
	for i := 0; i < 3; i++ {
		go rw.RLock()
		go rw.Lock()
	}
	time.Sleep(200 * time.Millisecond)
	fmt.Println("parked")
}

func main() {
	fmt.Println("pid", os.Getpid())
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var mode string
		n := 0
		fmt.Sscan(lines.Text(), &mode, &n)
		switch mode {
		case "run":
			run(n)
			for len(out) > 0 {
				fmt.Println(<-out)
			}
			fmt.Println("done")
		case "park":
			park()
		case "panic":
			park()
			time.Sleep(300 * time.Millisecond)
			go panic("on purpose")
		case "exec":
			park()
			time.Sleep(300 * time.Millisecond)
			syscall.Exec("/proc/self/exe", os.Args, os.Environ())
		default:
			fmt.Fprintln(os.Stderr, "unknown:", lines.Text())
			os.Exit(2)
		}
	}
}
