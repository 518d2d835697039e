package db

import (
	"context"
	"testing"

	"pgw/shared/event"
	"pgw/shared/payment"
)

func TestSweepRollsBackAndTells(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	ctx := t.Context()
	w.expire(w.mustReserve(pay("short", "A", "B", 10)).ReservationID)
	w.mustReserve(pay("long", "A", "B", 20))

	w.published.fail = context.DeadlineExceeded
	if _, err := w.sweep(ctx); err == nil {
		t.Fatal("a sweep that could not publish returns no error")
	}
	w.published.fail = nil
	if swept, err := w.sweep(ctx); err != nil || swept.RolledBack != 0 || swept.Published != 1 {
		t.Fatalf("second sweep: %+v, %v", swept, err)
	}
	result, err := event.Decode[event.PaymentResult](w.published.events[0])
	if err != nil || result.Key != "short" || result.Status != payment.Failed || result.Reason != payment.Expired {
		t.Errorf("published %+v, %v", result, err)
	}
	if err := w.cfg.Keys.Verify(w.published.events[0]); err != nil {
		t.Error(err)
	}
	if swept, err := w.sweep(ctx); err != nil || swept.Published != 0 {
		t.Errorf("third sweep: %+v, %v", swept, err)
	}
	if w.balance("A") != 80 {
		t.Errorf("A has %d", w.balance("A"))
	}
}
