// Package fx prices amounts and payments. It converts at the newest rate and returns the id of that
// rate.
package fx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/apd/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	"pgw/shared/function"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/postgres"
	"pgw/shared/rpc"
)

// Config of the function.
type Config struct {
	DatabaseURL string          `envconfig:"DATABASE_URL" required:"true" desc:"URL of the ledger's Postgres; fx only reads"`
	Schema      postgres.Schema `envconfig:"LEDGER_SCHEMA" desc:"the ledger's schema, if several ledgers share the database; empty: the usual one"`
	Standby     postgres.Standby
}

// FX is the function.
type FX struct {
	fxv1.UnimplementedFxServiceServer
	fxv1.UnimplementedFxAdminServiceServer

	rates cache
	admin dbv1.AdminClient
	draw  func() float64 // returns a number in [0, 1)
}

// cache holds the rates in memory.
type cache interface {
	Get(context.Context) (rates, error)
	Refresh(context.Context) error
}

// rates are the newest rates by pair.
type rates map[pair]quote

type pair struct{ base, quote money.Currency }

type quote struct {
	rate     money.Rate // in the middle between bid and ask
	bid, ask money.Rate // zero if there is no spread
	id       string
	at       time.Time
}

// spread returns bid and ask, which are the rate itself if there is no spread.
func (q quote) spread() (bid, ask money.Rate) {
	if q.bid.IsZero() {
		return q.rate, q.rate
	}
	return q.bid, q.ask
}

// Function describes fx.
var Function = function.Describe(function.Function{
	Name: "fx", About: "prices amounts at the newest rates",
	Port: "19102", Calls: map[string]string{"db": "stores new rates"},
}, build)

func build(cfg Config, on function.Dependencies) (*function.Service, error) {
	reader, err := ledger.OpenReader(postgres.Config{
		URL: cfg.Schema.In(cfg.DatabaseURL), Name: "fx", MaxConns: 2, Registerer: on.Registry,
		Outage: postgres.NewOutage(on.Log, on.Now),
	}, cfg.Standby, on.Log)
	if err != nil {
		return nil, err
	}
	cached := ledger.NewCached(reader, func(ctx context.Context) (rates, error) { return load(ctx, reader) }, on.Log)
	f := &FX{rates: cached, admin: dbv1.NewAdminClient(on.Conns["db"]), draw: on.Random}
	return &function.Service{
		GRPC: func(r grpc.ServiceRegistrar) {
			fxv1.RegisterFxServiceServer(r, f)
			fxv1.RegisterFxAdminServiceServer(r, f)
		},
		Ready:      cached.Ready,
		Background: cached.Run,
		Close:      func(context.Context) error { reader.Close(); return nil },
	}, nil
}

// load reads the newest rate of each pair.
func load(ctx context.Context, from *ledger.Reader) (rates, error) {
	newest, err := from.Rates(ctx)
	if err != nil {
		return nil, err
	}
	all := rates{}
	for _, r := range newest {
		all[pair{r.Base, r.Quote}] = quote{rate: r.Rate, bid: r.Bid, ask: r.Ask, id: r.ID, at: r.At}
	}
	return all, nil
}

var one, _ = money.ParseRate("1")

// find returns the rate of a pair: a stored rate, or else a rate computed through the rupiah.
func (rs rates) find(p pair) (quote, bool) {
	if p.base == p.quote {
		return quote{rate: one, id: "identity"}, true
	}
	if q, ok := rs.stored(p); ok {
		return q, true
	}
	base, haveBase := rs.stored(pair{p.base, money.IDR})
	to, haveQuote := rs.stored(pair{p.quote, money.IDR})
	if !haveBase || !haveQuote {
		return quote{}, false
	}
	return crossed(base, to)
}

// stored returns the newest rate that was stored for two currencies in either direction. A stored
// rate also sets the rate of the other direction.
func (rs rates) stored(p pair) (quote, bool) {
	q, ok := rs[p]
	back, okBack := rs[pair{p.quote, p.base}]
	if okBack && (!ok || back.newer(q)) {
		if inverse, fits := crossed(quote{rate: one}, back); fits {
			return inverse, true
		}
	}
	return q, ok
}

func (q quote) newer(than quote) bool {
	return cmp.Or(q.at.Compare(than.at), cmp.Compare(q.id, than.id)) > 0
}

// crossed returns the rate that results from two rates, and its spread, if they fit. Its id contains
// both ids, and its time is the later of the two.
func crossed(base, to quote) (quote, bool) {
	rate, err := money.Cross(base.rate, to.rate)
	if err != nil {
		return quote{}, false
	}
	q := quote{rate: rate, id: to.id, at: to.at}
	baseBid, baseAsk := base.spread()
	toBid, toAsk := to.spread()
	bid, bidErr := money.Cross(baseBid, toAsk)
	ask, askErr := money.Cross(baseAsk, toBid)
	if bidErr == nil && askErr == nil {
		q.bid, q.ask = bid, ask
	}
	if base.id != "" {
		q.id = base.id + "/" + to.id
	}
	if base.at.After(q.at) {
		q.at = base.at
	}
	return q, true
}

// Convert implements fx.v1.FxService.
func (f *FX) Convert(ctx context.Context, in *fxv1.ConvertRequest) (*fxv1.ConvertResponse, error) {
	var p pair
	var err error
	if p.base, err = money.ParseCurrency(in.FromCurrency); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "from_currency: %v", err)
	}
	if p.quote, err = money.ParseCurrency(in.ToCurrency); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "to_currency: %v", err)
	}
	amount := money.Amount{Minor: in.GetAmountMinor(), Currency: p.base}
	if in.AmountMinor == nil {
		if amount, err = money.FromFloat(in.Amount, p.base); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "amount: %v", err)
		}
	}
	all, err := f.rates.Get(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	q, ok := all.find(p)
	if !ok {
		return nil, status.Errorf(codes.NotFound, "there is no rate from %s to %s", p.base, p.quote)
	}
	converted, err := money.Convert(amount, q.rate, p.quote)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &fxv1.ConvertResponse{
		Amount: converted.Float(), AmountMinor: converted.Minor, Rate: q.rate.String(), RateId: q.id, RateTime: rpc.Timestamp(q.at),
	}, nil
}

// Quote implements fx.v1.FxService.
func (f *FX) Quote(ctx context.Context, in *fxv1.QuoteRequest) (*fxv1.QuoteResponse, error) {
	o := order{fixed: money.Amount{Minor: in.AmountMinor}}
	for _, c := range [...]struct {
		field, code string
		into        *money.Currency
	}{
		{"debit_currency", in.DebitCurrency, &o.debit},
		{"credit_currency", in.CreditCurrency, &o.credit},
		{"fixed_currency", in.FixedCurrency, &o.fixed.Currency},
	} {
		var err error
		if *c.into, err = money.ParseCurrency(c.code); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "%s: %v", c.field, err)
		}
	}
	if in.AmountMinor <= 0 || in.AmountMinor > money.MaxMinor {
		return nil, status.Errorf(codes.InvalidArgument, "amount_minor: must be positive and at most %d", int64(money.MaxMinor))
	}
	all, err := f.rates.Get(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	p, err := all.price(o)
	var none noRateError
	if errors.As(err, &none) {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &fxv1.QuoteResponse{
		DebitMinor: p.debit.Minor, CreditMinor: p.credit.Minor, Exchange: rpc.FromExchange(p.exchange), AmountIdr: p.amountIDR,
		Rate: p.rate.String(), RateId: p.rateID, RateTime: rpc.Timestamp(p.at),
	}, nil
}

// ListRates implements fx.v1.FxService.
func (f *FX) ListRates(ctx context.Context, in *fxv1.ListRatesRequest) (*fxv1.ListRatesResponse, error) {
	to, err := money.ParseCurrency(in.QuoteCurrency)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "quote_currency: %v", err)
	}
	all, err := f.rates.Get(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	out := &fxv1.ListRatesResponse{}
	for _, currency := range all.currencies(to) {
		q, ok := all.find(pair{currency, to})
		if !ok {
			continue
		}
		bid, ask := q.spread()
		out.Rates = append(out.Rates, &fxv1.RateInForce{
			BaseCurrency: currency.String(), Rate: q.rate.String(), RateId: q.id, RateTime: rpc.Timestamp(q.at),
			Bid: bid.String(), Ask: ask.String(),
		})
	}
	return out, nil
}

// currencies returns the given currencies and those that have a rate, in the order of their codes.
func (rs rates) currencies(given ...money.Currency) []money.Currency {
	for p := range rs {
		given = append(given, p.base, p.quote)
	}
	slices.SortFunc(given, func(a, b money.Currency) int { return cmp.Compare(a.String(), b.String()) })
	return slices.Compact(given)
}

// UpdateRates implements fx.v1.FxService.
func (f *FX) UpdateRates(ctx context.Context, in *fxv1.UpdateRatesRequest) (*fxv1.UpdateRatesResponse, error) {
	put := &dbv1.PutRatesRequest{By: in.By, Note: in.Note}
	for i, r := range in.Rates {
		rate, err := money.RateFromFloat(r.Rate)
		if r.RateDecimal != "" {
			rate, err = money.ParseRate(r.RateDecimal)
		}
		if err != nil {
			return &fxv1.UpdateRatesResponse{Message: fmt.Sprintf("rates[%d]: %v", i, err)}, nil
		}
		// The ledger reads and checks the spread.
		put.Rates = append(put.Rates, &dbv1.Rate{
			Base: r.BaseCurrency, Quote: r.QuoteCurrency, Rate: rate.String(), Bid: r.Bid, Ask: r.Ask,
		})
	}
	if err := f.put(ctx, put); err != nil {
		if status.Code(err) == codes.InvalidArgument {
			return &fxv1.UpdateRatesResponse{Message: status.Convert(err).Message()}, nil
		}
		return nil, err
	}
	return &fxv1.UpdateRatesResponse{Success: true, Message: fmt.Sprintf("%d rates updated", len(put.Rates))}, nil
}

func (f *FX) put(ctx context.Context, put *dbv1.PutRatesRequest) error {
	if _, err := f.admin.PutRates(ctx, put); err != nil {
		return err
	}
	// This replica reads the new rates at once. If that fails, the next refresh follows within a
	// second.
	_ = f.rates.Refresh(ctx)
	return nil
}

// RefreshRandomRates implements fx.v1.FxAdminService.
func (f *FX) RefreshRandomRates(ctx context.Context, _ *fxv1.RefreshRandomRatesRequest) (*fxv1.RefreshRandomRatesResponse, error) {
	all, err := f.rates.Get(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	put, out := &dbv1.PutRatesRequest{}, &fxv1.RefreshRandomRatesResponse{}
	for p, q := range all {
		if back, ok := all[pair{p.quote, p.base}]; ok && back.newer(q) {
			continue // the other direction is newer
		}
		by := f.draw()
		rate, rateErr := moved(q.rate, by)
		bid, bidErr := moved(q.bid, by)
		ask, askErr := moved(q.ask, by)
		if err := errors.Join(rateErr, bidErr, askErr); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		put.Rates = append(put.Rates, &dbv1.Rate{
			Base: p.base.String(), Quote: p.quote.String(), Rate: rate.String(), Bid: bid.String(), Ask: ask.String(),
		})
		out.Pushed = append(out.Pushed, &fxv1.Rate{
			BaseCurrency: p.base.String(), QuoteCurrency: p.quote.String(), Rate: rate.Float(), RateDecimal: rate.String(),
			Bid: bid.String(), Ask: ask.String(),
		})
	}
	if len(put.Rates) == 0 {
		return &fxv1.RefreshRandomRatesResponse{Message: "there are no rates to move"}, nil
	}
	if err := f.put(ctx, put); err != nil {
		return nil, err
	}
	out.Success, out.Message = true, fmt.Sprintf("%d rates moved", len(put.Rates))
	return out, nil
}

// moved changes a rate by at most one percent up or down, in steps of a basis point. It keeps 8
// digits. No rate stays no rate.
func moved(r money.Rate, draw float64) (money.Rate, error) {
	if r.IsZero() {
		return r, nil
	}
	points := int64(draw*201) - 100
	d, _, err := apd.NewFromString(r.String())
	if err != nil {
		return money.Rate{}, err
	}
	ctx := apd.BaseContext.WithPrecision(8)
	ctx.Rounding = apd.RoundHalfEven
	if _, err := ctx.Mul(d, d, apd.New(10_000+points, -4)); err != nil {
		return money.Rate{}, err
	}
	return money.ParseRate(d.Text('f'))
}
