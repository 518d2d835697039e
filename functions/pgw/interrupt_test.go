package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// silentAfter is a gateway that answers some requests. It closes reached at the next one, and answers no
// more.
func silentAfter(t *testing.T, answered int32) (url string, reached chan struct{}) {
	reached = make(chan struct{})
	var requests atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		n := requests.Add(1)
		if n <= answered {
			fmt.Fprint(w, `{"status":"SUCCESS","reason":"committed","ref":"r"}`)
			return
		}
		if n == answered+1 {
			close(reached)
		}
		<-r.Context().Done()
	}))
	t.Cleanup(s.Close)
	return s.URL, reached
}

// interruptedAt runs a process, and interrupts it when it has reached a point.
func interruptedAt(t *testing.T, c *exec.Cmd, reached <-chan struct{}) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { c.Wait(); close(ended) }()
	select {
	case <-reached:
		c.Process.Signal(os.Interrupt)
		<-ended
	case <-ended:
		t.Error("it ended by itself")
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// A load that is interrupted says how many payments were made. What it has found is on standard output.
func TestALoadIsInterrupted(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		args := []string{"load", "--payments", "1000", "--connections", "1"}
		if asJSON {
			args = append(args, "--json")
		}
		c := pgw(t, args...)
		url, reached := silentAfter(t, 5)
		c.Env = append(c.Env, "GATEWAY_URL="+url, "DATABASE_URL=postgres://nowhere.invalid/")
		stdout, stderr, code := interruptedAt(t, c, reached)
		if code != 130 || stderr != "pgw: interrupted after 5 of 1000 requests; the answers were not compared with the ledger\n" {
			t.Errorf("exit code %d, stderr %q", code, stderr)
		}
		var r loadReport
		if asJSON {
			if err := json.Unmarshal([]byte(stdout), &r); err != nil || r.Answered != 5 || r.Outcomes["SUCCESS committed"] != 5 || r.Ledger != nil {
				t.Errorf("%q: %v", stdout, err)
			}
		} else if !strings.HasPrefix(stdout, "5 requests in ") || !strings.Contains(stdout, "5 SUCCESS committed\n") {
			t.Errorf("stdout %q", stdout)
		}
	}
}

func TestAReplayIsInterrupted(t *testing.T) {
	c := pgw(t, "replay", "events.jsonl", "", "--in-flight", "1")
	url, reached := silentAfter(t, 3)
	c.Args[3] = url
	var events strings.Builder
	for i := range 10 {
		fmt.Fprintf(&events, `{"specversion":"1.0","id":"%d","source":"/test","type":"t","data":{}}`+"\n", i)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "events.jsonl"), []byte(events.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := interruptedAt(t, c, reached)
	if code != 130 || stdout != "" || !strings.HasSuffix(stderr, "pgw: interrupted after 3 events were sent\n") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// A reconciliation that is interrupted has no verdict.
func TestAReconciliationIsInterrupted(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c := pgw(t, "reconcile")
	c.Env = append(c.Env, "DATABASE_URL=postgres://u@"+silent.Addr().String()+"/d?sslmode=disable", "KAFKA_BROKERS=nowhere.invalid:9092")
	reached := make(chan struct{})
	go func() {
		if conn, err := silent.Accept(); err == nil {
			defer conn.Close()
			close(reached)
			io.Copy(io.Discard, conn)
		}
	}()
	stdout, stderr, code := interruptedAt(t, c, reached)
	if code != 130 || stdout != "" || stderr != "pgw: interrupted before the first check; nothing is known about the books\n" {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestASeedIsInterrupted(t *testing.T) {
	c := pgw(t, "seed", "accounts", "--count", "400000", "--format", "cloudevents")
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	r.ReadString('\n')
	c.Process.Signal(os.Interrupt)
	io.Copy(io.Discard, r)
	c.Wait()
	if code := c.ProcessState.ExitCode(); code != 130 || !strings.HasPrefix(errs.String(), "pgw: interrupted after ") || !strings.HasSuffix(errs.String(), " of 400000 accounts\n") {
		t.Errorf("exit code %d, stderr %q", code, &errs)
	}
}

// reconcile --every prints each report, here that there is none, and listens on this machine only.
func TestReconcileEveryPrintsAndListensOnLoopback(t *testing.T) {
	c := pgw(t, "reconcile", "--every", "1s")
	c.Env = append(c.Env, "DATABASE_URL=postgres://u@127.0.0.1:1/d?sslmode=disable", "KAFKA_BROKERS=127.0.0.1:1", "PORT=0")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	log, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	addr := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			var line struct{ Msg, Addr string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
				addr <- line.Addr
			}
		}
		close(addr)
	}()
	reports := bufio.NewReader(out)
	for range 2 {
		if line, err := reports.ReadString('\n'); err != nil || !strings.HasPrefix(line, "It could not be checked whether the books agree: ") {
			t.Errorf("%q, %v", line, err)
		}
	}
	if host, _, err := net.SplitHostPort(<-addr); err != nil || host != "127.0.0.1" {
		t.Errorf("it listens on %q: %v", host, err)
	}
	c.Process.Signal(os.Interrupt)
	io.Copy(io.Discard, reports)
	for range addr {
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}
