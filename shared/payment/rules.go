package payment

import (
	"bytes"
	"encoding/json"
	"fmt"

	"pgw/shared/money"
)

// Rules are the rules of risk, as data. The ledger stores them, and enforces those whose values it
// counts itself.
type Rules struct {
	MinAmountIDR     int64    `json:"min_amount_idr"`
	MaxAmountIDR     int64    `json:"max_amount_idr"`    // 0: no limit
	VelocityPerMin   uint32   `json:"velocity_per_min"`  // the payments that a sender may start per clock minute; 0: no limit
	RandomRejectPPM  uint32   `json:"random_reject_ppm"` // payments refused at random, per million
	BlockedAccounts  []string `json:"blocked_accounts"`
	BlockedCountries []string `json:"blocked_countries"`
}

const (
	// Million is the denominator of RandomRejectPPM.
	Million = 1_000_000
	// MaxBlocked is the maximum length of each list in Rules.
	MaxBlocked = 10_000
)

// ParseRules parses stored rules. The ledger calls it and Validate before it stores rules, so every
// reader can use the stored ones. Unknown fields are accepted, because a later version may have
// more fields. The error is a FieldError.
func ParseRules(text []byte) (Rules, error) {
	var r Rules
	if !bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		return r, &FieldError{"rules", "is not a JSON object"}
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return Rules{}, &FieldError{"rules", err.Error()}
	}
	return r, nil
}

// Validate returns a FieldError for the first wrong field.
func (r Rules) Validate() error {
	switch {
	case r.MinAmountIDR < 0 || r.MinAmountIDR > money.MaxMinor:
		return &FieldError{"min_amount_idr", fmt.Sprintf("must be between 0 and %d", int64(money.MaxMinor))}
	case r.MaxAmountIDR < 0 || r.MaxAmountIDR > money.MaxMinor:
		return &FieldError{"max_amount", fmt.Sprintf("must be between 0 and %d", int64(money.MaxMinor))}
	case r.MaxAmountIDR > 0 && r.MaxAmountIDR < r.MinAmountIDR:
		return &FieldError{"max_amount", fmt.Sprintf("is below min_amount_idr (%d)", r.MinAmountIDR)}
	case r.RandomRejectPPM > Million:
		return &FieldError{"random_reject_ppm", "must be at most 1000000"}
	case len(r.BlockedAccounts) > MaxBlocked:
		return &FieldError{"blocked_accounts", fmt.Sprintf("at most %d", MaxBlocked)}
	case len(r.BlockedCountries) > MaxBlocked:
		return &FieldError{"blocked_countries", fmt.Sprintf("at most %d", MaxBlocked)}
	}
	for i, account := range r.BlockedAccounts {
		if err := CheckID(fmt.Sprintf("blocked_accounts[%d]", i), account, MaxAccountID); err != nil {
			return err
		}
	}
	for i, country := range r.BlockedCountries {
		if err := CheckText(fmt.Sprintf("blocked_countries[%d]", i), country, MaxAccountID); err != nil {
			return err
		}
	}
	return nil
}
