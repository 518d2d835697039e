package risk

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"time"

	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// Defaults are the rules until the first SeedRules.
var Defaults = payment.Rules{MinAmountIDR: 1_000, MaxAmountIDR: 10_000_000, RandomRejectPPM: 20_000}

// DefaultRuleSet is the id of Defaults.
const DefaultRuleSet = ledger.NoRules

// ruleSet is payment.Rules prepared for use.
type ruleSet struct {
	payment.Rules
	id      string
	blocked map[string]bool
}

func newRuleSet(id string, r payment.Rules) ruleSet {
	s := ruleSet{Rules: r, id: id, blocked: make(map[string]bool, len(r.BlockedAccounts))}
	for _, account := range r.BlockedAccounts {
		s.blocked[account] = true
	}
	return s
}

func parseRules(id string, text []byte) (ruleSet, error) {
	r, err := payment.ParseRules(text)
	if err != nil {
		return ruleSet{}, fmt.Errorf("rule set %s: %w", id, err)
	}
	return newRuleSet(id, r), nil
}

// request is the payment that the rules check.
type request struct {
	sender, receiver, currency, txDate, key string
	amountIDR                               int64
}

// The verdicts in the contract's words: payment's reasons without "risk_".
const (
	badInput       = "bad_input"
	sameParty      = "same_party"
	belowMin       = "below_min"
	aboveMax       = "above_max"
	blockedAccount = "blocked_account"
	velocity       = "velocity"
	randomReject   = "random_reject"
)

// judge returns the first rule that refuses the payment, or "". started returns the number of
// payments that the sender has started this minute. judge calls it only if the rules limit that
// number.
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
		return true // earlier callers need not send a date
	}
	_, err := time.Parse(time.RFC3339, text)
	return err == nil
}

func validCurrency(code string) bool {
	_, err := money.ParseCurrency(code)
	return err == nil
}

// draw returns a number below a million that depends only on the payment. So a retry gets the same
// answer, and nobody can choose a key that passes without the secret.
func draw(r request, secret []byte) uint32 {
	h := hmac.New(sha256.New, secret)
	if r.key != "" {
		h.Write([]byte(r.key))
	} else {
		fmt.Fprintf(h, "%q %q %q %q %d", r.sender, r.receiver, r.currency, r.txDate, r.amountIDR)
	}
	return uint32(binary.BigEndian.Uint64(h.Sum(nil)) % payment.Million)
}

// merged returns the current rules with a change applied. Fields that the change does not set keep
// their values.
func merged(r, change payment.Rules, minAmount *int64, rejectPPM *uint32) payment.Rules {
	change.MinAmountIDR, change.RandomRejectPPM = r.MinAmountIDR, r.RandomRejectPPM
	if minAmount != nil {
		change.MinAmountIDR = *minAmount
	}
	if rejectPPM != nil {
		change.RandomRejectPPM = *rejectPPM
	}
	return change
}

// MakeSecret makes a secret for a new system from random bytes. With this secret, the Defaults do
// not refuse the payments with these keys at random. They are the keys of the examples on pgw's
// pages.
func MakeSecret(random io.Reader, keys ...string) (string, error) {
	for {
		raw := make([]byte, 2*minSecret)
		if _, err := io.ReadFull(random, raw); err != nil {
			return "", err
		}
		secret := hex.EncodeToString(raw)
		refused := func(key string) bool { return draw(request{key: key}, []byte(secret)) < Defaults.RandomRejectPPM }
		if !slices.ContainsFunc(keys, refused) {
			return secret, nil
		}
	}
}
