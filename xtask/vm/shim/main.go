// Stands for a containerd shim in the tests of the kernel half, where there is no containerd: it has the functions that
// plegscope probes in a shim, under their names, and a goroutine inside each of them. All of them need the lock that
// Delete holds while it unmounts.
//
// Each line on standard input is a path to unmount; the answer on standard output is "deleted".
// It ends when it cannot.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"

	"shim/cmd/containerd-shim-runc-v2/task"
)

// Small programs are not read by plegscope.
var weight = [4 << 20]byte{4<<20 - 1: 1}

func main() {
	// Keeps it in the file.
	if weight[len(os.Args)] != 0 {
		os.Exit(2)
	}
	id := strings.Repeat("5e", 32)
	service := task.New(id)
	service.Serve(id, func() { time.Sleep(50 * time.Millisecond) })
	fmt.Println("pid", os.Getpid())
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if err := service.Delete(id, lines.Text()); err != nil {
			fmt.Println(lines.Text(), err)
			os.Exit(1)
		}
		fmt.Println("deleted")
	}
}
