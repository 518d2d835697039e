package ledger

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// skews are the differences between a replica's clock and the database's.
var skews = map[string]time.Duration{"behind": -90 * time.Second, "ahead": 90 * time.Second, "an hour ahead": time.Hour}

// skewed sets the clock of the world's replica. The database uses this machine's clock.
func (w *world) skewed(by time.Duration) {
	w.now = func() time.Time { return time.Now().Add(by) }
}

// The replica's clock does not matter. The database's clock decides about the deadline, limits it,
// and makes the id by which a sweep finds the reservation.
func TestTheDatabasesClockJudges(t *testing.T) {
	for name, skew := range skews {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.open(1000, "A", "B")
			w.skewed(skew)
			before := time.Now()
			held := w.mustReserve(pay("in time", "A", "B", 10))
			if held.Status != payment.Pending {
				t.Fatalf("in time: %+v", held)
			}
			if at := timeOf(held.ReservationID); at.Before(before.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
				t.Errorf("its id has the time %s, and it was made at %s", at, before)
			}
			if got := w.mustFinish(Finish{ReservationID: held.ReservationID}); !got.Done {
				t.Errorf("commit: %+v", got)
			}

			late := pay("late", "A", "B", 10)
			late.Deadline = time.Now().Add(-10 * time.Second)
			if got := w.mustReserve(late); got.Reason != payment.Expired {
				t.Errorf("past its deadline: %+v", got)
			}

			long := pay("long", "A", "B", 10)
			long.Deadline = time.Now().Add(24 * time.Hour)
			none := pay("none", "A", "B", 10)
			none.Deadline = time.Time{}
			for _, r := range []payment.Payment{long, none} {
				w.mustReserve(r)
				rec, err := w.Payment(t.Context(), r.Scoped())
				if err != nil {
					t.Fatal(err)
				}
				if life := rec.Deadline.Sub(rec.ReservedAt); life != payment.DecideWithin {
					t.Errorf("%s: may be settled for %s", r.Key, life)
				}
			}
		})
	}
}

// Ids rise within a batch and from batch to batch, and contain the time that they were made from.
func TestIdsAreOrderedByTheGivenTime(t *testing.T) {
	at := time.Date(2026, 1, 31, 9, 30, 0, 999_900_000, time.UTC)
	var last uuid.UUID
	for range 3 {
		for n := range 256 {
			id := idAt(at, n)
			if id.Version() != 7 || id.Variant() != uuid.RFC4122 {
				t.Fatalf("%s is not a UUIDv7", id)
			}
			if id.String() <= last.String() {
				t.Fatalf("%s is not greater than %s", id, last)
			}
			if d := timeOf(id).Sub(at); d < -time.Millisecond || d > time.Millisecond {
				t.Fatalf("%s is %s off", id, d)
			}
			last = id
		}
		at = at.Add(100 * time.Microsecond)
	}
}

// A mark in the future hides no hold. A sweep corrects it.
func TestAMarkInTheFutureHeals(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	w.madeBefore("old", 24*time.Hour)
	w.madeBefore("recent", 2*time.Minute)
	w.exec(`UPDATE sweep_state SET swept_to = '2099-01-01'`)
	rolledBack, published, err := w.sweep(t.Context())
	if err != nil || rolledBack != 2 || published != 2 {
		t.Fatalf("swept %d, published %d, %v", rolledBack, published, err)
	}
	if mark := w.mark(); mark.After(time.Now()) {
		t.Errorf("the mark stays at %s", mark)
	}
}

// No replica's clock can move the mark past holds.
func TestAReplicasClockDoesNotMoveTheMark(t *testing.T) {
	for name, skew := range skews {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.open(100, "A", "B")
			w.skewed(skew)
			if _, _, err := w.sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if mark := w.mark(); mark.After(time.Now().Add(-payment.DecideWithin)) {
				t.Errorf("the mark is at %s, and it is %s", mark, time.Now())
			}
			w.madeBefore("k", payment.DecideWithin+time.Second)
			if rolledBack, _, err := w.sweep(t.Context()); err != nil || rolledBack != 1 {
				t.Errorf("swept %d, %v", rolledBack, err)
			}
		})
	}
}

// A sweep reads more than one page, and finds the holds of every page.
func TestASweepGoesThroughAllPages(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	w.madeBefore("first", 3*time.Hour)
	const chunk = 5000
	for from := 1; from <= 2*sweepPage+1; from += chunk {
		w.exec(`INSERT INTO reservations (reservation_id, idempotency_key, fingerprint, sender_id, receiver_id, amount_idr, currency_input, status, deadline)
SELECT overlay(lpad(to_hex((extract(epoch FROM now() - interval '2 hours') * 1000)::bigint + n), 12, '0') || substr(md5(n::text), 1, 20) PLACING '7' FROM 13 FOR 1)::uuid,
	'filler ' || n, '\x00112233445566778899aabbccddeeff', 'A', 'B', 1, 'IDR', 'ROLLEDBACK', now()
FROM generate_series($1::int, $2::int) n`, from, min(from+chunk-1, 2*sweepPage+1))
		w.exec(`WITH fillers AS MATERIALIZED (
	SELECT reservation_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr
	FROM reservations r WHERE status = 'ROLLEDBACK' AND NOT EXISTS (SELECT FROM payments p WHERE p.payment_id = r.reservation_id AND p.idempotency_key = r.idempotency_key)
)
INSERT INTO payments SELECT *, 'FAILED', 'expired' FROM fillers`)
	}
	w.madeBefore("last", time.Hour)
	if rolledBack, published, err := w.sweep(t.Context()); err != nil || rolledBack != 2 || published != 2 {
		t.Errorf("swept %d, published %d, %v", rolledBack, published, err)
	}
	if mark := w.mark(); mark.Before(time.Now().Add(-10 * time.Minute)) {
		t.Errorf("the mark stays at %s", mark)
	}
}

// The last rate put is in force, whichever replica takes it and whatever its clock says. This also
// holds after a row with a time in the future.
func TestWhatIsPutLastHolds(t *testing.T) {
	w := newWorld(t)
	usd, err := money.ParseCurrency("USD")
	if err != nil {
		t.Fatal(err)
	}
	put := func(rate string) {
		t.Helper()
		price, err := money.ParseRate(rate)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.PutRates(t.Context(), []Rate{{Base: usd, Quote: money.IDR, Rate: price}}, Order{}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.PutRules(t.Context(), []byte(`{"min_amount_idr": `+rate+`}`), "", Order{}); err != nil {
			t.Fatal(err)
		}
		newest := `SELECT rate::text FROM fx_rates WHERE base = 'USD' AND quote = 'IDR' ORDER BY effective_at DESC, rate_id DESC LIMIT 1`
		rules := `SELECT rules->>'min_amount_idr' FROM risk_rules ORDER BY created_at DESC, rule_set DESC LIMIT 1`
		for _, sql := range []string{newest, rules} {
			var got string
			if err := w.pool.QueryRow(t.Context(), sql).Scan(&got); err != nil || got != rate {
				t.Errorf("after %s was put: %s, %v", rate, got, err)
			}
		}
	}
	put("1")
	w.skewed(time.Hour)
	put("2")
	w.skewed(-time.Hour)
	put("3")
	w.exec(`UPDATE fx_rates SET effective_at = '2099-01-01' WHERE rate = 3`)
	w.exec(`UPDATE risk_rules SET created_at = '2099-01-01' WHERE rules->>'min_amount_idr' = '3'`)
	put("4")
}

// Before the database's clock decided, the rules with the highest id were in force. They stay in
// force after the migration.
func TestTheRulesInForceStayInForce(t *testing.T) {
	url := embeddedtest.Postgres(t)
	migrateTo(t, url, 3)
	conn := connect(t, url)
	if _, err := conn.Exec(t.Context(), `INSERT INTO risk_rules VALUES ('01900000-0000-7000-8000-000000000000', '{"n": 1}', now() + interval '1 hour'),
		('01900000-0000-7000-8000-000000000001', '{"n": 2}', now() - interval '1 hour')`); err != nil {
		t.Fatal(err)
	}
	if err := Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	var n string
	err := conn.QueryRow(t.Context(), `SELECT rules->>'n' FROM risk_rules ORDER BY created_at DESC, rule_set DESC LIMIT 1`, pgx.QueryExecModeSimpleProtocol).Scan(&n)
	if err != nil || n != "2" {
		t.Errorf("in force: %s, %v", n, err)
	}
}
