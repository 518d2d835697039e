package db

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"log/slog"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/prometheus/client_golang/prometheus/testutil"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/seeds"
	"pgw/shared/event"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// accountEvent returns an event that a bank has signed.
func (w *world) accountEvent(source, id string, data any, at time.Time) cloudevents.Event {
	w.t.Helper()
	eventType, subject := event.TypeAccountFunded, ""
	switch data := data.(type) {
	case event.AccountOpened:
		eventType, subject = event.TypeAccountOpened, data.AccountID
	case event.AccountFunded:
		subject = data.AccountID
	}
	e, err := event.New(eventType, id, source, subject, data, at)
	if err == nil {
		err = w.cfg.Keys.Sign(&e)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// outcomes returns the count of account events with an outcome.
func (w *world) outcomes(outcome string) int {
	return int(testutil.ToFloat64(w.metrics.accountEvents.WithLabelValues(outcome)))
}

// takes delivers an event, which must be acknowledged with this outcome.
func (w *world) takes(e cloudevents.Event, outcome string) {
	w.t.Helper()
	before := w.outcomes(outcome)
	if err := w.handle(w.t.Context(), e); err != nil || w.outcomes(outcome) != before+1 {
		w.t.Errorf("%s of %s: not %s: %v", e.ID(), e.Source(), outcome, err)
	}
}

// refuses delivers an event, which must be refused at once with these words.
func (w *world) refuses(e cloudevents.Event, words string) {
	w.t.Helper()
	before := w.outcomes("refused")
	err := w.handle(w.t.Context(), e)
	if !event.Refused(err) || !strings.Contains(err.Error(), words) || w.outcomes("refused") != before+1 {
		w.t.Errorf("%s of %s: not refused, or not with %q: %v", e.ID(), e.Source(), words, err)
	}
}

func (w *world) status(id string) (status string) {
	w.t.Helper()
	if err := w.pool.QueryRow(w.t.Context(), `SELECT status FROM balances WHERE account_id = $1 AND currency = 'IDR'`, id).Scan(&status); err != nil {
		w.t.Fatal(err)
	}
	return status
}

func active(id string) event.AccountOpened {
	return event.AccountOpened{AccountID: id, Owner: "Owner of " + id, Currency: "IDR", Status: "ACTIVE"}
}

func blocked(id string) event.AccountOpened {
	out := active(id)
	out.Status = "BLOCKED"
	return out
}

// signV1 signs with version 1, which does not cover the time.
func signV1(t *testing.T, e *cloudevents.Event) {
	t.Helper()
	secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(testKeys, "k1:"))
	if err != nil {
		t.Fatal(err)
	}
	h := hmac.New(sha256.New, secret)
	for _, field := range []string{e.Type(), e.ID(), e.Source()} {
		binary.Write(h, binary.BigEndian, uint32(len(field)))
		h.Write([]byte(field))
	}
	h.Write(e.Data())
	e.SetExtension(event.ExtSignature, "k1."+base64.RawURLEncoding.EncodeToString(h.Sum(nil)))
}

// A person who has seen the event that opened an account can't unblock the account by sending it
// again with a later time.
func TestACapturedProfileWithAnotherTimeIsRefused(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	captured := w.accountEvent("/bank", "o1", active("A"), now.Add(-2*time.Hour))
	w.takes(captured, "applied")
	w.takes(w.accountEvent("/bank", "o2", blocked("A"), now.Add(-time.Hour)), "applied")
	captured.SetTime(now)
	w.refuses(captured, "signature")
	if got := w.status("A"); got != "BLOCKED" {
		t.Errorf("the account is %s", got)
	}
}

// An event that is older than the profile changes nothing. It is counted and logged.
func TestAnOlderProfileIsIgnoredAndSaysSo(t *testing.T) {
	w := newWorld(t)
	var said bytes.Buffer
	w.log = slog.New(slog.NewTextHandler(&said, nil))
	now := time.Now()
	old, newer := w.accountEvent("/bank", "o1", active("A"), now.Add(-2*time.Hour)), w.accountEvent("/bank", "o2", blocked("A"), now.Add(-time.Hour))
	w.takes(old, "applied")
	w.takes(newer, "applied")
	w.takes(newer, "applied") // delivered twice
	w.takes(old, "ignored")
	if got := w.status("A"); got != "BLOCKED" {
		t.Errorf("the account is %s", got)
	}
	if !strings.Contains(said.String(), "level=WARN") || !strings.Contains(said.String(), "a newer event has set the profile") {
		t.Errorf("logged: %s", &said)
	}
	// Of two events with the same time one wins, in either order.
	for _, first := range []int{0, 1} {
		account := string(rune('M' + first))
		same := []cloudevents.Event{w.accountEvent("/bank", "s1", active(account), now), w.accountEvent("/bank", "s2", blocked(account), now)}
		for _, e := range []cloudevents.Event{same[first], same[1-first], same[first]} {
			if err := w.handle(t.Context(), e); err != nil {
				t.Error(err)
			}
		}
		if got := w.status(account); got != "BLOCKED" {
			t.Errorf("%s is %s", account, got)
		}
	}
}

// A profile time in the future would freeze the account until then. The database's clock decides,
// not the sender's and not this process's.
func TestAnEventOfTheFutureIsRefused(t *testing.T) {
	w := newWorld(t)
	w.open(0, "A")
	century := time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	w.now = func() time.Time { return century }
	for name, e := range map[string]cloudevents.Event{
		"a profile":     w.accountEvent("/bank", "o1", blocked("A"), century),
		"a new account": w.accountEvent("/bank", "o2", active("NEW"), time.Now().Add(5*time.Minute)),
		"a funding":     w.accountEvent("/bank", "f1", event.AccountFunded{AccountID: "A", AmountIDR: 5}, century),
	} {
		if w.refuses(e, "future"); t.Failed() {
			t.Fatal(name)
		}
	}
	w.now = time.Now
	timeless := w.accountEvent("/bank", "o3", blocked("A"), time.Now())
	timeless.SetTime(time.Time{})
	if err := w.cfg.Keys.Sign(&timeless); err != nil {
		t.Fatal(err)
	}
	w.refuses(timeless, "time")
	w.takes(w.accountEvent("/bank", "o4", active("A"), time.Now().Add(10*time.Second)), "applied") // small clock differences are allowed
	if w.status("A") != "ACTIVE" || w.balance("A") != 0 {
		t.Errorf("A is %s and has %d", w.status("A"), w.balance("A"))
	}
}

// A signature of version 1 does not cover the time. Such an event opens an account, but changes
// none.
func TestAnUnsignedTimeDecidesNothing(t *testing.T) {
	w := newWorld(t)
	v1 := func(id string, data event.AccountOpened, at time.Time) cloudevents.Event {
		e := w.accountEvent("/bank", id, data, at)
		signV1(t, &e)
		return e
	}
	now := time.Now()
	w.takes(v1("o1", active("A"), now.Add(-time.Hour)), "applied")
	w.takes(v1("o1", active("A"), now), "ignored") // repeated: there is nothing to change
	w.refuses(v1("o2", blocked("A"), now.Add(time.Hour)), "v1")
	w.takes(w.accountEvent("/bank", "o3", blocked("A"), now.Add(-30*time.Minute)), "applied")
	w.refuses(v1("o1", active("A"), now), "v1")
	if got := w.status("A"); got != "BLOCKED" {
		t.Errorf("the account is %s", got)
	}
	funded := w.accountEvent("/bank", "f1", event.AccountFunded{AccountID: "A", AmountIDR: 5}, now)
	signV1(t, &funded)
	funded.SetTime(time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)) // this time is not signed and must not matter
	w.takes(funded, "applied")
	w.takes(funded, "ignored")
	if got := w.balance("A"); got != 5 {
		t.Errorf("A has %d", got)
	}
}

// A profile of SeedAccounts stays in force when earlier events come again, even if their sender's
// clock is ahead.
func TestSeededProfilesHold(t *testing.T) {
	w := newWorld(t)
	ahead := w.accountEvent("/bank", "o1", active("A"), time.Now().Add(20*time.Second))
	w.takes(ahead, "applied")
	if _, err := w.SeedAccounts(t.Context(), &dbv1.SeedAccountsRequest{Accounts: []*dbv1.Account{{AccountId: "A", Currency: "IDR", Status: "BLOCKED"}}}); err != nil {
		t.Fatal(err)
	}
	w.takes(ahead, "ignored")
	if got := w.status("A"); got != "BLOCKED" {
		t.Errorf("the account is %s", got)
	}
	w.exec(`UPDATE accounts SET profile_at = '2099-01-01' WHERE account_id = 'A'`) // frozen, as earlier releases allowed
	w.open(0, "A")
	w.takes(w.accountEvent("/bank", "o2", blocked("A"), time.Now().Add(10*time.Second)), "applied")
}

// The seed events, published again, unblock no account.
func TestSeedsChangeNoAccountThatIsThere(t *testing.T) {
	w := newWorld(t)
	events, err := seeds.AccountEvents(seeds.Account{ID: "A", Owner: "A", Currency: "IDR", BalanceIDR: 100, Status: "ACTIVE"}, seeds.Oldest)
	if err != nil {
		t.Fatal(err)
	}
	for i := range events {
		if err := w.cfg.Keys.Sign(&events[i]); err != nil {
			t.Fatal(err)
		}
		w.takes(events[i], "applied")
	}
	w.takes(w.accountEvent("/bank", "o1", blocked("A"), time.Now().Add(-24*time.Hour)), "applied")
	for _, e := range events {
		w.takes(e, "ignored")
	}
	if w.status("A") != "BLOCKED" || w.balance("A") != 100 {
		t.Errorf("A is %s and has %d", w.status("A"), w.balance("A"))
	}
}

// Two events stay different even if joining source and id gives the same text.
func TestFundingIDsAreUnambiguous(t *testing.T) {
	w := newWorld(t)
	w.open(0, "A", "B")
	now := time.Now()
	one := w.accountEvent("/bank#eu", "17", event.AccountFunded{AccountID: "A", AmountIDR: 100}, now)
	other := w.accountEvent("/bank", "eu#17", event.AccountFunded{AccountID: "B", AmountIDR: 200}, now)
	for range 2 {
		for i, e := range []cloudevents.Event{one, other} {
			if err := w.handle(t.Context(), e); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		}
	}
	if w.balance("A") != 100 || w.balance("B") != 200 {
		t.Errorf("A %d, B %d", w.balance("A"), w.balance("B"))
	}
}

// A funding that was counted before ids were unambiguous is recognised.
func TestFundingsOfBeforeAreKnownAgain(t *testing.T) {
	w := newWorld(t)
	w.open(0, "A", "B")
	for _, id := range []string{"/bank#1", "/bank#eu#17"} {
		w.exec(`INSERT INTO transfers (transfer_id, account_id, amount, booked_at) VALUES ($1, 'A', 100, '2026-01-31Z')`, id)
		w.exec(`INSERT INTO entries (account_id, currency, booked_at, transaction_id, kind, amount, value_date) VALUES
			('A', 'IDR', '2026-01-31Z', md5($1)::uuid, 'funding', 100, '2026-01-31'), ('OUTSIDE', 'IDR', '2026-01-31Z', md5($1)::uuid, 'funding', -100, '2026-01-31')`, id)
		w.exec(`UPDATE balances SET available = available + CASE account_id WHEN 'A' THEN 100 ELSE -100 END WHERE account_id IN ('A', 'OUTSIDE')`)
	}
	funded := event.AccountFunded{AccountID: "A", AmountIDR: 100}
	w.takes(w.accountEvent("/bank", "1", funded, time.Now()), "ignored")
	w.takes(w.accountEvent("/bank", "eu#17", funded, time.Now()), "ignored")
	w.takes(w.accountEvent("/bank#eu", "17", funded, time.Now()), "ignored") // one of the two; it is unknown which
	w.refuses(w.accountEvent("/bank#eu", "17", event.AccountFunded{AccountID: "B", AmountIDR: 5}, time.Now()), "other content")
	if got := w.balance("A"); got != 200 {
		t.Errorf("A has %d", got)
	}
}

// A known id with other content is not a repetition. It is refused and logged.
func TestAKnownFundingWithOtherContentIsRefused(t *testing.T) {
	w := newWorld(t)
	w.open(0, "A", "B")
	funded := event.AccountFunded{AccountID: "A", AmountIDR: 100, Note: "salary"}
	w.takes(w.accountEvent("/bank", "f1", funded, time.Now()), "applied")
	w.takes(w.accountEvent("/bank", "f1", funded, time.Now()), "ignored")
	for name, change := range map[string]func(*event.AccountFunded){
		"account": func(f *event.AccountFunded) { f.AccountID = "B" },
		"amount":  func(f *event.AccountFunded) { f.AmountIDR++ },
		"note":    func(f *event.AccountFunded) { f.Note = "" },
	} {
		other := funded
		change(&other)
		if w.refuses(w.accountEvent("/bank", "f1", other, time.Now()), "other content"); t.Failed() {
			t.Fatal(name)
		}
	}
	if w.balance("A") != 100 || w.balance("B") != 0 {
		t.Errorf("A %d, B %d", w.balance("A"), w.balance("B"))
	}
}

// An event that can never be applied is refused at once, and does not delay the events after it.
func TestWhatCanNeverWorkIsRefusedAtOnce(t *testing.T) {
	w := newWorld(t)
	w.open(0, "A")
	w.exec(`UPDATE balances SET available = 9223372036854775807 WHERE account_id = 'A'`)
	profile := func(change func(*event.AccountOpened)) event.AccountOpened {
		out := active("B")
		change(&out)
		return out
	}
	for words, data := range map[string]any{
		"is not open":               event.AccountFunded{AccountID: "NOBODY", AmountIDR: 5},
		"account_id: has a":         event.AccountFunded{AccountID: "A\x00", AmountIDR: 5},
		"account_id: is missing":    event.AccountFunded{AmountIDR: 5},
		"account_id: SETTLEMENT":    event.AccountFunded{AccountID: payment.SettlementAccount, AmountIDR: 5},
		"note: has a":               event.AccountFunded{AccountID: "A", AmountIDR: 5, Note: "a\x00b"},
		"note: is":                  event.AccountFunded{AccountID: "A", AmountIDR: 5, Note: strings.Repeat("n", payment.MaxNote+1)},
		"amount_idr":                event.AccountFunded{AccountID: "A", AmountIDR: money.MaxMinor + 1},
		"out of range":              event.AccountFunded{AccountID: "A", AmountIDR: 5},
		"owner: has a":              profile(func(o *event.AccountOpened) { o.Owner = "Ayu\x00" }),
		"owner: is":                 profile(func(o *event.AccountOpened) { o.Owner = strings.Repeat("é", payment.MaxOwner/2) + "e" + "e" }),
		"currency":                  profile(func(o *event.AccountOpened) { o.Currency = "\x00" }),
		"status":                    profile(func(o *event.AccountOpened) { o.Status = "OPEN" }),
		"account_id: starts or end": profile(func(o *event.AccountOpened) { o.AccountID = "B " }),
	} {
		w.refuses(w.accountEvent("/bank", "x-"+words, data, time.Now()), words)
	}
	w.takes(w.accountEvent("/bank", "o1", profile(func(o *event.AccountOpened) { o.Owner = "Søren 山田 🙂" }), time.Now()), "applied")
	w.takes(w.accountEvent("/bank", "f1", event.AccountFunded{AccountID: "B", AmountIDR: 5, Note: "für Miete"}, time.Now()), "applied")
	// The column can't hold this sum. The ledger is checked when the test ends.
	w.exec(`UPDATE balances SET available = 0 WHERE account_id = 'A'`)

	// If the database does not answer, the event is not refused.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.handle(gone, w.accountEvent("/bank", "f2", event.AccountFunded{AccountID: "B", AmountIDR: 5}, time.Now())); err == nil || event.Refused(err) {
		t.Errorf("without a database: %v", err)
	}
}
