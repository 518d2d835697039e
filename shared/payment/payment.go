// Package payment holds the nouns of the gateway and its pure rules: no I/O, no clock, no randomness.
package payment

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	jsonexp "github.com/go-json-experiment/json"

	"pgw/shared/money"
)

const (
	// DecideWithin is how long after it was accepted a payment may still be settled. Past it nobody settles,
	// so a client that heard queue_timeout knows when its answer is final.
	DecideWithin = 60 * time.Second

	// MaxKey bounds an idempotency key, in bytes.
	MaxKey = 200
	// MaxAccountID bounds an account's id, in bytes.
	MaxAccountID = 64
	// MaxOwner and MaxNote bound what people write about an account and about a funding, in bytes.
	MaxOwner, MaxNote = 200, 500
	// MaxMetadata bounds the entries that a client may note with a payment. The others are in
	// bytes: of a name, of a value, and of all names and values together.
	MaxMetadata, MaxMetadataName, MaxMetadataValue, MaxMetadataSize = 20, 40, 500, 4 << 10

	// SettlementAccount receives what a wallet hold captures: such a hold names no receiver. It is the house's own: no
	// payment from outside names it.
	SettlementAccount = "SETTLEMENT"
	// HoldPrefix begins the keys of wallet's holds, and no key from outside.
	HoldPrefix = "wallet:"
)

// Status is what a client is told first.
type Status string

// The statuses of the contract.
const (
	Success       Status = "SUCCESS"
	SuccessReplay Status = "SUCCESS_REPLAY"
	Failed        Status = "FAILED"
)

// ReservationStatus is the state of one reservation row. PENDING is the only one that holds money, and the
// only one that changes.
type ReservationStatus string

// The reservation's states.
const (
	Pending    ReservationStatus = "PENDING"
	Committed  ReservationStatus = "COMMITTED"
	RolledBack ReservationStatus = "ROLLEDBACK"
)

// Outcome is the one answer that an idempotency key has. Its JSON is what clients and events are
// told of it.
type Outcome struct {
	Status Status `json:"status"` // empty while nothing is decided
	Reason Reason `json:"reason"`
	Ref    string `json:"ref"` // the reservation's id; empty when nothing was reserved

	State  ReservationStatus `json:"-"` // empty where the ledger keeps nothing for this payment
	Replay bool              `json:"-"` // an earlier attempt made the reservation
}

// Decline is the outcome of a refusal for a reason.
func Decline(r Reason) Outcome { return Outcome{Status: Failed, Reason: r} }

// Standing is the outcome of a reservation in a state. reason is why it was rolled back; replay
// says that an earlier attempt than the one that asks made it.
func Standing(state ReservationStatus, reason Reason, ref string, replay bool) Outcome {
	o := Outcome{Ref: ref, State: state, Replay: replay}
	switch {
	case state == RolledBack:
		o.Status, o.Reason = Failed, reason
	case state == Committed && replay:
		o.Status, o.Reason = SuccessReplay, DuplicateIdempo
	case state == Committed:
		o.Status, o.Reason = Success, ReasonCommitted
	}
	return o
}

// Answer is the outcome as a client hears it: a refusal names no reservation, also where the ledger
// keeps one.
func (o Outcome) Answer() Outcome {
	if o.Status == Failed {
		o.Ref = ""
	}
	return o
}

// Record is a payment as the ledger keeps it.
type Record struct {
	Payment
	Outcome
	Claimed    Fingerprint // what the key was claimed with
	ReservedAt time.Time
	DecidedAt  time.Time // zero while PENDING
}

// Payment is one payment, priced. Its JSON is the data of the event that asks for it; with the
// first six fields alone it is the plain record of earlier producers. common.v1.Payment is its
// message, and shared/rpc turns one into the other.
type Payment struct {
	Key      string `json:"idempotency_key"`
	Sender   string `json:"sender_id"`
	Receiver string `json:"receiver_id"`
	// AmountIDR is what moves, in whole rupiah.
	AmountIDR int64          `json:"amount_idr"`
	Currency  money.Currency `json:"currency_input"` // that the client pays in
	TxDate    string         `json:"tx_date"`        // RFC 3339, as sent
	// Minor is the amount as the client sent it, in minor units of Currency. It is 0 where only
	// rupiah are known: earlier Kafka producers and gRPC callers name the currency but not the
	// amount in it.
	Minor int64 `json:"amount_minor,omitempty"`

	// How Minor became AmountIDR; zero where the caller did the pricing.
	Rate     money.Rate `json:"rate,omitzero"`
	RateID   string     `json:"rate_id,omitempty"`
	RateTime time.Time  `json:"rate_time,omitzero"`

	RuleSet    string    `json:"rule_set,omitempty"` // the risk rules that allowed it
	AcceptedAt time.Time `json:"accepted_at,omitzero"`
	Deadline   time.Time `json:"deadline,omitzero"`
	// AttemptID tells a redelivery of one attempt (the client has heard nothing yet: SUCCESS) from a
	// second attempt (SUCCESS_REPLAY).
	AttemptID string `json:"attempt_id,omitempty"`
	// Metadata is what the client notes with the payment; pgw keeps it and reads nothing from it.
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Sent is the amount as the client sent it.
func (p Payment) Sent() money.Amount { return money.Amount{Minor: p.Minor, Currency: p.Currency} }

// Order is a payment as a client asks for it over HTTP.
type Order struct {
	Sender   string          `json:"sender_id"`
	Receiver string          `json:"receiver_id"`
	Currency string          `json:"currency"`
	Amount   json.RawMessage `json:"amount"` // in major units: a number, or a decimal string
	TxDate   string          `json:"tx_date"`
	Key      string          `json:"idempotency_key"`
	Metadata json.RawMessage `json:"metadata"` // an object of strings
}

// maxDate bounds the text of a client's date, in bytes.
const maxDate = 40

// Payment gives the payment that is ordered, checked, and not priced yet. The error names the field
// and its limit; it wraps money.ErrCurrency where the currency is none.
func (o Order) Payment() (Payment, error) {
	p := Payment{Key: o.Key, Sender: o.Sender, Receiver: o.Receiver, TxDate: o.TxDate}
	if err := CheckID("idempotency_key", o.Key, MaxKey); err != nil {
		return p, err
	}
	if err := CheckID("sender_id", o.Sender, MaxAccountID); err != nil {
		return p, err
	}
	if err := CheckID("receiver_id", o.Receiver, MaxAccountID); err != nil {
		return p, err
	}
	if err := CheckNames(o.Key, o.Sender, o.Receiver); err != nil {
		return p, err
	}
	if o.TxDate == "" {
		return p, &FieldError{"tx_date", "is missing"}
	}
	if len(o.TxDate) > maxDate {
		return p, &FieldError{"tx_date", fmt.Sprintf("is %d bytes long; at most %d", len(o.TxDate), maxDate)}
	}
	if err := checkDate(o.TxDate); err != nil {
		return p, err
	}
	if o.Currency == "" {
		return p, &FieldError{"currency", "is missing"}
	}
	text, err := decimalText(o.Amount)
	if err != nil {
		return p, err
	}
	if p.Currency, err = money.ParseCurrency(o.Currency); err != nil {
		return p, err
	}
	amount, err := money.ParseAmount(text, p.Currency)
	if err != nil {
		return p, err
	}
	if amount.Minor <= 0 {
		return p, &FieldError{"amount", "must be positive"}
	}
	p.Minor = amount.Minor
	if p.Metadata, err = readMetadata(o.Metadata); err != nil {
		return p, err
	}
	return p, nil
}

// readMetadata reads JSON in which each name stands once: of two values it would not be known which
// is meant.
func readMetadata(raw json.RawMessage) (map[string]string, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var texts map[string]*string
	err := jsonexp.Unmarshal(raw, &texts)
	if err != nil || slices.Contains(slices.Collect(maps.Values(texts)), nil) {
		return nil, &FieldError{"metadata", "must be an object of strings, with each name once"}
	}
	if len(texts) == 0 {
		return nil, nil
	}
	metadata := make(map[string]string, len(texts))
	for name, text := range texts {
		metadata[name] = *text
	}
	return metadata, checkMetadata(metadata)
}

// decimalText gives the digits of an amount. A number is taken by its digits, not through a float.
func decimalText(raw json.RawMessage) (string, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" {
		return "", &FieldError{"amount", "is missing"}
	}
	if raw[0] == '"' {
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			return "", &FieldError{"amount", "is not a string"}
		}
		return text, nil
	}
	if c := raw[0]; c != '-' && (c < '0' || c > '9') {
		return "", &FieldError{"amount", "must be a number or a decimal string"}
	}
	return string(raw), nil
}

// Fingerprint is what a key is claimed with.
type Fingerprint [16]byte

// MarshalText writes the fingerprint in hex.
func (f Fingerprint) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, f[:]), nil }

// UnmarshalText reads what MarshalText writes.
func (f *Fingerprint) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(f)) {
		return fmt.Errorf("fingerprint of %d characters", len(text))
	}
	_, err := hex.Decode(f[:], text)
	return err
}

// Fingerprint is of what the client sent, so that a moved rate is no mismatch. Where the amount sent is
// not known the rupiah stand for it.
func (p Payment) Fingerprint() Fingerprint {
	amount, unit := p.Minor, byte('m')
	if amount == 0 {
		amount, unit = p.AmountIDR, 'r'
	}
	buf := make([]byte, 0, 128)
	for _, field := range [...]string{p.Sender, p.Receiver, p.Currency.String()} {
		// The length goes in front, so that no two requests write the same bytes.
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(field)))
		buf = append(buf, field...)
	}
	buf = append(buf, unit)
	buf = binary.BigEndian.AppendUint64(buf, uint64(amount))
	for _, name := range slices.Sorted(maps.Keys(p.Metadata)) {
		for _, text := range [...]string{name, p.Metadata[name]} {
			buf = append(binary.BigEndian.AppendUint32(buf, uint32(len(text))), text...)
		}
	}
	sum := sha256.Sum256(buf)
	return Fingerprint(sum[:16])
}

// ErrInvalid is wrapped by what Validate returns.
var ErrInvalid = errors.New("invalid input")

// FieldError names the field that is wrong and its limit.
type FieldError struct{ Field, Problem string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

// Unwrap makes every FieldError an ErrInvalid.
func (e *FieldError) Unwrap() error { return ErrInvalid }

// Validate checks what the ledger relies on, for a payment that somebody outside asks for. Whether the accounts exist is
// the ledger's to say.
func (p Payment) Validate() error {
	if err := CheckNames(p.Key, p.Sender, p.Receiver); err != nil {
		return err
	}
	return p.validate()
}

// ValidateHold is Validate for a hold that wallet asks for: by its own kind of key, for the house's account.
func (p Payment) ValidateHold() error {
	switch {
	case !p.IsHold():
		return &FieldError{"idempotency_key", "of a hold begins with " + HoldPrefix}
	case p.Receiver != SettlementAccount:
		return &FieldError{"receiver_id", "of a hold is " + SettlementAccount}
	case p.Sender == SettlementAccount:
		return &FieldError{"sender_id", SettlementAccount + " is the house's own account"}
	}
	return p.validate()
}

// IsHold tells that the key is of a hold of wallet's.
func (p Payment) IsHold() bool { return strings.HasPrefix(p.Key, HoldPrefix) }

// CheckNames refuses the names that pgw uses itself: with the key of a hold a payment would capture or close that, and
// the house's account pays nobody and is paid by holds alone.
func CheckNames(key, sender, receiver string) error {
	switch {
	case strings.HasPrefix(key, HoldPrefix):
		return &FieldError{"idempotency_key", "begins with " + HoldPrefix + ", as only pgw's own do"}
	case sender == SettlementAccount:
		return &FieldError{"sender_id", SettlementAccount + " is the house's own account"}
	case receiver == SettlementAccount:
		return &FieldError{"receiver_id", SettlementAccount + " is the house's own account"}
	}
	return nil
}

func (p Payment) validate() error {
	if err := CheckID("idempotency_key", p.Key, MaxKey); err != nil {
		return err
	}
	if err := CheckID("sender_id", p.Sender, MaxAccountID); err != nil {
		return err
	}
	if err := CheckID("receiver_id", p.Receiver, MaxAccountID); err != nil {
		return err
	}
	if p.Currency == (money.Currency{}) {
		return &FieldError{"currency", "is missing"}
	}
	if p.Minor < 0 || p.Minor > money.MaxMinor {
		return &FieldError{"amount", fmt.Sprintf("must be positive and at most %d minor units", int64(money.MaxMinor))}
	}
	if p.AmountIDR <= 0 || p.AmountIDR > money.MaxMinor {
		return &FieldError{"amount_idr", fmt.Sprintf("must be positive and at most %d", int64(money.MaxMinor))}
	}
	if p.TxDate != "" {
		if err := checkDate(p.TxDate); err != nil {
			return err
		}
	}
	return checkMetadata(p.Metadata)
}

// checkMetadata checks what a client notes with a payment, within bounds that let it travel and be
// kept everywhere.
func checkMetadata(metadata map[string]string) error {
	if n := len(metadata); n > MaxMetadata {
		return &FieldError{"metadata", fmt.Sprintf("has %d entries; at most %d", n, MaxMetadata)}
	}
	size := 0
	for _, name := range slices.Sorted(maps.Keys(metadata)) {
		if name == "" || len(name) > MaxMetadataName || strings.ContainsFunc(name, notOfAName) {
			return &FieldError{"metadata", fmt.Sprintf(
				"has the name %.50q; want 1 to %d of A to Z, a to z, 0 to 9, _, . and -", name, MaxMetadataName)}
		}
		if err := CheckText("metadata."+name, metadata[name], MaxMetadataValue); err != nil {
			return err
		}
		size += len(name) + len(metadata[name])
	}
	if size > MaxMetadataSize {
		return &FieldError{"metadata", fmt.Sprintf("is %d bytes long; at most %d", size, MaxMetadataSize)}
	}
	return nil
}

func notOfAName(r rune) bool {
	return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '.' && r != '-'
}

func checkDate(text string) error {
	if _, err := time.Parse(time.RFC3339, text); err != nil {
		return &FieldError{"tx_date", "must be RFC 3339, such as 2026-01-31T09:30:00Z"}
	}
	return nil
}

// CheckID checks a key or an account's id: not empty, at most maxBytes, printable ASCII (it travels in HTTP
// and Kafka headers), no space at either end.
func CheckID(field, id string, maxBytes int) error {
	if id == "" {
		return &FieldError{field, "is missing"}
	}
	if len(id) > maxBytes {
		return &FieldError{field, fmt.Sprintf("is %d bytes long; at most %d", len(id), maxBytes)}
	}
	for i := range len(id) {
		if id[i] < ' ' || id[i] > '~' {
			return &FieldError{field, "has a character that is not printable ASCII"}
		}
	}
	if id[0] == ' ' || id[len(id)-1] == ' ' {
		return &FieldError{field, "starts or ends with a space"}
	}
	return nil
}

// CheckText checks what people have written: valid UTF-8 of at most maxBytes, on one line, without control characters.
// (The database holds no NUL.)
func CheckText(field, text string, maxBytes int) error {
	if len(text) > maxBytes {
		return &FieldError{field, fmt.Sprintf("is %d bytes long; at most %d", len(text), maxBytes)}
	}
	if !utf8.ValidString(text) {
		return &FieldError{field, "is not valid UTF-8"}
	}
	if strings.ContainsFunc(text, unicode.IsControl) {
		return &FieldError{field, "has a control character"}
	}
	return nil
}

// Masked is an account's id as a log may have it: enough to know it again by, and not the whole.
func Masked(id string) string {
	const shown = 2
	switch {
	case id == "":
		return ""
	case len(id) < 2*shown+2:
		return "…"
	default:
		return id[:shown] + "…" + id[len(id)-shown:]
	}
}

// AccountStatus says whether an account takes part in payments.
type AccountStatus string

// The statuses of an account.
const (
	Active  AccountStatus = "ACTIVE"
	Blocked AccountStatus = "BLOCKED"
)

// Valid tells that there is such a status.
func (s AccountStatus) Valid() bool { return s == Active || s == Blocked }

// Account is what the rules need to know of one.
type Account struct {
	ID         string
	Balance    int64 // whole rupiah that can be spent
	Blocked    bool
	DailyLimit int64 // whole rupiah a UTC day; 0 means none
	Day        int32 // the UTC day that SpentToday counts, in days since 1970
	SpentToday int64 // whole rupiah held or paid on Day
}

// Day numbers UTC days since 1970.
func Day(t time.Time) int32 { return int32(t.Unix() / 86400) }

// Reserve decides one payment and takes it off the sender. It returns "" when the funds are held, else why
// not, and then changes nothing. sender or receiver is nil when there is no such account.
//
// The same pointers serve all payments of a batch, one after the other, which is what makes a payment
// that is refused leave no trace on its neighbours.
func Reserve(p Payment, sender, receiver *Account, now time.Time) Reason {
	switch {
	case now.After(p.Deadline):
		return Expired
	case p.Sender == p.Receiver:
		return RiskSameParty
	// The house's account is there for holds alone, whoever asks and however the request came in.
	case sender == nil, p.Sender == SettlementAccount:
		return UnknownSender
	case receiver == nil, (p.Receiver == SettlementAccount) != p.IsHold():
		return UnknownReceiver
	case sender.Blocked:
		return SenderBlocked
	case receiver.Blocked:
		return ReceiverBlocked
	case sender.Balance < p.AmountIDR:
		return InsufficientFunds
	}
	today := Day(now)
	spent := sender.SpentToday
	if sender.Day != today {
		spent = 0
	}
	if sender.DailyLimit > 0 && spent+p.AmountIDR > sender.DailyLimit {
		return DailyLimitExceeded
	}
	sender.Balance -= p.AmountIDR
	sender.Day, sender.SpentToday = today, spent+p.AmountIDR
	return ""
}

// ClampDeadline keeps a deadline within DecideWithin of now, which is also what no deadline means: the
// sweep relies on no hold living longer.
func ClampDeadline(deadline, now time.Time) time.Time {
	latest := now.Add(DecideWithin)
	if deadline.IsZero() || deadline.After(latest) {
		return latest
	}
	return deadline
}
