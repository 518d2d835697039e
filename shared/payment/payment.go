// Package payment has the types of a payment and its rules. It is pure: it does no I/O and uses no
// clock and no randomness.
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
	"github.com/google/uuid"

	"pgw/shared/money"
)

const (
	// DecideWithin is how long after its acceptance a payment may be settled. No function settles
	// it later, so a client that got queue_timeout knows when its outcome is final.
	DecideWithin = 60 * time.Second

	// MaxKey is the maximum length of an idempotency key, in bytes.
	MaxKey = 200
	// MaxAccountID is the maximum length of an account's id, in bytes.
	MaxAccountID = 64
	// MaxOwner and MaxNote are the maximum lengths of an account's owner and of a funding's note,
	// in bytes.
	MaxOwner, MaxNote = 200, 500
	// MaxMetadata is the maximum number of metadata entries of a payment. The others are maximum
	// lengths in bytes: of a name, of a value, and of all names and values together.
	MaxMetadata, MaxMetadataName, MaxMetadataValue, MaxMetadataSize = 20, 40, 500, 4 << 10

	// MinQuoteLifetime and MaxQuoteLifetime bound how long a firm quote can be used.
	MinQuoteLifetime, MaxQuoteLifetime = time.Second, 5 * time.Minute

	// HoldPrefix is the prefix of the keys of wallet holds. A payment's key must not start with it.
	HoldPrefix = "wallet:"
)

// Status is the first field of the answer to a client.
type Status string

// The statuses of the contract.
const (
	Success       Status = "SUCCESS"
	SuccessReplay Status = "SUCCESS_REPLAY"
	Failed        Status = "FAILED"
)

// ReservationStatus is the state of a reservation. Only a PENDING reservation holds money, and only
// a PENDING reservation can change its state.
type ReservationStatus string

// The reservation's states.
const (
	Pending    ReservationStatus = "PENDING"
	Committed  ReservationStatus = "COMMITTED"
	RolledBack ReservationStatus = "ROLLEDBACK"
)

// Outcome is the single outcome of an idempotency key. Its JSON is a part of the answers to clients
// and of the result event.
type Outcome struct {
	Status Status `json:"status"` // empty while the payment is not decided
	Reason Reason `json:"reason"`
	Ref    string `json:"ref"` // the reservation's id; empty when nothing was reserved

	State  ReservationStatus `json:"-"` // empty if the ledger has no reservation for this payment
	Replay bool              `json:"-"` // an earlier attempt made the reservation
}

// Decline returns the outcome of a refusal for the given reason.
func Decline(r Reason) Outcome { return Outcome{Status: Failed, Reason: r} }

// Standing returns the outcome of a reservation in the given state. reason is the reason of its
// rollback, or Authorized of a PENDING one that waits for its capture. replay means that an earlier
// attempt made the reservation.
func Standing(state ReservationStatus, reason Reason, ref string, replay bool) Outcome {
	o := Outcome{Ref: ref, State: state, Replay: replay}
	switch {
	case state == RolledBack:
		o.Status, o.Reason = Failed, reason
	case replay && (state == Committed || state == Pending && reason == Authorized):
		o.Status, o.Reason = SuccessReplay, DuplicateIdempo
	case state == Pending && reason == Authorized:
		o.Status, o.Reason = Success, Authorized
	case state == Committed:
		o.Status, o.Reason = Success, ReasonCommitted
	}
	return o
}

// Answer returns the outcome for a client. A refusal has no reservation id, even if the ledger has
// a reservation.
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
	Claimed    Fingerprint // the fingerprint with which the key was claimed
	ReservedAt time.Time
	DecidedAt  time.Time // zero while PENDING

	// What was given back, and what refunds on their way hold, in minor units of the debit currency.
	RefundedMinor, RefundingMinor int64
	// AuthorizedMinor is what an authorized payment held, in the debit currency; 0 for other payments.
	// Less may have been captured.
	AuthorizedMinor int64
	// Of a refund: the key of its payment, and the client's reason.
	PaymentKey, Note string
	// PaymentClient is the client of a refund's payment; nil: the refund's.
	PaymentClient *string
	// TraceID is the trace of the attempt that claimed the key, in W3C's form: 32 hexadecimal digits. It
	// is empty if that attempt was not traced.
	TraceID string
}

// Payment is one payment with its price. Its JSON is the data of the request event. The first six
// fields are also the plain record of earlier producers. Its protobuf message is common.v1.Payment;
// shared/rpc converts between them.
type Payment struct {
	Key      string `json:"idempotency_key"`
	Sender   string `json:"sender_id"`
	Receiver string `json:"receiver_id"`
	// AmountIDR is the amount that is moved, in whole rupiah.
	AmountIDR int64          `json:"amount_idr"`
	Currency  money.Currency `json:"currency_input"` // the currency of the client's amount
	TxDate    string         `json:"tx_date"`        // RFC 3339, as sent
	// Minor is the amount as the client sent it, in minor units of Currency. It is 0 if only the
	// amount in rupiah is known: earlier Kafka producers and gRPC callers send the currency but not
	// the amount in it.
	Minor int64 `json:"amount_minor,omitempty"`

	// How AmountIDR was computed from Minor; zero if the caller priced the payment.
	Rate     money.Rate `json:"rate,omitzero"`
	RateID   string     `json:"rate_id,omitempty"`
	RateTime time.Time  `json:"rate_time,omitzero"`

	RuleSet    string    `json:"rule_set,omitempty"` // the id of the risk rules that allowed the payment
	AcceptedAt time.Time `json:"accepted_at,omitzero"`
	Deadline   time.Time `json:"deadline,omitzero"`
	// AttemptID distinguishes a redelivery of the same attempt (SUCCESS) from a second attempt of
	// the client (SUCCESS_REPLAY).
	AttemptID string `json:"attempt_id,omitempty"`
	// Metadata is the client's own data. pgw stores it and does not interpret it.
	Metadata map[string]string `json:"metadata,omitempty"`

	// DebitCurrency and CreditCurrency are the currencies of the sender's and of the receiver's
	// balance. Both are zero if the payment moves rupiah between rupiah balances. DebitMinor and
	// CreditMinor are the amounts that are moved, in minor units, and are zero then too: AmountIDR is
	// moved. In all other payments AmountIDR is what the payment is worth in rupiah, for the rules.
	DebitCurrency  money.Currency `json:"debit_currency,omitzero"`
	CreditCurrency money.Currency `json:"credit_currency,omitzero"`
	DebitMinor     int64          `json:"debit_minor,omitempty"`
	CreditMinor    int64          `json:"credit_minor,omitempty"`
	// Exchange is the price, if the two currencies differ.
	Exchange Exchange `json:"exchange,omitzero"`
	QuoteID  string   `json:"quote_id,omitempty"` // the firm quote that the client pays by

	// Client is whose payment it is, and in whose scope the key is unique: the owner of an API key or
	// the subject of a token. All callers without a client share the scope of the empty name.
	Client string `json:"client,omitempty"`
	// HoldSeconds is for how long the money is held for a capture; 0: it is captured at once.
	HoldSeconds int64 `json:"hold_seconds,omitempty"`
}

// Manual reports whether the payment is only authorized, and captured by an operation of its own.
func (p Payment) Manual() bool { return p.HoldSeconds > 0 }

// Sent returns the amount as the client sent it.
func (p Payment) Sent() money.Amount { return money.Amount{Minor: p.Minor, Currency: p.Currency} }

// Order is a client's request for a payment over HTTP.
type Order struct {
	Sender   string          `json:"sender_id"`
	Receiver string          `json:"receiver_id"`
	Currency string          `json:"currency"`
	Amount   json.RawMessage `json:"amount"` // in major units: a number, or a decimal string
	TxDate   string          `json:"tx_date"`
	Key      string          `json:"idempotency_key"`
	Metadata json.RawMessage `json:"metadata"` // an object of strings

	// The currencies of the sender's and of the receiver's balance; empty means IDR. If they differ,
	// Currency is one of them, and says which side Amount fixes.
	DebitCurrency  string `json:"debit_currency"`
	CreditCurrency string `json:"credit_currency"`
	QuoteID        string `json:"quote_id"` // a firm quote to pay by; empty: none
	// Capture is CaptureAutomatic or CaptureManual; empty means automatic.
	Capture string `json:"capture"`
}

// When the receiver of a payment is paid: at once, or by a capture that the client asks for later.
const (
	CaptureAutomatic = "automatic"
	CaptureManual    = "manual"
)

// maxDate is the maximum length of a client's date, in bytes.
const maxDate = 40

// Payment checks the order and returns its payment without a price. A payment that is captured later
// holds its money for DefaultAuthorize; the caller may change that. The error is a Problems: it has all
// wrong fields.
func (o Order) Payment() (Payment, error) {
	p := Payment{Key: o.Key, Sender: o.Sender, Receiver: o.Receiver, TxDate: o.TxDate}
	wrong := Problems{}.with("idempotency_key", CheckID("idempotency_key", o.Key, MaxKey))
	wrong = o.checkParties(wrong)
	switch {
	case o.TxDate == "":
		wrong = wrong.with("tx_date", &FieldError{"tx_date", "is missing"})
	case len(o.TxDate) > maxDate:
		wrong = wrong.with("tx_date", &FieldError{"tx_date", fmt.Sprintf("is %d bytes long; at most %d", len(o.TxDate), maxDate)})
	default:
		wrong = wrong.with("tx_date", checkDate(o.TxDate))
	}
	p, wrong = o.withAmount(p, wrong)
	if o.QuoteID != "" {
		id, err := uuid.Parse(o.QuoteID)
		if err != nil {
			wrong = wrong.with("quote_id", &FieldError{"quote_id", "is not a UUID"})
		}
		p.QuoteID = id.String() // a UUID has more than one spelling, and the fingerprint needs one
	}
	switch o.Capture {
	case "", CaptureAutomatic:
	case CaptureManual:
		p.HoldSeconds = int64(DefaultAuthorize / time.Second)
	default:
		wrong = wrong.with("capture", &FieldError{"capture", fmt.Sprintf("is %.20q; must be %s or %s", o.Capture, CaptureAutomatic, CaptureManual)})
	}
	var err error
	p.Metadata, err = readMetadata(o.Metadata)
	return p, wrong.with("metadata", err).Err()
}

// Quote checks the parts of the order that a price depends on: the parties, the currencies and the
// amount. It returns the payment to price, without a key. Its errors are those of Payment.
func (o Order) Quote() (Payment, error) {
	p, wrong := o.withAmount(Payment{Sender: o.Sender, Receiver: o.Receiver}, o.checkParties(nil))
	return p, wrong.Err()
}

// checkParties returns the problems with those of the parties added.
func (o Order) checkParties(wrong Problems) Problems {
	wrong = wrong.with("sender_id", CheckID("sender_id", o.Sender, MaxAccountID))
	wrong = wrong.with("receiver_id", CheckID("receiver_id", o.Receiver, MaxAccountID))
	wrong = wrong.with("idempotency_key", CheckNames(o.Key, "", ""))
	wrong = wrong.with("sender_id", CheckNames("", o.Sender, ""))
	return wrong.with("receiver_id", CheckNames("", "", o.Receiver))
}

// withAmount returns the payment with the order's amount and currencies, and the problems with those
// of these fields added.
func (o Order) withAmount(p Payment, wrong Problems) (Payment, Problems) {
	before := len(wrong)
	if o.Currency == "" {
		wrong = wrong.with("currency", &FieldError{"currency", "is missing"})
	}
	text, amountErr := decimalText(o.Amount)
	wrong = wrong.with("amount", amountErr)
	var currencyErr error
	if o.Currency != "" {
		p.Currency, currencyErr = money.ParseCurrency(o.Currency)
		wrong = wrong.with("currency", currencyErr)
	}
	switch {
	case len(wrong) == before:
		var amount money.Amount
		if amount, amountErr = money.ParseAmount(text, p.Currency); amountErr == nil && amount.Minor <= 0 {
			amountErr = &FieldError{"amount", "must be positive"}
		}
		p.Minor = amount.Minor
		wrong = wrong.with("amount", amountErr)
	case amountErr == nil:
		// The currency is wrong, so its digits can't be checked. A text that is not a number is wrong in
		// any currency.
		if _, err := money.ParseAmount(text, money.IDR); errors.Is(err, money.ErrSyntax) {
			wrong = wrong.with("amount", err)
		}
	}
	debit, debitErr := balanceCurrency("debit_currency", o.DebitCurrency)
	wrong = wrong.with("debit_currency", debitErr)
	credit, creditErr := balanceCurrency("credit_currency", o.CreditCurrency)
	wrong = wrong.with("credit_currency", creditErr)
	if debitErr != nil || creditErr != nil {
		return p, wrong
	}
	if debit != credit && p.Currency != debit && p.Currency != credit {
		wrong = wrong.with("currency", &FieldError{"currency", fmt.Sprintf("must be debit_currency or credit_currency (%s or %s)", debit, credit)})
	}
	if debit != money.IDR || credit != money.IDR {
		p.DebitCurrency, p.CreditCurrency = debit, credit
	}
	return p, wrong
}

// balanceCurrency parses the currency of a balance.
func balanceCurrency(field, code string) (money.Currency, error) {
	if code == "" {
		return money.IDR, nil
	}
	c, err := money.ParseCurrency(code)
	if err != nil {
		return c, fmt.Errorf("%s: %w", field, err)
	}
	return c, nil
}

// readMetadata parses the JSON of the metadata. It refuses a name that is given twice, because it
// is unclear which value counts.
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
	return metadata, CheckMetadata(metadata)
}

// decimalText returns the digits of an amount. It never converts a number through a float.
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

// Fingerprint identifies the content of a request. The ledger claims a key together with it.
type Fingerprint [16]byte

// MarshalText returns the fingerprint in hex.
func (f Fingerprint) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, f[:]), nil }

// UnmarshalText parses the text of MarshalText.
func (f *Fingerprint) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(f)) {
		return fmt.Errorf("fingerprint of %d characters", len(text))
	}
	_, err := hex.Decode(f[:], text)
	return err
}

// Fingerprint returns the fingerprint of what the client sent. A changed rate therefore does not
// change it. If the sent amount is unknown, the amount in rupiah takes its place.
func (p Payment) Fingerprint() Fingerprint {
	amount, unit := p.Minor, byte('m')
	if amount == 0 {
		amount, unit = p.AmountIDR, 'r'
	}
	buf := make([]byte, 0, 128)
	for _, field := range [...]string{p.Sender, p.Receiver, p.Currency.String()} {
		// The length comes first, so two different requests never produce the same bytes.
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(field)))
		buf = append(buf, field...)
	}
	buf = append(buf, unit)
	buf = binary.BigEndian.AppendUint64(buf, uint64(amount))
	if !p.InRupiah() || p.QuoteID != "" {
		// A length never begins with this byte, so this part is never taken for metadata.
		buf = append(buf, 'x')
		for _, field := range [...]string{p.DebitCurrency.String(), p.CreditCurrency.String(), p.QuoteID} {
			buf = append(binary.BigEndian.AppendUint32(buf, uint32(len(field))), field...)
		}
	}
	if p.Manual() {
		buf = append(buf, 'h')
	}
	for _, name := range slices.Sorted(maps.Keys(p.Metadata)) {
		for _, text := range [...]string{name, p.Metadata[name]} {
			buf = append(binary.BigEndian.AppendUint32(buf, uint32(len(text))), text...)
		}
	}
	sum := sha256.Sum256(buf)
	return Fingerprint(sum[:16])
}

// ErrInvalid is wrapped by the errors of Validate.
var ErrInvalid = errors.New("invalid input")

// FieldError names the wrong field and the problem, with the limit if there is one.
type FieldError struct{ Field, Problem string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

// Unwrap makes every FieldError an ErrInvalid.
func (e *FieldError) Unwrap() error { return ErrInvalid }

// Problem is what is wrong with one field of a request.
type Problem struct {
	Field string
	Err   error // a FieldError, or an error of money
}

// Detail describes the problem without the field's name.
func (p Problem) Detail() string {
	var wrong *FieldError
	if errors.As(p.Err, &wrong) {
		return wrong.Problem
	}
	return strings.TrimPrefix(p.Err.Error(), p.Field+": ")
}

// Problems are all wrong fields of a request, at least one. They are in the order in which they are
// checked. As an error they are their first: it has the request's reason.
type Problems []Problem

func (ps Problems) Error() string { return ps[0].Err.Error() }

// Unwrap returns the first problem.
func (ps Problems) Unwrap() error { return ps[0].Err }

// Err returns the problems as an error. It returns nil if there are none.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// with returns the problems and that of a field, unless err is nil or the field has one already.
func (ps Problems) with(field string, err error) Problems {
	if err == nil {
		return ps
	}
	var wrong *FieldError
	if errors.As(err, &wrong) {
		field = wrong.Field
	}
	if slices.ContainsFunc(ps, func(p Problem) bool { return p.Field == field }) {
		return ps
	}
	return append(ps, Problem{field, err})
}

// Validate checks a payment that comes from outside pgw, as the ledger requires. It does not check
// that the accounts exist; the ledger does. The error is a FieldError.
func (p Payment) Validate() error {
	if err := CheckNames(p.Key, p.Sender, p.Receiver); err != nil {
		return err
	}
	return p.validate()
}

// ValidateQuote is Validate for a firm quote, which has no key.
func (p Payment) ValidateQuote() error {
	if err := CheckNames("", p.Sender, p.Receiver); err != nil {
		return err
	}
	if p.Minor <= 0 {
		return &FieldError{"amount", "must be positive"}
	}
	return p.validateTerms()
}

// ValidateHold is Validate for a wallet hold, which has its own kind of key and pgw's own account
// as its receiver.
func (p Payment) ValidateHold() error {
	switch {
	case !p.IsHold():
		return &FieldError{"idempotency_key", "of a hold must start with " + HoldPrefix}
	case p.Receiver != SettlementAccount:
		return &FieldError{"receiver_id", "of a hold must be " + SettlementAccount}
	case IsHouse(p.Sender):
		return &FieldError{"sender_id", p.Sender + " is pgw's own account"}
	case p.Manual():
		return &FieldError{"hold_seconds", "is not for a wallet hold"}
	}
	return p.validate()
}

// IsHold reports whether the key is the key of a wallet hold.
func (p Payment) IsHold() bool { return strings.HasPrefix(p.Key, HoldPrefix) }

// CheckNames refuses the names that are reserved for pgw. A payment with the key of a hold would
// capture or close that hold. Only holds pay pgw's own account, and that account pays nobody.
func CheckNames(key, sender, receiver string) error {
	switch {
	case strings.HasPrefix(key, HoldPrefix):
		return &FieldError{"idempotency_key", "starts with " + HoldPrefix + ", which is reserved for pgw"}
	case strings.HasPrefix(key, CancelPrefix):
		return &FieldError{"idempotency_key", "starts with " + CancelPrefix + ", which is reserved for pgw"}
	case IsHouse(sender):
		return &FieldError{"sender_id", sender + " is pgw's own account"}
	case IsHouse(receiver):
		return &FieldError{"receiver_id", receiver + " is pgw's own account"}
	}
	return nil
}

func (p Payment) validate() error {
	if err := CheckID("idempotency_key", p.Key, MaxKey); err != nil {
		return err
	}
	return p.validateTerms()
}

// validateTerms checks everything but the key.
func (p Payment) validateTerms() error {
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
	if p.QuoteID != "" {
		if id, err := uuid.Parse(p.QuoteID); err != nil || id.String() != p.QuoteID {
			return &FieldError{"quote_id", "is not a UUID in its usual form"}
		}
	}
	if err := p.checkAmounts(); err != nil {
		return err
	}
	if err := CheckClient(p.Client); err != nil {
		return err
	}
	if hold := time.Duration(p.HoldSeconds) * time.Second; p.HoldSeconds != 0 && (p.HoldSeconds > int64(MaxAuthorize/time.Second) || hold < MinAuthorize) {
		return &FieldError{"hold_seconds", fmt.Sprintf("must be 0 or %d to %d", int64(MinAuthorize/time.Second), int64(MaxAuthorize/time.Second))}
	}
	if p.Manual() && p.Minor == 0 {
		// A capture of a part changes the amount in rupiah, and the fingerprint must not change with it.
		return &FieldError{"amount", "is missing: a payment that is captured later needs it"}
	}
	return CheckMetadata(p.Metadata)
}

// CheckMetadata checks the limits of a payment's metadata. With these limits it fits into every
// message and table.
func CheckMetadata(metadata map[string]string) error {
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

// CheckID checks a key or an account's id. It must not be empty, must have at most maxBytes bytes
// of printable ASCII, because it is sent in HTTP and Kafka headers, and must not start or end with
// a space. The error is a FieldError.
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

// CheckText checks text that a person wrote. It must be valid UTF-8 of at most maxBytes bytes
// without control characters; so it is one line, and has no NUL, which the database cannot store.
// The error is a FieldError.
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

// Masked returns an account's id in the form for logs: its first and last characters, which are
// enough to recognize it.
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

// AccountStatus says whether an account may take part in payments.
type AccountStatus string

// The statuses of an account.
const (
	Active  AccountStatus = "ACTIVE"
	Blocked AccountStatus = "BLOCKED"
)

// Valid reports whether the status exists.
func (s AccountStatus) Valid() bool { return s == Active || s == Blocked }

// Day returns the UTC day of t, in days since 1970.
func Day(t time.Time) int32 { return int32(t.Unix() / 86400) }

// Parties are the statuses of a payment's two accounts. An empty one means that there is no such
// account.
type Parties struct{ Sender, Receiver AccountStatus }

// Judge returns the reason why the payment may not move money, whatever the balances are; "" if it
// may. Hold and HoldLiquidity judge the balances.
func Judge(p Payment, of Parties, now time.Time) Reason {
	switch {
	case now.After(p.Deadline):
		return Expired
	case p.Sender == p.Receiver:
		return RiskSameParty
	// The house's accounts pay nobody, and only holds pay one of them, whatever the source of the
	// request.
	case of.Sender == "", IsHouse(p.Sender):
		return UnknownSender
	case of.Receiver == "", p.IsHold() != (p.Receiver == SettlementAccount), IsHouse(p.Receiver) && !p.IsHold():
		return UnknownReceiver
	case of.Sender == Blocked:
		return SenderBlocked
	case of.Receiver == Blocked:
		return ReceiverBlocked
	}
	return ""
}

// Balance is what an account has in one currency, in minor units.
type Balance struct {
	Available  int64
	DailyLimit int64 // for a UTC day; 0 means no limit
	Day        int32 // the UTC day of SpentToday, in days since 1970
	SpentToday int64 // held or paid on Day

	// Of LIQUIDITY: what exchanges have brought, less what they took and hold. It must not fall below
	// the negative limit; nil means no limit.
	Position      int64
	PositionLimit *int64
}

// Hold returns the sender's balance after an amount is held. If the reason is not "", nothing may be
// held, and the balance is unchanged.
func Hold(from Balance, amount int64, now time.Time) (Balance, Reason) {
	if from.Available < amount {
		return from, InsufficientFunds
	}
	today, spent := Day(now), from.SpentToday
	if from.Day != today {
		spent = 0
	}
	if from.DailyLimit > 0 && spent+amount > from.DailyLimit {
		return from, DailyLimitExceeded
	}
	after := from
	after.Available -= amount
	after.Day, after.SpentToday = today, spent+amount
	return after, ""
}

// HoldLiquidity returns LIQUIDITY's balance after an amount is held for an exchange.
func HoldLiquidity(from Balance, amount int64) (Balance, Reason) {
	if from.Available < amount || from.PositionLimit != nil && from.Position-amount < -*from.PositionLimit {
		return from, FXLiquidityExhausted
	}
	from.Available -= amount
	from.Position -= amount
	return from, ""
}

// ClampDeadline returns the deadline, limited to DecideWithin after now. A zero deadline means the
// latest one. The sweep relies on this limit for every hold that is not an authorized payment's.
func ClampDeadline(deadline, now time.Time) time.Time {
	latest := now.Add(DecideWithin)
	if deadline.IsZero() || deadline.After(latest) {
		return latest
	}
	return deadline
}
