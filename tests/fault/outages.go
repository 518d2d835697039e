package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The parts of a cluster that are broken.
const (
	aPrimary  = "primary"
	aStandby  = "standby" // the synchronous one
	aBroker   = "broker"
	aFunction = "function" // one of its two replicas
)

// outages are the kinds of faults of each part.
var outages = map[string][]string{
	aPrimary:  {killServer, killMachine, freeze, cut, mute, clock},
	aStandby:  {killMachine, freeze, cut, mute},
	aBroker:   {killMachine, term, freeze, cut, mute},
	aFunction: {kill, kill, term, freeze, cut, mute},
}

// turns are the order in which the parts are broken.
var turns = []string{aPrimary, aFunction, aBroker, aPrimary, aFunction, aBroker, aStandby}

// goal is the median time within which the first payment after a fault should be decided.
type goal struct {
	Name   string
	Within time.Duration
	of     func(fault) bool
}

var goals = []goal{
	{"dead primary", 5 * time.Second, func(f fault) bool { return f.Target == aPrimary && (f.Kind == killServer || f.Kind == killMachine) }},
	{"frozen or unreachable primary", 15 * time.Second, func(f fault) bool { return f.Target == aPrimary && f.Kind != killServer && f.Kind != killMachine }},
	{"standby", 15 * time.Second, func(f fault) bool { return f.Target == aStandby }},
	{"broker", 3 * time.Second, func(f fault) bool { return f.Target == aBroker }},
	{"function", time.Second, func(f fault) bool { return f.Target == aFunction }},
}

// dealer returns the function that draws the next fault. Each part has its turn, and a part has each of its
// kinds of faults once before it has one again.
func dealer(seed uint64) func() fault {
	rng := rand.New(rand.NewPCG(seed, 6))
	decks := map[string][]string{}
	seconds := func(least, most int) time.Duration { return time.Duration(least+rng.IntN(most-least+1)) * time.Second }
	n := 0
	return func() fault {
		f := fault{Target: turns[n%len(turns)], draw: rng.Uint64()}
		n++
		if len(decks[f.Target]) == 0 {
			decks[f.Target] = slices.Clone(outages[f.Target])
			rng.Shuffle(len(decks[f.Target]), func(i, j int) { d := decks[f.Target]; d[i], d[j] = d[j], d[i] })
		}
		f.Kind, decks[f.Target] = decks[f.Target][0], decks[f.Target][1:]
		switch f.Kind {
		case killMachine:
			f.For = seconds(10, 14)
		case freeze, cut:
			f.For = seconds(10, 20)
		case clock:
			f.For, f.Ahead = seconds(6, 10), seconds(2, 40)
			if rng.IntN(2) == 0 {
				f.Ahead = -f.Ahead
			}
		}
		return f
	}
}

// aim returns the machine that a fault is for.
func (c *cluster) aim(ctx context.Context, f *fault) (*machine, error) {
	switch f.Target {
	case aPrimary:
		return c.store(ctx, "primary")
	case aStandby:
		return c.store(ctx, "sync")
	case aBroker:
		return c.brokers[f.draw%uint64(len(c.brokers))], nil
	}
	return c.replicas[f.draw%uint64(len(c.replicas))], nil
}

// inflict makes a fault, and undoes it when its time has passed.
func (c *cluster) inflict(ctx context.Context, begun time.Time, f *fault) error {
	m, err := c.aim(ctx, f)
	if err != nil {
		return err
	}
	f.Machine = m.Name
	f.At, f.since = time.Since(begun).Round(time.Millisecond), time.Now()
	fmt.Printf("%7.1f s  %s (%s)\n", f.At.Seconds(), f, m.Name)
	switch f.Kind {
	case kill:
		return m.signal(syscall.SIGKILL)
	case term:
		return m.end(ctx)
	case killServer:
		return killServerOf(m)
	case mute:
		return m.silence()
	case killMachine:
		m.off.Store(true)
		defer m.off.Store(false)
		err = m.signal(syscall.SIGKILL)
		sleep(ctx, f.For)
		return err
	case freeze:
		err = m.signal(syscall.SIGSTOP)
		sleep(ctx, f.For)
		return errors.Join(err, m.signal(syscall.SIGCONT))
	case cut:
		err = m.unplug()
		sleep(ctx, f.For)
		return errors.Join(err, m.plug())
	case clock:
		err = m.setClock(f.Ahead)
		sleep(ctx, f.For)
		return errors.Join(err, m.setClock(0))
	}
	return fmt.Errorf("%q is not a kind of fault", f.Kind)
}

// killServerOf kills the Postgres of a machine, and leaves the rest of it alone.
func killServerOf(m *machine) error {
	text, err := os.ReadFile(filepath.Join(m.Dir, "data", "postmaster.pid"))
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// heal undoes what is still broken.
func (c *cluster) heal() {
	for _, m := range slices.Concat(c.stores, c.brokers, c.replicas) {
		m.off.Store(false)
		if err := errors.Join(m.signal(syscall.SIGCONT), m.plug(), m.setClock(0)); err != nil {
			c.log.Error("a machine is not healed", "machine", m.Name, "error", err)
		}
	}
}

// stop ends the functions as a cluster does, and everything else at once.
func (c *cluster) stop() error {
	var errs []error
	for _, sys := range c.systems {
		errs = append(errs, sys.StopAll())
	}
	for _, m := range slices.Concat(c.stores, c.brokers) {
		errs = append(errs, m.signal(syscall.SIGKILL))
	}
	errs = append(errs, unmount(c.dir))
	return errors.Join(errs...)
}
