package payment

import (
	"encoding/json"
	"errors"
	"testing"

	"pgw/shared/money"
)

// Each order is an operation, or names what is wrong with it. An amount needs the currency in which the
// payment's sender has paid.
func TestOperationOrder(t *testing.T) {
	usd, _ := money.ParseCurrency("USD")
	for name, tc := range map[string]struct {
		kind   OperationKind
		body   string
		minor  int64
		fields []string // that are wrong, in order
	}{
		"all that is left":          {Refund, `{"idempotency_key":"r"}`, 0, nil},
		"a part":                    {Refund, `{"idempotency_key":"r","amount":"6.00","reason":"broken","fx":"current"}`, 600, nil},
		"a number":                  {Capture, `{"idempotency_key":"c","amount":6.5,"currency":"USD"}`, 650, nil},
		"no amount, explicitly":     {Capture, `{"idempotency_key":"c","amount":null}`, 0, nil},
		"no key":                    {Refund, `{}`, 0, []string{"idempotency_key"}},
		"a key of pgw":              {Refund, `{"idempotency_key":"cancel:1"}`, 0, []string{"idempotency_key"}},
		"another currency":          {Refund, `{"idempotency_key":"r","amount":"6","currency":"IDR"}`, 0, []string{"currency"}},
		"no such currency":          {Refund, `{"idempotency_key":"r","amount":"6","currency":"usd"}`, 0, []string{"currency"}},
		"a currency alone":          {Refund, `{"idempotency_key":"r","currency":"USD"}`, 0, []string{"currency"}},
		"nothing":                   {Refund, `{"idempotency_key":"r","amount":0}`, 0, []string{"amount"}},
		"negative":                  {Capture, `{"idempotency_key":"c","amount":"-1"}`, 0, []string{"amount"}},
		"too many digits":           {Capture, `{"idempotency_key":"c","amount":"1.001"}`, 0, []string{"amount"}},
		"not a number":              {Capture, `{"idempotency_key":"c","amount":"ten"}`, 0, []string{"amount"}},
		"another price":             {Refund, `{"idempotency_key":"r","fx":"yesterday"}`, 0, []string{"fx"}},
		"a line end":                {Void, `{"idempotency_key":"v","reason":"a\nb"}`, 0, []string{"reason"}},
		"an amount of a void":       {Void, `{"idempotency_key":"v","amount":"1"}`, 0, []string{"amount"}},
		"more that is not a void's": {Cancel, `{"amount":"1","currency":"USD","fx":"current"}`, 0, []string{"idempotency_key", "amount", "currency", "fx"}},
		"a reason of a capture":     {Capture, `{"idempotency_key":"c","reason":"x"}`, 0, []string{"reason"}},
	} {
		var order OperationOrder
		if err := json.Unmarshal([]byte(tc.body), &order); err != nil {
			t.Fatal(err)
		}
		op, err := order.Operation(tc.kind, usd)
		var wrong Problems
		errors.As(err, &wrong)
		if len(wrong) != len(tc.fields) {
			t.Errorf("%s: %v; want %q", name, wrong, tc.fields)
			continue
		}
		for i, field := range tc.fields {
			if wrong[i].Field != field {
				t.Errorf("%s: %v; want %q", name, wrong, tc.fields)
			}
		}
		if err == nil && (op.Minor != tc.minor || (tc.minor != 0) != (op.Currency == usd) || op.Key == "" || op.Kind != tc.kind || op.Note != order.Reason) {
			t.Errorf("%s: %+v", name, op)
		}
	}
}

// Before the payment is known, an amount is checked as far as that is possible.
func TestAnOperationOrderBeforeItsPaymentIsKnown(t *testing.T) {
	for amount, ok := range map[string]bool{`"1.001"`: true, `"ten"`: false, `{}`: false, `12.50`: true} {
		order := OperationOrder{Key: "r", Amount: json.RawMessage(amount)}
		if op, err := order.Operation(Refund, money.Currency{}); (err == nil) != ok || op.Minor != 0 {
			t.Errorf("%s: %+v, %v", amount, op, err)
		}
	}
}

// A payment is captured at once unless its client wants otherwise.
func TestCaptureOfAnOrder(t *testing.T) {
	for capture, want := range map[string]int64{"": 0, CaptureAutomatic: 0, CaptureManual: 604_800, "Manual": -1} {
		order := Order{Sender: "A", Receiver: "B", Currency: "USD", Amount: json.RawMessage(`"10"`), TxDate: "2026-01-31T09:30:00Z", Key: "k", Capture: capture}
		p, err := order.Payment()
		var wrong Problems
		if errors.As(err, &wrong) != (want < 0) || want < 0 && wrong[0].Field != "capture" || want >= 0 && (p.HoldSeconds != want || p.Manual() != (want > 0)) {
			t.Errorf("%q: %d, %v", capture, p.HoldSeconds, err)
		}
	}
}
