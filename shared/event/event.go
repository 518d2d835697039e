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

// PaymentRequested is the data of TypePaymentRequested.
type PaymentRequested struct {
	payment.Payment
	// ReplyTo is the URL of the gateway replica at which the client waits; it may be empty.
	ReplyTo string `json:"reply_to,omitempty"`
}

// PaymentResult is the data of TypePaymentResult.
type PaymentResult struct {
	Key string `json:"idempotency_key"`
	payment.Outcome
	// Fingerprint tells the results of two requests with one key apart.
	Fingerprint payment.Fingerprint `json:"fingerprint"`
	AttemptID   string              `json:"attempt_id,omitempty"`
	ReplyTo     string              `json:"reply_to,omitempty"`

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
	AccountID     string                `json:"account_id"`
	Owner         string                `json:"owner"`
	Currency      string                `json:"currency"`        // what the owner thinks in; balances are in rupiah
	DailyLimitIDR int64                 `json:"daily_limit_idr"` // 0 means none
	Status        payment.AccountStatus `json:"status"`
}

// AccountFunded is the data of TypeAccountFunded: money that comes in from outside the ledger, once for
// each event id.
type AccountFunded struct {
	AccountID string `json:"account_id"`
	AmountIDR int64  `json:"amount_idr"`
	Note      string `json:"note,omitempty"`
}

// Requested makes the event that asks for a payment. Its id is the payment's: published twice, it is the
// same event. replyTo may be empty.
func Requested(source string, p payment.Payment, replyTo string, now time.Time) (cloudevents.Event, error) {
	return New(TypePaymentRequested, RequestedID(p.Key, p.Fingerprint()), source, p.Key, PaymentRequested{p, replyTo}, now)
}

// Result makes the event that tells a payment's outcome.
func Result(source string, d PaymentResult, now time.Time) (cloudevents.Event, error) {
	return New(TypePaymentResult, ResultID(d.Key, d.Fingerprint), source, d.Key, d, now)
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

// ReadRequest gives the data of an event from the request topic, checked: one of
// TypePaymentRequested with a good signature, or, where the operator allows it, the plain record of
// an earlier producer.
func ReadRequest(e cloudevents.Event, keys *Keyring, allowUnsigned bool) (PaymentRequested, error) {
	switch {
	case e.Type() == TypePaymentRequested:
		if err := keys.Verify(e); err != nil {
			return PaymentRequested{}, err
		}
	case e.Type() != TypeKafkaRecord:
		return PaymentRequested{}, fmt.Errorf("%w: %s is no payment request", ErrRefused, e.Type())
	case !allowUnsigned:
		return PaymentRequested{}, fmt.Errorf("%w: a plain record, and unsigned requests are not allowed", ErrSignature)
	}
	data, err := Decode[PaymentRequested](e)
	if err != nil {
		return PaymentRequested{}, err
	}
	if e.Type() == TypeKafkaRecord {
		// What only pgw writes is not taken from a record that nobody signed: an address to reply to above all.
		data = PaymentRequested{Payment: payment.Payment{
			Key: data.Key, Sender: data.Sender, Receiver: data.Receiver, AmountIDR: data.AmountIDR,
			Currency: data.Currency, TxDate: data.TxDate,
		}}
	}
	if err := data.Validate(); err != nil {
		return PaymentRequested{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return data, nil
}

// ReadResult gives the data of an event from the result topic, whose signature must be good.
func ReadResult(e cloudevents.Event, keys *Keyring) (PaymentResult, error) {
	if e.Type() != TypePaymentResult {
		return PaymentResult{}, fmt.Errorf("%w: %s is no payment's result", ErrRefused, e.Type())
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
