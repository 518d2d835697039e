package reconcile

import (
	"slices"
	"testing"

	"github.com/google/uuid"

	"pgw/shared/event"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// An authorized payment has two results, and both are true, whatever came between them. A result that it
// never had is found.
func TestTheResultsOfAnAuthorizedPayment(t *testing.T) {
	id := uuid.New()
	authorized := payment.Standing(payment.Pending, payment.Authorized, id.String(), false)
	committed := payment.Standing(payment.Committed, payment.ReasonCommitted, id.String(), false)
	for name, tc := range map[string]struct {
		authorized bool
		state      payment.ReservationStatus
		reason     payment.Reason
		told       payment.Outcome
		agrees     bool
	}{
		"open":                        {true, payment.Pending, payment.Authorized, authorized, true},
		"a second attempt":            {true, payment.Pending, payment.Authorized, payment.Standing(payment.Pending, payment.Authorized, id.String(), true), true},
		"captured later":              {true, payment.Committed, payment.ReasonCommitted, authorized, true},
		"captured":                    {true, payment.Committed, payment.ReasonCommitted, committed, true},
		"voided later":                {true, payment.RolledBack, payment.Voided, authorized, true},
		"expired":                     {true, payment.RolledBack, payment.AuthorizationExpired, payment.Decline(payment.AuthorizationExpired), true},
		"open, and told as captured":  {true, payment.Pending, payment.Authorized, committed, false},
		"open, and told as expired":   {true, payment.Pending, payment.Authorized, payment.Decline(payment.AuthorizationExpired), false},
		"voided, and told as expired": {true, payment.RolledBack, payment.Voided, payment.Decline(payment.AuthorizationExpired), false},
		"never authorized":            {false, payment.Committed, payment.ReasonCommitted, authorized, false},
	} {
		known := &entry{claim: claim{ID: id, Authorized: tc.authorized}, state: tc.state, reason: tc.reason}
		if problem := contradiction(known, event.PaymentResult{Outcome: tc.told}); (problem == "") != tc.agrees {
			t.Errorf("%s: %q", name, problem)
		}
	}
}

// A payment of which a part was captured is compared with its request by what was authorized.
func TestACapturedPartIsComparedWithItsRequest(t *testing.T) {
	usd, _ := money.ParseCurrency("USD")
	sgd, _ := money.ParseCurrency("SGD")
	exchanged := payment.Payment{
		AmountIDR: 155_000, Currency: usd, Minor: 1000, DebitCurrency: usd, CreditCurrency: sgd, DebitMinor: 1000, CreditMinor: 1339,
		Exchange: payment.Exchange{MidMinor: 1340}, HoldSeconds: 60,
	}
	rupiah := payment.Payment{AmountIDR: 1000, Minor: 1000, Currency: money.IDR, HoldSeconds: 60}
	for name, tc := range map[string]struct {
		asked, kept payment.Payment
		held        int64
		differs     bool
	}{
		"whole":              {exchanged, exchanged, 1000, false},
		"a part":             {exchanged, exchanged.Captured(400), 1000, false},
		"a part of rupiah":   {rupiah, rupiah.Captured(400), 1000, false},
		"less was held":      {exchanged, exchanged.Captured(400), 999, true},
		"less rupiah held":   {rupiah, rupiah.Captured(400), 999, true},
		"not asked to hold":  {func(p payment.Payment) payment.Payment { p.HoldSeconds = 0; return p }(rupiah), rupiah, 1000, true},
		"other amount given": {func(p payment.Payment) payment.Payment { p.CreditMinor++; return p }(exchanged), exchanged, 1000, true},
	} {
		asked, part := askedFor(payment.Record{Payment: tc.kept, AuthorizedMinor: tc.held})
		d := contentOf(asked).difference(contentOf(tc.asked))
		if part {
			d &^= shares
		}
		if (d != 0) != tc.differs {
			t.Errorf("%s: differs in %s", name, d)
		}
	}
	names := []string{fields[amountIDRField].name, fields[creditField].name, fields[exchangeField].name}
	if !slices.Equal(names, []string{"amount_idr", "credit", "exchange"}) {
		t.Errorf("the shares are %q", names)
	}
}
