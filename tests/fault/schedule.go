package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"pgw/tests/processes"
)

// The kinds of faults.
const (
	kill           = "kill -9"
	term           = "SIGTERM"
	freeze         = "SIGSTOP" // for longer than every timeout
	killInRecovery = "kill -9, and again in recovery"
	shutDown       = "fast shutdown"
	delay          = "delayed connections"
	blackhole      = "silent connections"          // open, but nothing passes
	mute           = "connections silent for ever" // the present ones stay open and are never closed; new ones work
	drop           = "dropped connections"
	redeliver      = "events doubled and reordered"
	fullDisk       = "full disk"
	killServer     = "kill -9 of Postgres alone"
	killMachine    = "kill -9 of the whole machine" // which is off for a while
	cut            = "unplugged machine"            // nothing passes, and no connection is closed
	clock          = "clock step"                   // and back
	badEndpoint    = "failing webhook endpoint"
	stuckEndpoint  = "hanging webhook endpoint"
	cutEndpoint    = "cut webhooks"
)

// manners are what the endpoint does during a fault.
var manners = map[string]manner{badEndpoint: fails, stuckEndpoint: hangs, cutEndpoint: cuts}

// The stores, in addition to the functions and the stand-in.
const (
	kafkaStore    = "kafka"
	postgresStore = "postgres"
)

// endpoint is the client's program that takes webhooks.
const endpoint = "endpoint"

// frozen is longer than the longest timeout, which is that of handling one event.
const frozen = 32 * time.Second

// fault is one fault of the schedule.
type fault struct {
	At     time.Duration `json:"at_ns"` // since the beginning
	Kind   string        `json:"kind"`
	Target string        `json:"target"`
	For    time.Duration `json:"for_ns,omitempty"`   // until it is undone; a process that ends is started again automatically
	Millis int           `json:"delay_ms,omitempty"` // for a delay

	// Of a cluster's faults: what was broken, and how far its clock went ahead.
	Machine string        `json:"machine,omitempty"`
	Ahead   time.Duration `json:"ahead_ns,omitempty"`

	Decided time.Duration `json:"decided_ns,omitempty"` // from the fault to the first success of a payment sent after it
	Whole   time.Duration `json:"whole_ns,omitempty"`   // from the fault until a second one could be made

	draw  uint64    // chooses the machine among its equals
	since time.Time // the time until the next success is measured from then
}

func (f fault) String() string {
	s := fmt.Sprintf("%s of %s", f.Kind, f.Target)
	if f.Ahead != 0 {
		s += fmt.Sprintf(" by %s", f.Ahead)
	}
	if f.For > 0 {
		s += fmt.Sprintf(" for %.1f s", f.For.Seconds())
	}
	return s
}

// class is what faults are counted by. What a cluster survives depends on what was broken, too.
func (f fault) class() string {
	if f.Machine == "" {
		return f.Kind
	}
	return f.Kind + ": " + f.Target
}

// plan draws n faults over a time. The same seed gives the same faults.
func plan(seed uint64, n int, during time.Duration) []fault {
	rng := rand.New(rand.NewPCG(seed, 4))
	wires := append(slices.Clone(processes.Functions), kafkaStore, postgresStore)
	seconds := func(least, most float64) time.Duration {
		return time.Duration((least + rng.Float64()*(most-least)) * float64(time.Second)).Round(time.Millisecond)
	}
	draws := []struct {
		weight int
		draw   func() fault
	}{
		{24, func() fault { return fault{Kind: kill, Target: pick(rng, processes.All)} }},
		{12, func() fault { return fault{Kind: term, Target: pick(rng, processes.All)} }},
		{6, func() fault { return fault{Kind: freeze, Target: pick(rng, processes.All), For: frozen} }},
		{4, func() fault { return fault{Kind: kill, Target: kafkaStore} }},
		{2, func() fault { return fault{Kind: term, Target: kafkaStore} }},
		{1, func() fault { return fault{Kind: freeze, Target: kafkaStore, For: frozen} }},
		{5, func() fault { return fault{Kind: kill, Target: postgresStore} }},
		{3, func() fault { return fault{Kind: killInRecovery, Target: postgresStore} }},
		{2, func() fault { return fault{Kind: shutDown, Target: postgresStore} }},
		{10, func() fault {
			return fault{Kind: delay, Target: pick(rng, wires), For: seconds(4, 10), Millis: 200 + rng.IntN(1300)}
		}},
		{8, func() fault { return fault{Kind: blackhole, Target: pick(rng, wires), For: seconds(3, 12)} }},
		{8, func() fault { return fault{Kind: mute, Target: pick(rng, wires)} }},
		{10, func() fault { return fault{Kind: drop, Target: pick(rng, wires), For: seconds(0.1, 3)} }},
		{10, func() fault { return fault{Kind: redeliver, Target: pick(rng, []string{"worker", "gateway"})} }},
		{3, func() fault { return fault{Kind: fullDisk, Target: postgresStore, For: seconds(3, 8)} }},
		{6, func() fault {
			return fault{Kind: pick(rng, []string{badEndpoint, stuckEndpoint, cutEndpoint}), Target: endpoint, For: seconds(2, 8)}
		}},
	}
	total := 0
	for _, d := range draws {
		total += d.weight
	}
	faults := make([]fault, n)
	for i := range faults {
		w := rng.IntN(total)
		for _, d := range draws {
			if w -= d.weight; w < 0 {
				faults[i] = d.draw()
				break
			}
		}
		// The faults are roughly evenly spread, so both quiet times and several faults at once
		// occur.
		gap := float64(during) / float64(n)
		faults[i].At = time.Duration((float64(i) + rng.Float64()) * gap).Round(time.Millisecond)
	}
	return faults
}

func pick[T any](rng *rand.Rand, from []T) T { return from[rng.IntN(len(from))] }
