package ledger

import (
	"errors"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"pgw/shared/payment"
)

// quoteOf is a quote for a payment of USD 10.00 that the receiver gets in SGD.
func quoteOf(client string, maxOpen int) NewQuote {
	p := exchange("", "A", "B", in(1000, "USD"), in(1339, "SGD"), 1340)
	p.AcceptedAt, p.Deadline, p.AttemptID = time.Time{}, time.Time{}, ""
	return NewQuote{ID: uuid.New(), Client: client, Payment: p, Lifetime: time.Minute, MaxOpen: maxOpen}
}

// A client has at most so many open quotes, however many it asks for at once. Another client's do not
// count, nor do those that are used or have expired.
func TestAClientHasFewOpenQuotes(t *testing.T) {
	w := newWorld(t)
	const most, asked = 10, 48
	var mu sync.Mutex
	var given []Quote
	refused := 0
	var wg sync.WaitGroup
	for range asked {
		wg.Go(func() {
			q, err := w.PutQuote(t.Context(), quoteOf("acme", most))
			mu.Lock()
			defer mu.Unlock()
			var many *ManyQuotesError
			switch {
			case err == nil:
				given = append(given, q)
			case errors.As(err, &many) && many.RetryAfter > 0 && many.RetryAfter <= time.Minute:
				refused++
			default:
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	if len(given) != most || refused != asked-most {
		t.Fatalf("%d given, %d refused", len(given), refused)
	}
	other := quoteOf("other", 1)
	q, err := w.PutQuote(t.Context(), other)
	if err != nil {
		t.Errorf("of another client: %v", err)
	}
	// The answer may be lost. The same call again gets the same quote.
	if again, err := w.PutQuote(t.Context(), other); err != nil || again.ID != q.ID || !again.Expires.Equal(q.Expires) {
		t.Errorf("the same quote again: %+v, %v; want %+v", again, err, q)
	}
	w.exec(`UPDATE quotes SET used_by = $2 WHERE quote_id = $1`, given[0].ID, newID())
	w.exec(`UPDATE quotes SET expires_at = now() - interval '1 second' WHERE quote_id = $1`, given[1].ID)
	for i, want := range []bool{true, true, false} {
		if _, err := w.PutQuote(t.Context(), quoteOf("acme", most)); (err == nil) != want {
			t.Errorf("after one was used and one has expired, number %d: %v", i+1, err)
		}
	}
}

// A quote is read as it was put, and a payment with its price can use it.
func TestAQuoteIsKept(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(0, "IDR"), in(1000, "USD"))
	w.fund("B", in(0, "IDR"))
	w.liquidity(in(1340, "SGD"), -1)
	n := quoteOf("acme", 1)
	n.Payment.RateTime = time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	n.Payment.Rate, n.Payment.RateID = n.Payment.Exchange.Rate, "r"
	put, err := w.PutQuote(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	if lasts := put.Expires.Sub(put.Created); lasts != n.Lifetime {
		t.Errorf("it lasts %s", lasts)
	}
	got, err := w.Quote(t.Context(), n.ID)
	if err != nil {
		t.Fatal(err)
	}
	want := n.Payment
	want.QuoteID = n.ID.String()
	if !got.Payment.RateTime.Equal(want.RateTime) {
		t.Errorf("the rate's time is %s, want %s", got.Payment.RateTime, want.RateTime)
	}
	want.RateTime = got.Payment.RateTime // in another zone
	if !reflect.DeepEqual(got.Payment, want) || got.Client != "acme" {
		t.Errorf("of %q: %+v; want %+v", got.Client, got.Payment, want)
	}
	p := got.Payment
	p.Key, p.AttemptID = "k", "a"
	if r := w.mustReserve(p); r.Reason != "" {
		t.Errorf("the payment: %+v", r)
	}
	if got, err = w.Quote(t.Context(), n.ID); err != nil || got.UsedBy == uuid.Nil {
		t.Errorf("after the payment: %+v, %v", got, err)
	}
	if _, err := w.Quote(t.Context(), uuid.New()); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown one: %v", err)
	}
	for _, lasts := range []time.Duration{0, payment.MinQuoteLifetime - 1, payment.MaxQuoteLifetime + 1} {
		n.ID, n.Lifetime = uuid.New(), lasts
		var bad *InvalidError
		if _, err := w.PutQuote(t.Context(), n); !errors.As(err, &bad) {
			t.Errorf("of %s: %v", lasts, err)
		}
	}
	// In rupiah the tables name the two balances, and the payment does not.
	rupiah := NewQuote{ID: uuid.New(), Payment: payment.Payment{
		Sender: "A", Receiver: "B", Currency: in(0, "USD").Currency, Minor: 1000, AmountIDR: 155_000,
	}, Lifetime: time.Second, MaxOpen: 1}
	if _, err := w.PutQuote(t.Context(), rupiah); err != nil {
		t.Fatal(err)
	}
	if got, err := w.Quote(t.Context(), rupiah.ID); err != nil || !got.Payment.InRupiah() || got.Payment.AmountIDR != 155_000 {
		t.Errorf("in rupiah: %+v, %v", got, err)
	}
}
