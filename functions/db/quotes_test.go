package db

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/payment"
)

// A quote is kept if everything about it is in order. One quote too many is an answer, and not an
// error, because a full queue is one.
func TestPutQuote(t *testing.T) {
	w := newWorld(t)
	const id = "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10"
	good := func() *dbv1.PutQuoteRequest {
		return &dbv1.PutQuoteRequest{
			QuoteId: id, Client: "acme", Lifetime: durationpb.New(time.Minute), MaxOpen: 1,
			Payment: &commonv1.Payment{SenderId: "A", ReceiverId: "B", CurrencyInput: "USD", AmountMinor: 1000, AmountIdr: 155_000},
		}
	}
	for name, change := range map[string]func(*dbv1.PutQuoteRequest){
		"no id":               func(in *dbv1.PutQuoteRequest) { in.QuoteId = "" },
		"no lifetime":         func(in *dbv1.PutQuoteRequest) { in.Lifetime = nil },
		"too long":            func(in *dbv1.PutQuoteRequest) { in.Lifetime = durationpb.New(time.Hour) },
		"no payment":          func(in *dbv1.PutQuoteRequest) { in.Payment = nil },
		"no amount":           func(in *dbv1.PutQuoteRequest) { in.Payment.AmountMinor = 0 },
		"no price":            func(in *dbv1.PutQuoteRequest) { in.Payment.AmountIdr = 0 },
		"the house's account": func(in *dbv1.PutQuoteRequest) { in.Payment.ReceiverId = payment.LiquidityAccount },
		"a client of control": func(in *dbv1.PutQuoteRequest) { in.Client = "a\x00b" },
	} {
		in := good()
		change(in)
		if _, err := w.PutQuote(t.Context(), in); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	put, err := w.PutQuote(t.Context(), good())
	if err != nil || put.GetQuote().GetQuoteId() != id {
		t.Fatalf("%+v, %v", put, err)
	}
	more := good()
	more.QuoteId = "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a11"
	if got, err := w.PutQuote(t.Context(), more); err != nil || got.Quote != nil || got.RetryAfter.AsDuration() <= 0 || got.RetryAfter.AsDuration() > time.Minute {
		t.Errorf("one too many: %+v, %v", got, err)
	}
	found, err := w.FindQuote(t.Context(), &dbv1.FindQuoteRequest{QuoteId: id})
	if err != nil || found.Client != "acme" || found.Payment.AmountIdr != 155_000 || !found.ExpiresAt.AsTime().Equal(put.Quote.ExpiresAt.AsTime()) {
		t.Errorf("found %+v, %v", found, err)
	}
	for text, want := range map[string]codes.Code{more.QuoteId: codes.NotFound, "4711": codes.InvalidArgument} {
		if _, err := w.FindQuote(t.Context(), &dbv1.FindQuoteRequest{QuoteId: text}); status.Code(err) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
}
