package payment

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pgw/shared/money"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func request() Payment {
	usd, _ := money.ParseCurrency("USD")
	return Payment{
		Key: "k", Sender: "ACC001", Receiver: "ACC002",
		Minor: 1000, Currency: usd, AmountIDR: 155000,
		AcceptedAt: noon, Deadline: noon.Add(DecideWithin),
	}
}

func TestFingerprintCoversWhatTheClientSent(t *testing.T) {
	base := request()
	same := []func(*Payment){
		func(r *Payment) { r.AmountIDR = 160000 }, // the rate changed
		func(r *Payment) { r.Key = "other" },
		func(r *Payment) { r.TxDate = "2026-03-01T12:00:00Z" },
		func(r *Payment) { r.AttemptID = "2" },
	}
	for i, change := range same {
		r := base
		change(&r)
		if r.Fingerprint() != base.Fingerprint() {
			t.Errorf("change %d changes the fingerprint", i)
		}
	}
	sgd, _ := money.ParseCurrency("SGD")
	other := []func(*Payment){
		func(r *Payment) { r.Sender = "ACC003" },
		func(r *Payment) { r.Receiver = "ACC003" },
		func(r *Payment) { r.Sender, r.Receiver = r.Receiver, r.Sender },
		func(r *Payment) { r.Sender, r.Receiver = "ACC001A", "CC002" },
		func(r *Payment) { r.Minor++ },
		func(r *Payment) { r.Currency = sgd },
		func(r *Payment) { r.Minor = 0 }, // as earlier producers send it, with only rupiah
		func(r *Payment) { r.Metadata = map[string]string{"a": ""} },
	}
	for i, change := range other {
		r := base
		change(&r)
		if r.Fingerprint() == base.Fingerprint() {
			t.Errorf("change %d does not change the fingerprint", i)
		}
	}
}

// Metadata is a part of the fingerprint. Without metadata the fingerprint is the same as before
// there was metadata.
func TestFingerprintOfMetadata(t *testing.T) {
	with := func(pairs ...string) Fingerprint {
		p := request()
		p.Metadata = map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			p.Metadata[pairs[i]] = pairs[i+1]
		}
		return p.Fingerprint()
	}
	if text, _ := with().MarshalText(); string(text) != "c33ce282d26d73dbd9e5d91932fae5e8" || with() != request().Fingerprint() {
		t.Errorf("without metadata it is %s", text)
	}
	if with("a", "1", "b", "2") != with("b", "2", "a", "1") {
		t.Error("the order of the names changes the fingerprint")
	}
	seen := map[Fingerprint]int{}
	for i, f := range []Fingerprint{with(), with("a", "1"), with("a", "12"), with("a1", "2"), with("a", "1", "b", "2"), with("a", "2", "b", "1")} {
		if first, ok := seen[f]; ok {
			t.Errorf("%d and %d have the same fingerprint", first, i)
		}
		seen[f] = i
	}
}

func TestMetadataIsBounded(t *testing.T) {
	many := func(n, size int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprintf("%040d", i)] = strings.Repeat("x", size)
		}
		return m
	}
	for name, tc := range map[string]struct {
		metadata map[string]string
		want     string
	}{
		"none":                 {map[string]string{}, ""},
		"usual":                {map[string]string{"order.id": "4711", "A-z_0": "Søren 山田", "empty": ""}, ""},
		"as many as may be":    {many(MaxMetadata, 164), ""},
		"one more":             {many(MaxMetadata+1, 1), "metadata: has 21 entries; at most 20"},
		"too large in all":     {many(MaxMetadata, 165), "metadata: is 4100 bytes long; at most 4096"},
		"an empty name":        {map[string]string{"": "x"}, "metadata: has the name"},
		"a long name":          {map[string]string{strings.Repeat("a", MaxMetadataName+1): "x"}, "metadata: has the name"},
		"a name with a space":  {map[string]string{"a b": "x"}, "metadata: has the name"},
		"a long value":         {map[string]string{"a": strings.Repeat("x", MaxMetadataValue+1)}, "metadata.a: is 501 bytes long; at most 500"},
		"a value on two lines": {map[string]string{"a": "x\ny"}, "metadata.a: has a control character"},
		"no UTF-8":             {map[string]string{"a": "\xff"}, "metadata.a: is not valid UTF-8"},
	} {
		p := request()
		p.Metadata = tc.metadata
		err := p.Validate()
		if (err == nil) != (tc.want == "") || (err != nil && (!errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), tc.want))) {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
}

// A client's metadata is an object of strings, and each name is given once.
func TestOrderedMetadata(t *testing.T) {
	for text, want := range map[string]string{
		``: "map[]", `null`: "map[]", `{}`: "map[]", `{"a":"1","b":"\u00f8"}`: "map[a:1 b:ø]",
		`{"a":"1","a":"2"}`: "refused", `{"a":1}`: "refused", `{"a":null}`: "refused", `{"a":{}}`: "refused", `[]`: "refused",
		`"a"`: "refused", `{"a":"\ud800"}`: "refused", `{"a b":"1"}`: "refused",
	} {
		p, err := Order{
			Sender: "A", Receiver: "B", Currency: "USD", Amount: []byte("1"), TxDate: "2026-01-31T09:30:00Z", Key: "k", Metadata: []byte(text),
		}.Payment()
		got := fmt.Sprint(p.Metadata)
		if err != nil {
			got = "refused"
		}
		if got != want || (err != nil && (!errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), "metadata"))) {
			t.Errorf("%s: %s, %v; want %s", text, got, err, want)
		}
	}
}

func TestValidateNamesTheField(t *testing.T) {
	if err := request().Validate(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(*Payment){
		"idempotency_key": func(r *Payment) { r.Key = strings.Repeat("k", MaxKey+1) },
		"sender_id":       func(r *Payment) { r.Sender = "" },
		"receiver_id":     func(r *Payment) { r.Receiver = "a\x00b" },
		"currency":        func(r *Payment) { r.Currency = money.Currency{} },
		"amount":          func(r *Payment) { r.Minor = -1 },
		"amount_idr":      func(r *Payment) { r.AmountIDR = 0 },
		"tx_date":         func(r *Payment) { r.TxDate = "yesterday" },
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

// Payments from outside cannot use the names that are reserved for pgw. Holds must use them.
func TestReservedNames(t *testing.T) {
	ours := request()
	ours.Key, ours.Receiver = HoldPrefix+"order-7", SettlementAccount
	if err := ours.ValidateHold(); err != nil {
		t.Errorf("a hold: %v", err)
	}
	if err := ours.Validate(); !errors.Is(err, ErrInvalid) {
		t.Errorf("a hold from outside: %v", err)
	}
	for field, change := range map[string]func(*Payment){
		"idempotency_key": func(r *Payment) { r.Key = HoldPrefix + "order-7" },
		"sender_id":       func(r *Payment) { r.Sender = SettlementAccount },
		"receiver_id":     func(r *Payment) { r.Receiver = SettlementAccount },
	} {
		r := request()
		change(&r)
		for name, err := range map[string]error{"payment": r.Validate(), "hold": r.ValidateHold()} {
			var fe *FieldError
			if !errors.As(err, &fe) || (name == "payment" && fe.Field != field) {
				t.Errorf("%s as a %s: %v", field, name, err)
			}
		}
	}
	own := ours
	own.Sender = SettlementAccount
	if err := own.ValidateHold(); err == nil {
		t.Error("a hold from pgw's own account is accepted")
	}
	// Judge refuses reserved names even if no earlier check did.
	for name, tc := range map[string]struct {
		sender, receiver, key string
		want                  Reason
	}{
		"a hold":              {"ACC001", SettlementAccount, HoldPrefix + "1", ""},
		"paid by the house":   {SettlementAccount, "ACC001", "k", UnknownSender},
		"paid to the house":   {"ACC001", SettlementAccount, "k", UnknownReceiver},
		"a hold for another":  {"ACC001", "ACC002", HoldPrefix + "1", UnknownReceiver},
		"paid by liquidity":   {LiquidityAccount, "ACC001", "k", UnknownSender},
		"paid to the world":   {"ACC001", OutsideAccount, "k", UnknownReceiver},
		"a hold by the house": {SpreadAccount, SettlementAccount, HoldPrefix + "1", UnknownSender},
	} {
		r := request()
		r.Sender, r.Receiver, r.Key = tc.sender, tc.receiver, tc.key
		if got := Judge(r, Parties{Active, Active}, noon); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestJudgeAndHold(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(r *Payment, of *Parties, from *Balance)
		want   Reason
	}{
		"held":              {func(*Payment, *Parties, *Balance) {}, ""},
		"all of it":         {func(_ *Payment, _ *Parties, b *Balance) { b.Available = 155000 }, ""},
		"one short":         {func(_ *Payment, _ *Parties, b *Balance) { b.Available = 154999 }, InsufficientFunds},
		"no sender":         {func(_ *Payment, of *Parties, _ *Balance) { of.Sender = "" }, UnknownSender},
		"no receiver":       {func(_ *Payment, of *Parties, _ *Balance) { of.Receiver = "" }, UnknownReceiver},
		"blocked sender":    {func(_ *Payment, of *Parties, _ *Balance) { of.Sender = Blocked }, SenderBlocked},
		"blocked receiver":  {func(_ *Payment, of *Parties, _ *Balance) { of.Receiver = Blocked }, ReceiverBlocked},
		"to oneself":        {func(r *Payment, _ *Parties, _ *Balance) { r.Receiver = r.Sender }, RiskSameParty},
		"at the deadline":   {func(r *Payment, _ *Parties, _ *Balance) { r.Deadline = noon }, ""},
		"past the deadline": {func(r *Payment, _ *Parties, _ *Balance) { r.Deadline = noon.Add(-1) }, Expired},
		"at the limit":      {func(_ *Payment, _ *Parties, b *Balance) { b.DailyLimit, b.SpentToday = 200000, 45000 }, ""},
		"past the limit":    {func(_ *Payment, _ *Parties, b *Balance) { b.DailyLimit, b.SpentToday = 200000, 45001 }, DailyLimitExceeded},
		"yesterday's is old": {func(_ *Payment, _ *Parties, b *Balance) {
			b.DailyLimit, b.SpentToday, b.Day = 200000, 190000, Day(noon)-1
		}, ""},
	} {
		r, of, from := request(), Parties{Active, Active}, Balance{Available: 1_000_000, Day: Day(noon)}
		tc.change(&r, &of, &from)
		got, after := Judge(r, of, noon), from
		if got == "" {
			after, got = Hold(from, r.AmountIDR, noon)
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
		if tc.want != "" && after != from {
			t.Errorf("%s: a refusal changed the balance: %+v", name, after)
		}
		if tc.want == "" && (after.Available != from.Available-r.AmountIDR || after.SpentToday < r.AmountIDR) {
			t.Errorf("%s: held, but the balance is %+v", name, after)
		}
	}
}

// LIQUIDITY gives what it has, down to its limit.
func TestHoldLiquidity(t *testing.T) {
	limit := int64(300)
	for name, tc := range map[string]struct {
		from   Balance
		amount int64
		want   Reason
	}{
		"all of it":      {Balance{Available: 1000}, 1000, ""},
		"one short":      {Balance{Available: 999}, 1000, FXLiquidityExhausted},
		"to its limit":   {Balance{Available: 1000, Position: -100, PositionLimit: &limit}, 200, ""},
		"past its limit": {Balance{Available: 1000, Position: -100, PositionLimit: &limit}, 201, FXLiquidityExhausted},
		"after a gain":   {Balance{Available: 1000, Position: 500, PositionLimit: &limit}, 800, ""},
	} {
		after, got := HoldLiquidity(tc.from, tc.amount)
		if got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
		want := tc.from
		if tc.want == "" {
			want.Available, want.Position = want.Available-tc.amount, want.Position-tc.amount
		}
		if after != want {
			t.Errorf("%s: %+v, want %+v", name, after, want)
		}
	}
}

// A payment that is too large does not block the smaller ones after it, and no sequence overdraws
// the account.
func TestHoldInSequenceNeverOverdraws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Balance{Available: rapid.Int64Range(0, 1000).Draw(t, "balance")}
		left := s.Available
		for _, amount := range rapid.SliceOfN(rapid.Int64Range(1, 400), 0, 20).Draw(t, "amounts") {
			after, got := Hold(s, amount, noon)
			if (got == "") != (amount <= left) {
				t.Fatalf("%d of %d: %q", amount, left, got)
			}
			if s = after; got == "" {
				left -= amount
			}
			if s.Available != left || left < 0 {
				t.Fatalf("balance %d, want %d", s.Available, left)
			}
		}
	})
}

func TestCheckText(t *testing.T) {
	for _, good := range []string{"", "Ayu Lestari", "Søren 山田 🙂", strings.Repeat("x", 20)} {
		if err := CheckText("owner", good, 20); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"a\x00", "a\nb", "a\x7f", "a\u0085", "\xff", strings.Repeat("x", 21)} {
		if err := CheckText("owner", bad, 20); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseRules(t *testing.T) {
	r, err := ParseRules([]byte(` {"min_amount_idr":1000,"velocity_per_min":3,"of_a_later_version":[]}`))
	if err != nil || r.MinAmountIDR != 1000 || r.VelocityPerMin != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	for _, bad := range []string{"", "null", "[]", "5", `"x"`, `{`, `{"max_amount_idr":"x"}`, `{"max_amount_idr":1.5}`, `{"velocity_per_min":-1}`, `{"blocked_accounts":"A"}`} {
		if _, err := ParseRules([]byte(bad)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, bad := range []string{
		`{"min_amount_idr":-1}`, `{"min_amount_idr":5,"max_amount_idr":4}`, `{"random_reject_ppm":1000001}`, `{"blocked_accounts":["A\u0000"]}`,
		`{"blocked_accounts":[""]}`, `{"blocked_countries":["a\nb"]}`, `{"max_amount_idr":9000000000000000000}`,
	} {
		if r, err := ParseRules([]byte(bad)); err != nil || r.Validate() == nil {
			t.Errorf("%s is accepted: %v", bad, err)
		}
	}
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
		t.Error("an unknown reason is known")
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
