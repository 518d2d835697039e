package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// The machines' network. Each machine is a network namespace with one cable to the same switch, so what
// happens to a machine happens to everything that runs on it.
const (
	netOf    = "10.77.0."
	gateAddr = netOf + "1" // where the clients and the load balancer are
	wholeNet = netOf + "0/24"
	aSwitch  = "pgw"

	endWithin = time.Minute // a process ends that was asked to
)

// machine is one of those that may die.
type machine struct {
	Name   string
	Number int // among those of its kind, from 1
	Addr   string
	Dir    string

	log   string      // the file that gets its programs' output
	cable string      // its end at the switch
	off   atomic.Bool // nothing is started on it
}

// newSwitch makes the switch. This process has to be in a network namespace of its own.
func newSwitch() error {
	return errors.Join(
		command("ip", "link", "add", aSwitch, "type", "bridge", "forward_delay", "0"),
		command("ip", "address", "add", gateAddr+"/24", "dev", aSwitch),
		command("ip", "link", "set", aSwitch, "up"),
	)
}

// newMachine makes a machine with a folder in dir, and a log in out. last is the last part of its address.
func newMachine(dir, out, kind string, number, last int) (*machine, error) {
	m := &machine{Name: fmt.Sprintf("%s-%d", kind, number), Number: number, Addr: netOf + strconv.Itoa(last), cable: fmt.Sprint("cable", last)}
	m.Dir, m.log = filepath.Join(dir, m.Name), filepath.Join(out, m.Name+".log")
	if err := errors.Join(os.Mkdir(m.Dir, 0o755), os.WriteFile(m.log, nil, 0o644)); err != nil {
		return nil, err
	}
	// The clock's difference from this process's, as libfaketime reads it.
	if err := m.setClock(0); err != nil {
		return nil, err
	}
	return m, errors.Join(
		command("ip", "netns", "add", m.Name),
		command("ip", "link", "add", m.cable, "type", "veth", "peer", "name", "eth0", "netns", m.Name),
		command("ip", "link", "set", m.cable, "master", aSwitch, "up"),
		command("ip", "-n", m.Name, "address", "add", m.Addr+"/24", "dev", "eth0"),
		command("ip", "-n", m.Name, "link", "set", "eth0", "up"),
		command("ip", "-n", m.Name, "link", "set", "lo", "up"),
	)
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// on returns the command that starts another one on the machine. The process is the other one's. Each has a
// session of its own, because Linux shares processors among sessions.
func (m *machine) on() []string { return []string{"setsid", "nsenter", "--net=/run/netns/" + m.Name} }

// start starts a program on the machine, as soon as the machine is on.
func (m *machine) start(ctx context.Context, args ...string) (<-chan struct{}, error) {
	m.await(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	log, err := os.OpenFile(m.log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args = append(m.on(), args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, m.Dir
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	gone := make(chan struct{})
	go func() { cmd.Wait(); close(gone) }()
	return gone, nil
}

// await waits until the machine is on.
func (m *machine) await(ctx context.Context) {
	for m.off.Load() && ctx.Err() == nil {
		sleep(ctx, 50*time.Millisecond)
	}
}

// pids are the processes of the machine.
func (m *machine) pids() (pids []int, err error) {
	out, err := exec.Command("ip", "netns", "pids", m.Name).Output()
	if err != nil {
		return nil, fmt.Errorf("processes of %s: %w", m.Name, err)
	}
	for _, text := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// signal sends a signal to every process of the machine. Those that were just started get it too.
func (m *machine) signal(sig syscall.Signal) error {
	sent := map[int]bool{}
	for {
		pids, err := m.pids()
		if err != nil {
			return err
		}
		fresh := 0
		for _, pid := range pids {
			if !sent[pid] {
				sent[pid] = true
				fresh++
				syscall.Kill(pid, sig)
			}
		}
		if fresh == 0 {
			return nil
		}
	}
}

// end asks the machine's processes to end, and waits until they have.
func (m *machine) end(ctx context.Context) error {
	pids, err := m.pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGTERM)
	}
	bounded, cancel := context.WithTimeout(ctx, endWithin)
	defer cancel()
	return eventually(bounded, func() error {
		for _, pid := range pids {
			if syscall.Kill(pid, 0) == nil {
				return fmt.Errorf("process %d of %s does not end", pid, m.Name)
			}
		}
		return nil
	})
}

// unplug takes the machine off the network: nothing that it sends arrives, and nothing gets to it.
func (m *machine) unplug() error { return command("ip", "link", "set", m.cable, "nomaster") }

func (m *machine) plug() error { return command("ip", "link", "set", m.cable, "master", aSwitch) }

// silence makes the machine's present connections silent for ever: neither end learns that the other has
// gone, and new connections work. Those that it silenced before have long been given up.
func (m *machine) silence() error {
	on := m.on()
	out, err := exec.Command(on[0], append(on[1:], "ss", "-Htn", "state", "established")...).Output()
	if err != nil {
		return fmt.Errorf("connections of %s: %w", m.Name, err)
	}
	cmd := exec.Command(on[0], append(on[1:], "iptables-restore")...)
	cmd.Stdin = strings.NewReader(silencing(string(out)))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("silence %s: %w: %s", m.Name, err, out)
	}
	return nil
}

// silencing returns the rules for iptables-restore that silence the connections that ss lists. A
// machine's connections to itself are left: no network can lose them. etcd has one, behind which it
// serves Patroni.
func silencing(established string) string {
	rules := "*filter\n"
	for line := range strings.Lines(established) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[2], netOf) {
			continue
		}
		here, port, _ := strings.Cut(fields[2], ":")
		peer, peerPort, _ := strings.Cut(fields[3], ":")
		if peer == here {
			continue
		}
		rules += fmt.Sprintf("-A INPUT -p tcp -s %s --sport %s --dport %s -j DROP\n", peer, peerPort, port)
		rules += fmt.Sprintf("-A OUTPUT -p tcp -d %s --sport %s --dport %s -j DROP\n", peer, port, peerPort)
	}
	return rules + "COMMIT\n"
}

// setClock sets how far the machine's clock is ahead, for its Postgres. Programs of Go do not see it: they
// ask the kernel. The timed waits of Java and Python end at once, or fail, with libfaketime.
func (m *machine) setClock(ahead time.Duration) error {
	next := m.clockFile() + ".next"
	return errors.Join(os.WriteFile(next, fmt.Appendf(nil, "%+.3f\n", ahead.Seconds()), 0o644), os.Rename(next, m.clockFile()))
}

func (m *machine) clockFile() string { return filepath.Join(m.Dir, "clock") }

// clocked is the environment of a program that sees the machine's clock, for a shell. $LIB is for the linker.
func (m *machine) clocked() string {
	return "LD_PRELOAD='/usr/$LIB/faketime/libfaketimeMT.so.1' FAKETIME_TIMESTAMP_FILE=" + m.clockFile() + " FAKETIME_CACHE_DURATION=1 FAKETIME_DONT_FAKE_MONOTONIC=1"
}
