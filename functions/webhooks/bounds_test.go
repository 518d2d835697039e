package webhooks

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"pgw/shared/ledger"
)

// However many endpoints hang, the others keep three quarters of the places.
func TestEndpointsThatHangLeavePlacesToTheOthers(t *testing.T) {
	b := newBounds(16, 64)
	for range 100 {
		id := uuid.New()
		for s := b.take(id); s != nil; s = b.take(id) {
			s.slow()
		}
	}
	if got := b.underWay(bad); got < b.places(bad) {
		t.Errorf("%d attempts at endpoints that hang", got)
	}
	id := uuid.New()
	if n := b.free(id); n != firstLimit {
		t.Errorf("another endpoint has %d places", n)
	}
	if b.take(id) == nil {
		t.Error("another endpoint has no place")
	}
}

// An endpoint gets more places with each success, and hardly any after a failure.
func TestPlacesFollowSuccess(t *testing.T) {
	b := newBounds(8, 64)
	id := uuid.New()
	for range 20 {
		b.take(id).done(healthy)
	}
	if n := b.free(id); n != 8 {
		t.Errorf("after successes %d places, want the most of one endpoint", n)
	}
	b.take(id).done(unhealthy)
	if n := b.free(id); n != failingLimit {
		t.Errorf("after a failure %d places", n)
	}
	b.take(id).done(unknown)
	if n := b.free(id); n != failingLimit {
		t.Errorf("after nothing was sent %d places", n)
	}
	b.take(id).done(healthy)
	if n := b.free(id); n != firstLimit+1 {
		t.Errorf("after it works again %d places", n)
	}
}

// An endpoint that has failed before a restart is known to fail. One that was deleted is forgotten.
func TestWhatIsKnownOfEndpoints(t *testing.T) {
	b := newBounds(8, 64)
	failing, fine := ledger.Endpoint{ID: uuid.New(), FailingSince: time.Now()}, ledger.Endpoint{ID: uuid.New()}
	b.know([]ledger.Endpoint{failing, fine})
	if b.free(failing.ID) != failingLimit || b.free(fine.ID) != firstLimit {
		t.Errorf("places %d and %d", b.free(failing.ID), b.free(fine.ID))
	}
	s := b.take(failing.ID)
	b.know(nil)
	if len(b.endpoints) != 1 {
		t.Errorf("%d endpoints are known, want the one with an attempt under way", len(b.endpoints))
	}
	s.done(healthy)
	if b.know(nil); len(b.endpoints) != 0 || b.busy != [2]int{} {
		t.Errorf("left: %v, %v", b.endpoints, b.busy)
	}
}

// free returns how many attempts at an endpoint could begin now.
func (b *bounds) free(id uuid.UUID) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.endpoints[id]
	if l == nil {
		l = newLoad(false)
	}
	return max(0, min(l.limit-l.busy, b.places(l.class())-b.busy[l.class()]))
}
