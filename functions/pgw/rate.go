package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"

	fxv1 "pgw/proto/gen/fx/v1"
	"pgw/shared/money"
	"pgw/shared/rpc"
)

type rateCommand struct {
	List listRates `cmd:"" help:"List the rates at which each currency is converted now."`
	Set  setRate   `cmd:"" help:"Set the rate of a pair. It is in force at once, in both directions."`
}

type listRates struct {
	operatorFlags
	dataFlags
	In string `default:"IDR" help:"The currency in which the others are priced: its ISO 4217 code."`
}

// rateView is what one unit of Base costs in Quote.
type rateView struct {
	Base  string    `json:"base"`
	Quote string    `json:"quote"`
	Rate  string    `json:"rate"`
	Bid   string    `json:"bid"`
	Ask   string    `json:"ask"`
	At    time.Time `json:"at,omitzero"`
	ID    string    `json:"rate_id"`
}

func (c listRates) Run(ctx context.Context) error {
	return c.call(ctx, "fx", func(ctx context.Context, fx grpc.ClientConnInterface) error {
		got, err := fxv1.NewFxServiceClient(fx).ListRates(ctx, &fxv1.ListRatesRequest{QuoteCurrency: c.In})
		if err != nil {
			return err
		}
		rates := []rateView{}
		for _, r := range got.Rates {
			if r.BaseCurrency != c.In {
				rates = append(rates, rateView{r.BaseCurrency, c.In, r.Rate, r.Bid, r.Ask, rpc.Time(r.RateTime), r.RateId})
			}
		}
		return c.print(rates, func(to io.Writer) error { return writeRates(to, rates) })
	})
}

func writeRates(to io.Writer, rates []rateView) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "pair\trate\tbid\task\tsince\t")
	for _, r := range rates {
		fmt.Fprintf(w, "%s/%s\t%s\t%s\t%s\t%s\t\n", r.Base, r.Quote, r.Rate, r.Bid, r.Ask, r.At.Format(time.RFC3339))
	}
	return w.Flush()
}

type setRate struct {
	operatorFlags
	changeFlags
	Base  string `arg:"" help:"The currency that is priced: its ISO 4217 code."`
	Quote string `arg:"" help:"The currency of the price."`
	Rate  string `arg:"" help:"What one unit of the base currency costs, as a decimal, in the middle between bid and ask."`
	Bid   string `help:"What the house pays for one unit; needs --ask. By default there is no spread."`
	Ask   string `help:"What the house takes for one unit; needs --bid."`
}

func (c setRate) Run(ctx context.Context) error {
	in, err := c.request()
	if err != nil {
		return err
	}
	return c.call(ctx, "fx", func(ctx context.Context, fx grpc.ClientConnInterface) error {
		got, err := fxv1.NewFxServiceClient(fx).UpdateRates(ctx, in)
		if err == nil && !got.Success {
			err = errors.New(got.Message)
		}
		if err == nil {
			_, err = fmt.Printf("the rate of %s in %s is %s\n", c.Base, c.Quote, c.Rate)
		}
		return err
	})
}

func (c setRate) request() (*fxv1.UpdateRatesRequest, error) {
	for field, code := range map[string]string{"base": c.Base, "quote": c.Quote} {
		if _, err := money.ParseCurrency(code); err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
	}
	if _, err := money.ParseRate(c.Rate); err != nil {
		return nil, fmt.Errorf("rate: %w", err)
	}
	if err := c.changeFlags.check(); err != nil {
		return nil, err
	}
	rate := &fxv1.Rate{BaseCurrency: c.Base, QuoteCurrency: c.Quote, RateDecimal: c.Rate, Bid: c.Bid, Ask: c.Ask}
	return &fxv1.UpdateRatesRequest{Rates: []*fxv1.Rate{rate}, By: c.who(), Note: c.Note}, nil
}
