package flow

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// results returns what the published results say, by the keys of their payments. Events with one id must
// say the same.
func (s *system) results() map[string][]string {
	s.t.Helper()
	all, said := map[string][]string{}, map[string]string{}
	for _, m := range s.records(s.kafka.ResultTopic) {
		if header(m, "ce_type") != event.TypePaymentResult {
			continue
		}
		e := must(kafka.ReadRecord(context.Background(), m, nil))
		got := must(event.ReadResult(e, &s.keys))
		now := fmt.Sprintf("%s %s", got.Status, got.Reason)
		switch before, known := said[e.ID()]; {
		case !known:
			said[e.ID()], all[got.Key] = now, append(all[got.Key], now)
		case before != now:
			s.t.Errorf("the results of %s with one id say %s and %s", got.Key, before, now)
		}
	}
	return all
}

// Payments that are only authorized come by events. Their money is held and told as authorized. Then one
// is captured in part, one is voided, and one expires. The same requests again change nothing, and the
// books agree with all events.
func TestAuthorizedPaymentsByEvents(t *testing.T) {
	s := start(t, options{})
	ctx := t.Context()
	db := dbv1.NewDbClient(s.Conn("db"))
	a, b := s.balance("A"), s.balance("B")
	requests := map[string]payment.Payment{}
	for _, key := range []string{"captured", "voided", "expired", "open"} {
		r := request(key, "A", "B", 10_000)
		r.HoldSeconds = 3600
		requests[key] = r
		s.publish(r)
	}
	s.drain()
	if s.balance("A") != a-40_000 || s.balance("B") != b {
		t.Errorf("A has %d of %d, B %d of %d", s.balance("A"), a, s.balance("B"), b)
	}
	s.expectClean()
	operate := func(call func(*commonv1.Operation) (*dbv1.OperationResponse, error), op payment.Operation) {
		t.Helper()
		got, err := call(rpc.FromOperation(op))
		if err != nil || got.Outcome.Status != commonv1.Status_STATUS_SUCCESS {
			t.Fatalf("%s: %v, %v", op.Kind, got, err)
		}
	}
	operate(func(o *commonv1.Operation) (*dbv1.OperationResponse, error) { return db.Capture(ctx, o) },
		payment.Operation{Kind: payment.Capture, Key: "c", Payment: "captured", Minor: 4000, Currency: idr})
	operate(func(o *commonv1.Operation) (*dbv1.OperationResponse, error) { return db.Void(ctx, o) },
		payment.Operation{Kind: payment.Void, Key: "v", Payment: "voided"})
	// Two statements: the rows may be on different servers.
	var expired time.Time
	s.query(&expired, `UPDATE reservations SET deadline = statement_timestamp() - interval '1 ms' WHERE idempotency_key = 'expired' RETURNING deadline`)
	s.exec(`UPDATE authorizations SET expires_at = $1 WHERE reservation_id = (SELECT reservation_id FROM reservations WHERE idempotency_key = 'expired')`, expired)
	if _, err := dbv1.NewAdminClient(s.Conn("db")).Sweep(ctx, &dbv1.SweepRequest{}); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		held := s.count(`SELECT coalesce(sum(held), 0) FROM balances WHERE account_id = 'A'`)
		if paid := s.balance("B") - b; paid != 4000 || held != 10_000 {
			t.Errorf("%s: B got %d, and A holds %d", when, paid, held)
		}
		s.expectClean()
	}
	check("ended")
	told := func(when string, want map[string][]string) {
		t.Helper()
		for key, said := range s.results() {
			if !slices.Equal(said, want[key]) {
				t.Errorf("%s: %s was told as %q, want %q", when, key, said, want[key])
			}
		}
	}
	const authorized = "SUCCESS authorized"
	told("ended", map[string][]string{
		"captured": {authorized}, "voided": {authorized}, "open": {authorized}, "expired": {authorized, "FAILED authorization_expired"},
	})

	// Everything again, as a replay from the beginning of the topic does.
	for _, r := range requests {
		s.publish(r)
	}
	s.drain()
	check("again")
	told("again", map[string][]string{
		"captured": {authorized, "SUCCESS committed"}, "voided": {authorized, "FAILED voided"}, "open": {authorized},
		"expired": {authorized, "FAILED authorization_expired"},
	})
}
