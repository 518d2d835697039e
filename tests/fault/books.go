package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"pgw/functions/pgw/load"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// books is what the ledger has in the end of payments' lives.
type books struct {
	kept       map[string]kept      // by key: payments and refunds
	operations map[string]operation // captures, voids and cancellations, by key
	rows       map[fact]string      // the status of each webhook's delivery
}

// kept is a payment or a refund in the ledger.
type kept struct {
	Ref, Parent string // Parent is the payment's ref if it is a refund
	State       payment.ReservationStatus
	Reason      payment.Reason
	Debit       money.Amount // what the sender gave: of a refund, the payment's receiver
	Credit      money.Amount // what the receiver got: of a refund, the payment's sender
	Authorized  int64        // minor units of Debit's currency
	Refunded    int64        // the same
	Refunding   int64        // the same
}

// operation is a capture, a void or a cancellation in the ledger.
type operation struct {
	Kind    payment.OperationKind
	Payment string // its ref
	Minor   int64
	Status  payment.Status
	Reason  payment.Reason
}

// readBooks reads the ledger.
func readBooks(ctx context.Context, conn *pgx.Conn) (b books, err error) {
	b = books{kept: map[string]kept{}, operations: map[string]operation{}, rows: map[fact]string{}}
	var key, debit, credit string
	var k kept
	rows, err := conn.Query(ctx, `
SELECT r.idempotency_key, r.reservation_id::text, coalesce(r.parent_id::text, ''), r.status, coalesce(p.reason, ''),
	coalesce(r.debit_minor, r.amount_idr), coalesce(r.debit_currency, 'IDR'), coalesce(r.credit_minor, r.amount_idr), coalesce(r.credit_currency, 'IDR'),
	coalesce(r.authorized_minor, 0), coalesce(r.refunded_minor, 0), coalesce(r.refunding_minor, 0)
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id`)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&key, &k.Ref, &k.Parent, &k.State, &k.Reason, &k.Debit.Minor, &debit, &k.Credit.Minor, &credit,
			&k.Authorized, &k.Refunded, &k.Refunding}, func() (err error) {
			if k.Debit.Currency, err = money.ParseCurrency(debit); err != nil {
				return err
			}
			k.Credit.Currency, err = money.ParseCurrency(credit)
			b.kept[key] = k
			return err
		})
	}
	if err != nil {
		return b, fmt.Errorf("read payments: %w", err)
	}
	var o operation
	rows, err = conn.Query(ctx, `SELECT idempotency_key, kind, reservation_id::text, amount_minor, status, reason FROM operations`)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&key, &o.Kind, &o.Payment, &o.Minor, &o.Status, &o.Reason}, func() error {
			b.operations[key] = o
			return nil
		})
	}
	if err != nil {
		return b, fmt.Errorf("read operations: %w", err)
	}
	b.rows, err = readDeliveries(ctx, conn)
	return b, err
}

// readDeliveries reads the states of webhooks.
func readDeliveries(ctx context.Context, conn *pgx.Conn) (map[fact]string, error) {
	states := map[fact]string{}
	var f fact
	var state string
	rows, err := conn.Query(ctx, `
SELECT e.type, e.payment_key, coalesce(e.data::jsonb -> 'refund' ->> 'idempotency_key', ''), d.status
FROM webhook_deliveries d JOIN webhook_events e USING (event_id)`)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&f.Type, &f.Payment, &f.Refund, &state}, func() error {
			states[f] = state
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read webhooks: %w", err)
	}
	return states, nil
}

// end returns how an authorized payment, or any other, has ended.
func (k kept) end() string { return strings.TrimSpace(fmt.Sprintf("%s %s", k.State, k.Reason)) }

// checkLife compares what clients were told about authorizations and operations with the ledger.
func checkLife(life []request, b books) (problems []string) {
	wrong := func(format string, args ...any) { problems = append(problems, "life: "+fmt.Sprintf(format, args...)) }
	first := map[string]request{} // a decided answer of each key
	fresh := map[string]bool{}    // keys with a SUCCESS
	for _, r := range life {
		_, known := b.kept[r.Payment]
		switch {
		case r.Answer.HTTP == 404 && r.Told:
			wrong("%s: the payment had succeeded", r)
			continue
		case r.Answer.HTTP == 404 || r.Answer.Reason == load.NoAnswer || r.Answer.Undecided():
			continue
		case !r.decided():
			wrong("%s: is not an answer to this", r)
			continue
		case !known && r.Action != authorize:
			wrong("%s: the ledger has no such payment", r)
			continue
		}
		if problem := b.contradicts(r); problem != "" {
			wrong("%s: %s", r, problem)
		}
		if r.Answer.Status == payment.Success {
			if fresh[r.Key] {
				wrong("%s: two requests were told that they were the first", r)
			}
			fresh[r.Key] = true
		}
		other, seen := first[r.Key]
		if !seen {
			first[r.Key] = r
		} else if r.Action != authorize && (succeeded(r) != succeeded(other) || !succeeded(r) && r.Answer.Reason != other.Answer.Reason || r.Answer.Ref != other.Answer.Ref) {
			wrong("%s: and before that %s", r, other)
		}
	}
	return problems
}

func succeeded(r request) bool { return r.Answer.Status != payment.Failed }

// contradicts says how the ledger contradicts an answer with an outcome; empty: it does not.
func (b books) contradicts(r request) string {
	of := b.kept[r.Payment]
	switch op, recorded := b.operations[r.Key]; {
	case r.Action == authorize:
		return contradictsHold(r, of, of.Ref != "")
	case r.Action == action(payment.Refund):
		return contradictsRefund(r, b.kept[r.Key], of)
	case !recorded:
		return "the ledger has no such operation"
	case op.Payment != of.Ref || action(op.Kind) != r.Action:
		return fmt.Sprintf("the ledger has another operation: %+v", op)
	case r.Action == action(payment.Cancel) && op.Reason == payment.PaymentSettled:
		refund, made := b.kept[payment.Operation{Key: r.Key}.CancelKey(of.Ref)]
		if !made && r.Answer.Status == payment.SuccessReplay && r.Answer.Ref == of.Ref && of.Refunded == of.Debit.Minor {
			return "" // everything was given back before
		}
		return contradictsRefund(r, refund, of)
	case succeeded(r) != (op.Status == payment.Success) || !succeeded(r) && r.Answer.Reason != op.Reason:
		return fmt.Sprintf("the ledger has %s %s", op.Status, op.Reason)
	case !succeeded(r):
		return ""
	case r.Answer.Ref != of.Ref:
		return "the payment's ref is " + of.Ref
	case r.Action == action(payment.Capture):
		if of.State != payment.Committed || r.Amount != "" && r.Amount != of.Debit.String() {
			return fmt.Sprintf("%q was captured, and the ledger has %s %s", r.Amount, of.end(), of.Debit)
		}
	case of.State != payment.RolledBack || of.Reason != map[action]payment.Reason{
		action(payment.Void): payment.Voided, action(payment.Cancel): payment.Canceled,
	}[r.Action]:
		return "the payment is " + of.end()
	}
	return ""
}

func contradictsHold(r request, of kept, known bool) string {
	switch {
	case !known:
		return "the ledger does not have it"
	case !succeeded(r):
		if of.State != payment.RolledBack || of.Reason != r.Answer.Reason {
			return "the ledger has " + of.end()
		}
	case of.Ref != r.Answer.Ref || of.Authorized == 0:
		return fmt.Sprintf("the ledger has %+v", of)
	case of.State == payment.RolledBack && !slices.Contains(holdEnds, of.Reason):
		return "the hold ended as " + of.end()
	}
	return ""
}

// holdEnds are the reasons for which an authorized payment may be rolled back.
var holdEnds = []payment.Reason{payment.Voided, payment.Canceled, payment.AuthorizationExpired}

func contradictsRefund(r request, refund, of kept) string {
	switch {
	case refund.Parent == "" || refund.Parent != of.Ref:
		return fmt.Sprintf("the ledger has no such refund: %+v", refund)
	case succeeded(r) && (refund.State != payment.Committed || r.Answer.Ref != refund.Ref):
		return fmt.Sprintf("the ledger has the refund %s as %s", refund.Ref, refund.end())
	case !succeeded(r) && (refund.State != payment.RolledBack || r.Answer.Reason != refund.Reason):
		return "the ledger has the refund as " + refund.end()
	case succeeded(r) && r.Amount != "" && r.Amount != refund.Credit.String():
		return fmt.Sprintf("%s was told, and the ledger has %s", r.Amount, refund.Credit)
	}
	return ""
}

// check checks the ledger on its own: each refund is within its payment and has ended, and each
// authorized payment has one end, which an operation or the sweep made.
func (b books) check() (problems []string) {
	wrong := func(key, format string, args ...any) {
		problems = append(problems, fmt.Sprintf("life: %s: ", key)+fmt.Sprintf(format, args...))
	}
	keyOf := map[string]string{}
	for key, k := range b.kept {
		keyOf[k.Ref] = key
	}
	given := map[string]int64{}
	for key, k := range b.kept {
		if k.State == payment.Pending {
			wrong(key, "is PENDING in the end")
		}
		if k.Parent == "" {
			continue
		}
		if of := b.kept[keyOf[k.Parent]]; k.State != payment.RolledBack && of.State != payment.Committed {
			wrong(key, "is a refund of a payment that is %s", of.end())
		}
		if k.State == payment.Committed {
			given[k.Parent] += k.Credit.Minor
		}
	}
	ends := map[string][]string{} // what has ended each payment
	for _, key := range slices.Sorted(maps.Keys(b.operations)) {
		if o := b.operations[key]; o.Status == payment.Success && o.Reason == payment.ReasonCommitted {
			ends[o.Payment] = append(ends[o.Payment], string(o.Kind))
		}
	}
	for key, k := range b.kept {
		if k.Parent != "" {
			continue
		}
		if got := given[k.Ref]; got != k.Refunded || k.Refunding != 0 || got > k.Debit.Minor {
			wrong(key, "of %s %d were given back; it has counted %d, and %d on their way", k.Debit, got, k.Refunded, k.Refunding)
		}
		var want []string
		switch {
		case k.Authorized > 0 && k.State == payment.Committed:
			want = []string{string(payment.Capture)}
		case k.State == payment.RolledBack && k.Reason == payment.Voided:
			want = []string{string(payment.Void)}
		case k.State == payment.RolledBack && k.Reason == payment.Canceled:
			want = []string{string(payment.Cancel)}
		}
		if got := ends[k.Ref]; !slices.Equal(got, want) {
			wrong(key, "is %s, and the operations that ended it are %v", k.end(), got)
		}
		if k.Authorized > 0 && k.Debit.Minor > k.Authorized {
			wrong(key, "%s were captured of %d", k.Debit, k.Authorized)
		}
	}
	slices.Sort(problems)
	return problems
}

// facts returns what a client has to be told by webhook, at least once.
func (b books) facts() (facts []fact) {
	keyOf := map[string]string{}
	for key, k := range b.kept {
		keyOf[k.Ref] = key
	}
	for key, k := range b.kept {
		f := fact{Payment: key}
		switch {
		case k.Parent != "" && k.State == payment.Committed:
			f = fact{"payment.refunded", keyOf[k.Parent], key}
		case k.Parent != "":
		case k.State == payment.Committed && k.Authorized > 0:
			f.Type = "payment.captured"
		case k.State == payment.Committed:
			f.Type = "payment.settled"
		case k.Reason == payment.AuthorizationExpired:
			f.Type = "payment.expired"
		case k.Authorized > 0 && (k.Reason == payment.Voided || k.Reason == payment.Canceled):
			f.Type = "payment.voided"
		}
		if f.Type != "" {
			facts = append(facts, f)
		}
	}
	slices.SortFunc(facts, func(a, b fact) int { return cmp.Compare(a.String(), b.String()) })
	return facts
}

// untold returns the facts that are missing in what the client was told.
func (b books) untold(taken []message) (missing []fact) {
	told := map[fact]bool{}
	for _, m := range taken {
		told[m.fact] = true
	}
	for _, f := range b.facts() {
		if !told[f] {
			missing = append(missing, f)
		}
	}
	return missing
}

// checkTold checks the webhooks that a client got: each fact in the ledger is among them, none says
// what is not so, and a fact has one id, by which a client recognizes it when it is told again.
func (b books) checkTold(taken []message) (problems []string) {
	wrong := func(format string, args ...any) {
		problems = append(problems, "webhooks: "+fmt.Sprintf(format, args...))
	}
	for _, f := range b.untold(taken) {
		wrong("the client was not told: %s (%s)", f, cmp.Or(b.rows[f], "there is no row for it"))
	}
	ids, facts := map[fact]string{}, map[string]fact{}
	for _, m := range taken {
		if problem := b.denies(m); problem != "" {
			wrong("the client was told %s: %s", m.fact, problem)
		}
		if id := ids[m.fact]; id != "" && id != m.ID {
			wrong("%s was told as %s and as %s", m.fact, id, m.ID)
		}
		if f, seen := facts[m.ID]; seen && f != m.fact {
			wrong("%s was told as %s and as %s", m.ID, f, m.fact)
		}
		ids[m.fact], facts[m.ID] = m.ID, m.fact
	}
	return problems
}

// denies says how the ledger contradicts a webhook; empty: it does not.
func (b books) denies(m message) string {
	of, known := b.kept[m.Payment]
	refund := b.kept[m.Refund]
	var so bool
	switch m.Type {
	case "payment.settled":
		so = of.State == payment.Committed && of.Authorized == 0
	case "payment.authorized":
		so = of.Authorized > 0
	case "payment.captured":
		so = of.State == payment.Committed && of.Authorized > 0
	case "payment.voided":
		so = of.State == payment.RolledBack && (of.Reason == payment.Voided || of.Reason == payment.Canceled)
	case "payment.expired":
		so = of.State == payment.RolledBack && of.Reason == payment.AuthorizationExpired
	case "payment.failed":
		so = of.State == payment.RolledBack
	case "payment.refunded":
		so = refund.State == payment.Committed && refund.Parent == of.Ref && m.Amount == refund.Credit.String()
	default:
		return "this type is not about a payment"
	}
	if !known || !so {
		return fmt.Sprintf("the ledger has %s, and the refund %s %s", of.end(), refund.end(), refund.Credit)
	}
	return ""
}
