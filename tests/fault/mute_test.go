package main

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// A connection that is silent for ever stays silent when other faults come and go and after
// healing, and neither end notices it. New connections work.
func TestSilentForEver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan net.Conn, 8)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served <- conn
		}
	}()
	wire := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "w", "127.0.0.1:0", l.Addr().String())
	if err := wire.Start(); err != nil {
		t.Fatal(err)
	}
	defer wire.Stop()
	connect := func() (near, far net.Conn) {
		t.Helper()
		near, err := net.Dial("tcp", wire.Listen)
		if err != nil {
			t.Fatal(err)
		}
		far = <-served
		t.Cleanup(func() { near.Close(); far.Close() })
		return near, far
	}
	passes := func(what string, from, to net.Conn) {
		t.Helper()
		if _, err := from.Write([]byte("!")); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		to.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	silent := func(what string, conn net.Conn) {
		t.Helper()
		conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", what, err)
		}
	}
	near, far := connect()
	passes("before", near, far)
	passes("before, back", far, near)
	if err := muteNow(wire, 1); err != nil {
		t.Fatal(err)
	}
	newNear, newFar := connect()
	checks := func(when string) {
		t.Helper()
		near.Write([]byte("?"))
		far.Write([]byte("?"))
		silent(when+", there", far)
		silent(when+", back", near)
		passes(when+", a new one", newNear, newFar)
		passes(when+", a new one, back", newFar, newNear)
	}
	checks("muted")
	if _, err := wire.Toxics.AddToxicJson(strings.NewReader(`{"name":"later","stream":"upstream","type":"latency","attributes":{"latency":1}}`)); err != nil {
		t.Fatal(err)
	}
	checks("with another fault")
	healWire(wire)
	checks("healed")
	near.Close()
	silent("when its client has gone", far)
}

// A long schedule has every kind of fault.
func TestAllFaultsAreDrawn(t *testing.T) {
	faults := plan(1, 1000, time.Hour)
	for _, kind := range []string{kill, term, freeze, killInRecovery, shutDown, delay, blackhole, mute, drop, redeliver, fullDisk} {
		if !slices.ContainsFunc(faults, func(f fault) bool { return f.Kind == kind }) {
			t.Errorf("no %s", kind)
		}
	}
	if again := plan(1, 1000, time.Hour); !slices.Equal(faults, again) {
		t.Error("the same seed makes a different schedule")
	}
}

// A machine's connections to others fall silent, and those to itself and over loopback do not.
func TestSilencing(t *testing.T) {
	got := silencing("0 0 10.77.0.13:5432 10.77.0.38:41000\n0 0 10.77.0.13:40000 10.77.0.13:2379\n0 0 127.0.0.1:5432 127.0.0.1:40001\n")
	const want = `*filter
-A INPUT -p tcp -s 10.77.0.38 --sport 41000 --dport 5432 -j DROP
-A OUTPUT -p tcp -d 10.77.0.38 --sport 5432 --dport 41000 -j DROP
COMMIT
`
	if got != want {
		t.Errorf("got\n%s", got)
	}
}
