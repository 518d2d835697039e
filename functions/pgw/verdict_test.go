package main

import (
	"strings"
	"testing"
	"time"

	"pgw/functions/pgw/reconcile"
	"pgw/shared/payment"
)

// The ledger takes the text of any error.
func TestTheLedgerTakesTheTextOfAnyVerdict(t *testing.T) {
	for _, text := range []string{"The books agree.", "first\nsecond\x00third \xff", strings.Repeat("é", maxVerdictText)} {
		got := verdictText(text)
		if err := payment.CheckText("text", got, maxVerdictText); err != nil || got == "" {
			t.Errorf("%.40q: %.40q, %v", text, got, err)
		}
	}
}

// That the books differ stays until a reconciliation that compares at least as much finds that they agree.
func TestWhichVerdictReplacesAnother(t *testing.T) {
	everything, early, late := time.Time{}, time.Unix(1000, 0), time.Unix(2000, 0)
	of := func(v reconcile.Verdict, since time.Time) reconcile.Conclusion {
		return reconcile.Conclusion{Verdict: v, Asked: since}
	}
	for _, tc := range []struct {
		before, now reconcile.Conclusion
		want        bool
		since       time.Time // that is kept
	}{
		{of("", everything), of(reconcile.Agrees, late), true, late},
		{of(reconcile.Agrees, everything), of(reconcile.Agrees, late), true, late},
		{of(reconcile.Agrees, late), of(reconcile.Unknown, everything), true, everything},
		{of(reconcile.Unknown, everything), of(reconcile.Agrees, late), true, late},
		{of(reconcile.Agrees, everything), of(reconcile.Differs, late), true, late},
		// What differs may be older than what was compared now.
		{of(reconcile.Differs, everything), of(reconcile.Agrees, early), false, early},
		{of(reconcile.Differs, early), of(reconcile.Agrees, late), false, late},
		{of(reconcile.Differs, early), of(reconcile.Unknown, everything), false, everything},
		// A run from the same checkpoint has compared the same again, and more.
		{of(reconcile.Differs, early), of(reconcile.Agrees, early), true, early},
		{of(reconcile.Differs, late), of(reconcile.Agrees, early), true, early},
		{of(reconcile.Differs, late), of(reconcile.Agrees, everything), true, everything},
		{of(reconcile.Differs, everything), of(reconcile.Agrees, everything), true, everything},
		// A part that differs does not hide that an older one does.
		{of(reconcile.Differs, everything), of(reconcile.Differs, late), true, everything},
		{of(reconcile.Differs, early), of(reconcile.Differs, late), true, early},
		{of(reconcile.Differs, late), of(reconcile.Differs, early), true, early},
	} {
		if got, since := replaces(tc.before, tc.now), keptSince(tc.before, tc.now); got != tc.want || !since.Equal(tc.since) {
			t.Errorf("%+v: %t, %s", tc, got, since)
		}
	}
}
