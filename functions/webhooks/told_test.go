package webhooks

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgw/shared/event"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
)

var usd, _ = money.ParseCurrency("USD")

func recordOf(state payment.ReservationStatus, reason payment.Reason) payment.Record {
	at := time.Date(2026, 1, 31, 9, 30, 0, 0, time.UTC)
	r := payment.Record{
		Payment: payment.Payment{
			Key: "k1", Client: "shop", Sender: "ACC001", Receiver: "ACC002", AmountIDR: 162500, Currency: usd, Minor: 1000,
			TxDate: "2026-01-31T09:30:00Z", Metadata: map[string]string{"order": "7"},
		},
		Outcome: payment.Standing(state, reason, "ref-1", false), ReservedAt: at, DecidedAt: at.Add(time.Second),
	}
	if state == payment.Pending {
		r.DecidedAt = time.Time{}
	}
	return r
}

// What was decided about a payment decides the type. The client hears it once, whichever event says
// it.
func TestWhatIsTold(t *testing.T) {
	ids := map[string]bool{}
	for _, tc := range []struct {
		state      payment.ReservationStatus
		reason     payment.Reason
		authorized int64
		want       string
	}{
		{payment.Committed, "", 0, typeSettled}, {payment.Committed, "", 500, typeCaptured},
		{payment.RolledBack, payment.InsufficientFunds, 0, typeFailed}, {payment.RolledBack, payment.Expired, 500, typeFailed},
		{payment.RolledBack, payment.Voided, 500, typeVoided}, {payment.RolledBack, payment.Canceled, 0, typeVoided},
		{payment.RolledBack, payment.AuthorizationExpired, 500, typeExpired},
	} {
		r := recordOf(tc.state, tc.reason)
		r.AuthorizedMinor = tc.authorized
		e, err := decided(r)
		if err != nil || e.Type != tc.want || e.Sequence != ledger.SequenceDecided || !e.At.Equal(r.DecidedAt) || e.Client != "shop" {
			t.Errorf("%s %s: %+v, %v", tc.state, tc.reason, e, err)
		}
		ids[e.ID] = true
	}
	if len(ids) != 1 {
		t.Errorf("the decision about one payment has the ids %v", ids)
	}
	open := recordOf(payment.Pending, payment.Authorized)
	if decidedType(open) != "" {
		t.Error("an authorized payment counts as decided")
	}
	e, err := authorized(open)
	if err != nil || e.Type != typeAuthorized || e.Sequence != ledger.SequenceAuthorized || ids[e.ID] {
		t.Errorf("authorized: %+v, %v", e, err)
	}
	first, second := recordOf(payment.Committed, ""), recordOf(payment.Committed, "")
	second.Client = "rival"
	a, _ := decided(first)
	b, _ := decided(second)
	if a.ID == b.ID {
		t.Error("two clients' payments with one key have one id")
	}
}

func TestBodies(t *testing.T) {
	r := recordOf(payment.Committed, "")
	idr := money.IDR
	full, err := refunded(r, "r1", "broken", event.OperationResult{
		Outcome: payment.Outcome{Ref: "ref-2"}, SenderCurrency: idr, SenderMinor: 100, ReceiverCurrency: idr, ReceiverMinor: 100, RefundedMinor: 300,
	}, r.DecidedAt)
	if err != nil {
		t.Fatal(err)
	}
	full.Sequence = 3
	for _, tc := range []struct {
		format string
		thin   bool
		media  string
		want   string
	}{
		{formatWebhook, false, "application/json", `{"type":"payment.refunded","timestamp":"2026-01-31T09:30:01Z","data":{"sequence":3,"idempotency_key":"k1","ref":"ref-1",` +
			`"status":"SUCCESS","reason":"committed","sender_id":"ACC001","receiver_id":"ACC002","currency":"USD","amount":"10.00","amount_idr":162500,` +
			`"debit_currency":"IDR","debit_amount":"162500","credit_currency":"IDR","credit_amount":"162500","refunded":"300","tx_date":"2026-01-31T09:30:00Z",` +
			`"metadata":{"order":"7"},"decided_at":"2026-01-31T09:30:01Z","refund":{"idempotency_key":"r1","ref":"ref-2","currency":"IDR","amount":"100",` +
			`"given_currency":"IDR","given_amount":"100","reason":"broken"}}}`},
		{formatWebhook, true, "application/json", `{"type":"payment.refunded","timestamp":"2026-01-31T09:30:01Z","data":{"idempotency_key":"k1","refund_key":"r1","sequence":3}}`},
		{formatCloudEvents, true, "application/cloudevents+json", `{"specversion":"1.0","id":"` + full.ID + `","source":"/pgw/webhooks","type":"pgw.payment.refunded",` +
			`"subject":"k1","time":"2026-01-31T09:30:01Z","sequence":"0000000003","datacontenttype":"application/json","data":{"idempotency_key":"k1","refund_key":"r1","sequence":3}}`},
	} {
		text, media, err := body(full, tc.format, tc.thin)
		if err != nil || media != tc.media || string(text) != tc.want {
			t.Errorf("%s, thin %t: %s\n%s\nwant\n%s\n%v", tc.format, tc.thin, media, text, tc.want, err)
		}
	}
	for _, e := range []ledger.WebhookEvent{testEvent("msg_t", r.DecidedAt), disabledEvent(ledger.Endpoint{URL: "https://a", Reason: "gone"}, "msg_d", r.DecidedAt)} {
		if text, _, err := body(e, formatWebhook, true); err != nil || !json.Valid(text) {
			t.Errorf("%s: %s, %v", e.Type, text, err)
		}
	}
}

// A body stays below 20 KiB, whatever the payment has: a larger one is sent thin.
func TestBodiesAreBounded(t *testing.T) {
	r := recordOf(payment.Committed, "")
	r.Metadata = map[string]string{}
	for _, name := range "abcdefgh" {
		r.Metadata[string(name)] = strings.Repeat("<", 500) // six bytes each in JSON
	}
	e, err := decided(r)
	if err != nil {
		t.Fatal(err)
	}
	text, _, err := body(e, formatCloudEvents, false)
	if err != nil || len(text) >= maxBody || strings.Contains(string(text), "metadata") {
		t.Errorf("%d bytes: %.200s, %v", len(text), text, err)
	}
}
