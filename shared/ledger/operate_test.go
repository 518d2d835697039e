package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// manual makes a payment that is only authorized.
func manual(p payment.Payment) payment.Payment {
	p.HoldSeconds = 3600
	return p
}

func operationOn(kind payment.OperationKind, key, of string) payment.Operation {
	return payment.Operation{Kind: kind, Key: key, Payment: of, AttemptID: key + "-1", Deadline: time.Now().Add(payment.DecideWithin)}
}

func capture(key, of string, amount money.Amount) payment.Operation {
	op := operationOn(payment.Capture, key, of)
	op.Minor, op.Currency = amount.Minor, amount.Currency
	return op
}

func (w *world) operate(op payment.Operation) Operated {
	w.t.Helper()
	got, err := w.Operate(context.Background(), op)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

// heard returns what a client hears of an operation.
func heard(o Operated) string { return string(o.Outcome.Status) + " " + string(o.Outcome.Reason) }

// expect carries out an operation, and checks what the client hears.
func (w *world) expect(op payment.Operation, want string) Operated {
	w.t.Helper()
	got := w.operate(op)
	if heard(got) != want {
		w.t.Errorf("%s %s of %s: %s, want %s", op.Kind, op.Key, op.Payment, heard(got), want)
	}
	return got
}

// holdFor moves the end of a hold.
func (w *world) holdFor(id uuid.UUID, d time.Duration) {
	w.t.Helper()
	w.exec(`WITH r AS (UPDATE reservations SET deadline = statement_timestamp() + $2 WHERE reservation_id = $1 RETURNING deadline)
		UPDATE authorizations a SET expires_at = r.deadline FROM r WHERE a.reservation_id = $1`, id, d)
}

func (w *world) count(sql string, args ...any) (n int) {
	w.t.Helper()
	if err := w.pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// checkBooks checks everything that reconcile checks in the ledger alone.
func (w *world) checkBooks() {
	w.t.Helper()
	w.checkSum()
	claims, _, err := ReadClaimsOff(context.Background(), w.pool, 10)
	if err != nil || len(claims) > 0 {
		w.t.Errorf("claims are off: %+v, %v", claims, err)
	}
	spent, _, err := ReadSpentOff(context.Background(), w.pool, time.Now(), 10)
	if err != nil || len(spent) > 0 {
		w.t.Errorf("what was spent is off: %+v, %v", spent, err)
	}
	positions, _, err := ReadPositionsOff(context.Background(), w.pool, 10)
	if err != nil || len(positions) > 0 {
		w.t.Errorf("positions are off: %+v, %v", positions, err)
	}
	err = EachRecord(context.Background(), w.pool, time.Time{}, func(rec payment.Record) error {
		if rec.Asked() != rec.Claimed {
			w.t.Errorf("%s is not what its fingerprint stands for: %+v", rec.Key, rec)
		}
		return nil
	})
	if err != nil {
		w.t.Error(err)
	}
}

func (w *world) find(key string) payment.Record {
	w.t.Helper()
	rec, err := w.Payment(context.Background(), payment.ScopedKey{Key: key})
	if err != nil {
		w.t.Fatal(err)
	}
	return rec
}

// An authorized payment is a success that has moved nothing. Only a capture pays from it. Neither a
// commit, nor a rollback, nor a closing out, nor the sweep, nor a second attempt ends it.
func TestAnAuthorizedPaymentWaitsForItsCapture(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	p := manual(pay("k", "A", "B", 400))
	held := w.mustReserve(p)
	if out := held.Outcome(p); out.Status != payment.Success || out.Reason != payment.Authorized || out.State != payment.Pending || out.Ref == "" {
		t.Fatalf("reserved: %+v", out)
	}
	second := p
	second.AttemptID = "k-2"
	if out := w.mustReserve(second).Outcome(second); out.Status != payment.SuccessReplay || out.Reason != payment.DuplicateIdempo {
		t.Errorf("a second attempt: %+v", out)
	}
	automatic := pay("k", "A", "B", 400)
	if got := w.mustReserve(automatic); !got.Mismatch(automatic) {
		t.Errorf("the same payment, to be captured at once: %+v", got)
	}
	if got := w.mustFinish(Finish{ReservationID: held.ReservationID, Key: "k"}); got.Done || got.Claim.Reason != payment.Authorized || got.Overdue {
		t.Errorf("a commit: %+v", got)
	}
	if got := w.mustFinish(Finish{ReservationID: held.ReservationID, RollBack: payment.CallerRolledBack}); got.Done || got.Claim.Reason != payment.Authorized {
		t.Errorf("a rollback: %+v", got)
	}
	if got, err := w.Fail(t.Context(), p, payment.Undeliverable); err != nil || got.Outcome(p).Reason != payment.Authorized {
		t.Errorf("closed out: %+v, %v", got, err)
	}
	swept, err := w.Sweep(t.Context(), func(context.Context, Claim, time.Time) error { return errors.New("not this one") })
	if err != nil || swept.RolledBack != 0 || swept.Expired != 0 || swept.Pending != 1 || swept.HeldIDR != 400 || !swept.Oldest.IsZero() {
		t.Errorf("swept %+v, %v", swept, err)
	}
	if rec := w.find("k"); rec.Status != payment.Success || rec.Reason != payment.Authorized || rec.AuthorizedMinor != 400 || rec.HoldSeconds != 3600 {
		t.Errorf("kept: %+v", rec)
	}
	w.checkBooks()
	if w.balance("A") != 600 || w.balance("B") != 1000 {
		t.Errorf("held: A %d, B %d", w.balance("A"), w.balance("B"))
	}

	got := w.expect(operationOn(payment.Capture, "c", "k"), "SUCCESS committed")
	if got.Outcome.Ref != held.ReservationID.String() || got.Payment.State != payment.Committed || got.Payment.DecidedAt.IsZero() {
		t.Errorf("captured: %+v", got)
	}
	if w.balance("A") != 600 || w.balance("B") != 1400 {
		t.Errorf("captured: A %d, B %d", w.balance("A"), w.balance("B"))
	}
	if out := w.mustReserve(p).Outcome(p); out.Status != payment.Success || out.Reason != payment.ReasonCommitted {
		t.Errorf("a redelivery after the capture: %+v", out)
	}
	if n := w.count(`SELECT count(*) FROM authorizations`); n != 0 {
		t.Errorf("%d authorizations are left", n)
	}
	w.checkBooks()

	// It is captured once: the same amount is what was done, and another one is too late.
	w.expect(operationOn(payment.Capture, "c", "k"), "SUCCESS committed")
	w.expect(operationOn(payment.Capture, "c2", "k"), "SUCCESS_REPLAY duplicate_idempo")
	w.expect(capture("c3", "k", in(400, "IDR")), "SUCCESS_REPLAY duplicate_idempo")
	w.expect(capture("c4", "k", in(399, "IDR")), "FAILED payment_not_authorized")
	w.expect(operationOn(payment.Void, "v", "k"), "FAILED payment_settled")
	w.expect(operationOn(payment.Cancel, "x", "k"), "FAILED payment_settled")
}

// A part is captured in every kind of payment: the receiver gets its share, the rest goes back to the
// sender and to the house, and the books agree.
func TestAPartIsCapturedAndTheRestGoesBack(t *testing.T) {
	same := func(key, code string) payment.Payment {
		p := exchange(key, "A", "B", in(1000, code), in(1000, code), 0)
		p.Exchange = payment.Exchange{}
		return p
	}
	for name, tc := range map[string]struct {
		p     payment.Payment
		parts []int64
	}{
		"rupiah":            {pay("idr", "A", "B", 1000), []int64{1, 333, 999}},
		"one currency":      {same("usd", "USD"), []int64{1, 999}},
		"dollars to yen":    {exchange("jpy", "A", "B", in(1000, "USD"), in(1507, "JPY"), 1510), []int64{1, 333, 999}},
		"dollars to dinars": {exchange("kwd", "A", "B", in(1000, "USD"), in(3071, "KWD"), 3075), []int64{1, 333, 999}},
		"dinars to dollars": {exchange("back", "A", "B", in(3071, "KWD"), in(999, "USD"), 1000), []int64{4, 1000, 3070}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.fund("A", in(100_000, "IDR"), in(100_000, "USD"), in(100_000, "KWD"))
			w.fund("B", in(0, "IDR"))
			for _, code := range []string{"USD", "JPY", "KWD"} {
				w.liquidity(in(100_000, code), -1)
			}
			for _, part := range tc.parts {
				p := manual(tc.p)
				p.Key = fmt.Sprint(tc.p.Key, part)
				debit := p.Debit()
				before := map[string]int64{}
				before["A"], _ = w.has("A", debit.Currency.String())
				before["B"], _ = w.has("B", p.Credit().Currency.String())
				before["house"], _ = w.has(payment.LiquidityAccount, p.Credit().Currency.String())
				held := w.mustReserve(p)
				w.checkBooks()
				op := capture("c"+p.Key, p.Key, money.Amount{Minor: part, Currency: debit.Currency})
				got := w.expect(op, "SUCCESS committed")
				want := p.Captured(part)
				if got.Payment.Debit() != want.Debit() || got.Payment.Credit() != want.Credit() || got.Payment.AuthorizedMinor != debit.Minor ||
					got.Payment.Exchange.Remainder != want.Exchange.Remainder {
					t.Errorf("%d: kept %+v", part, got.Payment)
				}
				var legs []string
				for _, leg := range want.Legs() {
					legs = append(legs, fmt.Sprint(leg.Account, " ", leg.Kind, " ", leg.Minor, " ", leg.Currency))
				}
				slices.Sort(legs)
				if entries := w.entriesOf(held.ReservationID); !slices.Equal(entries, legs) {
					t.Errorf("%d: booked %q, want %q", part, entries, legs)
				}
				if a, onHold := w.has("A", debit.Currency.String()); a != before["A"]-part || onHold != 0 {
					t.Errorf("%d: A has %d and holds %d", part, a, onHold)
				}
				if b, _ := w.has("B", p.Credit().Currency.String()); b != before["B"]+want.Credit().Minor {
					t.Errorf("%d: B has %d", part, b)
				}
				house := before["house"]
				if p.Exchanges() {
					house -= want.Exchange.MidMinor
				}
				if h, onHold := w.has(payment.LiquidityAccount, p.Credit().Currency.String()); h != house || onHold != 0 {
					t.Errorf("%d: the house has %d and holds %d, want %d", part, h, onHold, house)
				}
				w.checkBooks()
				w.expect(capture("again"+p.Key, p.Key, money.Amount{Minor: part, Currency: debit.Currency}), "SUCCESS_REPLAY duplicate_idempo")
				w.expect(operationOn(payment.Capture, "all"+p.Key, p.Key), "FAILED payment_not_authorized")
			}
		})
	}
}

// A capture that can't be made leaves the hold as it is, and its refusal stands.
func TestACaptureIsRefused(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(100_000, "IDR"), in(5000, "KWD"))
	w.open(0, "B")
	w.liquidity(in(10_000, "USD"), -1)
	w.mustReserve(manual(pay("k", "A", "B", 400)))
	w.mustReserve(manual(exchange("kwd", "A", "B", in(3071, "KWD"), in(999, "USD"), 1000)))
	w.mustReserve(pay("plain", "A", "B", 100))
	poor := manual(pay("poor", "A", "B", 1_000_000))
	if got := w.mustReserve(poor); got.Reason != payment.InsufficientFunds || got.Status != payment.RolledBack {
		t.Errorf("without money: %+v", got)
	}
	late := operationOn(payment.Capture, "late", "k")
	late.Deadline = time.Now().Add(-time.Second)
	for _, tc := range []struct {
		op   payment.Operation
		want string
	}{
		{capture("more", "k", in(401, "IDR")), "FAILED capture_exceeds_hold"},
		{capture("dollars", "k", in(4, "USD")), "FAILED capture_exceeds_hold"},
		{capture("little", "kwd", in(3, "KWD")), "FAILED capture_too_small"},
		{operationOn(payment.Capture, "of plain", "plain"), "FAILED payment_not_authorized"},
		{operationOn(payment.Capture, "of refused", "poor"), "FAILED payment_not_authorized"},
		{operationOn(payment.Void, "void of plain", "plain"), "FAILED payment_not_authorized"},
		{operationOn(payment.Void, "void of poor", "poor"), "FAILED payment_not_authorized"},
		{operationOn(payment.Cancel, "cancel poor", "poor"), "FAILED payment_not_settled"},
		{late, "FAILED expired"},
	} {
		w.expect(tc.op, tc.want)
		w.expect(tc.op, tc.want)
	}
	if _, err := w.Operate(t.Context(), operationOn(payment.Capture, "c", "unknown")); !errors.Is(err, ErrNotFound) {
		t.Errorf("of an unknown payment: %v", err)
	}
	var invalid *InvalidError
	if _, err := w.Operate(t.Context(), operationOn(payment.Refund, "r", "k")); !errors.As(err, &invalid) {
		t.Errorf("a refund: %v", err)
	}
	w.expect(capture("more", "k", in(400, "IDR")), "FAILED idempotency_mismatch")
	again := capture("more", "k", in(401, "IDR"))
	again.AttemptID = "another"
	if got := w.operate(again); !got.Outcome.Replay {
		t.Errorf("a second attempt: %+v", got.Outcome)
	}
	theirs := capture("more", "k", in(400, "IDR"))
	theirs.Client = "another"
	if _, err := w.Operate(t.Context(), theirs); !errors.Is(err, ErrNotFound) {
		t.Errorf("of another client's payment: %v", err)
	}
	w.checkBooks()
}

// A receiver that is blocked gets nothing. When it is unblocked, the hold can still be captured.
func TestABlockedReceiverIsPaidWhenItIsUnblocked(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	w.mustReserve(manual(pay("k", "A", "B", 400)))
	w.exec(`UPDATE balances SET status = 'BLOCKED' WHERE account_id = 'B'`)
	w.expect(operationOn(payment.Capture, "c1", "k"), "FAILED receiver_blocked")
	if rec := w.find("k"); rec.Reason != payment.Authorized {
		t.Errorf("after a refused capture: %+v", rec.Outcome)
	}
	w.exec(`UPDATE balances SET status = 'ACTIVE' WHERE account_id = 'B'`)
	w.expect(operationOn(payment.Capture, "c1", "k"), "FAILED receiver_blocked")
	w.expect(operationOn(payment.Capture, "c2", "k"), "SUCCESS committed")
	w.checkBooks()
}

// A void and a cancellation give everything back, also the share of the day's limit, if the hold is of
// the same day.
func TestAHoldIsGivenBack(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(1000, "IDR"), in(5000, "USD"))
	w.open(0, "B")
	w.liquidity(in(10_000, "SGD"), -1)
	w.exec(`UPDATE balances SET daily_limit = 1000 WHERE account_id = 'A'`)
	for i, kind := range []payment.OperationKind{payment.Void, payment.Cancel, payment.Void} {
		key := fmt.Sprint("k", i)
		w.mustReserve(manual(exchange(key, "A", "B", in(1000, "USD"), in(1339, "SGD"), 1340)))
		if got := w.mustReserve(manual(exchange("past the limit"+key, "A", "B", in(1, "USD"), in(1, "SGD"), 1))); got.Reason != payment.DailyLimitExceeded {
			t.Errorf("past the limit: %+v", got)
		}
		got := w.expect(operationOn(kind, "v"+key, key), "SUCCESS committed")
		ended := map[payment.OperationKind]payment.Reason{payment.Void: payment.Voided, payment.Cancel: payment.Canceled}[kind]
		if got.Payment.Status != payment.Failed || got.Payment.Reason != ended || got.Payment.AuthorizedMinor != 1000 {
			t.Errorf("%s: %+v", kind, got.Payment)
		}
		if a, onHold := w.has("A", "USD"); a != 5000 || onHold != 0 {
			t.Errorf("%s: A has %d and holds %d", kind, a, onHold)
		}
		if h, onHold := w.has(payment.LiquidityAccount, "SGD"); h != 10_000 || onHold != 0 {
			t.Errorf("%s: the house has %d and holds %d", kind, h, onHold)
		}
		w.checkBooks()
		w.expect(operationOn(kind, "again"+key, key), "SUCCESS_REPLAY duplicate_idempo")
		w.expect(operationOn(payment.Capture, "c"+key, key), "FAILED payment_not_authorized")
	}
	if n := w.count(`SELECT count(*) FROM authorizations`); n != 0 {
		t.Errorf("%d authorizations are left", n)
	}

	// What a part gives back does not count against the limit either. A hold of yesterday is none of today's.
	w.mustReserve(manual(exchange("part", "A", "B", in(1000, "USD"), in(1339, "SGD"), 1340)))
	w.expect(capture("c", "part", in(400, "USD")), "SUCCESS committed")
	w.mustReserve(manual(exchange("rest", "A", "B", in(600, "USD"), in(803, "SGD"), 804)))
	w.checkBooks()
	w.exec(`UPDATE reservations SET created_at = (created_at AT TIME ZONE 'UTC' - interval '1 day') AT TIME ZONE 'UTC' WHERE idempotency_key = 'rest'`)
	w.expect(capture("c2", "rest", in(100, "USD")), "SUCCESS committed")
	if n := w.count(`SELECT spent_today FROM balances WHERE account_id = 'A' AND currency = 'USD'`); n != 1000 {
		t.Errorf("A has spent %d today", n)
	}
}

// A cancellation also ends a payment that is only on its way.
func TestAPaymentOnItsWayIsCanceled(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	held := w.mustReserve(pay("k", "A", "B", 400))
	w.expect(operationOn(payment.Cancel, "x", "k"), "SUCCESS committed")
	if got := w.mustFinish(Finish{ReservationID: held.ReservationID}); got.Done || got.Claim.Reason != payment.Canceled {
		t.Errorf("a commit after it: %+v", got)
	}
	if w.balance("A") != 1000 {
		t.Errorf("A has %d", w.balance("A"))
	}
}

// The sweep ends a hold when its time is over, and tells it once, also if its mark has passed the
// payment long ago. A payment that ended otherwise is only forgotten.
func TestAHoldExpires(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	old := w.madeBefore("k", time.Hour)
	w.exec(`UPDATE reservations SET authorized_minor = 10, hold_seconds = 3600, fingerprint = $1 WHERE idempotency_key = 'k'`, func() []byte {
		fp := manual(pay("k", "A", "B", 10)).Fingerprint()
		return fp[:]
	}())
	w.exec(`INSERT INTO authorizations (expires_at, reservation_id, amount_idr) SELECT deadline, reservation_id, amount_idr FROM reservations`)
	w.holdFor(old, time.Hour)
	if _, _, err := w.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if mark := w.mark(); !mark.After(timeOf(old)) {
		t.Errorf("the mark waits at %s for an authorized payment", mark)
	}
	ended := w.mustReserve(manual(pay("ended", "A", "B", 20)))
	// An earlier release may have left the row of a hold that has ended.
	if _, err := finishOn(t.Context(), w.pool, []Finish{{ReservationID: ended.ReservationID, RollBack: payment.CallerRolledBack}}, byOperation, asItIs); err != nil {
		t.Fatal(err)
	}
	w.holdFor(ended.ReservationID, -time.Second)
	w.mustReserve(manual(pay("open", "A", "B", 30)))

	w.holdFor(old, -time.Second)
	w.expect(operationOn(payment.Capture, "c", "k"), "FAILED payment_not_authorized")
	w.failPublish = context.DeadlineExceeded
	if _, _, err := w.sweep(t.Context()); err == nil {
		t.Fatal("a sweep that could not publish returns no error")
	}
	w.failPublish = nil
	swept, err := w.Sweep(t.Context(), func(_ context.Context, c Claim, _ time.Time) error {
		key := c.Key
		w.published[key] = c.Reason
		return nil
	})
	if err != nil || swept.Expired != 0 || swept.Published != 1 || swept.Pending != 1 || swept.HeldIDR != 30 || !swept.Oldest.IsZero() {
		t.Errorf("swept %+v, %v", swept, err)
	}
	if len(w.published) != 1 || w.published["k"] != payment.AuthorizationExpired {
		t.Errorf("published %v", w.published)
	}
	if _, published, err := w.sweep(t.Context()); err != nil || published != 0 {
		t.Errorf("the next sweep published %d, %v", published, err)
	}
	if n := w.count(`SELECT count(*) FROM authorizations`); n != 1 {
		t.Errorf("%d authorizations are left", n)
	}
	if w.balance("A") != 970 {
		t.Errorf("A has %d", w.balance("A"))
	}
	w.expect(operationOn(payment.Void, "v", "k"), "FAILED payment_not_authorized")
}

// A wallet hold is an authorization of the house. Its callers capture it by a plain commit, and it
// expires like a payment on its way.
func TestAWalletHoldIsAnAuthorization(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A")
	hold := func(key string) Reserved {
		return w.mustReserve(pay(payment.HoldPrefix+key, "A", payment.SettlementAccount, 10))
	}
	for _, key := range []string{"captured", "expired"} {
		if got := hold(key); got.Status != payment.Pending || got.Reason != payment.Authorized {
			t.Fatalf("%s: %+v", key, got)
		}
	}
	if got := w.mustFinish(Finish{ReservationID: hold("captured").ReservationID}); !got.Done {
		t.Errorf("captured: %+v", got)
	}
	w.expect(operationOn(payment.Cancel, "x", payment.HoldPrefix+"expired"), "FAILED payment_not_settled")
	w.expire(hold("expired").ReservationID)
	if rolledBack, published, err := w.sweep(t.Context()); err != nil || rolledBack != 1 || published != 1 {
		t.Errorf("swept %d, published %d, %v", rolledBack, published, err)
	}
	if got := w.published[payment.HoldPrefix+"expired"]; got != payment.Expired {
		t.Errorf("published %s", got)
	}
	w.checkBooks()
}

// A capture whose connection is cut has no effect, whether it waits for the payment or for the money.
// The same call is made again, and hears the outcome.
func TestACaptureThatIsCutHasNoEffect(t *testing.T) {
	for name, lock := range map[string]string{
		"before it has the payment": `SELECT FROM reservations WHERE idempotency_key = 'k' FOR UPDATE`,
		"before it has the money":   `SELECT FROM balances WHERE account_id = 'B' FOR UPDATE`,
		"before it is recorded":     `INSERT INTO operations VALUES ('', 'c', 'void', decode(repeat('00', 16), 'hex'), '', gen_random_uuid(), 0, 'FAILED', 'expired', '', NULL, now())`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.open(1000, "A", "B")
			w.mustReserve(manual(pay("k", "A", "B", 400)))
			release := w.hold(lock)
			failed := make(chan error, 1)
			go func() {
				_, err := w.Operate(context.Background(), capture("c", "k", in(100, "IDR")))
				failed <- err
			}()
			w.waitsForALock()
			w.exec(`SELECT pg_terminate_backend(pid) FROM ` + waitingSQL(t))
			if err := <-failed; err == nil {
				t.Fatal("a capture that was cut succeeded")
			}
			release()
			if rec := w.find("k"); rec.Reason != payment.Authorized || rec.AmountIDR != 400 {
				t.Errorf("after the cut: %+v", rec)
			}
			w.checkBooks()
			w.expect(capture("c", "k", in(100, "IDR")), "SUCCESS committed")
			if w.balance("A") != 900 || w.balance("B") != 1100 {
				t.Errorf("A %d, B %d", w.balance("A"), w.balance("B"))
			}
			w.checkBooks()
		})
	}
}

// The same operation may be delivered many times at once, and different operations may have one key.
// Each key has one outcome.
func TestAnOperationsKeyHasOneOutcome(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	const rounds = 40
	for i := range rounds {
		k1, k2, op := fmt.Sprint("k1-", i), fmt.Sprint("k2-", i), fmt.Sprint("op", i)
		w.mustReserve(manual(pay(k1, "A", "B", 100)))
		w.mustReserve(manual(pay(k2, "A", "B", 100)))
		heards := make(chan string, 6)
		var running sync.WaitGroup
		for j := range cap(heards) {
			running.Go(func() {
				o := operationOn(payment.Capture, op, []string{k1, k2}[j%2])
				heards <- o.Payment + " " + heard(w.operate(o))
			})
		}
		running.Wait()
		close(heards)
		outcomes := map[string]int{}
		for h := range heards {
			outcomes[h]++
		}
		first := outcomes[k1+" SUCCESS committed"] == 3 && outcomes[k2+" FAILED idempotency_mismatch"] == 3
		second := outcomes[k2+" SUCCESS committed"] == 3 && outcomes[k1+" FAILED idempotency_mismatch"] == 3
		if first == second {
			t.Fatalf("%v", outcomes)
		}
	}
	if w.balance("B") != 1_000_000+rounds*100 {
		t.Errorf("B has %d", w.balance("B"))
	}
	w.checkBooks()
}

// A capture, a void, a cancellation and the expiry run for each payment at the same time, thousands of
// times. Each payment has one end, the client of each operation hears the truth, and the sweep tells only
// what it ended. PGW_ENDS is the number of payments.
func TestAHoldHasOneEnd(t *testing.T) {
	w := newWorldWith(t, func(cfg *Config) { cfg.BatchTimeout = patience })
	w.fund("A", in(1_000_000, "IDR"), in(100_000_000, "USD"))
	w.open(0, "B")
	w.liquidity(in(100_000_000, "SGD"), -1)
	const size = 80
	most, atLeast := 25, 3
	if testing.Short() {
		most, atLeast = 3, 1
	}
	if n, err := strconv.Atoi(os.Getenv("PGW_ENDS")); err == nil { // so many payments, however long they take
		most = max(1, n/size)
		atLeast = most
	}
	end, span := time.Now().Add(20*time.Second), time.Second
	ends := map[string]int{}
	rounds := 0
	for ; rounds < most && (rounds < atLeast || time.Now().Before(end)); rounds++ {
		ids := make([]uuid.UUID, size)
		var reserving sync.WaitGroup
		for i := range size {
			reserving.Go(func() {
				key := fmt.Sprint(rounds, "-", i)
				p := manual(exchange(key, "A", "B", in(1000, "USD"), in(1339, "SGD"), 1340))
				ids[i] = w.mustReserve(p).ReservationID
			})
		}
		reserving.Wait()
		outcomes := make([]map[payment.OperationKind]Operated, size)
		begin, swept := make(chan struct{}), make(chan struct{})
		var running, sweeping sync.WaitGroup
		for i, id := range ids {
			w.holdFor(id, time.Duration(rand.Int64N(int64(span))))
			outcomes[i] = map[payment.OperationKind]Operated{}
			var mu sync.Mutex
			kinds := []payment.OperationKind{payment.Capture, payment.Void, payment.Cancel}
			rand.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
			for _, kind := range kinds {
				running.Go(func() {
					<-begin
					key := fmt.Sprint(rounds, "-", i)
					op := operationOn(kind, fmt.Sprint(kind, key), key)
					if kind == payment.Capture {
						op.Minor, op.Currency = 1+rand.Int64N(1000), in(0, "USD").Currency
					}
					got := w.operate(op)
					mu.Lock()
					defer mu.Unlock()
					outcomes[i][kind] = got
				})
			}
		}
		sweeping.Go(func() {
			for {
				if _, _, err := w.sweep(context.Background()); err != nil {
					t.Error(err)
				}
				select {
				case <-swept:
					return
				default:
				}
			}
		})
		began := time.Now()
		close(begin)
		running.Wait()
		span = 2 * time.Since(began) // so that about half of the holds expire before their operations come
		w.exec(`WITH r AS (UPDATE reservations SET deadline = statement_timestamp() - interval '1 ms' WHERE status = 'PENDING' RETURNING reservation_id, deadline)
			UPDATE authorizations a SET expires_at = r.deadline FROM r WHERE a.reservation_id = r.reservation_id`)
		close(swept)
		sweeping.Wait()
		if _, _, err := w.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := range ids {
			key := fmt.Sprint(rounds, "-", i)
			rec := w.find(key)
			winners := 0
			for kind, got := range outcomes[i] {
				if got.Outcome.Status == payment.Success {
					winners++
					if want := map[payment.OperationKind]payment.Reason{
						payment.Capture: payment.ReasonCommitted, payment.Void: payment.Voided, payment.Cancel: payment.Canceled,
					}[kind]; rec.Reason != want {
						t.Errorf("%s: %s was a success, and the payment is %s", key, kind, rec.Reason)
					}
				}
			}
			told, isTold := w.published[key]
			if expired := rec.Reason == payment.AuthorizationExpired; expired {
				winners++
				if told != payment.AuthorizationExpired {
					t.Errorf("%s: expired, and told %q", key, told)
				}
			} else if isTold {
				t.Errorf("%s: is %s, and told %s", key, rec.Reason, told)
			}
			if winners != 1 {
				t.Errorf("%s has %d ends: %+v, %+v", key, winners, rec.Outcome, outcomes[i])
			}
			ends[string(rec.Reason)]++
		}
	}
	t.Logf("%d payments: %v", rounds*size, ends)
	w.checkBooks()
	if n := w.count(`SELECT count(*) FROM authorizations`); n != 0 {
		t.Errorf("%d authorizations are left", n)
	}
}

// A payment on its way is canceled and committed at the same time. One of them wins, and both hear who.
func TestACancellationAgainstACommit(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	const most = 1000
	committed, rounds := 0, 0
	for end := time.Now().Add(5 * time.Second); rounds < most && time.Now().Before(end); rounds++ {
		key := fmt.Sprint("k", rounds)
		id := w.mustReserve(pay(key, "A", "B", 10)).ReservationID
		var canceled Operated
		var finished Finished
		var running sync.WaitGroup
		running.Go(func() { canceled = w.operate(operationOn(payment.Cancel, "x"+key, key)) })
		running.Go(func() { finished = w.mustFinish(Finish{ReservationID: id, Key: key}) })
		running.Wait()
		switch {
		case finished.Done && heard(canceled) == "FAILED payment_settled":
			committed++
		case finished.Claim.Reason == payment.Canceled && heard(canceled) == "SUCCESS committed":
		default:
			t.Fatalf("%s: %+v and %+v", key, canceled.Outcome, finished)
		}
	}
	t.Logf("%d of %d were committed", committed, rounds)
	if w.balance("B") != 1_000_000+int64(committed)*10 {
		t.Errorf("B has %d", w.balance("B"))
	}
	w.checkBooks()
}

// The table itself refuses a change of a payment's amounts that is not the capture of a part.
func TestAmountsOnlyFall(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	w.mustReserve(pay("plain", "A", "B", 100))
	w.mustReserve(manual(pay("held", "A", "B", 100)))
	for _, sql := range []string{
		`UPDATE reservations SET amount_idr = 99, debit_minor = 99, credit_minor = 99 WHERE idempotency_key = 'plain'`,
		`UPDATE reservations SET amount_idr = 101, debit_minor = 101, credit_minor = 101 WHERE idempotency_key = 'held'`,
		`UPDATE reservations SET amount_idr = 101, debit_minor = 99, credit_minor = 99 WHERE idempotency_key = 'held'`,
		`UPDATE reservations SET exchange = '{}', debit_minor = 99, credit_minor = 99 WHERE idempotency_key = 'held'`,
	} {
		if _, err := w.pool.Exec(t.Context(), sql); err == nil {
			t.Errorf("was taken: %s", sql)
		}
	}
}

// The report of activity does not take the days that a payment waits for its capture for the time that
// the system needs.
func TestAHoldIsNotALatency(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	p := manual(pay("k", "A", "B", 10))
	p.AcceptedAt = time.Now().Add(-24 * time.Hour)
	w.mustReserve(p)
	w.expect(operationOn(payment.Capture, "c", "k"), "SUCCESS committed")
	now := time.Now()
	got, err := w.Activity(t.Context(), ActivityOf{From: now.Add(-time.Hour), To: now.Add(time.Hour), Step: 2 * time.Hour})
	if err != nil || got.Buckets[0].Success != 1 || got.Buckets[0].P99 != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}
