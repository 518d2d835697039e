package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// refundOf is a refund of a part of a payment; 0 for all that is left.
func refundOf(p payment.Payment, key string, minor int64) payment.Operation {
	o := payment.Operation{
		Kind: payment.Refund, Key: key, Payment: p.Key, Minor: minor, Note: "broken", AttemptID: key + "-1",
		AcceptedAt: time.Now(), Deadline: time.Now().Add(payment.DecideWithin),
	}
	if minor != 0 {
		o.Currency = p.Debit().Currency
	}
	return o
}

func idOf(ref string) uuid.UUID { return uuid.MustParse(ref) }

func (w *world) mustRefund(o payment.Operation) Refunded {
	w.t.Helper()
	got, err := w.Refund(context.Background(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

// giveBack reserves a refund and commits it if that succeeds.
func (w *world) giveBack(o payment.Operation) payment.Outcome {
	w.t.Helper()
	got := w.mustRefund(o)
	if got.Outcome.State != payment.Pending {
		return got.Outcome
	}
	done := w.mustFinish(Finish{ReservationID: idOf(got.Outcome.Ref), Key: o.Key})
	return payment.Standing(done.Claim.Status, done.Claim.Reason, got.Outcome.Ref, false)
}

func (w *world) record(key string) payment.Record {
	w.t.Helper()
	rec, err := w.Payment(context.Background(), payment.ScopedKey{Key: key})
	if err != nil {
		w.t.Fatal(err)
	}
	return rec
}

func (w *world) checkCounters() {
	w.t.Helper()
	spent, _, err1 := ReadSpentOff(context.Background(), w.pool, time.Now(), 10)
	positions, _, err2 := ReadPositionsOff(context.Background(), w.pool, 10)
	claims, _, err3 := ReadClaimsOff(context.Background(), w.pool, 10)
	if len(spent)+len(positions)+len(claims) > 0 || errors.Join(err1, err2, err3) != nil {
		w.t.Errorf("spent %+v, positions %+v, claims %+v are off; %v", spent, positions, claims, errors.Join(err1, err2, err3))
	}
	w.checkSum()
}

// Refunds of random parts at once, of payments in several currencies, never give back one unit too many.
// What is refunded in parts is what was paid, on both sides, whatever the rounding.
func TestRefundsAtOnceGiveBackWhatWasPaid(t *testing.T) {
	w := newWorld(t)
	all := []money.Amount{in(50_000_000, "IDR"), in(5_000_000, "USD"), in(50_000_000, "JPY"), in(5_000_000, "KWD")}
	w.fund("A", all...)
	w.fund("B", all...)
	for _, has := range all {
		w.liquidity(has, -1)
	}
	payments := []payment.Payment{
		pay("rupiah", "A", "B", 1_000_003),
		exchange("dollars to yen", "A", "B", in(10_007, "USD"), in(15_013, "JPY"), 15_020),
		exchange("yen to dinars", "A", "B", in(100_003, "JPY"), in(203_111, "KWD"), 203_300),
		exchange("dinars to rupiah", "A", "B", in(9_001, "KWD"), in(480_077, "IDR"), 480_500),
	}
	kwd := exchange("dinars", "A", "B", in(7_919, "KWD"), in(7_919, "KWD"), 0)
	kwd.Exchange = payment.Exchange{}
	payments = append(payments, kwd)
	var wg sync.WaitGroup
	for i, p := range payments {
		w.settle(p)
		random := rand.New(rand.NewPCG(20, uint64(i)))
		parts := make([]int64, 64)
		for j := range parts {
			parts[j] = 1 + random.Int64N(p.Debit().Minor/20)
		}
		for j, part := range parts {
			wg.Go(func() {
				o := refundOf(p, fmt.Sprint(p.Key, " ", j), part)
				if j%5 == 0 {
					got := w.mustRefund(o)
					if got.Outcome.State == payment.Pending {
						w.mustFinish(Finish{ReservationID: idOf(got.Outcome.Ref), RollBack: payment.CommitFailed})
					}
					return
				}
				switch out := w.giveBack(o); out.Reason {
				case payment.ReasonCommitted, payment.RefundExceedsPayment, payment.RefundTooSmall:
				default:
					t.Errorf("%s: %+v", o.Key, out)
				}
			})
		}
	}
	wg.Wait()
	w.checkCounters()
	for _, p := range payments {
		rec := w.record(p.Key)
		if rec.RefundingMinor != 0 || rec.RefundedMinor > p.Debit().Minor || rec.RefundedMinor == 0 {
			t.Errorf("%s: %d of %d refunded, %d on the way", p.Key, rec.RefundedMinor, p.Debit().Minor, rec.RefundingMinor)
		}
		if out := w.giveBack(refundOf(p, p.Key+" rest", 0)); out.Reason != payment.ReasonCommitted && rec.RefundedMinor != p.Debit().Minor {
			t.Errorf("the rest of %s: %+v", p.Key, out)
		}
		if rec = w.record(p.Key); rec.RefundedMinor != p.Debit().Minor || rec.State != payment.Committed {
			t.Errorf("%s: %d of %d refunded", p.Key, rec.RefundedMinor, p.Debit().Minor)
		}
		if out := w.giveBack(refundOf(p, p.Key+" more", 0)); out.Reason != payment.RefundExceedsPayment {
			t.Errorf("more of %s: %+v", p.Key, out)
		}
		given, err := w.Refunds(t.Context(), p.Scoped(), MaxRefunds)
		var back, returned int64
		for _, r := range given {
			if r.State == payment.Committed {
				back, returned = back+r.Credit().Minor, returned+r.Debit().Minor
			}
		}
		if err != nil || back != p.Debit().Minor || returned != p.Credit().Minor {
			t.Errorf("%s: refunds give %d of %d back and take %d of %d; %v", p.Key, back, p.Debit().Minor, returned, p.Credit().Minor, err)
		}
	}
	for _, has := range all {
		for _, id := range []string{"A", "B"} {
			if available, held := w.has(id, has.Currency.String()); available != has.Minor || held != 0 {
				t.Errorf("%s has %d and %d on hold of %s %d", id, available, held, has, has.Minor)
			}
		}
	}
	w.checkCounters()
}

func TestTwiceSixtyOfAHundred(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	for n := range 20 {
		p := pay(fmt.Sprint("p", n), "A", "B", 100)
		w.settle(p)
		outcomes := make([]payment.Outcome, 2)
		var wg sync.WaitGroup
		for i := range outcomes {
			wg.Go(func() { outcomes[i] = w.giveBack(refundOf(p, fmt.Sprint(p.Key, "-", i), 60)) })
		}
		wg.Wait()
		reasons := []payment.Reason{outcomes[0].Reason, outcomes[1].Reason}
		slices.Sort(reasons)
		if want := []payment.Reason{payment.ReasonCommitted, payment.RefundExceedsPayment}; !slices.Equal(reasons, want) {
			t.Fatalf("%v", reasons)
		}
		if rec := w.record(p.Key); rec.RefundedMinor != 60 || rec.RefundingMinor != 0 || rec.Status != payment.Success {
			t.Fatalf("%+v", rec)
		}
	}
	w.checkCounters()
}

// The table itself refuses too much, whoever writes it.
func TestTheRowRefusesToGiveBackTooMuch(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	w.settle(pay("p", "A", "B", 100))
	for _, change := range []string{
		"refunded_minor = 101", "refunding_minor = 101", "refunded_minor = 60, refunding_minor = 41", "returned_minor = 101",
		"refunded_minor = -1", "refunding_minor = -1", "returned_minor = -1",
	} {
		if _, err := w.pool.Exec(t.Context(), "UPDATE reservations SET "+change+" WHERE idempotency_key = 'p'"); err == nil {
			t.Errorf("%s is accepted", change)
		}
	}
}

func TestRefusedRefunds(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B", "C", "blocked", "poor")
	w.fund("F", in(0, "IDR"), in(10_000, "USD"))
	w.fund("G", in(0, "IDR"))
	w.liquidity(in(1_000_000, "JPY"), -1)
	w.liquidity(in(0, "USD"), -1)
	settled := func(p payment.Payment) payment.Payment { w.settle(p); return p }
	paid := settled(pay("paid", "A", "B", 100))
	back := refundOf(paid, "back", 10)
	w.giveBack(back)
	pending := pay("pending", "A", "B", 100)
	w.mustReserve(pending)
	failed := pay("failed", "C", "B", 5000)
	w.mustReserve(failed)
	toBlocked, fromBlocked := settled(pay("to blocked", "A", "blocked", 100)), settled(pay("from blocked", "blocked", "B", 100))
	toPoor := settled(pay("to poor", "A", "poor", 100))
	settled(pay("spends", "poor", "B", 1050))
	hold := pay(payment.HoldPrefix+"h", "A", payment.SettlementAccount, 10)
	settled(hold)
	small := settled(exchange("small", "F", "G", in(5000, "USD"), in(10, "JPY"), 10))
	// The house gave what it had of dollars away.
	w.exec(`UPDATE accounts SET status = 'BLOCKED' WHERE account_id = 'blocked'`)
	w.exec(`UPDATE balances SET status = 'BLOCKED' WHERE account_id = 'blocked'`)
	w.liquidity(in(0, "USD"), -1)
	late := refundOf(paid, "late", 10)
	late.Deadline = time.Now().Add(-time.Hour)
	lateToo := refundOf(pending, "late too", 10)
	lateToo.Deadline = time.Now().Add(-time.Hour)
	for name, tc := range map[string]struct {
		o    payment.Operation
		want payment.Reason
	}{
		"late":             {late, payment.Expired},
		"late and pending": {lateToo, payment.Expired},
		"pending":          {refundOf(pending, "r1", 10), payment.PaymentNotSettled},
		"failed":           {refundOf(failed, "r2", 10), payment.PaymentNotSettled},
		"a refund":         {refundOf(payment.Payment{Key: "back", AmountIDR: 10}, "r3", 5), payment.PaymentNotSettled},
		"too much":         {refundOf(paid, "r4", 91), payment.RefundExceedsPayment},
		"by far too much":  {refundOf(small, "r5", money.MaxMinor), payment.RefundExceedsPayment},
		"too little":       {refundOf(small, "r6", 1), payment.RefundTooSmall},
		"by a blocked one": {refundOf(toBlocked, "r7", 10), payment.SenderBlocked},
		"to a blocked one": {refundOf(fromBlocked, "r8", 10), payment.ReceiverBlocked},
		"overdraft":        {refundOf(toPoor, "r9", 100), payment.InsufficientFunds},
		"no liquidity":     {refundOf(small, "r10", 0), payment.FXLiquidityExhausted},
	} {
		for attempt, want := range map[string]payment.Outcome{
			tc.o.AttemptID: payment.Decline(tc.want), "a redelivery's": payment.Decline(tc.want),
		} {
			tc.o.AttemptID = attempt
			got := w.mustRefund(tc.o)
			if got.Outcome.Status != want.Status || got.Outcome.Reason != want.Reason || got.Refund.PaymentKey != tc.o.Payment || got.Refund.Note != "broken" {
				t.Errorf("%s: %+v, want %s", name, got, tc.want)
			}
		}
	}
	// What pays does not keep a count of refunds, and a refused one leaves no trace in it.
	if rec := w.record("paid"); rec.RefundedMinor != 10 || rec.RefundingMinor != 0 {
		t.Errorf("%+v", rec)
	}
	if out := w.mustRefund(refundOf(paid, "all", 0)); out.Outcome.State != payment.Pending || out.Payment.RefundingMinor != 90 || out.Refund.Credit().Minor != 90 {
		t.Errorf("%+v", out)
	}
	w.checkCounters()

	for name, o := range map[string]payment.Operation{
		"another currency": func() payment.Operation { o := refundOf(paid, "x1", 1); o.Currency = in(1, "USD").Currency; return o }(),
		"another price":    func() payment.Operation { o := refundOf(paid, "x2", 1); o.Exchange = small.Exchange; return o }(),
		"another cancel":   refundOf(paid, payment.CancelPrefix+"x3", 0),
	} {
		var bad *InvalidError
		if _, err := w.Refund(t.Context(), o); !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	unknown := refundOf(payment.Payment{Key: "nobody's"}, "x4", 0)
	if _, err := w.Refund(t.Context(), unknown); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown payment: %v", err)
	}
	if _, err := w.Payment(t.Context(), payment.ScopedKey{Key: "x4"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a refund of an unknown payment is kept: %v", err)
	}
	if _, err := w.Refunds(t.Context(), payment.ScopedKey{Key: "nobody's"}, 10); !errors.Is(err, ErrNotFound) {
		t.Errorf("refunds of an unknown payment: %v", err)
	}
}

func TestARefundsKeyHasOneOutcome(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	p := pay("p", "A", "B", 100)
	w.settle(p)
	o := refundOf(p, "r", 60)
	first := w.mustRefund(o)
	if again := w.mustRefund(o); again.Outcome.Ref != first.Outcome.Ref || again.Outcome.State != payment.Pending || again.Payment.RefundingMinor != 60 {
		t.Errorf("a redelivery: %+v", again)
	}
	if out := w.giveBack(o); out.Reason != payment.ReasonCommitted {
		t.Errorf("%+v", out)
	}
	if again := w.mustRefund(o); again.Outcome.Status != payment.Success {
		t.Errorf("a redelivery after the commit: %+v", again)
	}
	second := o
	second.AttemptID = "another"
	if again := w.mustRefund(second); again.Outcome.Status != payment.SuccessReplay || again.Outcome.Ref != first.Outcome.Ref {
		t.Errorf("a second attempt: %+v", again)
	}
	other := refundOf(p, "r", 10)
	if got := w.mustRefund(other); got.Outcome.Reason != payment.IdempotencyMismatch || got.Payment.Key != "p" {
		t.Errorf("another refund with the key: %+v", got)
	}
	if got := w.mustRefund(refundOf(p, "p", 10)); got.Outcome.Reason != payment.IdempotencyMismatch {
		t.Errorf("a refund with the key of a payment: %+v", got)
	}
	if got := w.mustReserve(pay("r", "A", "B", 60)); !got.Mismatch(pay("r", "A", "B", 60)) {
		t.Errorf("a payment with the key of a refund: %+v", got)
	}
	rec := w.record("r")
	if rec.Asked() != rec.Claimed || rec.PaymentKey != "p" || rec.Sender != "B" || rec.Receiver != "A" || rec.Debit().Minor != 60 {
		t.Errorf("%+v", rec)
	}
	if rec := w.record("p"); rec.RefundedMinor != 60 || rec.RefundingMinor != 0 || rec.Asked() != rec.Claimed {
		t.Errorf("%+v", rec)
	}
}

// A payment closes although its receiver has given everything back in earlier parts.
func TestTheLastPartClosesAPayment(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(0, "IDR"), in(10_000, "USD"))
	w.fund("B", in(0, "IDR"))
	w.liquidity(in(1000, "JPY"), -1)
	p := exchange("p", "A", "B", in(100, "USD"), in(1, "JPY"), 1)
	w.settle(p)
	for _, tc := range []struct {
		key   string
		minor int64
		want  payment.Reason
	}{{"nothing", 49, payment.RefundTooSmall}, {"most", 60, payment.ReasonCommitted}, {"little", 39, payment.RefundTooSmall}, {"rest", 0, payment.ReasonCommitted}} {
		if got := w.giveBack(refundOf(p, tc.key, tc.minor)); got.Reason != tc.want {
			t.Errorf("%s: %+v", tc.key, got)
		}
		w.checkCounters()
	}
	rest := w.record("rest")
	if rest.Debit() != in(0, "JPY") || rest.Credit() != in(40, "USD") || rest.Asked() != rest.Claimed {
		t.Errorf("%+v", rest)
	}
	if entries := w.entriesOf(idOf(rest.Ref)); !slices.Equal(entries, []string{"A refund 40 USD", "LIQUIDITY exchange -40 USD"}) {
		t.Errorf("booked %q", entries)
	}
	if of := w.record("p"); of.RefundedMinor != 100 || of.RefundingMinor != 0 {
		t.Errorf("%+v", of)
	}
	if a, _ := w.has("A", "USD"); a != 10_000 {
		t.Errorf("A has %d", a)
	}
}

// cancellationOf returns the refund that a cancellation makes of a settled payment.
func (w *world) cancellationOf(p payment.Payment, key string) payment.Operation {
	w.t.Helper()
	by := payment.Operation{Kind: payment.Cancel, Key: key, Client: p.Client}
	o := refundOf(p, by.CancelKey(w.record(p.Key).Ref), 0)
	o.AttemptID = key + "-1"
	return o
}

// Several cancellations of a payment give the money back once. A refusal is that of its cancellation alone.
func TestCancellationsAreJudgedOnTheirOwn(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B", "C")
	p := pay("p", "A", "B", 100)
	w.settle(p)
	w.settle(pay("spends", "B", "C", 1050))
	poor := w.cancellationOf(p, "x1")
	if out := w.giveBack(poor); out.Reason != payment.InsufficientFunds {
		t.Errorf("without funds: %+v", out)
	}
	w.settle(pay("earns", "C", "B", 500))
	if out := w.giveBack(poor); out.Reason != payment.InsufficientFunds {
		t.Errorf("delivered again: %+v", out)
	}
	// While a refund holds what is left, nobody knows whether a cancellation has anything to give back.
	all := w.mustRefund(refundOf(p, "all", 0))
	early := w.cancellationOf(p, "x2")
	if _, err := w.Refund(t.Context(), early); !errors.Is(err, ErrLocked) {
		t.Errorf("while a refund holds the rest: %v", err)
	}
	if _, err := w.Payment(t.Context(), payment.ScopedKey{Key: early.Key}); !errors.Is(err, ErrNotFound) {
		t.Errorf("and is kept: %v", err)
	}
	late := w.cancellationOf(p, "late")
	late.Deadline = time.Now().Add(-time.Hour)
	if out := w.mustRefund(late).Outcome; out.Reason != payment.Expired {
		t.Errorf("past its deadline: %+v", out)
	}
	w.mustFinish(Finish{ReservationID: idOf(all.Outcome.Ref), RollBack: payment.CommitFailed})
	if out := w.giveBack(early); out.Status != payment.Success {
		t.Errorf("with funds: %+v", out)
	}
	again := early
	again.Note, again.AttemptID = "another reason", "another"
	if out := w.giveBack(again); out.Status != payment.SuccessReplay {
		t.Errorf("a second attempt: %+v", out)
	}
	for range 2 {
		got := w.mustRefund(w.cancellationOf(p, "x3"))
		if got.Outcome.Status != payment.SuccessReplay || got.Outcome.Reason != payment.DuplicateIdempo || got.Refund.IsRefund() || got.Payment.RefundedMinor != 100 {
			t.Errorf("when everything was given back: %+v", got)
		}
	}
	if balance := w.balance("A"); balance != 1000 {
		t.Errorf("A has %d", balance)
	}
	w.checkCounters()
}

// A refund that was reserved and never committed is swept, and its payment can be refunded again.
func TestASweptRefundFreesItsPayment(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	p := pay("p", "A", "B", 100)
	w.settle(p)
	got := w.mustRefund(refundOf(p, "r", 100))
	w.expire(idOf(got.Outcome.Ref))
	if out := w.mustFinish(Finish{ReservationID: idOf(got.Outcome.Ref), Key: "r"}); out.Done || !out.Overdue {
		t.Errorf("a commit past the deadline: %+v", out)
	}
	var parent string
	swept, err := w.Sweep(t.Context(), func(_ context.Context, c Claim, _ time.Time) error {
		key := c.Key
		if key == "r" && c.Reason == payment.Expired {
			parent = c.Parent.String()
		}
		return nil
	})
	if err != nil || swept.RolledBack != 1 || swept.Published != 1 || parent != got.Payment.Ref {
		t.Errorf("%+v, %v, told of %s", swept, err, parent)
	}
	if rec := w.record("p"); rec.RefundedMinor != 0 || rec.RefundingMinor != 0 {
		t.Errorf("%+v", rec)
	}
	if out := w.giveBack(refundOf(p, "again", 100)); out.Reason != payment.ReasonCommitted {
		t.Errorf("%+v", out)
	}
	w.checkCounters()
}

// At the rate of now the payer gets all of its amount. The house has the difference, as a profit or a
// loss, and can't be left without the money for it.
func TestARefundAtTheRateOfNow(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(0, "IDR"), in(100_000, "USD"))
	w.fund("B", in(0, "IDR"))
	w.liquidity(in(1_000_000, "JPY"), -1)
	w.liquidity(in(1_000_000, "USD"), -1)
	p := exchange("p", "A", "B", in(10_000, "USD"), in(15_000, "JPY"), 15_010)
	w.settle(p)
	at := func(key string, minor int64, yen string) payment.Operation {
		o := refundOf(p, key, minor)
		rate, err := money.ParseRate(yen)
		if err != nil {
			t.Fatal(err)
		}
		jpy, usd := in(0, "JPY").Currency, in(0, "USD").Currency
		o.Exchange = payment.Exchange{Rate: rate, MidRate: rate, Steps: []payment.Step{{From: jpy, To: usd, RateID: "now", Rate: rate, MidRate: rate, Inverse: true}}}
		return o
	}
	// 3,000 yen for 20 dollars: 3000 yen are 22.22 dollars at 135, and 18.75 at 160.
	if out := w.giveBack(at("profit", 2_000, "135")); out.Reason != payment.ReasonCommitted {
		t.Fatalf("%+v", out)
	}
	want := []string{"A refund 2000 USD", "B refund -3000 JPY", "LIQUIDITY exchange -2222 USD", "LIQUIDITY exchange 3000 JPY", "SPREAD spread 222 USD"}
	if got := w.entriesOf(idOf(w.record("profit").Ref)); !slices.Equal(got, want) {
		t.Errorf("booked %q", got)
	}
	loss := w.mustRefund(at("loss", 2_000, "160"))
	if available, held := w.has(payment.SpreadAccount, "USD"); available != 97 || held != 125 {
		t.Errorf("SPREAD has %d and holds %d: %+v", available, held, loss)
	}
	w.checkCounters()
	w.mustFinish(Finish{ReservationID: idOf(loss.Outcome.Ref)})
	want = []string{"A refund 2000 USD", "B refund -3000 JPY", "LIQUIDITY exchange -1875 USD", "LIQUIDITY exchange 3000 JPY", "SPREAD spread -125 USD"}
	if got := w.entriesOf(idOf(w.record("loss").Ref)); !slices.Equal(got, want) {
		t.Errorf("booked %q", got)
	}
	var legs []string
	for _, l := range w.record("loss").Legs() {
		legs = append(legs, fmt.Sprint(l.Account, " ", l.Kind, " ", l.Minor, " ", l.Currency))
	}
	if slices.Sort(legs); !slices.Equal(legs, want) {
		t.Errorf("the record's legs: %q", legs)
	}
	if out := w.giveBack(at("too much", 2_000, "180")); out.Reason != payment.FXLiquidityExhausted {
		t.Errorf("SPREAD can't pay 333 dollar cents: %+v", out)
	}
	rolled := w.mustRefund(at("rolled back", 1_000, "151"))
	w.mustFinish(Finish{ReservationID: idOf(rolled.Outcome.Ref), RollBack: payment.CommitFailed})
	if available, held := w.has(payment.SpreadAccount, "USD"); available != 97 || held != 0 {
		t.Errorf("SPREAD has %d and holds %d", available, held)
	}
	if out := w.giveBack(at("worth nothing", 1, "1000000")); out.Reason != payment.ReasonCommitted {
		t.Errorf("one cent for two yen: %+v", out)
	}
	if out := w.giveBack(refundOf(p, "the rest", 0)); out.Reason != payment.ReasonCommitted {
		t.Errorf("%+v", out)
	}
	if available, _ := w.has("A", "USD"); available != 100_000 {
		t.Errorf("A has %d", available)
	}
	if available, _ := w.has("B", "JPY"); available != 0 {
		t.Errorf("B has %d", available)
	}
	w.checkCounters()
}

// A commit, a rollback and a sweep of refunds, payments and refunds of the same payments at once: one of
// them wins each, and nobody waits in a circle.
func TestRefundsAndPaymentsAtOnce(t *testing.T) {
	lanes := 4
	if embeddedtest.Rows(t) {
		lanes = 1 // more of them only wait for each other there, some in a circle
	}
	w := newWorldWith(t, func(cfg *Config) { cfg.BatchMax, cfg.BatchLanes = 8, lanes })
	accounts := []string{"A", "B", "C", "D"}
	for _, id := range accounts {
		w.fund(id, in(1_000_000, "IDR"), in(1_000_000, "USD"))
	}
	w.liquidity(in(10_000_000, "IDR"), -1)
	w.liquidity(in(10_000_000, "USD"), -1)
	payments := make([]payment.Payment, 12)
	for i := range payments {
		from, to := accounts[i%4], accounts[(i+1+i/4)%4]
		payments[i] = pay(fmt.Sprint("p", i), from, to, 1000)
		if i%3 == 0 {
			payments[i] = exchange(fmt.Sprint("p", i), from, to, in(1000, "USD"), in(155_000, "IDR"), 155_100)
		}
		w.settle(payments[i])
	}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			p := payments[i%len(payments)]
			if i%4 == 3 {
				w.settle(pay(fmt.Sprint("other ", i), p.Receiver, p.Sender, 10))
				return
			}
			got := w.mustRefund(refundOf(p, fmt.Sprint("r", i), 90))
			if got.Outcome.State != payment.Pending {
				return
			}
			f := Finish{ReservationID: idOf(got.Outcome.Ref)}
			var race sync.WaitGroup
			done := make(chan bool, 3)
			for _, how := range []payment.Reason{"", payment.CommitFailed, payment.CallerRolledBack} {
				race.Go(func() { f := f; f.RollBack = how; done <- w.mustFinish(f).Done })
			}
			race.Wait()
			winners := 0
			for range 3 {
				if <-done {
					winners++
				}
			}
			if winners != 1 {
				t.Errorf("r%d has %d winners", i, winners)
			}
		})
	}
	wg.Wait()
	w.checkCounters()
}

// A locked payment puts off its refunds alone.
func TestALockedPaymentPutsOffItsRefundsAlone(t *testing.T) {
	w := newWorldWith(t, impatient)
	w.open(1000, "A", "B")
	locked, free := pay("locked", "A", "B", 100), pay("free", "A", "B", 100)
	w.settle(locked)
	w.settle(free)
	held := w.mustRefund(refundOf(locked, "held", 10))
	release := w.hold(`SELECT FROM reservations WHERE idempotency_key = 'locked' FOR UPDATE`)
	var wg sync.WaitGroup
	var lockedErr, freeErr, heldErr error
	wg.Go(func() { _, lockedErr = w.Refund(context.Background(), refundOf(locked, "r1", 10)) })
	wg.Go(func() { _, freeErr = w.Refund(context.Background(), refundOf(free, "r2", 10)) })
	wg.Go(func() { _, heldErr = w.Finish(context.Background(), Finish{ReservationID: idOf(held.Outcome.Ref)}) })
	wg.Wait()
	if lockedErr == nil || heldErr == nil || freeErr != nil {
		t.Errorf("of the locked payment: %v and %v; of the free one: %v", lockedErr, heldErr, freeErr)
	}
	release()
	w.giveBack(refundOf(locked, "r1", 10))
	w.mustFinish(Finish{ReservationID: idOf(held.Outcome.Ref)})
	if rec := w.record("locked"); rec.RefundedMinor != 20 {
		t.Errorf("%+v", rec)
	}
}

// The sums see a refund that its payment has not counted, and one that pays somebody else.
func TestSumSeesRefundsThatAreOff(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B", "C")
	p := pay("p", "A", "B", 100)
	w.settle(p)
	w.giveBack(refundOf(p, "r", 40))
	for change, undo := range map[string]string{
		"refunded_minor = 39 WHERE idempotency_key = 'p'":                    "refunded_minor = 40 WHERE idempotency_key = 'p'",
		"refunding_minor = 1 WHERE idempotency_key = 'p'":                    "refunding_minor = 0 WHERE idempotency_key = 'p'",
		"returned_minor = 41 WHERE idempotency_key = 'p'":                    "returned_minor = 40 WHERE idempotency_key = 'p'",
		"sender_id = 'C' WHERE idempotency_key = 'r'":                        "sender_id = 'B' WHERE idempotency_key = 'r'",
		fmt.Sprintf("parent_id = '%s' WHERE idempotency_key = 'r'", newID()): fmt.Sprintf("parent_id = '%s' WHERE idempotency_key = 'r'", w.record("p").Ref),
	} {
		w.exec("UPDATE reservations SET " + change)
		sum, err := ReadSum(t.Context(), w.pool)
		off, offErr := ReadRefundsOff(t.Context(), w.pool, 10)
		if err != nil || offErr != nil || sum.RefundsOff == 0 || int64(len(off)) != sum.RefundsOff {
			t.Errorf("%s: %d off, %+v; %v, %v", change, sum.RefundsOff, off, err, offErr)
		}
		w.exec("UPDATE reservations SET " + undo)
	}
}

// An earlier release can't end a refund, because it would not count it.
func TestAnEarlierReleaseLeavesRefundsAlone(t *testing.T) {
	w := newPlainWorld(t)
	w.open(1000, "A", "B")
	p := pay("p", "A", "B", 100)
	w.settle(p)
	got := w.mustRefund(refundOf(p, "r", 60))
	for _, status := range []string{"COMMITTED", "ROLLEDBACK"} {
		w.exec("UPDATE reservations SET status = '" + status + "', ended_at = now() WHERE idempotency_key = 'r'")
		if rec := w.record("r"); rec.State != payment.Pending {
			t.Errorf("%+v", rec)
		}
	}
	if done := w.mustFinish(Finish{ReservationID: idOf(got.Outcome.Ref)}); !done.Done {
		t.Errorf("%+v", done)
	}
}

// The receiver's client refunds and captures payments of the payer's client. The keys of both are their own.
func TestAnOperationHasItsOwnClient(t *testing.T) {
	w := newWorld(t)
	w.open(1_000, "A", "B")
	p := by("payer", pay("order", "A", "B", 100))
	w.paid(p)
	w.paid(by("merchant", pay("order", "A", "B", 50)))
	theirs := func(o payment.Operation) payment.Operation {
		o.Client = "merchant"
		return o.On(p.Scoped())
	}
	own := refundOf(p, "refund", 40)
	own.Client = "payer"
	refund := theirs(refundOf(p, "refund", 30))
	for _, o := range []payment.Operation{refund, own} {
		if got := w.giveBack(o); got.Status != payment.Success || got.Replay {
			t.Errorf("the refund of %s: %+v", o.Client, got)
		}
		if got := w.mustRefund(o); got.Outcome.Status != payment.Success || got.Payment.Client != "payer" || got.Payment.RefundedMinor < 30 {
			t.Errorf("delivered again: %+v", got)
		}
	}
	rec, err := w.Payment(t.Context(), payment.ScopedKey{Client: "merchant", Key: "refund"})
	if err != nil || rec.Refund().Of() != p.Scoped() || rec.Asked() != rec.Claimed || rec.Credit().Minor != 30 {
		t.Errorf("kept: %+v, %v", rec, err)
	}
	if of, err := w.Payment(t.Context(), p.Scoped()); err != nil || of.RefundedMinor != 70 {
		t.Errorf("%+v, %v", of, err)
	}
	// From before payments had clients: a retry hears the same.
	legacy := pay("legacy", "A", "B", 100)
	w.settle(legacy)
	w.giveBack(refundOf(legacy, "before", 10))
	retry := refundOf(legacy, "before", 10)
	retry.Client, retry.AttemptID = "merchant", "retry"
	if got := w.mustRefund(retry.On(legacy.Scoped())); got.Outcome.Status != payment.SuccessReplay {
		t.Errorf("a retry of a refund from before: %+v", got)
	}

	held := manual(by("payer", pay("held", "A", "B", 100)))
	w.mustReserve(held)
	op := operationOn(payment.Capture, "c", "held")
	op.Client = "merchant"
	w.expect(op.On(held.Scoped()), "SUCCESS committed")
	if n := w.count(`SELECT count(*) FROM operations WHERE client = 'merchant' AND idempotency_key = 'c'`); n != 1 {
		t.Errorf("%d captures with the merchant's key", n)
	}
	w.checkCounters()
}

// Two clients' payments have the same key. Their refunds have the same key too, and ask for the same. One
// is not the answer to the other.
func TestRefundsBelongToTheirClients(t *testing.T) {
	w := newWorld(t)
	w.open(1_000, "A", "B")
	for client, amount := range map[string]int64{"": 100, "b": 200} {
		p := by(client, pay("order", "A", "B", amount))
		if w.paid(p).Status != payment.Pending {
			t.Fatal("not held")
		}
		o := refundOf(p, "refund", 0)
		o.Client = client
		if got := w.giveBack(o); got.Status != payment.Success || got.Replay {
			t.Errorf("the refund of %q: %+v", client, got)
		}
		if rec, err := w.Payment(t.Context(), p.Scoped()); err != nil || rec.RefundedMinor != amount {
			t.Errorf("%q has got %d back, %v", client, rec.RefundedMinor, err)
		}
	}
	w.checkBooks()
}
