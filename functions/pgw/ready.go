package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// readyCommand is the health check of an image that has no shell.
type readyCommand struct {
	Addr string `arg:"" optional:"" help:"host:port of the function; by default, the PORT of this machine."`
	Port string `env:"PORT" default:"8080" hidden:""`
}

// answersWithin is longer than a function's own time limit for its readiness check.
const answersWithin = 3 * time.Second

func (c readyCommand) Run(ctx context.Context) error {
	addr := c.Addr
	if addr == "" {
		addr = net.JoinHostPort("localhost", c.Port)
	}
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s is not ready: %s", addr, said)
	}
	_, err = fmt.Printf("%s", said)
	return err
}
