package risk

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"pgw/shared/function"
	"pgw/shared/payment"
)

var secret = []byte("pgw")

func TestJudge(t *testing.T) {
	rules := newRuleSet("r", payment.Rules{MinAmountIDR: 1000, MaxAmountIDR: 5000, VelocityPerMin: 3, BlockedAccounts: []string{"BAD"}})
	good := request{sender: "A", receiver: "B", currency: "USD", txDate: "2026-01-31T09:30:00Z", key: "k", amountIDR: 2000}
	for want, change := range map[string]func(*request){
		"":             func(*request) {},
		badInput:       func(r *request) { r.sender = "" },
		sameParty:      func(r *request) { r.receiver = "A" },
		belowMin:       func(r *request) { r.amountIDR = 999 },
		aboveMax:       func(r *request) { r.amountIDR = 5001 },
		blockedAccount: func(r *request) { r.receiver = "BAD" },
	} {
		r := good
		change(&r)
		if got, err := rules.judge(r, secret, func() (uint32, error) { return 2, nil }); err != nil || got != want {
			t.Errorf("%q: got %q, %v", want, got, err)
		}
	}
	for name, change := range map[string]func(*request){
		"no receiver": func(r *request) { r.receiver = "" }, "no amount": func(r *request) { r.amountIDR = 0 },
		"no such currency": func(r *request) { r.currency = "QQQ" }, "bad date": func(r *request) { r.txDate = "today" },
	} {
		r := good
		change(&r)
		if got, _ := rules.judge(r, secret, nil); got != badInput {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got, err := rules.judge(good, secret, func() (uint32, error) { return 3, nil }); err != nil || got != velocity {
		t.Errorf("at the velocity's limit: %q, %v", got, err)
	}
	broken := errors.New("away")
	if _, err := rules.judge(good, secret, func() (uint32, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Errorf("the count could not be read: %v", err)
	}
}

// The limits that earlier callers know, until SeedRules changes them.
func TestDefaultsAreTheContracts(t *testing.T) {
	rules := newRuleSet(DefaultRuleSet, Defaults)
	judge := func(r request) string {
		verdict, err := rules.judge(r, secret, nil)
		if err != nil {
			t.Fatal(err)
		}
		return verdict
	}
	r := request{sender: "A", receiver: "B", currency: "IDR"}
	for r.key = "a"; draw(r, secret) < 20_000; r.key += "a" { // a key that is not refused at random
	}
	for amount, want := range map[int64]string{
		1: belowMin, 999: belowMin, 1_000: "", 155_000: "", 10_000_000: "", 10_000_001: aboveMax, 1_000_000_000: aboveMax,
	} {
		if r.amountIDR = amount; judge(r) != want {
			t.Errorf("IDR %d: %q, want %q", amount, judge(r), want)
		}
	}
	refused := 0
	for i := range 20_000 {
		if judge(request{sender: "A", receiver: "B", currency: "IDR", amountIDR: 5_000, key: fmt.Sprint("key-", i)}) == randomReject {
			refused++
		}
	}
	if refused < 300 || refused > 500 { // of 20,000, 2 % is 400
		t.Errorf("%d of 20,000 are refused at random, want about 2 %%", refused)
	}
}

// The rule refuses about its share of the payments. It always refuses the same ones, and other ones
// with another secret.
func TestTheDraw(t *testing.T) {
	const n = 20_000
	refused, sameElsewhere := 0, 0
	for i := range n {
		r := request{key: fmt.Sprint("key-", i)}
		if draw(r, secret) < 20_000 {
			refused++
			if draw(r, []byte("other")) < 20_000 {
				sameElsewhere++
			}
		}
		other := r
		other.sender, other.amountIDR = "X", 5
		if draw(r, secret) != draw(other, secret) {
			t.Fatal("the draw depends on more than the key")
		}
	}
	if refused < n*15/1000 || refused > n*25/1000 || sameElsewhere > refused/5 {
		t.Errorf("%d of %d refused; %d of them under another secret too", refused, n, sameElsewhere)
	}
	a := request{sender: "A", receiver: "B", amountIDR: 1}
	b := request{sender: "A", receiver: "B", amountIDR: 2}
	if draw(a, secret) == draw(b, secret) {
		t.Error("without a key the whole request counts")
	}
	if draw(request{key: "test-001"}, secret) < 20_000 {
		t.Error("the README's example is refused")
	}
}

// A secret is required and must be long enough. A generated secret lets the examples pass.
func TestSecrets(t *testing.T) {
	for _, bad := range []string{"", "pgw", "                ", "  fifteen bytes  "} {
		_, err := Function.Make(Config{DatabaseURL: "postgres://localhost/pgw", Secret: bad}, function.Dependencies{})
		if err == nil || !strings.Contains(err.Error(), "RISK_SECRET") || (bad != "" && strings.Contains(err.Error(), bad)) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	t.Setenv("DATABASE_URL", "postgres://localhost/pgw")
	t.Setenv("RISK_SECRET", "")
	os.Unsetenv("RISK_SECRET")
	if err := function.ReadEnvironment(&Config{}); err == nil || !strings.Contains(err.Error(), "RISK_SECRET") {
		t.Errorf("without: %v", err)
	}
	made := map[string]bool{}
	for range 200 {
		secret, err := MakeSecret(rand.Reader, "test-001")
		if err != nil || checkSecret(secret) != nil || made[secret] {
			t.Fatalf("%s, %v", secret, err)
		}
		made[secret] = true
		if draw(request{key: "test-001"}, []byte(secret)) < Defaults.RandomRejectPPM {
			t.Error("the README's example is refused")
		}
	}
	if _, err := MakeSecret(strings.NewReader("too little")); err == nil {
		t.Error("a secret is made of nothing")
	}
}

func TestRulesAreChecked(t *testing.T) {
	if err := Defaults.Validate(); err != nil {
		t.Error(err)
	}
	for name, r := range map[string]payment.Rules{
		"negative min": {MinAmountIDR: -1}, "negative max": {MaxAmountIDR: -1}, "max below min": {MinAmountIDR: 5, MaxAmountIDR: 4},
		"more than all": {RandomRejectPPM: 1_000_001}, "too many blocked": {BlockedAccounts: make([]string, payment.MaxBlocked+1)},
	} {
		if r.Validate() == nil {
			t.Errorf("%s is taken", name)
		}
	}
	zero := int64(0)
	got := merged(payment.Rules{MinAmountIDR: 5, RandomRejectPPM: 7, VelocityPerMin: 9}, payment.Rules{MaxAmountIDR: 8}, &zero, nil)
	if got.MinAmountIDR != 0 || got.RandomRejectPPM != 7 || got.MaxAmountIDR != 8 || got.VelocityPerMin != 0 {
		t.Errorf("%+v", got)
	}
}
