package payment

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pgw/shared/money"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func request() Request {
	usd, _ := money.ParseCurrency("USD")
	return Request{
		Key: "k", Sender: "ACC001", Receiver: "ACC002",
		Sent: money.Amount{Minor: 1000, Currency: usd}, AmountIDR: 155000,
		AcceptedAt: noon, Deadline: noon.Add(DecideWithin),
	}
}

func TestFingerprintIsOfWhatTheClientSent(t *testing.T) {
	base := request()
	same := []func(*Request){
		func(r *Request) { r.AmountIDR = 160000 }, // the rate moved
		func(r *Request) { r.Key = "other" },
		func(r *Request) { r.TxDate = "2026-03-01T12:00:00Z" },
		func(r *Request) { r.AttemptID = "2" },
	}
	for i, change := range same {
		r := base
		change(&r)
		if r.Fingerprint() != base.Fingerprint() {
			t.Errorf("change %d makes another fingerprint", i)
		}
	}
	sgd, _ := money.ParseCurrency("SGD")
	other := []func(*Request){
		func(r *Request) { r.Sender = "ACC003" },
		func(r *Request) { r.Receiver = "ACC003" },
		func(r *Request) { r.Sender, r.Receiver = r.Receiver, r.Sender },
		func(r *Request) { r.Sender, r.Receiver = "ACC001A", "CC002" },
		func(r *Request) { r.Sent.Minor++ },
		func(r *Request) { r.Sent.Currency = sgd },
		func(r *Request) { r.Sent.Minor = 0 }, // an earlier producer's: only rupiah
	}
	for i, change := range other {
		r := base
		change(&r)
		if r.Fingerprint() == base.Fingerprint() {
			t.Errorf("change %d leaves the fingerprint as it was", i)
		}
	}
}

func TestValidateNamesTheField(t *testing.T) {
	if err := request().Validate(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(*Request){
		"idempotency_key": func(r *Request) { r.Key = strings.Repeat("k", MaxKey+1) },
		"sender_id":       func(r *Request) { r.Sender = "" },
		"receiver_id":     func(r *Request) { r.Receiver = "a\x00b" },
		"currency":        func(r *Request) { r.Sent.Currency = money.Currency{} },
		"amount":          func(r *Request) { r.Sent.Minor = -1 },
		"amount_idr":      func(r *Request) { r.AmountIDR = 0 },
		"tx_date":         func(r *Request) { r.TxDate = "yesterday" },
	} {
		r := request()
		change(&r)
		var fe *FieldError
		if err := r.Validate(); !errors.As(err, &fe) || fe.Field != field || !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v", field, err)
		}
	}
	r := request()
	r.Key = strings.Repeat("k", MaxKey)
	if err := r.Validate(); err != nil {
		t.Errorf("a key of exactly %d bytes: %v", MaxKey, err)
	}
}

func TestReserve(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(r *Request, s, to *Account)
		want   Reason
	}{
		"held":               {func(*Request, *Account, *Account) {}, ""},
		"all of it":          {func(_ *Request, s, _ *Account) { s.Balance = 155000 }, ""},
		"one short":          {func(_ *Request, s, _ *Account) { s.Balance = 154999 }, InsufficientFunds},
		"blocked sender":     {func(_ *Request, s, _ *Account) { s.Blocked = true }, SenderBlocked},
		"blocked receiver":   {func(_ *Request, _, to *Account) { to.Blocked = true }, ReceiverBlocked},
		"to oneself":         {func(r *Request, _, _ *Account) { r.Receiver = r.Sender }, RiskSameParty},
		"at the deadline":    {func(r *Request, _, _ *Account) { r.Deadline = noon }, ""},
		"past the deadline":  {func(r *Request, _, _ *Account) { r.Deadline = noon.Add(-1) }, Expired},
		"at the limit":       {func(_ *Request, s, _ *Account) { s.DailyLimit, s.SpentToday = 200000, 45000 }, ""},
		"past the limit":     {func(_ *Request, s, _ *Account) { s.DailyLimit, s.SpentToday = 200000, 45001 }, DailyLimitExceeded},
		"yesterday's is old": {func(_ *Request, s, _ *Account) { s.DailyLimit, s.SpentToday, s.Day = 200000, 190000, Day(noon)-1 }, ""},
	} {
		r := request()
		s := Account{ID: "ACC001", Balance: 1_000_000, Day: Day(noon)}
		to := Account{ID: "ACC002"}
		tc.change(&r, &s, &to)
		before := s
		if got := Reserve(r, &s, &to, noon); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
		if tc.want != "" && s != before {
			t.Errorf("%s: a refusal changed the account: %+v", name, s)
		}
		if tc.want == "" && (s.Balance != before.Balance-r.AmountIDR || s.SpentToday < r.AmountIDR) {
			t.Errorf("%s: held, but the account says %+v", name, s)
		}
	}
	if got := Reserve(request(), nil, &Account{}, noon); got != UnknownSender {
		t.Errorf("no sender: %q", got)
	}
	if got := Reserve(request(), &Account{}, nil, noon); got != UnknownReceiver {
		t.Errorf("no receiver: %q", got)
	}
}

// A payment that is too large must not stand in the way of the smaller ones behind it, and no sequence
// overdraws.
func TestReserveInSequenceNeverOverdraws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Account{Balance: rapid.Int64Range(0, 1000).Draw(t, "balance")}
		left := s.Balance
		for _, amount := range rapid.SliceOfN(rapid.Int64Range(1, 400), 0, 20).Draw(t, "amounts") {
			r := request()
			r.AmountIDR = amount
			got := Reserve(r, &s, &Account{}, noon)
			if (got == "") != (amount <= left) {
				t.Fatalf("%d of %d: %q", amount, left, got)
			}
			if got == "" {
				left -= amount
			}
			if s.Balance != left || left < 0 {
				t.Fatalf("balance %d, want %d", s.Balance, left)
			}
		}
	})
}

func TestReasonsAreAClosedSet(t *testing.T) {
	seen := map[Reason]bool{}
	for _, r := range Reasons {
		if seen[r] || !r.Known() {
			t.Errorf("%s: listed twice or not known", r)
		}
		seen[r] = true
	}
	if Reason("because").Known() {
		t.Error("an invented reason is known")
	}
}

func TestClampDeadline(t *testing.T) {
	soon := noon.Add(time.Second)
	for _, tc := range []struct{ in, want time.Time }{
		{time.Time{}, noon.Add(DecideWithin)},
		{noon.Add(time.Hour), noon.Add(DecideWithin)},
		{soon, soon},
		{noon.Add(-time.Hour), noon.Add(-time.Hour)},
	} {
		if got := ClampDeadline(tc.in, noon); !got.Equal(tc.want) {
			t.Errorf("ClampDeadline(%s) = %s, want %s", tc.in, got, tc.want)
		}
	}
}

func TestMaskedHidesTheMiddle(t *testing.T) {
	for id, want := range map[string]string{"": "", "A": "…", "ACC01": "…", "ACC001": "AC…01", "ID-4711-0815": "ID…15"} {
		if got := Masked(id); got != want {
			t.Errorf("Masked(%q) = %q, want %q", id, got, want)
		}
	}
}
