package function

import (
	"cmp"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// The limits of the bytes that are held for bodies that have not ended. Without them, one
// connection could make the port hold gigabytes: the number of its streams times the size of a
// body. If there is a proxy before the port, one connection carries many clients.
const (
	maxArriving   = 64 << 20 // of the port
	maxArrivingOn = 16 << 20 // of one connection
	// leastHeld is the memory of even a body of one byte. With gRPC, each piece has its own buffer.
	leastHeld     = 4 << 10
	grpcPieceHeld = 16 << 10
)

// arriving counts these bytes. A body that arrives quickly is usually not counted. Above the limit,
// the oldest bodies are aborted: an honest client has sent its whole body long before.
type arriving struct {
	givenUp prometheus.Counter

	mu     sync.Mutex
	bytes  int64
	bodies map[*receiving]struct{}
	next   int64 // the number of the next body
}

func newArriving(r prometheus.Registerer) *arriving {
	return &arriving{bodies: map[*receiving]struct{}{}, givenUp: promauto.With(r).NewCounter(prometheus.CounterOpts{
		Name: "pgw_bodies_given_up_total", Help: "Requests that were aborted because too many bytes of incomplete bodies were held.",
	})}
}

// more counts n more bytes of a body that has not ended.
func (a *arriving) more(b *receiving, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b.ended {
		return
	}
	if _, known := a.bodies[b]; !known {
		a.bodies[b] = struct{}{}
		b.number = a.next
		a.next++
		n += leastHeld
	}
	b.held += n
	b.on.held += n
	a.bytes += n
	if b.on.held > maxArrivingOn {
		a.makeRoom(b.on, &b.on.held, maxArrivingOn)
	}
	if a.bytes > maxArriving {
		a.makeRoom(nil, &a.bytes, maxArriving)
	}
}

// end removes a body that has ended, or whose request was answered. It is not aborted after that.
func (a *arriving) end(b *receiving) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b.ended = true
	a.forget(b)
}

func (a *arriving) forget(b *receiving) {
	if _, known := a.bodies[b]; !known {
		return
	}
	delete(a.bodies, b)
	b.on.held -= b.held
	a.bytes -= b.held
	b.held = 0
}

// makeRoom aborts bodies until a sixteenth of the limit is free. A search through all of them for
// each piece would cost too much. It aborts bodies of the given connection, or else of the
// connections that hold most. a.mu is held.
func (a *arriving) makeRoom(on *connection, held *int64, most int64) {
	type candidate struct {
		*receiving
		of int64 // the bytes that its connection holds
	}
	var all []candidate
	for b := range a.bodies {
		if on == nil || b.on == on {
			all = append(all, candidate{b, b.on.held})
		}
	}
	slices.SortFunc(all, func(x, y candidate) int { return cmp.Or(cmp.Compare(y.of, x.of), cmp.Compare(x.number, y.number)) })
	for _, b := range all {
		if *held <= most-most/16 {
			return
		}
		a.forget(b.receiving)
		b.ended = true
		b.giveUp()
		a.givenUp.Inc()
	}
}
