// Package event has the events in Kafka: CloudEvents 1.0 with JSON data, their types, their stable
// ids and their signatures. Golden files in testdata fix the shapes of the data. A changed shape
// needs a new version of the type.
package event

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	jsonexp "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// The types of the events that functions send and receive.
const (
	TypePaymentRequested = "pgw.payment.requested.v1"
	TypePaymentResult    = "pgw.payment.result.v1"
	TypeAccountOpened    = "pgw.account.opened.v1"
	TypeAccountFunded    = "pgw.account.funded.v1"

	// TypePaymentRequestedV2 is a payment between balances that are not both in rupiah, or by a firm
	// quote. Releases that know neither refuse it.
	TypePaymentRequestedV2 = "pgw.payment.requested.v2"
	// TypePaymentRequestedV3 is a payment that is only authorized, and captured by an operation of its own.
	// Releases that don't know it refuse it. They would pay the receiver at once.
	TypePaymentRequestedV3 = "pgw.payment.requested.v3"
	// TypeAccountFundedV2 is a funding in any currency.
	TypeAccountFundedV2 = "pgw.account.funded.v2"

	// TypeKafkaRecord is the type that KafkaSource gives to a record that is not a CloudEvent.
	TypeKafkaRecord = "dev.knative.kafka.event"
	// TypePing is the type of the events of PingSource.
	TypePing = "dev.knative.sources.ping"
)

// ExtPartitionKey is the partitioning extension of CloudEvents. KafkaSource and KafkaSink use it
// instead of the Kafka key.
const ExtPartitionKey = "partitionkey"

// ErrMalformed is wrapped by the errors of decoding. Such an event can never succeed.
var ErrMalformed = errors.New("malformed event")

// IsPaymentRequest reports whether an event of this type requests a payment.
func IsPaymentRequest(eventType string) bool {
	switch eventType {
	case TypePaymentRequested, TypePaymentRequestedV2, TypePaymentRequestedV3:
		return true
	}
	return false
}

// PaymentRequested is the data of the events that request payments.
type PaymentRequested struct {
	payment.Payment
	// ReplyTo is the URL of the gateway replica whose client waits. It may be empty.
	ReplyTo string `json:"reply_to,omitempty"`
}

// PaymentResult is the data of TypePaymentResult.
type PaymentResult struct {
	Key    string `json:"idempotency_key"`
	Client string `json:"client,omitempty"` // whose payment it is
	payment.Outcome
	// Fingerprint distinguishes the results of two different requests with the same key.
	Fingerprint payment.Fingerprint `json:"fingerprint"`
	AttemptID   string              `json:"attempt_id,omitempty"`
	ReplyTo     string              `json:"reply_to,omitempty"`

	// The times at which the settling function got the request and had the outcome.
	ReceivedAt time.Time `json:"received_at,omitzero"`
	SettledAt  time.Time `json:"settled_at,omitzero"`
	// The durations of the ledger's calls. Commit is 0 if the reserve has committed too.
	ReserveMicros int64 `json:"reserve_us,omitempty"`
	CommitMicros  int64 `json:"commit_us,omitempty"`

	Moved
}

// Scoped returns the payment's key in its client's scope.
func (d PaymentResult) Scoped() payment.ScopedKey {
	return payment.ScopedKey{Client: d.Client, Key: d.Key}
}

// Moved is the part of a result that tells what a payment moves. It is empty for a payment in rupiah,
// except for the quote.
type Moved struct {
	DebitCurrency  money.Currency   `json:"debit_currency,omitzero"`
	DebitMinor     int64            `json:"debit_minor,omitempty"`
	CreditCurrency money.Currency   `json:"credit_currency,omitzero"`
	CreditMinor    int64            `json:"credit_minor,omitempty"`
	Exchange       payment.Exchange `json:"exchange,omitzero"`
	QuoteID        string           `json:"quote_id,omitempty"`
	Entries        []Entry          `json:"entries,omitempty"` // of a committed payment
}

// Entry is one entry of a committed payment.
type Entry struct {
	AccountID string         `json:"account_id"`
	Currency  money.Currency `json:"currency"`
	Minor     int64          `json:"amount_minor"` // negative: the account has paid it
	Kind      payment.Kind   `json:"kind"`
}

// MovedBy returns what a payment of this outcome moves, with its entries if it is committed. p is the
// payment as the ledger has it.
func MovedBy(p payment.Payment, o payment.Outcome) Moved {
	if o.Reason == payment.IdempotencyMismatch {
		return Moved{} // the ledger has another payment
	}
	if p.InRupiah() {
		return Moved{QuoteID: p.QuoteID}
	}
	m := Moved{
		DebitCurrency: p.DebitCurrency, DebitMinor: p.DebitMinor, CreditCurrency: p.CreditCurrency, CreditMinor: p.CreditMinor,
		Exchange: p.Exchange, QuoteID: p.QuoteID,
	}
	if o.State == payment.Committed {
		for _, l := range p.Legs() {
			m.Entries = append(m.Entries, Entry{l.Account, l.Currency, l.Minor, l.Kind})
		}
	}
	return m
}

// AccountOpened is the data of TypeAccountOpened. If the account exists, it gets the given owner,
// currency, limit and status.
type AccountOpened struct {
	AccountID     string                `json:"account_id"`
	Owner         string                `json:"owner"`
	Currency      string                `json:"currency"`        // the owner's own currency
	DailyLimitIDR int64                 `json:"daily_limit_idr"` // 0 means no limit
	Status        payment.AccountStatus `json:"status"`
	By            string                `json:"by,omitempty"`   // the operator who ordered it
	Note          string                `json:"note,omitempty"` // why
}

// AccountFunded is the data of TypeAccountFunded: rupiah that enter the ledger from outside. They are
// booked once for each event id.
type AccountFunded struct {
	AccountID string `json:"account_id"`
	AmountIDR int64  `json:"amount_idr"`
	Note      string `json:"note,omitempty"`
	By        string `json:"by,omitempty"` // the operator who ordered it
}

// AccountFundedV2 is the data of TypeAccountFundedV2: money that enters the ledger from outside, in any
// currency. It is booked once for each event id.
type AccountFundedV2 struct {
	AccountID string         `json:"account_id"`
	Currency  money.Currency `json:"currency"`
	Minor     int64          `json:"amount_minor"` // minor units of Currency
	Note      string         `json:"note,omitempty"`
	By        string         `json:"by,omitempty"` // the operator who ordered it
}

// Requested makes the request event of a payment. Its id depends only on the payment, so publishing
// it again gives the same event. replyTo may be empty.
func Requested(source string, p payment.Payment, replyTo string, now time.Time) (cloudevents.Event, error) {
	return New(RequestedType(p), RequestedID(p.Scoped(), p.Fingerprint()), source, p.Key, PaymentRequested{p, replyTo}, now)
}

// RequestedType returns the type of a payment's request event.
func RequestedType(p payment.Payment) string {
	if p.Manual() {
		return TypePaymentRequestedV3
	}
	if p.InRupiah() && p.QuoteID == "" {
		return TypePaymentRequested
	}
	return TypePaymentRequestedV2
}

// Result makes the event with a payment's outcome. An authorized payment has two outcomes, one after the
// other, and so two events: the first says that its money is held, and the second how the hold ended.
func Result(source string, d PaymentResult, now time.Time) (cloudevents.Event, error) {
	id := ResultID(d.Scoped(), d.Fingerprint)
	if d.State == payment.Pending || d.Reason == payment.Authorized {
		id = AuthorizedID(d.Scoped(), d.Fingerprint)
	}
	return New(TypePaymentResult, id, source, d.Key, d, now)
}

// RequestedID returns the id of a payment's request event. The event can be found in Kafka by it.
func RequestedID(key payment.ScopedKey, fp payment.Fingerprint) string {
	return scopedID("request", key, fp)
}

// ResultID returns the id of a payment's result event.
func ResultID(key payment.ScopedKey, fp payment.Fingerprint) string {
	return scopedID("result", key, fp)
}

// scopedID returns an id that is the same as in releases before clients where there is no client.
func scopedID(kind string, key payment.ScopedKey, fp payment.Fingerprint) string {
	if key.Client != "" {
		kind = fmt.Sprintf("%s of %d %s ", kind, len(key.Client), key.Client)
	}
	return paymentID(kind, key.Key, fp)
}

// AuthorizedID returns the id of the event that says that a payment is authorized.
func AuthorizedID(key payment.ScopedKey, fp payment.Fingerprint) string {
	return scopedID("authorized", key, fp)
}

func paymentID(kind, key string, fp payment.Fingerprint) string {
	sum := sha256.Sum256([]byte(kind + strconv.Itoa(len(key)) + key + string(fp[:])))
	return hex.EncodeToString(sum[:16])
}

// New makes an event with JSON data. subject is also its partition key.
func New(eventType, id, source, subject string, data any, now time.Time) (cloudevents.Event, error) {
	body, err := json.Marshal(data)
	if err != nil {
		return cloudevents.Event{}, fmt.Errorf("encode %s: %w", eventType, err)
	}
	e := cloudevents.New()
	e.SetID(id)
	e.SetType(eventType)
	e.SetSource(source)
	e.SetSubject(subject)
	e.SetTime(now.UTC())
	e.SetExtension(ExtPartitionKey, subject)
	// SetData would copy the body and check again that it is JSON.
	e.SetDataContentType(cloudevents.ApplicationJSON)
	e.DataEncoded = body
	if err := e.Validate(); err != nil {
		return cloudevents.Event{}, fmt.Errorf("make %s: %w", eventType, err)
	}
	return e, nil
}

// strictly parses JSON like encoding/json, but refuses a name that is given twice, in any case: it
// is unclear which value counts.
var strictly = jsonexp.JoinOptions(jsonv1.DefaultOptionsV1(), jsontext.AllowDuplicateNames(false))

// Decode parses an event's JSON data. Unknown fields are accepted, because a later producer may
// send more fields. Errors wrap ErrMalformed.
func Decode[T any](e cloudevents.Event) (T, error) {
	var data T
	if err := jsonexp.Unmarshal(e.Data(), &data, strictly); err != nil {
		return data, fmt.Errorf("%w: data of %s %s: %w", ErrMalformed, e.Type(), e.ID(), err)
	}
	return data, nil
}

// ReadRequest checks an event of the request topic and returns its data. The event must request a
// payment and have a valid signature, or, if allowUnsigned is set, be the plain record of an earlier
// producer. Errors wrap ErrSignature, ErrRefused or ErrMalformed.
func ReadRequest(e cloudevents.Event, keys *Keyring, allowUnsigned bool) (PaymentRequested, error) {
	switch {
	case IsPaymentRequest(e.Type()):
		if err := keys.Verify(e); err != nil {
			return PaymentRequested{}, err
		}
	case e.Type() != TypeKafkaRecord:
		return PaymentRequested{}, fmt.Errorf("%w: %s is not a payment request", ErrRefused, e.Type())
	case !allowUnsigned:
		return PaymentRequested{}, fmt.Errorf("%w: this is a plain record, and unsigned requests are not allowed", ErrSignature)
	}
	data, err := Decode[PaymentRequested](e)
	if err != nil {
		return PaymentRequested{}, err
	}
	if e.Type() == TypeKafkaRecord {
		// Fields that only pgw sets are not taken from an unsigned record. The most important is
		// the address to reply to.
		data = PaymentRequested{Payment: payment.Payment{
			Key: data.Key, Sender: data.Sender, Receiver: data.Receiver, AmountIDR: data.AmountIDR,
			Currency: data.Currency, TxDate: data.TxDate,
		}}
	}
	if err := data.Validate(); err != nil {
		return PaymentRequested{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if needs := RequestedType(data.Payment); e.Type() != TypeKafkaRecord && e.Type() != needs {
		return PaymentRequested{}, fmt.Errorf("%w: %s has a payment of %s", ErrMalformed, e.Type(), needs)
	}
	return data, nil
}

// ReadResult checks an event of the result topic and returns its data. The signature must be valid.
// Errors wrap ErrSignature, ErrRefused or ErrMalformed.
func ReadResult(e cloudevents.Event, keys *Keyring) (PaymentResult, error) {
	if e.Type() != TypePaymentResult {
		return PaymentResult{}, fmt.Errorf("%w: %s is not a payment result", ErrRefused, e.Type())
	}
	if err := keys.Verify(e); err != nil {
		return PaymentResult{}, err
	}
	data, err := Decode[PaymentResult](e)
	if err == nil && data.Fingerprint == (payment.Fingerprint{}) {
		err = fmt.Errorf("%w: the result has no fingerprint", ErrMalformed)
	}
	return data, err
}

// ReadFunding returns the data of a funding event of either version, as that of the newer one. It does
// not check the signature. Errors wrap ErrMalformed.
func ReadFunding(e cloudevents.Event) (AccountFundedV2, error) {
	if e.Type() == TypeAccountFundedV2 {
		return Decode[AccountFundedV2](e)
	}
	in, err := Decode[AccountFunded](e)
	return AccountFundedV2{AccountID: in.AccountID, Currency: money.IDR, Minor: in.AmountIDR, Note: in.Note, By: in.By}, err
}
