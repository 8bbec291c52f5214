//go:build cgo
// +build cgo

package main

// #include <unistd.h>
// static void block(void) { pause(); }
import "C"

//go:noinline
func blocksInC() { C.block() }
