//go:build !cgo
// +build !cgo

package main

import "syscall"

//go:noinline
func blocksInC() { _ = syscall.Pause() }
