// Functions with every kind of exit, called a known number of times.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
)

const rounds = 3000

var failed = errors.New("failed")

type process struct {
	mu  sync.Mutex
	rw  sync.RWMutex
	n   int
	all []int
}

// Deferred unlock, two ways out.
//
//go:noinline
func (p *process) Deferred(i int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	if i%3 == 0 {
		return failed
	}
	return nil
}

// A third way out: a panic that is recovered.
//
//go:noinline
func (p *process) Recovers(i int) (result int) {
	defer func() {
		if recover() != nil {
			result = -1
		}
	}()
	if i%3 == 0 {
		panic(failed)
	}
	return i
}

// Many ways out, through a switch.
//
//go:noinline
func (p *process) Switches(i int) int {
	switch i % 9 {
	case 0:
		return len(os.Args)
	case 1:
		p.all = append(p.all[:0], i)
		return 1
	case 2:
		return p.n
	case 3:
		return 7 * i
	case 4:
		p.n--
		return 4
	case 5:
		return cap(p.all)
	case 6:
		return i / 3
	case 7:
		p.n++
		return 2
	}
	return -i
}

// An unlock just before the way out.
//
//go:noinline
func (p *process) Plain(i int) {
	p.mu.Lock()
	p.n += i
	p.mu.Unlock()
}

// A loop that is left in the middle.
//
//go:noinline
func (p *process) Loops(i int) int {
	for k := 0; ; k++ {
		if k*k > i%50 {
			p.n = k
			return k
		}
		runtime.Gosched()
	}
}

func main() {
	p := &process{}
	var group sync.WaitGroup
	for worker := 0; worker < 4; worker++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for i := 0; i < rounds/4; i++ {
				p.rw.Lock()
				runtime.Gosched()
				p.rw.Unlock()
				p.rw.RLock()
				runtime.Gosched()
				p.rw.RUnlock()
			}
		}()
	}
	group.Wait()
	for i := 0; i < rounds; i++ {
		_ = p.Deferred(i)
		p.Recovers(i)
		p.Switches(i)
		p.Plain(i)
		p.Loops(i)
	}
	fmt.Println("END")
}
