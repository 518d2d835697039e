package gateway

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// price returns the payment with its price: that of its firm quote, else fx's of now. A quote that
// has expired or was used still gives its price, because this may be a retry of the payment that has
// used it. Only the ledger can tell.
func (g *Gateway) price(ctx context.Context, p payment.Payment) (payment.Payment, verdict) {
	if p.QuoteID == "" {
		return g.priceNow(ctx, p)
	}
	quoted, err := g.byQuote(ctx, p)
	switch {
	case status.Code(err) == codes.NotFound:
		g.metrics.quoteReads.WithLabelValues("mismatch").Inc()
		// The refusal is recorded, so it needs a price too.
		p, no := g.priceNow(ctx, p)
		if no.reason != "" {
			return p, no
		}
		return p, verdict{payment.QuoteMismatch, "quote_id: there is no such quote for this client, these parties and this amount", refused}
	case err != nil:
		return p, g.unreachable(ctx, g.metrics.quoteReads, payment.LedgerUnavailable, err)
	}
	g.metrics.quoteReads.WithLabelValues("ok").Inc()
	return quoted, verdict{}
}

// byQuote returns the payment with the price of its quote. It returns NOT_FOUND if there is no such
// quote for this payment.
func (g *Gateway) byQuote(ctx context.Context, p payment.Payment) (payment.Payment, error) {
	got, err := g.db.FindQuote(ctx, &dbv1.FindQuoteRequest{QuoteId: p.QuoteID})
	if err != nil {
		return p, err
	}
	of, err := rpc.ToPayment(got.Payment)
	if err != nil {
		return p, fmt.Errorf("the ledger returned a bad quote: %w", err)
	}
	if got.Client != clientOf(ctx) || of.Sender != p.Sender || of.Receiver != p.Receiver || of.Sent() != p.Sent() ||
		of.DebitCurrency != p.DebitCurrency || of.CreditCurrency != p.CreditCurrency {
		return p, status.Error(codes.NotFound, "the quote is for another payment")
	}
	return priceOf(p, of), nil
}

// priceOf returns the payment with the price of another one.
func priceOf(p, other payment.Payment) payment.Payment {
	p.AmountIDR, p.Rate, p.RateID, p.RateTime = other.AmountIDR, other.Rate, other.RateID, other.RateTime
	p.DebitMinor, p.CreditMinor, p.Exchange = other.DebitMinor, other.CreditMinor, other.Exchange
	return p
}

// priceNow returns the payment with its price from fx.
func (g *Gateway) priceNow(ctx context.Context, p payment.Payment) (payment.Payment, verdict) {
	priced, err := g.askFX(ctx, p)
	switch code := status.Code(err); {
	case code == codes.NotFound:
		g.metrics.fx.WithLabelValues("no_rate").Inc()
		return p, verdict{payment.UnsupportedCurrency, "currency: there is no rate for " + pricedIn(p), unpriced}
	case code == codes.InvalidArgument:
		g.metrics.fx.WithLabelValues("invalid").Inc()
		return p, verdict{payment.InvalidInput, "amount: " + strings.TrimPrefix(status.Convert(err).Message(), "amount_minor: "), unpriced}
	case err != nil:
		return p, g.unreachable(ctx, g.metrics.fx, payment.FXUnavailable, err)
	}
	g.senseless.Note(ctx, nil)
	g.metrics.fx.WithLabelValues("ok").Inc()
	if priced.AmountIDR <= 0 {
		return p, verdict{payment.InvalidInput, "amount: is worth less than one rupiah", unpriced}
	}
	return priced, verdict{}
}

func (g *Gateway) askFX(ctx context.Context, p payment.Payment) (payment.Payment, error) {
	if p.InRupiah() {
		got, err := g.fx.Convert(ctx, rpc.InRupiah(p.Sent()))
		if err != nil {
			return p, err
		}
		return rpc.Priced(p, got)
	}
	got, err := g.fx.Quote(ctx, rpc.QuoteOf(p))
	if err != nil {
		return p, err
	}
	return rpc.Quoted(p, got)
}

// pricedIn names the currencies for which a payment needs rates.
func pricedIn(p payment.Payment) string {
	if p.InRupiah() {
		return p.Currency.String()
	}
	if p.Exchanges() {
		return p.DebitCurrency.String() + " and " + p.CreditCurrency.String()
	}
	return p.Currency.String() + " and " + p.DebitCurrency.String()
}
