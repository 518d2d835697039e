package reconcile

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// What was added comes back, in order, whether it is still in memory or on disk. The file is deleted.
func TestASpillReturnsWhatWasAdded(t *testing.T) {
	for name, size := range map[string]int{"in memory": 10, "on disk": 3 * blockSize} {
		t.Run(name, func(t *testing.T) {
			s := &spill{dir: t.TempDir()}
			want := map[string][]string{}
			for i := range 300 {
				key := fmt.Sprint("key-", i%7)
				record, err := pack(claim{Accepted: int64(i)}, key, strings.Repeat("x", size/(1+i%5)), "")
				if err == nil {
					err = s.add(key, record)
				}
				if err != nil {
					t.Fatal(err)
				}
				want[key] = append(want[key], fmt.Sprint(i, " ", size/(1+i%5)))
			}
			got := map[string][]string{}
			for bucket := range buckets {
				err := s.each(bucket, func(record []byte) error {
					var c claim
					var key, text, none string
					if err := unpack(record, &c, &key, &text, &none); err != nil {
						return err
					}
					if bucketOf(key) != bucket || none != "" {
						t.Errorf("%s is in bucket %d, with %q", key, bucket, none)
					}
					got[key] = append(got[key], fmt.Sprint(c.Accepted, " ", len(text)))
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if !maps.EqualFunc(got, want, func(a, b []string) bool { return strings.Join(a, ",") == strings.Join(b, ",") }) {
				t.Errorf("got %v\nwant %v", got, want)
			}
			if err := s.close(); err != nil {
				t.Error(err)
			}
			if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
				t.Errorf("%v, %v", left, err)
			}
		})
	}
}

// Each part of a payment that is acted on or shown makes a difference, and is named.
func TestTheContentOfAPaymentIsCompared(t *testing.T) {
	usd, err := money.ParseCurrency("USD")
	if err != nil {
		t.Fatal(err)
	}
	rate, err := money.ParseRate("1.5")
	if err != nil {
		t.Fatal(err)
	}
	signed := payment.Payment{Key: "k", Sender: "A", Receiver: "B", AmountIDR: 5, Currency: money.IDR, Minor: 5, Metadata: map[string]string{"a": "b"}}
	for want, change := range map[string]func(p *payment.Payment){
		"sender_id":              func(p *payment.Payment) { p.Sender = "C" },
		"receiver_id":            func(p *payment.Payment) { p.Receiver = "C" },
		"receiver_id, sender_id": func(p *payment.Payment) { p.Sender, p.Receiver = p.Receiver, p.Sender },
		"amount_idr":             func(p *payment.Payment) { p.AmountIDR = 50 },
		"currency_input":         func(p *payment.Payment) { p.Currency = usd },
		"amount_minor":           func(p *payment.Payment) { p.Minor = 50 },
		"rate":                   func(p *payment.Payment) { p.Rate = rate },
		"rate_id":                func(p *payment.Payment) { p.RateID = "r" },
		"rate_time":              func(p *payment.Payment) { p.RateTime = time.Unix(1, 0) },
		"debit":                  func(p *payment.Payment) { p.DebitMinor = 1 },
		"credit":                 func(p *payment.Payment) { p.CreditCurrency = usd },
		"exchange":               func(p *payment.Payment) { p.Exchange.MidMinor = 1 },
		"quote_id":               func(p *payment.Payment) { p.QuoteID = "q" },
		"attempt_id":             func(p *payment.Payment) { p.AttemptID = "a" },
		"accepted_at":            func(p *payment.Payment) { p.AcceptedAt = time.Unix(1, 0) },
		"tx_date":                func(p *payment.Payment) { p.TxDate = "2026-01-31T09:30:00Z" },
		"rule_set":               func(p *payment.Payment) { p.RuleSet = "s" },
		"metadata":               func(p *payment.Payment) { p.Metadata = map[string]string{"a": "c"} },
	} {
		changed := signed
		change(&changed)
		if got := contentOf(changed).difference(contentOf(signed)); got.String() != want || got.count() != 1+strings.Count(want, ",") {
			t.Errorf("%s differs in %s", want, got)
		}
	}
	// Postgres keeps microseconds, and the ledger may shorten the deadline.
	a, b := signed, signed
	a.AcceptedAt, b.AcceptedAt, b.Deadline = time.Unix(1, 1000), time.Unix(1, 1999), time.Unix(2, 0)
	if d := contentOf(a).difference(contentOf(b)); d != 0 {
		t.Errorf("differs in %s", d)
	}
}
