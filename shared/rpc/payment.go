package rpc

import (
	"encoding"
	"errors"
	"fmt"
	"slices"

	commonv1 "pgw/proto/gen/common/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// FromPayment returns the message of a payment.
func FromPayment(p payment.Payment) *commonv1.Payment {
	return &commonv1.Payment{
		IdempotencyKey: p.Key,
		SenderId:       p.Sender,
		ReceiverId:     p.Receiver,
		AmountIdr:      p.AmountIDR,
		CurrencyInput:  p.Currency.String(),
		AmountMinor:    p.Minor,
		Rate:           p.Rate.String(),
		RateId:         p.RateID,
		RateTime:       Timestamp(p.RateTime),
		RuleSet:        p.RuleSet,
		TxDate:         p.TxDate,
		AcceptedAt:     Timestamp(p.AcceptedAt),
		Deadline:       Timestamp(p.Deadline),
		AttemptId:      p.AttemptID,
		Metadata:       p.Metadata,
		DebitCurrency:  p.DebitCurrency.String(),
		CreditCurrency: p.CreditCurrency.String(),
		DebitMinor:     p.DebitMinor,
		CreditMinor:    p.CreditMinor,
		Exchange:       FromExchange(p.Exchange),
		QuoteId:        p.QuoteID,
		Client:         p.Client,
		HoldSeconds:    p.HoldSeconds,
	}
}

// FromExchange returns the message of a price; nil if there is none.
func FromExchange(e payment.Exchange) *commonv1.Exchange {
	if e.IsZero() {
		return nil
	}
	out := &commonv1.Exchange{Rate: e.Rate.String(), MidRate: e.MidRate.String(), MidMinor: e.MidMinor, Remainder: e.Remainder}
	for _, s := range e.Steps {
		out.Steps = append(out.Steps, &commonv1.Step{
			FromCurrency: s.From.String(), ToCurrency: s.To.String(), RateId: s.RateID,
			Rate: s.Rate.String(), MidRate: s.MidRate.String(), Inverse: s.Inverse,
		})
	}
	return out
}

// ToExchange is the inverse of FromExchange. It returns a payment.FieldError for a value that cannot
// be parsed.
func ToExchange(in *commonv1.Exchange) (e payment.Exchange, err error) {
	if in == nil {
		return e, nil
	}
	e = payment.Exchange{MidMinor: in.GetMidMinor(), Remainder: in.GetRemainder()}
	read := func(text string, into encoding.TextUnmarshaler) {
		if err == nil {
			err = into.UnmarshalText([]byte(text))
		}
	}
	read(in.GetRate(), &e.Rate)
	read(in.GetMidRate(), &e.MidRate)
	for _, s := range in.GetSteps() {
		step := payment.Step{RateID: s.GetRateId(), Inverse: s.GetInverse()}
		read(s.GetFromCurrency(), &step.From)
		read(s.GetToCurrency(), &step.To)
		read(s.GetRate(), &step.Rate)
		read(s.GetMidRate(), &step.MidRate)
		e.Steps = append(e.Steps, step)
	}
	if err != nil {
		return payment.Exchange{}, &payment.FieldError{Field: "exchange", Problem: err.Error()}
	}
	return e, nil
}

// ToPayment is the inverse of FromPayment. It returns a payment.FieldError for a currency or a rate
// that cannot be parsed. It does not validate the payment; payment.Validate does.
func ToPayment(in *commonv1.Payment) (payment.Payment, error) {
	p := payment.Payment{
		Key:        in.GetIdempotencyKey(),
		Sender:     in.GetSenderId(),
		Receiver:   in.GetReceiverId(),
		AmountIDR:  in.GetAmountIdr(),
		Minor:      in.GetAmountMinor(),
		RateID:     in.GetRateId(),
		RateTime:   Time(in.GetRateTime()),
		RuleSet:    in.GetRuleSet(),
		TxDate:     in.GetTxDate(),
		AcceptedAt: Time(in.GetAcceptedAt()),
		Deadline:   Time(in.GetDeadline()),
		AttemptID:  in.GetAttemptId(),
		Metadata:   in.GetMetadata(),
		DebitMinor: in.GetDebitMinor(), CreditMinor: in.GetCreditMinor(), QuoteID: in.GetQuoteId(),
		Client: in.GetClient(), HoldSeconds: in.GetHoldSeconds(),
	}
	var err error
	for _, c := range [...]struct {
		field, code string
		into        *money.Currency
	}{
		{"currency_input", in.GetCurrencyInput(), &p.Currency},
		{"debit_currency", in.GetDebitCurrency(), &p.DebitCurrency},
		{"credit_currency", in.GetCreditCurrency(), &p.CreditCurrency},
	} {
		if err = c.into.UnmarshalText([]byte(c.code)); err != nil {
			return p, &payment.FieldError{Field: c.field, Problem: err.Error()}
		}
	}
	if p.Exchange, err = ToExchange(in.GetExchange()); err != nil {
		return p, err
	}
	if rate := in.GetRate(); rate != "" {
		if p.Rate, err = money.ParseRate(rate); err != nil {
			return p, &payment.FieldError{Field: "rate", Problem: err.Error()}
		}
	}
	return p, nil
}

// InRupiah returns the request that asks fx for an amount in rupiah.
func InRupiah(a money.Amount) *fxv1.ConvertRequest {
	return &fxv1.ConvertRequest{
		FromCurrency: a.Currency.String(), ToCurrency: money.IDR.String(), AmountMinor: &a.Minor,
	}
}

// Priced returns the payment with the price of fx's answer.
func Priced(p payment.Payment, got *fxv1.ConvertResponse) (payment.Payment, error) {
	rate, err := money.ParseRate(got.GetRate())
	if err != nil {
		return p, fmt.Errorf("fx returned a bad rate: %w", err)
	}
	p.AmountIDR, p.Rate, p.RateID, p.RateTime = got.GetAmountMinor(), rate, got.GetRateId(), Time(got.GetRateTime())
	return p, nil
}

// QuoteOf returns the request that asks fx for the price of a payment that is not in rupiah.
func QuoteOf(p payment.Payment) *fxv1.QuoteRequest {
	return &fxv1.QuoteRequest{
		DebitCurrency: p.DebitCurrency.String(), CreditCurrency: p.CreditCurrency.String(),
		FixedCurrency: p.Currency.String(), AmountMinor: p.Minor,
	}
}

// Quoted returns the payment with the price of fx's answer to QuoteOf. A payment in rupiah has no such
// price: Priced is for those.
func Quoted(p payment.Payment, got *fxv1.QuoteResponse) (payment.Payment, error) {
	if p.InRupiah() {
		return p, errors.New("a payment in rupiah has no quote")
	}
	rate, err := money.ParseRate(got.GetRate())
	if err != nil {
		return p, fmt.Errorf("fx returned a bad rate: %w", err)
	}
	exchange, err := ToExchange(got.GetExchange())
	if err != nil {
		return p, fmt.Errorf("fx returned a bad price: %w", err)
	}
	p.DebitMinor, p.CreditMinor, p.Exchange = got.GetDebitMinor(), got.GetCreditMinor(), exchange
	p.AmountIDR, p.Rate, p.RateID, p.RateTime = got.GetAmountIdr(), rate, got.GetRateId(), Time(got.GetRateTime())
	return p, nil
}

// The values of the enums, in the order of their numbers.
var (
	statuses = []payment.Status{"", payment.Success, payment.SuccessReplay, payment.Failed}
	states   = []payment.ReservationStatus{"", payment.Pending, payment.Committed, payment.RolledBack}
)

// FromState returns the enum value of a reservation's state; unspecified if there is no state.
func FromState(s payment.ReservationStatus) commonv1.ReservationState {
	return commonv1.ReservationState(max(0, slices.Index(states, s)))
}

// ToState is the inverse of FromState.
func ToState(s commonv1.ReservationState) (payment.ReservationStatus, error) { return named(states, s) }

// named returns the name of a number. It refuses a number that this version does not know, because
// the function that sent it is newer.
func named[N ~int32, T any](names []T, n N) (name T, err error) {
	if n < 0 || int(n) >= len(names) {
		return name, fmt.Errorf("an unknown value of %T: %d", n, n)
	}
	return names[n], nil
}

// FromOutcome returns the message of an outcome.
func FromOutcome(o payment.Outcome) *commonv1.Outcome {
	return &commonv1.Outcome{
		Status:        commonv1.Status(max(0, slices.Index(statuses, o.Status))),
		Reason:        string(o.Reason),
		ReservationId: o.Ref,
		State:         FromState(o.State),
		Replay:        o.Replay,
	}
}

// ToOutcome is the inverse of FromOutcome. It refuses an outcome that is neither decided nor
// pending, so that a caller does not take it for an undecided one.
func ToOutcome(in *commonv1.Outcome) (payment.Outcome, error) {
	o := payment.Outcome{Reason: payment.Reason(in.GetReason()), Ref: in.GetReservationId(), Replay: in.GetReplay()}
	var err error
	if o.Status, err = named(statuses, in.GetStatus()); err != nil {
		return o, err
	}
	if o.State, err = ToState(in.GetState()); err != nil {
		return o, err
	}
	if o.Status == "" && o.State != payment.Pending {
		return o, fmt.Errorf("an outcome without a status, in state %q", o.State)
	}
	return o, nil
}

// FromRecord returns the message of a payment in the ledger.
func FromRecord(r payment.Record) *commonv1.Record {
	return &commonv1.Record{
		Payment: FromPayment(r.Payment), Outcome: FromOutcome(r.Outcome), Fingerprint: r.Claimed[:],
		ReservedAt: Timestamp(r.ReservedAt), DecidedAt: Timestamp(r.DecidedAt),
		RefundedMinor: r.RefundedMinor, RefundingMinor: r.RefundingMinor, AuthorizedMinor: r.AuthorizedMinor,
		PaymentKey: r.PaymentKey, PaymentClient: r.PaymentClient, Note: r.Note, TraceId: r.TraceID,
	}
}

// ToRecord is the inverse of FromRecord.
func ToRecord(in *commonv1.Record) (r payment.Record, err error) {
	r.ReservedAt, r.DecidedAt = Time(in.GetReservedAt()), Time(in.GetDecidedAt())
	r.RefundedMinor, r.RefundingMinor, r.AuthorizedMinor = in.GetRefundedMinor(), in.GetRefundingMinor(), in.GetAuthorizedMinor()
	r.PaymentKey, r.Note, r.TraceID = in.GetPaymentKey(), in.GetNote(), in.GetTraceId()
	if in != nil {
		r.PaymentClient = in.PaymentClient
	}
	if copy(r.Claimed[:], in.GetFingerprint()) != len(r.Claimed) {
		return r, fmt.Errorf("a fingerprint of %d bytes", len(in.GetFingerprint()))
	}
	if r.Payment, err = ToPayment(in.GetPayment()); err != nil {
		return r, err
	}
	r.Outcome, err = ToOutcome(in.GetOutcome())
	return r, err
}

// kinds maps the kinds of operations to those of the messages.
var kinds = map[payment.OperationKind]commonv1.OperationKind{
	payment.Refund:  commonv1.OperationKind_OPERATION_KIND_REFUND,
	payment.Capture: commonv1.OperationKind_OPERATION_KIND_CAPTURE,
	payment.Void:    commonv1.OperationKind_OPERATION_KIND_VOID,
	payment.Cancel:  commonv1.OperationKind_OPERATION_KIND_CANCEL,
}

// FromOperation returns the message of an operation.
func FromOperation(o payment.Operation) *commonv1.Operation {
	return &commonv1.Operation{
		Kind: kinds[o.Kind], IdempotencyKey: o.Key, Client: o.Client, PaymentKey: o.Payment,
		AmountMinor: o.Minor, Currency: o.Currency.String(), Note: o.Note, Exchange: FromExchange(o.Exchange),
		AcceptedAt: Timestamp(o.AcceptedAt), Deadline: Timestamp(o.Deadline), AttemptId: o.AttemptID, PaymentClient: o.PaymentClient,
	}
}

// ToOperation is the inverse of FromOperation. It returns a payment.FieldError for a value that cannot
// be parsed. It does not validate the operation; payment.Operation.Validate does.
func ToOperation(in *commonv1.Operation) (payment.Operation, error) {
	o := payment.Operation{
		Key: in.GetIdempotencyKey(), Client: in.GetClient(), Payment: in.GetPaymentKey(), Minor: in.GetAmountMinor(),
		Note: in.GetNote(), AcceptedAt: Time(in.GetAcceptedAt()), Deadline: Time(in.GetDeadline()), AttemptID: in.GetAttemptId(),
	}
	if in != nil {
		o.PaymentClient = in.PaymentClient
	}
	for kind, message := range kinds {
		if message == in.GetKind() {
			o.Kind = kind
		}
	}
	if err := o.Currency.UnmarshalText([]byte(in.GetCurrency())); err != nil {
		return o, &payment.FieldError{Field: "currency", Problem: err.Error()}
	}
	var err error
	o.Exchange, err = ToExchange(in.GetExchange())
	return o, err
}
