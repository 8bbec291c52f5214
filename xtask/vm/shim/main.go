// Stands for a containerd shim in the tests of the kernel half, where there is no containerd: it has the functions that
// plegscope probes in a shim, under their names, and a goroutine inside each of them. All of them need the lock that
// Delete holds while it unmounts.
//
// Each line on standard input is a path to unmount, or a command:
//
//	/…        unmounts it, once everybody else waits; "in FUNCTION…", where goroutines were at the moment when most functions
//	          had one; "unmount BEGIN END" in ns of CLOCK_MONOTONIC; "deleted". It ends when it cannot.
//	recover   a request panics deep inside, and somebody further out recovers; "recovered"
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"shim/cmd/containerd-shim-runc-v2/task"
)

// Small programs are not read by plegscope.
var weight = [4 << 20]byte{4<<20 - 1: 1}

// inside tells which functions goroutines are in, but for those of the runtime.
func inside() map[string]bool {
	buffer := make([]byte, 256<<10)
	functions := map[string]bool{}
	for _, line := range strings.Split(string(buffer[:runtime.Stack(buffer, true)]), "\n") {
		if at := strings.LastIndexByte(line, '('); at > 0 && line[0] != '\t' {
			functions[line[:at]] = true
		}
	}
	return functions
}

// watch samples that until it is told to stop, and hands over the largest sample.
func watch(stop chan bool, result chan map[string]bool) {
	most := map[string]bool{}
	for {
		select {
		case <-stop:
			result <- most
			return
		case <-time.After(200 * time.Millisecond):
			if found := inside(); len(found) > len(most) {
				most = found
			}
		}
	}
}

func unmount(service task.Service, id, path string) {
	stop, result := make(chan bool), make(chan map[string]bool)
	go watch(stop, result)
	begin, end, err := service.Delete(id, path)
	stop <- true
	var names []string
	for name := range <-result {
		names = append(names, name)
	}
	if err != nil {
		fmt.Println(path, err)
		os.Exit(1)
	}
	fmt.Println("in", strings.Join(names, " "))
	fmt.Println("unmount", begin, end)
	fmt.Println("deleted")
}

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
		if lines.Text() == "recover" {
			service.Recover(id)
			fmt.Println("recovered")
			continue
		}
		unmount(service, id, lines.Text())
	}
}
