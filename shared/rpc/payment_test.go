package rpc_test

import (
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	commonv1 "pgw/proto/gen/common/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// fill sets each field of a struct to a different value, so that the test notices a forgotten
// field.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	usd, _ := money.ParseCurrency("USD")
	rate, _ := money.ParseRate("15500.5")
	for i := range v.NumField() {
		field, name := v.Field(i), v.Type().Field(i).Name
		switch field.Interface().(type) {
		case string:
			field.SetString("the " + name)
		case int64:
			field.SetInt(int64(i + 1))
		case bool:
			field.SetBool(true)
		case time.Time:
			field.Set(reflect.ValueOf(time.Date(2026, 1, 31, 9, 30, i, 1000, time.UTC)))
		case money.Currency:
			field.Set(reflect.ValueOf(usd))
		case money.Rate:
			field.Set(reflect.ValueOf(rate))
		case *string:
			text := name + " of another"
			field.Set(reflect.ValueOf(&text))
		case map[string]string:
			field.Set(reflect.ValueOf(map[string]string{"order": "7", "note": "two"}))
		case payment.Fingerprint:
			field.Set(reflect.ValueOf(payment.Fingerprint{1, 2, 3, 15: 16}))
		case payment.Status:
			field.Set(reflect.ValueOf(payment.SuccessReplay))
		case payment.Reason:
			field.Set(reflect.ValueOf(payment.DuplicateIdempo))
		case payment.ReservationStatus:
			field.Set(reflect.ValueOf(payment.Committed))
		case payment.Payment, payment.Outcome, payment.Exchange:
			fill(t, field)
		case []payment.Step:
			step := payment.Step{}
			fill(t, reflect.ValueOf(&step).Elem())
			field.Set(reflect.ValueOf([]payment.Step{step}))
		default:
			t.Fatalf("%s is a %s, which this test has no value for", name, field.Type())
		}
	}
}

// Every field of a payment, an outcome and a record is converted, and every field of their messages
// is set.
func TestEveryFieldIsConverted(t *testing.T) {
	var want payment.Record
	fill(t, reflect.ValueOf(&want).Elem())
	message := rpc.FromRecord(want)
	for _, m := range []proto.Message{
		message, message.Payment, message.Outcome, message.Payment.Exchange, message.Payment.Exchange.Steps[0],
	} {
		fields := m.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			if field := fields.Get(i); !m.ProtoReflect().Has(field) {
				t.Errorf("%s is not set", field.FullName())
			}
		}
	}
	text, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	sent := &commonv1.Record{}
	if err := proto.Unmarshal(text, sent); err != nil {
		t.Fatal(err)
	}
	if got, err := rpc.ToRecord(sent); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v:\n%+v, want\n%+v", err, got, want)
	}
}

// The zero payment and every outcome are unchanged after conversion in both directions.
func TestOutcomesAreConverted(t *testing.T) {
	if got, err := rpc.ToPayment(rpc.FromPayment(payment.Payment{})); err != nil || !reflect.DeepEqual(got, payment.Payment{}) {
		t.Errorf("no payment: %+v, %v", got, err)
	}
	for _, want := range []payment.Outcome{
		payment.Standing(payment.Pending, "", "r", false),
		payment.Standing(payment.Committed, payment.ReasonCommitted, "r", false),
		payment.Standing(payment.Committed, payment.ReasonCommitted, "r", true),
		payment.Standing(payment.RolledBack, payment.Expired, "r", true),
		payment.Decline(payment.IdempotencyMismatch),
	} {
		if got, err := rpc.ToOutcome(rpc.FromOutcome(want)); err != nil || got != want {
			t.Errorf("%+v: %+v, %v", want, got, err)
		}
	}
	for _, e := range []protoreflect.EnumDescriptor{commonv1.Status(0).Descriptor(), commonv1.ReservationState(0).Descriptor()} {
		if e.Values().Len() != 4 {
			t.Errorf("%s has %d values", e.FullName(), e.Values().Len())
		}
	}
}

// A message of an older or a newer function must not be read as an undecided outcome, because that
// means that money is held.
func TestUnknownOutcomesAreRefused(t *testing.T) {
	for name, in := range map[string]*commonv1.Outcome{
		"nothing":           nil,
		"empty":             {},
		"an unknown status": {Status: 99},
		"an unknown state":  {Status: commonv1.Status_STATUS_FAILED, State: 99},
		"a negative state":  {Status: commonv1.Status_STATUS_FAILED, State: -1},
		"only a state":      {State: commonv1.ReservationState_RESERVATION_STATE_COMMITTED},
	} {
		if got, err := rpc.ToOutcome(in); err == nil {
			t.Errorf("%s is read as %+v", name, got)
		}
	}
	if _, err := rpc.ToPayment(&commonv1.Payment{CurrencyInput: "XXX?"}); err == nil {
		t.Error("an unknown currency is accepted")
	}
	if _, err := rpc.ToPayment(&commonv1.Payment{CurrencyInput: "USD", Rate: "-1"}); err == nil {
		t.Error("a negative rate is accepted")
	}
}

// A payment gets every part of fx's price. A price that cannot be read is refused.
func TestPaymentsAreQuoted(t *testing.T) {
	var want payment.Payment
	fill(t, reflect.ValueOf(&want).Elem())
	answer := &fxv1.QuoteResponse{
		DebitMinor: want.DebitMinor, CreditMinor: want.CreditMinor, Exchange: rpc.FromExchange(want.Exchange), AmountIdr: want.AmountIDR,
		Rate: want.Rate.String(), RateId: want.RateID, RateTime: rpc.Timestamp(want.RateTime),
	}
	asked := want
	asked.DebitMinor, asked.CreditMinor, asked.AmountIDR, asked.Exchange = 0, 0, 0, payment.Exchange{}
	asked.Rate, asked.RateID, asked.RateTime = money.Rate{}, "", time.Time{}
	if got, err := rpc.Quoted(asked, answer); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v:\n%+v, want\n%+v", err, got, want)
	}
	question := rpc.QuoteOf(asked)
	if question.DebitCurrency != "USD" || question.CreditCurrency != "USD" || question.FixedCurrency != "USD" || question.AmountMinor != want.Minor {
		t.Errorf("the request is %v", question)
	}

	if _, err := rpc.Quoted(payment.Payment{}, answer); err == nil {
		t.Error("a payment in rupiah is accepted")
	}
	for name, bad := range map[string]*fxv1.QuoteResponse{
		"nothing":  nil,
		"no rate":  {DebitMinor: 1},
		"exchange": {Rate: "1", Exchange: &commonv1.Exchange{Rate: "many"}},
	} {
		if _, err := rpc.Quoted(asked, bad); err == nil {
			t.Errorf("%s: is accepted", name)
		}
	}
}
