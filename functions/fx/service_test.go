package fx

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	"pgw/shared/money"
	"pgw/shared/rpc"
)

// memory is a fake cache. err stands for a database that is away.
type memory struct {
	all       rates
	err       error
	refreshed int
}

func (m *memory) Get(context.Context) (rates, error) { return m.all, m.err }
func (m *memory) Refresh(context.Context) error      { m.refreshed++; return nil }

// admin is a fake of db. It notes the rates that it is given.
type admin struct {
	dbv1.UnimplementedAdminServer
	put []*dbv1.Rate
	err error
}

func (a *admin) PutRates(_ context.Context, in *dbv1.PutRatesRequest) (*dbv1.PutRatesResponse, error) {
	a.put = append(a.put, in.Rates...)
	return &dbv1.PutRatesResponse{}, a.err
}

func newFX(m *memory, a *admin, draw float64) *FX {
	db := rpc.InProcess(func(r grpc.ServiceRegistrar) { dbv1.RegisterAdminServer(r, a) }, nil)
	return &FX{rates: m, admin: dbv1.NewAdminClient(db), draw: func() float64 { return draw }}
}

func dollars(t *testing.T, rate string) *memory {
	t.Helper()
	r, err := money.ParseRate(rate)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return &memory{all: rates{{currency(t, "USD"), money.IDR}: {rate: r, id: "a", at: at}}}
}

// Convert rounds once, half to even. Earlier callers send doubles, newer ones minor units.
func TestConvert(t *testing.T) {
	minor := func(n int64) *int64 { return &n }
	for name, tc := range map[string]struct {
		cache *memory
		in    *fxv1.ConvertRequest
		want  string
	}{
		"minor units":       {dollars(t, "15500"), &fxv1.ConvertRequest{FromCurrency: "USD", ToCurrency: "IDR", AmountMinor: minor(1050)}, "162750 at 15500 (a)"},
		"a double":          {dollars(t, "15500"), &fxv1.ConvertRequest{FromCurrency: "USD", ToCurrency: "IDR", Amount: 10.5}, "162750 at 15500 (a)"},
		"half, down":        {dollars(t, "250"), &fxv1.ConvertRequest{FromCurrency: "USD", ToCurrency: "IDR", AmountMinor: minor(1)}, "2 at 250 (a)"},
		"half, up":          {dollars(t, "350"), &fxv1.ConvertRequest{FromCurrency: "USD", ToCurrency: "IDR", AmountMinor: minor(1)}, "4 at 350 (a)"},
		"back":              {dollars(t, "15500"), &fxv1.ConvertRequest{FromCurrency: "IDR", ToCurrency: "USD", AmountMinor: minor(15500)}, "100 at 0.0000645161290323 (a)"},
		"the same currency": {&memory{}, &fxv1.ConvertRequest{FromCurrency: "SGD", ToCurrency: "SGD", AmountMinor: minor(7)}, "7 at 1 (identity)"},
		"no rate":           {dollars(t, "15500"), &fxv1.ConvertRequest{FromCurrency: "JPY", ToCurrency: "IDR", AmountMinor: minor(7)}, "NotFound"},
		"no currency":       {dollars(t, "15500"), &fxv1.ConvertRequest{ToCurrency: "IDR", AmountMinor: minor(7)}, "InvalidArgument"},
		"too many digits":   {dollars(t, "15500"), &fxv1.ConvertRequest{FromCurrency: "USD", ToCurrency: "IDR", Amount: 1.001}, "InvalidArgument"},
		"too much":          {dollars(t, "15500"), &fxv1.ConvertRequest{FromCurrency: "USD", ToCurrency: "IDR", AmountMinor: minor(money.MaxMinor)}, "InvalidArgument"},
		"the database is away": {
			&memory{err: errors.New("away")}, &fxv1.ConvertRequest{FromCurrency: "USD", ToCurrency: "IDR", AmountMinor: minor(7)}, "Unavailable",
		},
	} {
		got, err := newFX(tc.cache, &admin{}, 0).Convert(t.Context(), tc.in)
		heard := status.Code(err).String()
		if err == nil {
			heard = fmt.Sprintf("%d at %s (%s)", got.AmountMinor, got.Rate, got.RateId)
		}
		if heard != tc.want {
			t.Errorf("%s: %s; want %s", name, heard, tc.want)
		}
	}
}

// UpdateRates stores all rates or none, and this replica reads them at once.
func TestUpdateRates(t *testing.T) {
	usd := &fxv1.Rate{BaseCurrency: "USD", QuoteCurrency: "IDR", Rate: 15500}
	for name, tc := range map[string]struct {
		in    []*fxv1.Rate
		db    error
		want  string
		asked int // rates that db is given
	}{
		"a double":           {[]*fxv1.Rate{usd}, nil, "true 1 rates updated", 1},
		"a decimal":          {[]*fxv1.Rate{{BaseCurrency: "JPY", QuoteCurrency: "IDR", RateDecimal: "103.25"}}, nil, "true 1 rates updated", 1},
		"not a number":       {[]*fxv1.Rate{usd, {BaseCurrency: "JPY", QuoteCurrency: "IDR", RateDecimal: "many"}}, nil, "false rates[1]", 0},
		"a spread":           {[]*fxv1.Rate{{BaseCurrency: "USD", QuoteCurrency: "IDR", RateDecimal: "15500", Bid: "15490", Ask: "15510"}}, nil, "true 1 rates updated", 1},
		"zero":               {[]*fxv1.Rate{{BaseCurrency: "JPY", QuoteCurrency: "IDR"}}, nil, "false rates[0]", 0},
		"the ledger refuses": {[]*fxv1.Rate{usd}, status.Error(codes.InvalidArgument, "no"), "false no", 1},
		"the ledger is away": {[]*fxv1.Rate{usd}, status.Error(codes.Unavailable, "away"), "Unavailable", 1},
	} {
		m, a := dollars(t, "15500"), &admin{err: tc.db}
		got, err := newFX(m, a, 0).UpdateRates(t.Context(), &fxv1.UpdateRatesRequest{Rates: tc.in})
		heard := status.Code(err).String()
		if err == nil {
			heard = fmt.Sprint(got.Success, " ", got.Message)
		}
		if len(heard) > len(tc.want) {
			heard = heard[:len(tc.want)]
		}
		if heard != tc.want || len(a.put) != tc.asked {
			t.Errorf("%s: %s, and the ledger was given %d; want %s and %d", name, heard, len(a.put), tc.want, tc.asked)
		}
		if stored := err == nil && got.Success; (m.refreshed > 0) != stored {
			t.Errorf("%s: the rates were read again %d times", name, m.refreshed)
		}
	}
}

// A random move is at most one percent, by whole basis points.
func TestRefreshRandomRates(t *testing.T) {
	for draw, want := range map[float64]string{0: "15345", 0.5: "15500", 0.9999: "15655"} {
		a := &admin{}
		got, err := newFX(dollars(t, "15500"), a, draw).RefreshRandomRates(t.Context(), &fxv1.RefreshRandomRatesRequest{})
		if err != nil || !got.Success || len(got.Pushed) != 1 || len(a.put) != 1 {
			t.Fatalf("%v: %v, %v", draw, got, err)
		}
		if a.put[0].Rate != want || got.Pushed[0].RateDecimal != want {
			t.Errorf("%v: %s and %s; want %s", draw, a.put[0].Rate, got.Pushed[0].RateDecimal, want)
		}
	}
	// Bid and ask move with the rate.
	a := &admin{}
	spread := &memory{all: stored(t, "USD/IDR 15490 15500 15510")}
	got, err := newFX(spread, a, 0).RefreshRandomRates(t.Context(), &fxv1.RefreshRandomRatesRequest{})
	if err != nil || len(got.Pushed) != 1 || len(a.put) != 1 {
		t.Fatal(got, err)
	}
	if a.put[0].Bid+" "+a.put[0].Rate+" "+a.put[0].Ask != "15335.1 15345 15354.9" || got.Pushed[0].Bid != "15335.1" || got.Pushed[0].Ask != "15354.9" {
		t.Errorf("with a spread: %v and %v", a.put, got.Pushed)
	}
	if got, err := newFX(&memory{}, &admin{}, 0).RefreshRandomRates(t.Context(), &fxv1.RefreshRandomRatesRequest{}); err != nil || got.Success {
		t.Errorf("without rates: %v, %v", got, err)
	}
}

// The answer has both amounts and the price. Errors name the field.
func TestQuote(t *testing.T) {
	seeds := stored(t, "USD/IDR 15490 15500 15510", "SGD/IDR 11590 11600 11610")
	for name, tc := range map[string]struct {
		in   *fxv1.QuoteRequest
		err  error
		want string
	}{
		"exchange": {
			&fxv1.QuoteRequest{DebitCurrency: "USD", CreditCurrency: "SGD", FixedCurrency: "USD", AmountMinor: 10000}, nil,
			"10000 to 13341, worth IDR 1550000, at 1.33419465977605512 (a/b) of 12:00:01; mid 13362, 2 steps",
		},
		"the same currency": {
			&fxv1.QuoteRequest{DebitCurrency: "USD", CreditCurrency: "USD", FixedCurrency: "USD", AmountMinor: 10000}, nil,
			"10000 to 10000, worth IDR 1550000, at 1 (identity) of 00:00:00; mid 0, 0 steps",
		},
		"the same currency, priced in another": {
			&fxv1.QuoteRequest{DebitCurrency: "USD", CreditCurrency: "USD", FixedCurrency: "IDR", AmountMinor: 155000}, nil,
			"1000 to 1000, worth IDR 155000, at 0.0000645161290323 (a) of 12:00:00; mid 0, 0 steps",
		},
		"no debit currency":  {&fxv1.QuoteRequest{CreditCurrency: "SGD", FixedCurrency: "USD", AmountMinor: 1}, nil, "InvalidArgument debit_currency"},
		"no credit currency": {&fxv1.QuoteRequest{DebitCurrency: "USD", FixedCurrency: "USD", AmountMinor: 1}, nil, "InvalidArgument credit_currency"},
		"no fixed currency":  {&fxv1.QuoteRequest{DebitCurrency: "USD", CreditCurrency: "SGD", AmountMinor: 1}, nil, "InvalidArgument fixed_currency"},
		"no amount":          {&fxv1.QuoteRequest{DebitCurrency: "USD", CreditCurrency: "SGD", FixedCurrency: "USD"}, nil, "InvalidArgument amount_minor"},
		"a negative amount": {
			&fxv1.QuoteRequest{DebitCurrency: "USD", CreditCurrency: "SGD", FixedCurrency: "USD", AmountMinor: -1}, nil, "InvalidArgument amount_minor",
		},
		"too much": {
			&fxv1.QuoteRequest{DebitCurrency: "USD", CreditCurrency: "SGD", FixedCurrency: "USD", AmountMinor: money.MaxMinor + 1}, nil, "InvalidArgument amount_minor",
		},
		"three currencies": {
			&fxv1.QuoteRequest{DebitCurrency: "USD", CreditCurrency: "SGD", FixedCurrency: "IDR", AmountMinor: 1}, nil, "InvalidArgument fixed_currency",
		},
		"no rate": {
			&fxv1.QuoteRequest{DebitCurrency: "USD", CreditCurrency: "EUR", FixedCurrency: "USD", AmountMinor: 1}, nil, "NotFound there is no rate",
		},
		"the database is away": {
			&fxv1.QuoteRequest{DebitCurrency: "USD", CreditCurrency: "SGD", FixedCurrency: "USD", AmountMinor: 1}, errors.New("away"), "Unavailable away",
		},
	} {
		got, err := newFX(&memory{all: seeds, err: tc.err}, &admin{}, 0).Quote(t.Context(), tc.in)
		heard := status.Code(err).String() + " " + status.Convert(err).Message()
		if err == nil {
			heard = fmt.Sprintf("%d to %d, worth IDR %d, at %s (%s) of %s; mid %d, %d steps", got.DebitMinor, got.CreditMinor, got.AmountIdr,
				got.Rate, got.RateId, got.RateTime.AsTime().Format(time.TimeOnly), got.GetExchange().GetMidMinor(), len(got.GetExchange().GetSteps()))
		} else {
			heard = heard[:min(len(heard), len(tc.want))]
		}
		if heard != tc.want {
			t.Errorf("%s: %s; want %s", name, heard, tc.want)
		}
	}
}

// ListRates tells bid and ask for the direction that is asked for.
func TestListRatesTellsTheSpread(t *testing.T) {
	all := stored(t, "USD/IDR 15490 15500 15510", "SGD/IDR 11590 11600 11610", "JPY/IDR 103.25")
	for quote, want := range map[string]string{
		"IDR": "IDR 1 1 1, JPY 103.25 103.25 103.25, SGD 11590 11600 11610, USD 15490 15500 15510, ",
		"USD": "IDR 0.0000644745325596 0.0000645161290323 0.0000645577792124, JPY 0.00665699548678 0.00666129032258 0.00666559070368, " +
			"SGD 0.747259832366 0.748387096774 0.749515816656, USD 1 1 1, ",
	} {
		got, err := newFX(&memory{all: all}, &admin{}, 0).ListRates(t.Context(), &fxv1.ListRatesRequest{QuoteCurrency: quote})
		if err != nil {
			t.Fatal(err)
		}
		told := ""
		for _, r := range got.Rates {
			told += fmt.Sprintf("%s %s %s %s, ", r.BaseCurrency, r.Bid, r.Rate, r.Ask)
		}
		if told != want {
			t.Errorf("in %s: %s; want %s", quote, told, want)
		}
	}
}
