// Package unix has the wrapper of the system call as containerd's programs call it.
package unix

import "syscall"

// Unmount is umount2(2).
//
//go:noinline
func Unmount(target string, flags int) (err error) { return syscall.Unmount(target, flags) }
