// Package process has the shim's Init as far as plegscope looks at it: a lock at 0x20, an id at 0x40, and methods that
// do their work under the lock.
package process

import (
	"sync"

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
	return unix.Unmount(path, 0)
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
