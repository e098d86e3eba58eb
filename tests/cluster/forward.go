package main

// The forwarder: carries bytes between an inherited socket and an address that it dials, and
// so between two network namespaces.

import (
	"io"
	"net"
	"os"
	"sync"
)

func forward(target string) error {
	// The first file after the standard ones, as exec.Cmd passes it.
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	for {
		near, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer near.Close()
			far, err := net.Dial("tcp", target)
			if err != nil {
				return
			}
			defer far.Close()
			var both sync.WaitGroup
			both.Go(func() { carry(far.(*net.TCPConn), near.(*net.TCPConn)) })
			both.Go(func() { carry(near.(*net.TCPConn), far.(*net.TCPConn)) })
			both.Wait()
		}()
	}
}

// carry copies until one side ends its stream, and ends the other.
func carry(to, from *net.TCPConn) {
	_, _ = io.Copy(to, from)
	_ = to.CloseWrite()
}
