// A container that runs and does nothing, until it receives a signal: the sandbox of every pod on the real
// node, and the workload of those tests that need one that really runs.
package main

import (
	"context"
	"os/signal"
	"syscall"
)

func main() {
	stopped, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	<-stopped.Done()
}
