// Goroutines that wait in all the ways that matter, and Go's own account of where they are.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

type statusStorage struct {
	sync.RWMutex
	status int
}

func (s *statusStorage) Get() int {
	s.RLock()
	defer s.RUnlock()
	return s.status
}

//go:noinline
func (s *statusStorage) UpdateSync(f func()) {
	s.Lock()
	defer s.Unlock()
	f()
}

type initProcess struct {
	mu     sync.Mutex
	status int
}

//go:noinline
func (p *initProcess) Delete(fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unmount(fd)
}

//go:noinline
func (p *initProcess) unmount(fd int) {
	var b [1]byte
	_, _ = syscall.Read(fd, b[:])
}

//go:noinline
func (p *initProcess) Update() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status++
}

// A frame of more than 64 kB, whose stack check has its own form.
//
//go:noinline
func hugeFrame(n int, f func()) byte {
	var big [80000]byte
	big[n] = byte(n)
	f()
	return big[n/2]
}

func stacks() string {
	for size := 1 << 16; ; size *= 2 {
		b := make([]byte, size)
		if n := runtime.Stack(b, true); n < size {
			return string(b[:n])
		}
	}
}

func main() {
	var pipe [2]int
	if err := syscall.Pipe(pipe[:]); err != nil {
		panic(err)
	}
	s, p := &statusStorage{}, &initProcess{}
	wait := func(until ...string) {
		for {
			all, found := stacks(), 0
			for _, text := range until {
				for _, one := range strings.Split(all, "\n\n") {
					if strings.Contains(one, text) && !strings.Contains(one, "[running]") && !strings.Contains(one, "[runnable]") {
						found++
						break
					}
				}
			}
			if found == len(until) {
				return
			}
			runtime.Gosched()
		}
	}
	go func() { p.Delete(pipe[0]) }()
	wait("syscall.Read")
	go func() { s.UpdateSync(func() { hugeFrame(5, func() { p.Update() }) }) }()
	wait("main.(*initProcess).Update")
	go func() { fmt.Fprintln(os.Stderr, s.Get()) }()
	wait("main.(*statusStorage).Get")
	fmt.Println(stacks())
	fmt.Println("END")
	var b [1]byte
	_, _ = os.Stdin.Read(b[:])
}
