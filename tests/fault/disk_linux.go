package main

import (
	"fmt"
	"syscall"
)

// mount gives a directory a disk of its own, in memory: what matters here is that it can be full.
func mount(dir string, size int) error {
	return syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0755", size))
}

func unmount(dir string) error { return syscall.Unmount(dir, syscall.MNT_DETACH) }
