package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgw/shared/payment"
)

// What nobody has told yet is zero. A completed sweep and the latest verdict are told.
func TestTheLedgerTellsItsStanding(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	got, err := w.Standing(t.Context())
	if err != nil || got != (Standing{Schema: KnownSchema()}) {
		t.Fatalf("a new ledger: %+v, %v", got, err)
	}
	held := w.mustReserve(pay("held", "A", "B", 70))
	if _, _, err := w.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := range int64(keptVerdicts + 5) {
		if err := w.RecordVerdict(t.Context(), Verdict{Finding: Differs, Breaches: n + 1, Text: "wrong"}); err != nil {
			t.Fatal(err)
		}
	}
	got, err = w.Standing(t.Context())
	if s := got.LastSweep; err != nil || s.At.IsZero() || s.Pending != 1 || s.HeldIDR != 70 || !s.Oldest.Equal(timeOf(held.ReservationID)) {
		t.Errorf("after a sweep: %+v, %v", s, err)
	}
	if v := got.Verdict; v.Finding != Differs || v.Breaches != keptVerdicts+5 || v.Text != "wrong" || v.At.IsZero() {
		t.Errorf("the latest verdict: %+v", v)
	}
	var kept int
	if err := connect(t, w.cfg.URL).QueryRow(t.Context(), `SELECT count(*) FROM verdicts`).Scan(&kept); err != nil || kept != keptVerdicts {
		t.Errorf("%d verdicts are kept, %v", kept, err)
	}
	w.mustFinish(Finish{ReservationID: held.ReservationID})
	if _, _, err := w.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err = w.Standing(t.Context()); err != nil || got.LastSweep.Pending != 0 || !got.LastSweep.Oldest.IsZero() {
		t.Errorf("after a sweep with nothing pending: %+v, %v", got.LastSweep, err)
	}
}

func TestAVerdictIsChecked(t *testing.T) {
	w := newWorld(t)
	for field, v := range map[string]Verdict{
		"verdict":  {Finding: "fine", Text: "x"},
		"breaches": {Finding: Agrees, Breaches: 1, Text: "x"},
		"text":     {Finding: Agrees, Text: strings.Repeat("x", maxVerdict+1)},
	} {
		var bad *InvalidError
		var of *payment.FieldError
		if err := w.RecordVerdict(t.Context(), v); !errors.As(err, &bad) || !errors.As(err, &of) || of.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestActivityCountsPayments(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	begun := time.Now().Add(-time.Minute).Truncate(time.Second)
	for n := range 3 {
		got := w.mustReserve(pay(fmt.Sprintf("paid-%d", n), "A", "B", 10))
		w.mustFinish(Finish{ReservationID: got.ReservationID})
	}
	w.mustReserve(pay("held", "A", "B", 10))
	w.mustReserve(pay("poor", "A", "B", 5000))
	if _, err := w.Refuse(t.Context(), pay("risky", "A", "B", 10), payment.RiskRandomReject); err != nil {
		t.Fatal(err)
	}
	w.madeBefore("older", 20*time.Minute)

	of := ActivityOf{From: begun, To: begun.Add(10 * time.Minute), Step: 3 * time.Minute}
	got, err := w.Activity(t.Context(), of)
	if err != nil || len(got.Buckets) != 4 {
		t.Fatalf("%+v, %v", got, err)
	}
	first := got.Buckets[0]
	if first.Success != 3 || first.Failed != 2 || first.Pending != 1 || first.P50 <= 0 || first.P99 < first.P50 || first.P99 > patience {
		t.Errorf("the first bucket: %+v", first)
	}
	if empty := (Bucket{At: begun.Add(9 * time.Minute)}); got.Buckets[3] != empty {
		t.Errorf("the last bucket: %+v", got.Buckets[3])
	}
	if fmt.Sprint(got.Reasons) != "map[insufficient_funds:1 risk_random_reject:1]" {
		t.Errorf("reasons: %v", got.Reasons)
	}

	of.From, of.Step = of.From.Add(-30*time.Minute), time.Minute
	older, err := w.Activity(t.Context(), of)
	if err != nil {
		t.Fatal(err)
	}
	var all int64
	for _, b := range older.Buckets {
		all += b.Success + b.Failed + b.Pending
	}
	if all != 7 {
		t.Errorf("a longer range has %d payments: %+v", all, older.Buckets)
	}
	var many *TooManyError
	if _, err := w.activity(t.Context(), of, 6); !errors.As(err, &many) || many.Limit != 6 || !strings.Contains(err.Error(), "more than 6 payments") {
		t.Errorf("a range with too many payments: %v", err)
	}
}

func TestARangeOfActivityIsChecked(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	for field, of := range map[string]ActivityOf{
		"from": {To: now, Step: time.Minute},
		"to":   {From: now, To: now, Step: time.Minute},
		"step": {From: now.Add(-time.Hour), To: now, Step: time.Second},
		// A range that is longer than a time.Duration.
		"step ": {From: time.Unix(0, 0), To: time.Date(2400, 1, 1, 0, 0, 0, 0, time.UTC), Step: time.Hour},
	} {
		var bad *InvalidError
		var wrong *payment.FieldError
		if _, err := w.Activity(context.Background(), of); !errors.As(err, &bad) || !errors.As(err, &wrong) || wrong.Field != strings.TrimSpace(field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
