// Package task has the shim's service as far as plegscope looks at it.
package task

import (
	"context"
	"sync/atomic"

	"shim/cmd/containerd-shim-runc-v2/process"
)

type service struct {
	init *process.Init
	path string
}

// request stands for all requests of the task API: the id comes first.
type request struct {
	id     string
	done   int
	panics bool
}

// Service serves requests.
type Service struct{ s *service }

// New makes one.
func New(id string) Service { return Service{&service{init: process.New(id)}} }

//go:noinline
func (s *service) Delete(ctx context.Context, r *request) error {
	r.done++
	return s.init.Delete(s.path)
}

//go:noinline
func (s *service) Kill(ctx context.Context, r *request) error {
	r.done++
	s.init.Kill()
	return nil
}

//go:noinline
func (s *service) State(ctx context.Context, r *request) error {
	r.done++
	if r.panics {
		panic("on purpose")
	}
	s.init.Status()
	return nil
}

//go:noinline
func (s *service) Create(ctx context.Context, r *request) error {
	r.done++
	s.init.SetExited()
	return nil
}

//go:noinline
func (s *service) Start(ctx context.Context, r *request) error {
	r.done++
	s.init.Start()
	return nil
}

//go:noinline
func (s *service) Exec(ctx context.Context, r *request) error {
	r.done++
	s.init.Exec()
	return nil
}

//go:noinline
func (s *service) Update(ctx context.Context, r *request) error {
	r.done++
	s.init.Update()
	return nil
}

// Serve calls each function that is probed, each in a goroutine of its own, over and over; `pause` comes between calls.
func (s Service) Serve(id string, pause func()) {
	i := s.s.init
	ctx := context.Background()
	again := func(call func()) {
		i.All++
		go func() {
			for {
				atomic.AddInt32(&i.Inside, 1)
				call()
				atomic.AddInt32(&i.Inside, -1)
				pause()
			}
		}()
	}
	for _, call := range []func(context.Context, *request) error{
		s.s.Kill, s.s.State, s.s.Create, s.s.Start, s.s.Exec, s.s.Update,
	} {
		call := call
		again(func() {
			if err := call(ctx, &request{id: id}); err != nil {
				panic(err)
			}
		})
	}
	reader := func() { i.Bundle.RLock(); i.Bundle.RUnlock() }
	writer := func() { i.Bundle.Lock(); i.Bundle.Unlock() }
	for _, call := range []func(){
		i.KillAll, i.ExitStatus, i.ExitedAt, i.Pause, i.Resume, i.Resize, i.Checkpoint, reader, writer,
	} {
		again(call)
	}
}

// Recover makes a request that never returns: it panics, and who made it goes on.
func (s Service) Recover(id string) {
	defer func() { _ = recover() }()
	_ = s.s.State(context.Background(), &request{id: id, panics: true})
}

// Delete unmounts a path; when that was called and came back, ns of CLOCK_MONOTONIC.
func (s Service) Delete(id, path string) (begin, end int64, err error) {
	s.s.path = path
	err = s.s.Delete(context.Background(), &request{id: id})
	return s.s.init.Began, s.s.init.Ended, err
}
