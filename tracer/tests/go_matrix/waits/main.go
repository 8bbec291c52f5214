// Goroutines that wait in every way that matters, and the truth about them: the addresses of the locks, and when each
// wait began. What Go itself says of their stacks it prints when it is sent SIGQUIT. With the argument "churn" they
// never rest, with "crowd" there are more of them than are told, with "parked" none is in a system call.
package main

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// CLOCK_MONOTONIC, the clock of runtime.nanotime.
func now() int64 {
	var t syscall.Timespec
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&t)), 0)
	return t.Nano()
}

func say(words ...string) {
	line := strings.Join(words, " ") + "\n"
	_, _ = syscall.Write(1, []byte(line))
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

func address(p unsafe.Pointer) string { return "0x" + strconv.FormatUint(uint64(uintptr(p)), 16) }

func stacks() string {
	for size := 1 << 18; ; size *= 2 {
		b := make([]byte, size)
		if n := runtime.Stack(b, true); n < size {
			return string(b[:n])
		}
	}
}

// Starts a goroutine, waits until it waits in the function of this name, and tells when that was.
func start(name string, lock unsafe.Pointer, f func()) {
	began := now()
	go f()
	for !waits("main." + name + "(") {
		runtime.Gosched()
	}
	say("WAIT", name, address(lock), number(began), number(now()))
}

func waits(text string) bool {
	for _, one := range strings.Split(stacks(), "\n\n") {
		head := one
		if end := strings.IndexByte(one, '\n'); end >= 0 {
			head = one[:end]
		}
		if strings.Contains(one, text) && !strings.Contains(head, "[runn") {
			return true
		}
	}
	return false
}

type store struct {
	before int
	mu     sync.Mutex
	rw     sync.RWMutex
}

var (
	one, two, four     sync.Mutex
	rw, read           sync.RWMutex
	inner              store
	group              sync.WaitGroup
	asked, other, full = make(chan int), make(chan int), make(chan int)
	condition          = sync.NewCond(&sync.Mutex{})
)

//go:noinline
func holdsMutex(fd int) {
	one.Lock()
	defer one.Unlock()
	var b [1]byte
	_, _ = syscall.Read(fd, b[:])
}

//go:noinline
func mutex() { one.Lock(); one.Unlock() }

//go:noinline
func mutexToo() { one.Lock(); one.Unlock() }

//go:noinline
func mutexAsWell() { one.Lock(); one.Unlock() }

//go:noinline
func holdsWrite() {
	rw.Lock()
	defer rw.Unlock()
	<-asked
}

//go:noinline
func reader() { rw.RLock(); rw.RUnlock() }

//go:noinline
func writer() { rw.Lock(); rw.Unlock() }

//go:noinline
func holdsRead() {
	read.RLock()
	defer read.RUnlock()
	<-asked
}

//go:noinline
func drains() { read.Lock(); read.Unlock() }

//go:noinline
func waitGroup() { group.Wait() }

//go:noinline
func cond() {
	condition.L.Lock()
	condition.Wait()
	condition.L.Unlock()
}

//go:noinline
func receive() { <-other }

//go:noinline
func send() { full <- 1 }

//go:noinline
func chooses(quit chan int) {
	select {
	case <-quit:
	case <-asked:
	}
}

//go:noinline
func never() { select {} }

//go:noinline
func sleeps() { time.Sleep(time.Hour) }

//go:noinline
func reads(f *os.File) {
	var b [1]byte
	_, _ = f.Read(b[:])
}

//go:noinline
func late() { select {} }

// Two hundred frames, each with something in it.
//
//go:noinline
func deep(n int) int {
	var pad [4]int
	pad[n&3] = n
	if n == 0 {
		two.Lock()
		two.Unlock()
		return pad[1]
	}
	return deep(n-1) + pad[n&3]
}

// Inlined into each other, and into inlines.
func (s *store) lock()   { s.mu.Lock() }
func (s *store) enter()  { s.before++; s.lock() }
func (s *store) unlock() { s.mu.Unlock() }

//go:noinline
func inlines() {
	inner.enter()
	inner.unlock()
}

//go:noinline
func grow(n int) int {
	var pad [64]int
	pad[n&63] = n
	if n == 0 {
		return 0
	}
	return grow(n-1) + pad[n&63]
}

var stack uintptr

// Needs a large stack once, and tells where it was.
//
//go:noinline
func moved() {
	var here int
	stack = uintptr(unsafe.Pointer(&here))
	four.Lock()
	four.Unlock()
}

func grown() {
	grow(200)
	moved()
}

func main() {
	if len(os.Args) > 1 {
		map[string]func(){"churn": churn, "crowd": crowd, "parked": parked}[os.Args[1]]()
		return
	}
	var pipe [2]int
	if err := syscall.Pipe(pipe[:]); err != nil {
		panic(err)
	}
	polled, end, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	two.Lock()
	four.Lock()
	inner.mu.Lock()
	group.Add(1)
	none := unsafe.Pointer(nil)
	start("holdsMutex", none, func() { holdsMutex(pipe[0]) })
	start("mutex", unsafe.Pointer(&one), mutex)
	start("mutexToo", unsafe.Pointer(&one), mutexToo)
	start("mutexAsWell", unsafe.Pointer(&one), mutexAsWell)
	start("holdsWrite", none, holdsWrite)
	start("reader", unsafe.Pointer(&rw), reader)
	start("writer", unsafe.Pointer(&rw), writer)
	start("holdsRead", none, holdsRead)
	start("drains", unsafe.Pointer(&read), drains)
	start("waitGroup", unsafe.Pointer(&group), waitGroup)
	start("cond", none, cond)
	start("receive", none, receive)
	start("send", none, send)
	start("chooses", none, func() { chooses(make(chan int)) })
	start("never", none, never)
	start("sleeps", none, sleeps)
	start("reads", none, func() { reads(polled) })
	start("deep", unsafe.Pointer(&two), func() { deep(200) })
	start("inlines", unsafe.Pointer(&inner.mu), inlines)
	start("moved", unsafe.Pointer(&four), grown)
	start("blocksInC", none, blocksInC)
	began := now()
	// The first collection finds them parked; stacks that are mostly unused are halved by each.
	runtime.GC()
	runtime.GC()
	// One that only the third can find: then all others were found before the end of the second.
	start("late", none, late)
	runtime.GC()
	say("STACK", strconv.FormatUint(uint64(stack), 10))
	say("COLLECTED", number(began), number(now()))
	say("END")
	block()
	runtime.KeepAlive(end)
}

//go:noinline
func block() {
	var b [1]byte
	_, _ = syscall.Read(0, b[:])
}

var as, bs [3]sync.RWMutex

// Waits only for locks among as, whatever else goes on.
//
//go:noinline
func lockA(n int) {
	as[n%3].Lock()
	runtime.Gosched()
	as[n%3].Unlock()
}

//go:noinline
func lockB(n int) {
	bs[n%3].RLock()
	runtime.Gosched()
	bs[n%3].RUnlock()
	bs[n%3].Lock()
	runtime.Gosched()
	bs[n%3].Unlock()
}

func churn() {
	say("LOCKS", address(unsafe.Pointer(&as)), address(unsafe.Pointer(&bs)), number(int64(unsafe.Sizeof(as))))
	for i := 0; i < 12; i++ {
		go func(n int) {
			for {
				n = n*1103515245 + 12345
				grow(n >> 8 & 31)
				if n>>16&1 == 0 {
					lockA(n >> 17 & 1023)
				} else {
					lockB(n >> 17 & 1023)
				}
			}
		}(i)
	}
	go func() {
		for {
			runtime.GC()
			time.Sleep(time.Millisecond)
		}
	}()
	say("END")
	block()
}

func crowd() {
	two.Lock()
	const many = 22000
	for i := 0; i < many; i++ {
		go deep(24)
	}
	// A Mutex counts those who wait for it above its three lowest bits.
	for atomic.LoadInt32((*int32)(unsafe.Pointer(&two)))>>3 < many {
		runtime.Gosched()
	}
	say("END")
	block()
}

func parked() {
	say("END")
	for {
		time.Sleep(time.Hour)
	}
}
