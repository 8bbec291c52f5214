//go:build !cgo
// +build !cgo

package main

import "syscall"

// The runtime's own signals end the call.
//
//go:noinline
func blocksInC() {
	for {
		_ = syscall.Pause()
	}
}
