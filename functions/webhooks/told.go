package webhooks

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"pgw/shared/event"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// The types of the events that clients are told.
const (
	typeSettled    = "payment.settled"
	typeFailed     = "payment.failed"
	typeAuthorized = "payment.authorized"
	typeCaptured   = "payment.captured"
	typeVoided     = "payment.voided"
	typeExpired    = "payment.expired"
	typeRefunded   = "payment.refunded"

	typeTest     = "webhook.test"     // to the endpoint that the client names
	typeDisabled = "webhook.disabled" // to the client's other endpoints
)

// types are those that an endpoint can ask for.
var types = []string{typeSettled, typeFailed, typeAuthorized, typeCaptured, typeVoided, typeExpired, typeRefunded, typeDisabled}

// The formats of a body.
const (
	formatWebhook     = "webhook"     // Standard Webhooks: type, timestamp, data
	formatCloudEvents = "cloudevents" // CloudEvents 1.0, structured
)

// maxBody is the largest body, in bytes. A larger one is sent thin.
const maxBody = 20 << 10

// paymentData is the data of an event about a payment. Amounts are in major units.
type paymentData struct {
	Key    string         `json:"idempotency_key"`
	Ref    string         `json:"ref,omitempty"`
	Status payment.Status `json:"status"`
	Reason payment.Reason `json:"reason"`

	Sender     string            `json:"sender_id"`
	Receiver   string            `json:"receiver_id"`
	Currency   string            `json:"currency"`
	Amount     string            `json:"amount,omitempty"`
	AmountIDR  int64             `json:"amount_idr"`
	DebitIn    string            `json:"debit_currency"`
	Debit      string            `json:"debit_amount"`
	CreditIn   string            `json:"credit_currency"`
	Credit     string            `json:"credit_amount"`
	Authorized string            `json:"authorized,omitempty"` // what was held, in the debit currency
	Refunded   string            `json:"refunded,omitempty"`   // what was given back until now, in the debit currency
	TxDate     string            `json:"tx_date,omitempty"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	DecidedAt  time.Time         `json:"decided_at,omitzero"`

	Refund *refundData `json:"refund,omitempty"`
}

// refundData is the refund that the event is about.
type refundData struct {
	Key      string `json:"idempotency_key"`
	Ref      string `json:"ref,omitempty"`
	Currency string `json:"currency"` // in which the payment's sender has paid, and gets it back
	Amount   string `json:"amount"`
	GivenIn  string `json:"given_currency,omitempty"` // in which the payment's receiver gives it
	Given    string `json:"given_amount,omitempty"`
	Note     string `json:"reason,omitempty"` // in the client's words
}

// The facts about a payment that are told once: that it is authorized, what was decided, and each
// refund. The id of an event depends on the fact only, and not on the result event that says it.
const (
	factAuthorized = "authorized"
	factDecided    = "decided"
	factRefund     = "refund "
)

// eventID returns the id of the event that tells a fact about a client's payment.
func eventID(client, key, fact string) string {
	hash := sha256.New()
	for _, part := range []string{client, key, fact} {
		hash.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		hash.Write([]byte(part))
	}
	return "msg_" + base64.RawURLEncoding.EncodeToString(hash.Sum(nil)[:18])
}

// dataOf returns the data of an event about a payment, as the ledger has it.
func dataOf(r payment.Record) paymentData {
	debit, credit := r.Debit(), r.Credit()
	d := paymentData{
		Key: r.Key, Ref: r.Ref, Status: r.Status, Reason: r.Reason, Sender: r.Sender, Receiver: r.Receiver,
		Currency: r.Currency.String(), AmountIDR: r.AmountIDR, DebitIn: debit.Currency.String(), Debit: debit.String(),
		CreditIn: credit.Currency.String(), Credit: credit.String(), TxDate: r.TxDate, Metadata: r.Metadata, DecidedAt: r.DecidedAt,
	}
	if r.Minor != 0 {
		d.Amount = r.Sent().String()
	}
	if r.AuthorizedMinor != 0 {
		d.Authorized = money.Amount{Minor: r.AuthorizedMinor, Currency: debit.Currency}.String()
	}
	if r.RefundedMinor != 0 {
		d.Refunded = money.Amount{Minor: r.RefundedMinor, Currency: debit.Currency}.String()
	}
	if d.Status == payment.SuccessReplay {
		d.Status, d.Reason = payment.Success, payment.ReasonCommitted // the fact, not a client's second attempt
	}
	return d
}

// decidedType returns the type of the event that tells what was decided about a payment; empty if
// nothing is decided.
func decidedType(r payment.Record) string {
	switch r.State {
	case payment.Committed:
		if r.AuthorizedMinor > 0 {
			return typeCaptured
		}
		return typeSettled
	case payment.RolledBack:
		switch r.Reason {
		case payment.Voided, payment.Canceled:
			return typeVoided
		case payment.AuthorizationExpired:
			return typeExpired
		}
		return typeFailed
	}
	return ""
}

// authorized returns the event that tells that a payment is authorized.
func authorized(r payment.Record) (ledger.WebhookEvent, error) {
	d := dataOf(r)
	// The event is about that moment, even if the payment was captured since.
	d.Status, d.Reason, d.DecidedAt, d.Refunded = payment.Success, payment.Authorized, time.Time{}, ""
	if d.Authorized == "" {
		d.Authorized = d.Debit
	}
	return toldOf(r, typeAuthorized, factAuthorized, ledger.SequenceAuthorized, r.ReservedAt, d)
}

// decided returns the event that tells what was decided about a payment.
func decided(r payment.Record) (ledger.WebhookEvent, error) {
	return toldOf(r, decidedType(r), factDecided, ledger.SequenceDecided, r.DecidedAt, dataOf(r))
}

// refunded returns the event that tells of a refund of a payment. key is the refund's.
func refunded(r payment.Record, key, note string, o event.OperationResult, at time.Time) (ledger.WebhookEvent, error) {
	d := dataOf(r)
	if o.SenderCurrency == (money.Currency{}) {
		o.SenderCurrency = r.Debit().Currency
	}
	d.Refund = &refundData{
		Key: key, Ref: o.Ref, Currency: o.SenderCurrency.String(), Amount: money.Amount{Minor: o.SenderMinor, Currency: o.SenderCurrency}.String(), Note: note,
	}
	if o.ReceiverCurrency != (money.Currency{}) {
		d.Refund.GivenIn, d.Refund.Given = o.ReceiverCurrency.String(), money.Amount{Minor: o.ReceiverMinor, Currency: o.ReceiverCurrency}.String()
	}
	if o.RefundedMinor > 0 {
		d.Refunded = money.Amount{Minor: o.RefundedMinor, Currency: o.SenderCurrency}.String()
	}
	fact := factRefund + key
	if o.Of().Client != o.Client { // the payment's client may have a refund of the same key
		fact += "\x00" + o.Client
	}
	return toldOf(r, typeRefunded, fact, 0, at, d)
}

func toldOf(r payment.Record, of, fact string, sequence int, at time.Time, d paymentData) (ledger.WebhookEvent, error) {
	text, err := json.Marshal(d)
	if err != nil {
		return ledger.WebhookEvent{}, fmt.Errorf("encode %s of %s: %w", of, r.Key, err)
	}
	return ledger.WebhookEvent{
		ID: eventID(r.Client, r.Key, fact), Client: r.Client, Type: of, Payment: r.Key, Sequence: sequence, Data: string(text), At: at,
	}, nil
}

// testEvent is the event by which a client tries an endpoint.
func testEvent(id string, now time.Time) ledger.WebhookEvent {
	return ledger.WebhookEvent{ID: id, Type: typeTest, Data: `{"text":"This is a test."}`, At: now}
}

// disabledEvent tells a client's other endpoints that one was disabled.
func disabledEvent(e ledger.Endpoint, id string, now time.Time) ledger.WebhookEvent {
	data := struct {
		ID           string    `json:"id"`
		URL          string    `json:"url"`
		Reason       string    `json:"reason"`
		FailingSince time.Time `json:"failing_since,omitzero"`
	}{e.ID.String(), e.URL, e.Reason, e.FailingSince}
	text, _ := json.Marshal(data) // texts and times only
	return ledger.WebhookEvent{ID: id, Client: e.Client, Type: typeDisabled, Data: string(text), At: now}
}

// thinData is the data of a thin event: the receiver asks for the rest.
type thinData struct {
	Key      string `json:"idempotency_key,omitempty"`
	Refund   string `json:"refund_key,omitempty"`
	Sequence int    `json:"sequence,omitempty"`
}

// body returns the body of an event for an endpoint, and its media type. It is the same at each
// attempt.
func body(e ledger.WebhookEvent, format string, thin bool) (text []byte, media string, err error) {
	data := json.RawMessage(e.Data)
	if thin && e.Payment != "" {
		data, err = thinned(e)
	} else if e.Sequence > 0 {
		data = append(fmt.Appendf(nil, `{"sequence":%d,`, e.Sequence), e.Data[1:]...)
	}
	if err != nil {
		return nil, "", err
	}
	at := e.At.UTC().Format(time.RFC3339Nano)
	if format == formatCloudEvents {
		media = "application/cloudevents+json"
		text, err = json.Marshal(struct {
			SpecVersion string          `json:"specversion"`
			ID          string          `json:"id"`
			Source      string          `json:"source"`
			Type        string          `json:"type"`
			Subject     string          `json:"subject,omitempty"`
			Time        string          `json:"time"`
			Sequence    string          `json:"sequence,omitempty"` // CloudEvents' extension
			Media       string          `json:"datacontenttype"`
			Data        json.RawMessage `json:"data"`
		}{"1.0", e.ID, "/pgw/webhooks", "pgw." + e.Type, e.Payment, at, sequenceText(e.Sequence), "application/json", data})
	} else {
		media = "application/json"
		text, err = json.Marshal(struct {
			Type string          `json:"type"`
			Time string          `json:"timestamp"`
			Data json.RawMessage `json:"data"`
		}{e.Type, at, data})
	}
	if err == nil && len(text) >= maxBody && !thin && e.Payment != "" {
		return body(e, format, true)
	}
	return text, media, err
}

func thinned(e ledger.WebhookEvent) (json.RawMessage, error) {
	var full paymentData
	if err := json.Unmarshal([]byte(e.Data), &full); err != nil {
		return nil, fmt.Errorf("read the data of %s: %w", e.ID, err)
	}
	short := thinData{Key: e.Payment, Sequence: e.Sequence}
	if full.Refund != nil {
		short.Refund = full.Refund.Key
	}
	return json.Marshal(short)
}

// sequenceText writes a sequence so that texts sort as the numbers do, as the extension asks for.
func sequenceText(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%010d", n)
}
