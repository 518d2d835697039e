package main

import (
	"strings"
	"testing"

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
