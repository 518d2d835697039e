package risk

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// Rules are data: kept in the database, changed through SeedRules, and named by their id on each payment.
type Rules struct {
	MinAmountIDR     int64    `json:"min_amount_idr"`
	MaxAmountIDR     int64    `json:"max_amount_idr"`    // 0: none
	VelocityPerMin   uint32   `json:"velocity_per_min"`  // payments a sender may start in a clock minute; 0: no limit
	RandomRejectPPM  uint32   `json:"random_reject_ppm"` // refused at random, in a million
	BlockedAccounts  []string `json:"blocked_accounts"`
	BlockedCountries []string `json:"blocked_countries"`
}

// Defaults hold until the first SeedRules.
var Defaults = Rules{MinAmountIDR: 1_000, MaxAmountIDR: 10_000_000, RandomRejectPPM: 20_000}

// defaultRuleSet is the Defaults' id.
const defaultRuleSet = "default"

const (
	million = 1_000_000
	// maxBlocked bounds each list of a rule set.
	maxBlocked = 10_000
)

func (r Rules) validate() error {
	switch {
	case r.MinAmountIDR < 0 || r.MinAmountIDR > money.MaxMinor:
		return &payment.FieldError{Field: "min_amount_idr", Problem: "must not be negative"}
	case r.MaxAmountIDR < 0 || r.MaxAmountIDR > money.MaxMinor:
		return &payment.FieldError{Field: "max_amount", Problem: fmt.Sprintf("must be between 0 and %d", int64(money.MaxMinor))}
	case r.MaxAmountIDR > 0 && r.MaxAmountIDR < r.MinAmountIDR:
		return &payment.FieldError{Field: "max_amount", Problem: fmt.Sprintf("is below min_amount_idr (%d)", r.MinAmountIDR)}
	case r.RandomRejectPPM > million:
		return &payment.FieldError{Field: "random_reject_ppm", Problem: "must be at most 1000000"}
	case len(r.BlockedAccounts) > maxBlocked:
		return &payment.FieldError{Field: "blocked_accounts", Problem: fmt.Sprintf("at most %d", maxBlocked)}
	case len(r.BlockedCountries) > maxBlocked:
		return &payment.FieldError{Field: "blocked_countries", Problem: fmt.Sprintf("at most %d", maxBlocked)}
	}
	return nil
}

// ruleSet is Rules made ready for use.
type ruleSet struct {
	Rules
	id      string
	blocked map[string]bool
}

func newRuleSet(id string, r Rules) ruleSet {
	s := ruleSet{Rules: r, id: id, blocked: make(map[string]bool, len(r.BlockedAccounts))}
	for _, account := range r.BlockedAccounts {
		s.blocked[account] = true
	}
	return s
}

func parseRules(id string, text []byte) (ruleSet, error) {
	var r Rules
	if err := json.Unmarshal(text, &r); err != nil {
		return ruleSet{}, fmt.Errorf("rule set %s: %w", id, err)
	}
	return newRuleSet(id, r), nil
}

// request is what the rules judge.
type request struct {
	sender, receiver, currency, txDate, key string
	amountIDR                               int64
}

// The verdicts, as the contract has them: payment's reasons without "risk_".
const (
	badInput       = "bad_input"
	sameParty      = "same_party"
	belowMin       = "below_min"
	aboveMax       = "above_max"
	blockedAccount = "blocked_account"
	velocity       = "velocity"
	randomReject   = "random_reject"
)

// judge gives the first rule that says no, or "". started tells how many payments the sender has started
// this minute; it is asked only when a rule wants to know.
func (s ruleSet) judge(r request, secret []byte, started func() (uint32, error)) (string, error) {
	switch {
	case payment.CheckID("sender_id", r.sender, payment.MaxAccountID) != nil,
		payment.CheckID("receiver_id", r.receiver, payment.MaxAccountID) != nil,
		r.amountIDR <= 0, !validDate(r.txDate), !validCurrency(r.currency):
		return badInput, nil
	case r.sender == r.receiver:
		return sameParty, nil
	case r.amountIDR < s.MinAmountIDR:
		return belowMin, nil
	case s.MaxAmountIDR > 0 && r.amountIDR > s.MaxAmountIDR:
		return aboveMax, nil
	case s.blocked[r.sender], s.blocked[r.receiver]:
		return blockedAccount, nil
	}
	if s.VelocityPerMin > 0 {
		n, err := started()
		if err != nil {
			return "", err
		}
		if n >= s.VelocityPerMin {
			return velocity, nil
		}
	}
	if s.RandomRejectPPM > 0 && draw(r, secret) < s.RandomRejectPPM {
		return randomReject, nil
	}
	return "", nil
}

func validDate(text string) bool {
	if text == "" {
		return true // earlier callers need not send one
	}
	_, err := time.Parse(time.RFC3339, text)
	return err == nil
}

func validCurrency(code string) bool {
	_, err := money.ParseCurrency(code)
	return err == nil
}

// draw is a number below a million that depends on the payment alone: a retry hears the same answer, and
// nobody without the secret can choose a key that passes.
func draw(r request, secret []byte) uint32 {
	h := hmac.New(sha256.New, secret)
	if r.key != "" {
		h.Write([]byte(r.key))
	} else {
		fmt.Fprintf(h, "%q %q %q %q %d", r.sender, r.receiver, r.currency, r.txDate, r.amountIDR)
	}
	return uint32(binary.BigEndian.Uint64(h.Sum(nil)) % million)
}

// merged applies a change to the rules in force: what it does not mention stays.
func (r Rules) merged(change Rules, minAmount *int64, rejectPPM *uint32) Rules {
	change.MinAmountIDR, change.RandomRejectPPM = r.MinAmountIDR, r.RandomRejectPPM
	if minAmount != nil {
		change.MinAmountIDR = *minAmount
	}
	if rejectPPM != nil {
		change.RandomRejectPPM = *rejectPPM
	}
	return change
}
