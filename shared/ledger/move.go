package ledger

import (
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"pgw/shared/payment"
)

// This file has the last statement of a batch of reserves. It moves the money: it holds what a later
// commit or capture pays, and pays what the batch commits itself.

// paid is what the payments that a batch commits change in a balance.
type paid struct {
	given    int64 // what it pays at once, so that it is not held
	got      int64
	position int64 // of LIQUIDITY: what exchanges bring
	receiver bool  // it is a party's, which must be active
}

// moveSQL fails (division by zero) unless every balance is still as the decisions need it, and the
// payments that are committed are in time when all balances are locked. The entries and outcomes get
// that time. Of a balance, taken has to be there: money that the batch itself brings to it is not taken
// in the same batch. Balances that send have counters, which must be as they were read. Balances that
// only receive may be changed by others meanwhile.
var moveSQL = &form{
	one: `
WITH wanted AS (` + wantedMovesSQL + `), locked AS MATERIALIZED (
	SELECT l.*, clock_timestamp() AS at FROM (
		SELECT w.* FROM wanted w JOIN balances b ON b.account_id = w.account_id AND b.currency = w.currency
		WHERE ` + movableSQL + `
		ORDER BY b.` + house + `, b.account_id, b.currency FOR NO KEY UPDATE OF b
	) l
), booked AS MATERIALIZED (
	SELECT max(at) AS at FROM locked HAVING count(*) = cardinality($1) AND max(at) <= $19
), moved AS (` + moveBalancesSQL + `
	FROM locked w WHERE b.account_id = w.account_id AND b.currency = w.currency
), entered AS (` + enterMovesSQL + `
), outcome AS (` + recordMovesSQL + `
)
SELECT 1 / count(*)::int FROM booked`,

	// The shards are chosen by the accounts in $1.
	rows: `
WITH wanted AS MATERIALIZED (` + wantedMovesSQL + `), moved AS (` + moveBalancesSQL + `
	FROM wanted w WHERE b.account_id = ANY($1) AND b.account_id = w.account_id AND b.currency = w.currency
		AND ` + movableSQL + `
	RETURNING 1
), booked AS MATERIALIZED (
	SELECT m.at FROM (SELECT clock_timestamp() AS at, count(*) AS n FROM moved) m, ` + hereSQL + ` WHERE m.n = cardinality($1) AND m.at <= $19
), entered AS (` + enterMovesSQL + `
	RETURNING 1
), outcome AS (` + recordMovesSQL + `
	RETURNING 1
)
SELECT 1 / count(*)::int FROM booked`,
}

// The parts of moveSQL.
const (
	wantedMovesSQL = `
	SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bool[], $9::bool[],
		$10::int[], $11::bigint[], $12::int[], $13::int[], $14::int[], $15::bigint[], $16::int[], $17::int[], $18::bigint[])
	AS w(account_id, currency, taken, held, got, lost, gained, sends, active,
		day, spent, minute, started, was_day, was_spent, was_minute, was_started, was_limit)
`
	movableSQL = `b.available >= w.taken AND (b.status = 'ACTIVE' OR NOT w.active)
			AND (NOT w.sends OR b.spent_day = w.was_day AND b.spent_today = w.was_spent AND b.started_minute = w.was_minute
				AND b.started_count = w.was_started AND b.daily_limit = w.was_limit)
			AND (b.position_limit IS NULL OR w.lost = 0 OR b.position - w.lost >= -b.position_limit)`

	moveBalancesSQL = `
	UPDATE balances b
	SET available = b.available - w.taken + w.got, held = b.held + w.held, position = b.position - w.lost + w.gained, updated_at = now(),
		spent_day = CASE WHEN w.sends THEN w.day ELSE b.spent_day END, spent_today = CASE WHEN w.sends THEN w.spent ELSE b.spent_today END,
		started_minute = CASE WHEN w.sends THEN w.minute ELSE b.started_minute END,
		started_count = CASE WHEN w.sends THEN w.started ELSE b.started_count END`

	enterMovesSQL = `
	INSERT INTO entries (account_id, currency, booked_at, transaction_id, kind, amount, value_date)
	SELECT account_id, currency, at, id, kind, amount, (at AT TIME ZONE 'UTC')::date
	FROM unnest($20::text[], $21::text[], $22::uuid[], $23::text[], $24::bigint[]) AS e(account_id, currency, id, kind, amount), booked, ` + hereSQL

	recordMovesSQL = `
	INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason, decided_at)
	SELECT id, key, sender, receiver, currency, amount, 'SUCCESS', 'committed', at
	FROM unnest($25::uuid[], $26::text[], $27::text[], $28::text[], $29::text[], $30::bigint[]) AS c(id, key, sender, receiver, currency, amount),
		booked, ` + hereSQL
)

// queueMoves moves the money, counts it, and records what is committed.
func (s state) queueMoves(b *pgx.Batch, calls []reserve, decided []Reserved, fresh []int) {
	r := committed(calls, decided, fresh, s.now)
	for at, v := range s.balances {
		if v.changed && r.paid[at] == nil {
			r.paid[at] = &paid{} // it only holds
		}
	}
	if len(r.paid) == 0 {
		return
	}
	var accounts, currencies []string
	var taken, held, got, lost, gained, spent, wasSpent, wasLimit []int64
	var days, minutes, started, wasDay, wasMinute, wasStarted []int32
	var sends, active []bool
	for _, at := range slices.SortedFunc(maps.Keys(r.paid), place.compare) {
		v, of := s.balance(at), r.paid[at]
		accounts, currencies = append(accounts, at.account), append(currencies, at.currency.String())
		taken, held, got = append(taken, v.taken), append(held, v.taken-of.given), append(got, of.got)
		position := int64(0)
		if at.account == payment.LiquidityAccount {
			position = v.taken
		}
		lost, gained = append(lost, position), append(gained, of.position)
		sends, active = append(sends, v.changed), append(active, v.changed || of.receiver)
		days, minutes, started = append(days, v.Day), append(minutes, v.minute), append(started, v.started)
		spent, wasSpent, wasLimit = append(spent, v.SpentToday), append(wasSpent, v.was.spent), append(wasLimit, v.was.limit)
		wasDay, wasMinute, wasStarted = append(wasDay, v.was.day), append(wasMinute, v.was.minute), append(wasStarted, v.was.started)
	}
	moveSQL.queue(b, accounts, currencies, taken, held, got, lost, gained, sends, active,
		days, spent, minutes, started, wasDay, wasSpent, wasMinute, wasStarted, wasLimit, r.deadline,
		r.accounts, r.currencies, r.transactions, r.kinds, r.amounts,
		r.ids, r.keys, r.senders, r.receivers, r.named, r.rupiah)
}

// records are what a batch commits: what it pays, and the columns of the entries and the outcomes.
type records struct {
	paid     map[place]*paid
	deadline pgtype.Timestamptz // the earliest of these payments'; infinity if there are none

	accounts, currencies, kinds []string
	transactions                []pgtype.UUID
	amounts                     []int64

	ids                             []pgtype.UUID
	keys, senders, receivers, named []string // named is the currency that the client named
	rupiah                          []int64
}

// committed returns the records of the payments that the batch commits.
func committed(calls []reserve, decided []Reserved, fresh []int, now time.Time) records {
	r := records{paid: map[place]*paid{}, deadline: pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}}
	for _, i := range fresh {
		p, id := calls[i].Payment, pgUUID(decided[i].ReservationID)
		if decided[i].Status != payment.Committed {
			continue
		}
		if until := p.HeldUntil(now); r.deadline.InfinityModifier != 0 || until.Before(r.deadline.Time) {
			r.deadline = timestamp(until)
		}
		for _, leg := range p.Legs() {
			r.pay(leg)
			r.accounts, r.currencies, r.kinds = append(r.accounts, leg.Account), append(r.currencies, leg.Currency.String()), append(r.kinds, string(leg.Kind))
			r.transactions, r.amounts = append(r.transactions, id), append(r.amounts, leg.Minor)
		}
		r.ids, r.keys, r.rupiah = append(r.ids, id), append(r.keys, p.Key), append(r.rupiah, p.AmountIDR)
		r.senders, r.receivers, r.named = append(r.senders, p.Sender), append(r.receivers, p.Receiver), append(r.named, p.Currency.String())
	}
	return r
}

// pay adds a leg to what its balance pays and gets.
func (r records) pay(leg payment.Leg) {
	at := place{leg.Account, leg.Currency}
	v := r.paid[at]
	if v == nil {
		v = &paid{}
		r.paid[at] = v
	}
	switch {
	case leg.Minor < 0:
		v.given -= leg.Minor
		return
	case leg.Kind == payment.KindExchange:
		v.position += leg.Minor
	case leg.Kind == payment.KindPayment:
		v.receiver = true
	}
	v.got += leg.Minor
}
