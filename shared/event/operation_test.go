package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// operation is a request of one kind for the payment of exchanged.
func operation(kind payment.OperationKind) payment.Operation {
	x := exchanged()
	o := payment.Operation{
		Kind: kind, Key: string(kind) + "-001", Payment: x.Key, Note: "one of two was broken",
		AcceptedAt: noon, Deadline: noon.Add(time.Minute), AttemptID: "attempt-1",
	}
	switch kind {
	case payment.Refund:
		o.Minor, o.Currency, o.Exchange = 400, x.DebitCurrency, x.Exchange
	case payment.Capture:
		o.Minor, o.Currency, o.Note = 600, x.DebitCurrency, ""
	}
	return o
}

// operated is the result of operation.
func operated(kind payment.OperationKind) OperationResult {
	x, o := exchanged(), operation(kind)
	d := OperationResult{
		Kind: kind, Key: o.Key, Payment: o.Payment,
		Outcome:     payment.Outcome{Status: payment.Success, Reason: payment.ReasonCommitted, Ref: "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a11"},
		Fingerprint: o.Fingerprint(), AttemptID: o.AttemptID, ReplyTo: "http://10.0.0.1:8080",
		PaymentRef: "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10", ReceivedAt: noon, SettledAt: noon.Add(time.Millisecond),
	}
	moved := func(debit, credit int64) {
		d.SenderCurrency, d.SenderMinor, d.ReceiverCurrency, d.ReceiverMinor = x.DebitCurrency, debit, x.CreditCurrency, credit
		d.Entries = []Entry{{x.Receiver, x.CreditCurrency, -credit, "refund"}, {x.Sender, x.DebitCurrency, debit, "refund"}}
	}
	switch kind {
	case payment.Refund:
		moved(400, 536)
		d.AmountMinor, d.RefundedMinor, d.RefundingMinor = 1000, 400, 100
	case payment.Capture:
		moved(600, 803)
		d.Entries = []Entry{{x.Sender, x.DebitCurrency, -600, payment.KindPayment}, {x.Receiver, x.CreditCurrency, 803, payment.KindPayment}}
		d.AmountMinor, d.AuthorizedMinor = 600, 1000
	case payment.Void:
		d.AuthorizedMinor = 1000
	case payment.Cancel:
		moved(1000, 1339)
		d.RefundKey, d.AmountMinor, d.RefundedMinor = payment.CancelPrefix+d.PaymentRef, 1000, 1000
	}
	return d
}

// The shapes of the operations' events are a contract too.
func TestGoldenFilesOfOperations(t *testing.T) {
	for _, kind := range payment.OperationKinds {
		o, d := operation(kind), operated(kind)
		requested, err := New(operationTypes[kind].request, OperationRequestedID(o), "/pgw/gateway", o.Payment, OperationRequested{o, "http://10.0.0.1:8080"}, noon)
		if err != nil {
			t.Fatal(err)
		}
		result, err := New(operationTypes[kind].result, OperationResultID(d), "/pgw/worker", d.Payment, d, noon)
		if err != nil {
			t.Fatal(err)
		}
		if request, answer := OperationIDs(o.Client, o.Key, o.Fingerprint()); request != requested.ID() || answer != result.ID() {
			t.Errorf("%s: the ids by the fingerprint are %s and %s", kind, request, answer)
		}
		for _, e := range []cloudevents.Event{requested, result} {
			if err := ring(t, keys).Sign(&e); err != nil {
				t.Fatal(err)
			}
			text, err := e.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			var indented bytes.Buffer
			if err := json.Indent(&indented, text, "", "  "); err != nil {
				t.Fatal(err)
			}
			indented.WriteByte('\n')
			path := filepath.Join("testdata", e.Type()+".json")
			if *update {
				if err := os.WriteFile(path, indented.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(indented.Bytes(), want) {
				t.Errorf("%s is now\n%s", path, &indented)
			}
		}
	}
}

// An operation survives its event. An event of another type, or without a valid signature, is refused.
func TestAnOperationSurvivesItsEvent(t *testing.T) {
	signed := func(eventType string, data any) cloudevents.Event {
		e, err := New(eventType, "id", "/pgw/gateway", "test-001", data, noon)
		if err != nil {
			t.Fatal(err)
		}
		if err := ring(t, keys).Sign(&e); err != nil {
			t.Fatal(err)
		}
		return e
	}
	o, d := operation(payment.Refund), operated(payment.Refund)
	got, err := ReadOperation(signed(TypeRefundRequested, OperationRequested{o, ""}), ring(t, keys))
	if err != nil || got.Fingerprint() != o.Fingerprint() || got.Exchange.MidRate.String() != "1.34" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := ReadOperationResult(signed(TypeRefundResult, d), ring(t, keys)); err != nil || got.Fingerprint != d.Fingerprint || got.SenderMinor != 400 {
		t.Errorf("%+v, %v", got, err)
	}
	unsigned := signed(TypeRefundRequested, OperationRequested{o, ""})
	unsigned.SetExtension("pgwsignature", "v2.k1.x")
	o.Currency = money.Currency{}
	for name, tc := range map[string]struct {
		e    cloudevents.Event
		want error
	}{
		"another operation's type": {signed(TypeVoidRequested, OperationRequested{operation(payment.Refund), ""}), ErrMalformed},
		"a payment's type":         {signed(TypePaymentRequested, OperationRequested{operation(payment.Refund), ""}), ErrRefused},
		"an invalid one":           {signed(TypeRefundRequested, OperationRequested{o, ""}), ErrMalformed},
		"no signature":             {unsigned, ErrSignature},
	} {
		if _, err := ReadOperation(tc.e, ring(t, keys)); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadOperationResult(signed(TypeVoidResult, d), ring(t, keys)); !errors.Is(err, ErrMalformed) {
		t.Errorf("another operation's result: %v", err)
	}
}
