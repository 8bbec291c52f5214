// Package process has the shim's Init as far as plegscope looks at it: a lock at 0x20, an id at 0x40, and methods that
// do their work under the lock.
package process

import (
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"shim/golang.org/x/sys/unix"
)

// Init stands for a container's first process.
type Init struct {
	_      [0x20]byte
	mu     sync.Mutex
	_      [0x18]byte
	id     string
	Bundle sync.RWMutex
	calls  int
	// Inside counts those who are in a call or about to make one; All is how many there are.
	Inside, All int32
	// When the last unmount was called and came back.
	Began, Ended int64
}

// now is CLOCK_MONOTONIC, ns.
func now() int64 {
	var t syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&t)), 0)
	return t.Nano()
}

// New makes one.
func New(id string) *Init { return &Init{id: id} }

// Delete unmounts, as the shim's does: for as long as the disk takes, under the lock.
//
//go:noinline
func (p *Init) Delete(path string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Bundle.Lock()
	defer p.Bundle.Unlock()
	// Who is not in its call yet comes as soon as its pause is over, and stays.
	for atomic.LoadInt32(&p.Inside) < p.All {
		time.Sleep(time.Millisecond)
	}
	p.Began = now()
	err := unix.Unmount(path, 0)
	p.Ended = now()
	return err
}

func (p *Init) call() {
	p.mu.Lock()
	p.calls++
	p.mu.Unlock()
}

// The others only need the lock.

//go:noinline
func (p *Init) Update() { p.call() }

//go:noinline
func (p *Init) Kill() { p.call() }

//go:noinline
func (p *Init) KillAll() { p.call() }

//go:noinline
func (p *Init) Status() { p.call() }

//go:noinline
func (p *Init) SetExited() { p.call() }

//go:noinline
func (p *Init) ExitStatus() { p.call() }

//go:noinline
func (p *Init) ExitedAt() { p.call() }

//go:noinline
func (p *Init) Start() { p.call() }

//go:noinline
func (p *Init) Pause() { p.call() }

//go:noinline
func (p *Init) Resume() { p.call() }

//go:noinline
func (p *Init) Resize() { p.call() }

//go:noinline
func (p *Init) Exec() { p.call() }

//go:noinline
func (p *Init) Checkpoint() { p.call() }
