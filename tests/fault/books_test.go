package main

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"pgw/functions/pgw/load"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// lives is what the judge looks at.
type lives struct {
	books
	life  []request
	taken []message
}

func idr(minor int64) money.Amount { return money.Amount{Minor: minor, Currency: money.IDR} }

func answered(a action, key, of string, status payment.Status, reason payment.Reason, ref, amount string) request {
	return request{Action: a, Key: key, Payment: of, Answer: load.Answer{HTTP: http.StatusOK, Status: status, Reason: reason, Ref: ref}, Amount: amount}
}

// givenBack is the key of the refund that the cancellation x2 made of the payment p2.
var givenBack = payment.Operation{Key: "x2"}.CancelKey("p2")

// wellDone is a history without a fault: a payment of 100 of which 60 and 40 were given back, and one that
// was canceled after it was settled; and authorized payments that were captured, voided, canceled and left.
func wellDone() lives {
	settled := func(ref string, minor, refunded int64) kept {
		return kept{Ref: ref, State: payment.Committed, Reason: payment.ReasonCommitted, Debit: idr(minor), Credit: idr(minor), Refunded: refunded}
	}
	refund := func(ref, of string, minor int64, state payment.ReservationStatus, reason payment.Reason) kept {
		return kept{Ref: ref, Parent: of, State: state, Reason: reason, Debit: idr(minor), Credit: idr(minor)}
	}
	hold := func(ref string, state payment.ReservationStatus, reason payment.Reason, minor int64) kept {
		return kept{Ref: ref, State: state, Reason: reason, Debit: idr(minor), Credit: idr(minor), Authorized: 100}
	}
	ended := func(kind payment.OperationKind, of string, status payment.Status, reason payment.Reason) operation {
		return operation{Kind: kind, Payment: of, Status: status, Reason: reason}
	}
	const ok, committed = payment.Success, payment.ReasonCommitted
	refunds, capture, void, cancel := action(payment.Refund), action(payment.Capture), action(payment.Void), action(payment.Cancel)
	told := request{Action: refunds, Key: "60", Payment: "paid", Told: true, Answer: load.Answer{Reason: load.NoAnswer}}
	return lives{
		books: books{
			kept: map[string]kept{
				"paid": settled("p1", 100, 100), "60": refund("r1", "p1", 60, payment.Committed, committed),
				"60b": refund("r2", "p1", 60, payment.RolledBack, payment.RefundExceedsPayment), "rest": refund("r3", "p1", 40, payment.Committed, committed),
				"back": settled("p2", 50, 50), givenBack: refund("r4", "p2", 50, payment.Committed, committed),
				"captured": hold("h1", payment.Committed, committed, 70), "voided": hold("h2", payment.RolledBack, payment.Voided, 100),
				"canceled": hold("h3", payment.RolledBack, payment.Canceled, 100), "left": hold("h4", payment.RolledBack, payment.AuthorizationExpired, 100),
			},
			operations: map[string]operation{
				"c1": ended(payment.Capture, "h1", ok, committed), "v1": ended(payment.Void, "h1", payment.Failed, payment.PaymentSettled),
				"v2": ended(payment.Void, "h2", ok, committed), "x3": ended(payment.Cancel, "h3", ok, committed),
				"x2": ended(payment.Cancel, "p2", payment.Failed, payment.PaymentSettled),
				"x4": ended(payment.Cancel, "p1", payment.Failed, payment.PaymentSettled),
			},
			rows: map[fact]string{},
		},
		life: []request{
			told, answered(refunds, "60", "paid", ok, committed, "r1", "60"),
			answered(refunds, "60b", "paid", payment.Failed, payment.RefundExceedsPayment, "", ""),
			answered(refunds, "rest", "paid", ok, committed, "r3", "40"), answered(cancel, "x2", "back", ok, committed, "r4", "50"),
			answered(authorize, "captured", "captured", ok, payment.Authorized, "h1", ""), answered(capture, "c1", "captured", ok, committed, "h1", "70"),
			answered(capture, "c1", "captured", payment.SuccessReplay, payment.DuplicateIdempo, "h1", "70"),
			answered(void, "v1", "captured", payment.Failed, payment.PaymentSettled, "", ""),
			answered(authorize, "voided", "voided", ok, payment.Authorized, "h2", ""), answered(void, "v2", "voided", ok, committed, "h2", ""),
			answered(cancel, "x3", "canceled", ok, committed, "h3", ""),
			answered(cancel, "x4", "paid", payment.SuccessReplay, payment.DuplicateIdempo, "p1", ""), // all was given back before
			{Action: cancel, Key: "x9", Payment: "never arrived", Answer: load.Answer{HTTP: http.StatusNotFound}},
		},
		taken: []message{
			{fact{"payment.settled", "paid", ""}, "1", ""}, {fact{"payment.settled", "paid", ""}, "1", ""}, {fact{"payment.settled", "back", ""}, "2", ""},
			{fact{"payment.refunded", "paid", "60"}, "3", "60"}, {fact{"payment.refunded", "paid", "rest"}, "4", "40"},
			{fact{"payment.refunded", "back", givenBack}, "5", "50"}, {fact{"payment.authorized", "captured", ""}, "6", ""},
			{fact{"payment.captured", "captured", ""}, "7", ""}, {fact{"payment.voided", "voided", ""}, "8", ""},
			{fact{"payment.voided", "canceled", ""}, "9", ""}, {fact{"payment.expired", "left", ""}, "10", ""},
		},
	}
}

func (l lives) problems() []string {
	return slices.Concat(checkLife(l.life, l.books), l.check(), l.checkTold(l.taken))
}

// The judge finds each of these faults, and no fault where there is none.
func TestTheJudgeCanFail(t *testing.T) {
	if got := wellDone().problems(); len(got) > 0 {
		t.Fatalf("a history without a fault: %q", got)
	}
	edit := func(l lives, key string, change func(*kept)) {
		k := l.kept[key]
		change(&k)
		l.kept[key] = k
	}
	find := func(l lives, key string) *request {
		return &l.life[slices.IndexFunc(l.life, func(r request) bool { return r.Key == key && r.decided() })]
	}
	for name, c := range map[string]struct {
		plant func(*lives)
		want  string
	}{
		"two refunds of 60 of 100": {func(l *lives) {
			edit(*l, "60b", func(k *kept) { k.State, k.Reason = payment.Committed, payment.ReasonCommitted })
			edit(*l, "paid", func(k *kept) { k.Refunded = 160 })
		}, "of 100 160 were given back"},
		"a refund that is not counted":        {func(l *lives) { edit(*l, "paid", func(k *kept) { k.Refunded = 60 }) }, "it has counted 60"},
		"a refund that never ends":            {func(l *lives) { edit(*l, "rest", func(k *kept) { k.State = payment.Pending }) }, "is PENDING"},
		"a refund of what was not settled":    {func(l *lives) { edit(*l, "paid", func(k *kept) { k.State = payment.RolledBack }) }, "is a refund of a payment that is ROLLEDBACK"},
		"a refund that was told and is lost":  {func(l *lives) { delete(l.kept, "rest") }, "the ledger has no such refund"},
		"a refund that was told and refused":  {func(l *lives) { find(*l, "60b").Answer.Status = payment.Success }, "the ledger has the refund r2 as ROLLEDBACK"},
		"a refusal of a refund that happened": {func(l *lives) { find(*l, "rest").Answer.Status = payment.Failed }, "the ledger has the refund as COMMITTED"},
		"a refusal for another reason":        {func(l *lives) { find(*l, "60b").Answer.Reason = payment.InsufficientFunds }, "refund_exceeds_payment"},
		"another amount than was given":       {func(l *lives) { find(*l, "rest").Amount = "41" }, "41 was told"},
		"another refund's ref":                {func(l *lives) { find(*l, "rest").Answer.Ref = "r1" }, "the ledger has the refund r3"},
		"a cancellation that says that all was given back": {func(l *lives) {
			delete(l.kept, "rest")
			edit(*l, "paid", func(k *kept) { k.Refunded = 60 })
		}, "cancel x4 of paid"},
		"a cancellation that refunds nothing": {func(l *lives) { delete(l.kept, givenBack) }, "the ledger has no such refund"},
		"two outcomes of an operation": {func(l *lives) {
			again := *find(*l, "c1")
			again.Answer.Status, again.Answer.Reason = payment.Failed, payment.PaymentNotAuthorized
			l.life = append(l.life, again)
		}, "and before that"},
		"two that are the first":            {func(l *lives) { l.life = append(l.life, *find(*l, "c1")) }, "that they were the first"},
		"a capture that is lost":            {func(l *lives) { delete(l.operations, "c1") }, "the ledger has no such operation"},
		"a capture that the ledger refused": {func(l *lives) { l.operations["c1"] = l.operations["v1"] }, "the ledger has another operation"},
		"a capture and a void": {func(l *lives) {
			l.operations["v3"] = operation{Kind: payment.Void, Payment: "h1", Status: payment.Success, Reason: payment.ReasonCommitted}
		}, "the operations that ended it are"},
		"another amount captured":                        {func(l *lives) { edit(*l, "captured", func(k *kept) { k.Debit = idr(71) }) }, `"70" was captured`},
		"more captured than held":                        {func(l *lives) { edit(*l, "captured", func(k *kept) { k.Debit, k.Authorized = idr(70), 60 }) }, "were captured of 60"},
		"a void that was told, of a payment that stands": {func(l *lives) { edit(*l, "voided", func(k *kept) { k.State = payment.Committed }) }, "the payment is COMMITTED"},
		"a hold that was told and is lost":               {func(l *lives) { delete(l.kept, "voided") }, "the ledger does not have it"},
		"a hold that ended for no reason of a hold":      {func(l *lives) { edit(*l, "voided", func(k *kept) { k.Reason = payment.CommitFailed }) }, "the hold ended as"},
		"a payment of which nothing is known any more": {func(l *lives) {
			r := *find(*l, "60")
			r.Told, r.Answer = true, load.Answer{HTTP: http.StatusNotFound}
			l.life = append(l.life, r)
		}, "the payment had succeeded"},
		"an answer of no contract":      {func(l *lives) { find(*l, "60").Answer.HTTP = http.StatusTeapot }, "is not an answer to this"},
		"a settled payment, untold":     {func(l *lives) { l.taken = l.taken[2:] }, "was not told: payment.settled paid"},
		"a refund, untold":              {func(l *lives) { l.taken = slices.Delete(l.taken, 4, 5) }, "was not told: payment.refunded paid rest"},
		"an expiry, untold":             {func(l *lives) { l.taken = l.taken[:10] }, "was not told: payment.expired left"},
		"a capture, untold":             {func(l *lives) { l.taken = slices.Delete(l.taken, 7, 8) }, "was not told: payment.captured"},
		"a refund of another amount":    {func(l *lives) { l.taken[4].Amount = "41" }, "the client was told payment.refunded paid rest"},
		"a fact that is not so":         {func(l *lives) { l.taken[8].Type = "payment.captured" }, "the client was told payment.captured voided"},
		"a payment that nobody made":    {func(l *lives) { l.taken[0].Payment = "invented" }, "the client was told payment.settled invented"},
		"one fact with two ids":         {func(l *lives) { l.taken[1].ID = "1b" }, "was told as 1 and as 1b"},
		"two facts with the same id":    {func(l *lives) { l.taken[3].ID = "4" }, "4 was told as"},
		"a kind of event of no payment": {func(l *lives) { l.taken[0].Type = "payment.lost" }, "this type is not about a payment"},
	} {
		l := wellDone()
		l.kept, l.operations = maps.Clone(l.kept), maps.Clone(l.operations)
		c.plant(&l)
		if got := l.problems(); !slices.ContainsFunc(got, func(p string) bool { return strings.Contains(p, c.want) }) {
			t.Errorf("%s: found %q, want %q", name, got, c.want)
		}
	}
}

// The endpoint takes what is signed by its secret, and remembers what is not.
func TestTheShopVerifies(t *testing.T) {
	s, err := openShop("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	library, err := standardwebhooks.NewWebhook("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
	if err != nil {
		t.Fatal(err)
	}
	s.library = library
	send := func(signed, sent string) int {
		now := time.Now()
		signature, err := library.Sign("msg_1", now, []byte(signed))
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodPost, s.url, strings.NewReader(sent))
		r.Header = http.Header{"Webhook-Id": {"msg_1"}, "Webhook-Signature": {signature}, "Webhook-Timestamp": {strconv.FormatInt(now.Unix(), 10)}}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w.Code
	}
	const settled = `{"type":"payment.settled","data":{"idempotency_key":"k"}}`
	s.behave(fails)
	if got := send(settled, settled); got != http.StatusServiceUnavailable {
		t.Errorf("a broken endpoint answers %d", got)
	}
	s.behave(takes)
	if got := send(settled, settled); got != http.StatusNoContent {
		t.Errorf("a signed webhook: %d", got)
	}
	if got := send(settled, strings.Replace(settled, "settled", "refunded", 1)); got != http.StatusBadRequest {
		t.Errorf("a forged webhook: %d", got)
	}
	taken, turned, wrong := s.told()
	if len(taken) != 1 || taken[0].fact != (fact{"payment.settled", "k", ""}) || turned != 1 || len(wrong) != 1 {
		t.Errorf("took %v, turned %d away, wrong are %q", taken, turned, wrong)
	}
}
