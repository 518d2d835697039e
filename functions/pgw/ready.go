package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// readyCommand is the health check of an image that has no shell.
type readyCommand struct {
	Addr string `arg:"" optional:"" help:"host:port of the function; by default, the PORT of this machine."`
	Port string `env:"PORT" default:"8080" hidden:""`
	dataFlags
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
	state := readyState{Addr: addr, Ready: resp.StatusCode == http.StatusOK, Text: strings.TrimSpace(string(said))}
	if state.Ready || c.JSON {
		err = c.print(state, func(to io.Writer) error {
			_, err := to.Write(said)
			return err
		})
	}
	if !state.Ready {
		err = errors.Join(err, fmt.Errorf("%s is not ready: %s", addr, state.Text))
	}
	return err
}

// readyState is a function's answer.
type readyState struct {
	Addr  string `json:"addr"`
	Ready bool   `json:"ready"`
	Text  string `json:"text"`
}
