package webhooks

import (
	"sync"

	"github.com/google/uuid"

	"pgw/shared/ledger"
)

// The bounds of an endpoint: at first it gets a few attempts at the same time, one more after each
// success, and hardly any while it fails.
const (
	firstLimit   = 4
	failingLimit = 2
)

// bounds limit how many attempts are under way, so that no endpoint can delay another's. Attempts at
// endpoints that fail or are slow have a quarter of the places to themselves: however many of them
// there are, the others keep three quarters.
type bounds struct {
	each, all int

	mu        sync.Mutex
	endpoints map[uuid.UUID]*load
	busy      [2]int // attempts under way: of good endpoints, and of bad ones
}

// The classes of attempts, indices of bounds.busy.
const (
	good = 0
	bad  = 1
)

type load struct {
	busy, limit int
	failing     bool // the last attempt failed, or one takes long
}

func newBounds(each, all int) *bounds {
	return &bounds{each: each, all: all, endpoints: map[uuid.UUID]*load{}}
}

func (b *bounds) places(class int) int {
	if class == bad {
		return max(1, b.all/4)
	}
	return max(1, b.all-b.all/4)
}

// know tells which endpoints there are. One that has failed when pgw started is known to fail.
func (b *bounds) know(endpoints []ledger.Endpoint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	there := map[uuid.UUID]bool{}
	for _, e := range endpoints {
		there[e.ID] = true
		if b.endpoints[e.ID] == nil {
			b.endpoints[e.ID] = newLoad(!e.FailingSince.IsZero())
		}
	}
	for id, l := range b.endpoints {
		if !there[id] && l.busy == 0 {
			delete(b.endpoints, id)
		}
	}
}

func newLoad(failing bool) *load {
	if failing {
		return &load{limit: failingLimit, failing: true}
	}
	return &load{limit: firstLimit}
}

func (l *load) class() int {
	if l.failing {
		return bad
	}
	return good
}

// slot is the place of an attempt that is under way.
type slot struct {
	of    *bounds
	load  *load
	class int
}

// take takes a place for an attempt at an endpoint; nil if there is none.
func (b *bounds) take(id uuid.UUID) *slot {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.endpoints[id]
	if l == nil {
		l = newLoad(false)
		b.endpoints[id] = l
	}
	class := l.class()
	if l.busy >= l.limit || b.busy[class] >= b.places(class) {
		return nil
	}
	l.busy++
	b.busy[class]++
	return &slot{b, l, class}
}

// slow says that the attempt takes long. It no longer takes a place of the good ones, even if that
// means more attempts at bad ones than their places.
func (s *slot) slow() {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.of.busy[s.class]--
	s.class = bad
	s.of.busy[bad]++
	s.load.failing, s.load.limit = true, failingLimit
}

// health is what an attempt says about its endpoint.
type health int

const (
	unknown health = iota // nothing was sent
	healthy
	unhealthy
)

// done gives the place back.
func (s *slot) done(h health) {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.of.busy[s.class]--
	s.load.busy--
	switch h {
	case healthy:
		s.load.failing, s.load.limit = false, min(max(s.load.limit, firstLimit)+1, s.of.each)
	case unhealthy:
		s.load.failing, s.load.limit = true, failingLimit
	}
}

// underWay returns the number of attempts under way of a class.
func (b *bounds) underWay(class int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.busy[class]
}
