// Package event is what travels through Kafka: CloudEvents 1.0 with JSON data, their types, their stable ids,
// and their signatures. The data's shapes are held by golden files in testdata: a change of shape is a new
// version of the type.
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

	// TypeKafkaRecord is what KafkaSource wraps a record in that is no CloudEvent.
	TypeKafkaRecord = "dev.knative.kafka.event"
	// TypePing is what PingSource sends.
	TypePing = "dev.knative.sources.ping"
)

// ExtPartitionKey is the CloudEvents partitioning extension. KafkaSource and KafkaSink go by it and not by
// the Kafka key.
const ExtPartitionKey = "partitionkey"

// ErrMalformed is wrapped by what decoding returns: the event can never work.
var ErrMalformed = errors.New("malformed event")

// PaymentRequested is the data of TypePaymentRequested, and, with the first six fields only, the plain
// record of earlier producers.
type PaymentRequested struct {
	Key           string `json:"idempotency_key"`
	Sender        string `json:"sender_id"`
	Receiver      string `json:"receiver_id"`
	AmountIDR     int64  `json:"amount_idr"`
	CurrencyInput string `json:"currency_input"`
	TxDate        string `json:"tx_date"`

	AmountMinor int64     `json:"amount_minor,omitempty"` // minor units of CurrencyInput, as sent
	Rate        string    `json:"rate,omitempty"`         // exact decimal
	RateID      string    `json:"rate_id,omitempty"`
	RateTime    time.Time `json:"rate_time,omitzero"`
	RuleSet     string    `json:"rule_set,omitempty"`
	AcceptedAt  time.Time `json:"accepted_at,omitzero"`
	Deadline    time.Time `json:"deadline,omitzero"`
	AttemptID   string    `json:"attempt_id,omitempty"`
	// ReplyTo is the URL of the gateway replica at which the client waits.
	ReplyTo string `json:"reply_to,omitempty"`
}

// PaymentResult is the data of TypePaymentResult.
type PaymentResult struct {
	Key         string         `json:"idempotency_key"`
	Status      payment.Status `json:"status"`
	Reason      payment.Reason `json:"reason"`
	Ref         string         `json:"ref"`
	Fingerprint string         `json:"fingerprint"` // hex; tells the results of two requests with one key apart
	AttemptID   string         `json:"attempt_id,omitempty"`
	ReplyTo     string         `json:"reply_to,omitempty"`

	// When the function that settled got the request, and when it had the outcome.
	ReceivedAt time.Time `json:"received_at,omitzero"`
	SettledAt  time.Time `json:"settled_at,omitzero"`
	// How long the two ledger calls took.
	ReserveMicros int64 `json:"reserve_us,omitempty"`
	CommitMicros  int64 `json:"commit_us,omitempty"`
}

// AccountOpened is the data of TypeAccountOpened. An account that exists already gets the owner, currency,
// limit and status given.
type AccountOpened struct {
	AccountID     string `json:"account_id"`
	Owner         string `json:"owner"`
	Currency      string `json:"currency"`        // what the owner thinks in; balances are in rupiah
	DailyLimitIDR int64  `json:"daily_limit_idr"` // 0 means none
	Status        string `json:"status"`          // ACTIVE or BLOCKED
}

// AccountFunded is the data of TypeAccountFunded: money that comes in from outside the ledger, once for
// each event id.
type AccountFunded struct {
	AccountID string `json:"account_id"`
	AmountIDR int64  `json:"amount_idr"`
	Note      string `json:"note,omitempty"`
}

// Data of a PaymentRequested for a request. replyTo may be empty.
func Data(r payment.Request, replyTo string) PaymentRequested {
	return PaymentRequested{
		Key: r.Key, Sender: r.Sender, Receiver: r.Receiver, AmountIDR: r.AmountIDR,
		CurrencyInput: r.Sent.Currency.String(), TxDate: r.TxDate, AmountMinor: r.Sent.Minor,
		Rate: r.Rate.String(), RateID: r.RateID, RateTime: r.RateTime, RuleSet: r.RuleSet,
		AcceptedAt: r.AcceptedAt, Deadline: r.Deadline, AttemptID: r.AttemptID, ReplyTo: replyTo,
	}
}

// Request checks the data and gives it as the request that it describes.
func (d PaymentRequested) Request() (payment.Request, error) {
	currency, err := money.ParseCurrency(d.CurrencyInput)
	if err != nil {
		return payment.Request{}, fmt.Errorf("%w: currency_input: %w", ErrMalformed, err)
	}
	r := payment.Request{
		Key: d.Key, Sender: d.Sender, Receiver: d.Receiver,
		Sent: money.Amount{Minor: d.AmountMinor, Currency: currency}, AmountIDR: d.AmountIDR,
		RateID: d.RateID, RateTime: d.RateTime, RuleSet: d.RuleSet, TxDate: d.TxDate,
		AcceptedAt: d.AcceptedAt, Deadline: d.Deadline, AttemptID: d.AttemptID,
	}
	if d.Rate != "" {
		if r.Rate, err = money.ParseRate(d.Rate); err != nil {
			return payment.Request{}, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
	}
	if err := r.Validate(); err != nil {
		return payment.Request{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return r, nil
}

// Requested makes the event that asks for a payment. Its id is the payment's: published twice, it is the
// same event.
func Requested(source string, r payment.Request, replyTo string, now time.Time) (cloudevents.Event, error) {
	return New(TypePaymentRequested, RequestedID(r.Key, r.Fingerprint()), source, r.Key, Data(r, replyTo), now)
}

// Result makes the event that tells a payment's outcome.
func Result(source string, d PaymentResult, fp payment.Fingerprint, now time.Time) (cloudevents.Event, error) {
	d.Fingerprint = hex.EncodeToString(fp[:])
	return New(TypePaymentResult, ResultID(d.Key, fp), source, d.Key, d, now)
}

// RequestedID is the id of the event that asks for a payment, by which it can be found in Kafka.
func RequestedID(key string, fp payment.Fingerprint) string { return paymentID("request", key, fp) }

// ResultID is the id of the event that tells a payment's outcome.
func ResultID(key string, fp payment.Fingerprint) string { return paymentID("result", key, fp) }

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
	// Set through the fields: SetData would copy and check what is known to be JSON.
	e.SetDataContentType(cloudevents.ApplicationJSON)
	e.DataEncoded = body
	if err := e.Validate(); err != nil {
		return cloudevents.Event{}, fmt.Errorf("make %s: %w", eventType, err)
	}
	return e, nil
}

// strictly reads JSON as encoding/json does, but for a name that is given twice, in whatever case: which of the two is meant
// is not known.
var strictly = jsonexp.JoinOptions(jsonv1.DefaultOptionsV1(), jsontext.AllowDuplicateNames(false))

// Decode reads an event's JSON data. Fields that are not known are let through: a later producer may send
// more.
func Decode[T any](e cloudevents.Event) (T, error) {
	var data T
	if err := jsonexp.Unmarshal(e.Data(), &data, strictly); err != nil {
		return data, fmt.Errorf("%w: data of %s %s: %w", ErrMalformed, e.Type(), e.ID(), err)
	}
	return data, nil
}

// ReadRequest gives the data of an event from the request topic: one of TypePaymentRequested with a good
// signature, or, where the operator allows it, the plain record of an earlier producer.
func ReadRequest(e cloudevents.Event, keys *Keyring, allowUnsigned bool) (PaymentRequested, error) {
	switch e.Type() {
	case TypePaymentRequested:
		if err := keys.Verify(e); err != nil {
			return PaymentRequested{}, err
		}
		return Decode[PaymentRequested](e)
	case TypeKafkaRecord:
		if !allowUnsigned {
			return PaymentRequested{}, fmt.Errorf("%w: a plain record, and unsigned requests are not allowed", ErrSignature)
		}
		data, err := Decode[PaymentRequested](e)
		// What only pgw writes is not taken from a record that nobody signed: an address to reply to above all.
		return PaymentRequested{
			Key: data.Key, Sender: data.Sender, Receiver: data.Receiver, AmountIDR: data.AmountIDR,
			CurrencyInput: data.CurrencyInput, TxDate: data.TxDate,
		}, err
	default:
		return PaymentRequested{}, fmt.Errorf("%w: %s is no payment request", ErrRefused, e.Type())
	}
}
