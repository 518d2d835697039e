package ledger

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// A batch of reserves is decided in two round trips. The first reads what the decisions need, without
// locks. The second is the transaction that writes them. Its last statement moves the money, and
// checks that what was read still holds: enough money, and the same counters. If it does not hold,
// the batch runs once more, and locks the balances before it reads them. So batches lock balances
// only for the end of a transaction, unless they compete for the same ones.

// reserve is the call for one payment or refund. If refuse is set, the refusal is recorded and nothing
// is held. If commit is set, the receiver is paid in the same transaction, unless an operation has to
// capture the payment.
type reserve struct {
	payment.Payment
	commit bool
	refuse payment.Reason
	refund *payment.Operation // of a refund; the Payment is then made from the payment that it gives back
	trace  string             // the id of the caller's trace; empty: it is not traced
}

// Fingerprint returns the fingerprint of what the client sent.
func (c reserve) Fingerprint() payment.Fingerprint {
	if c.refund != nil {
		return c.refund.Fingerprint()
	}
	return c.Payment.Fingerprint()
}

// place names a balance: the account, and the currency.
type place struct {
	account  string
	currency money.Currency
}

func (p place) compare(q place) int {
	return cmp.Or(cmp.Compare(p.account, q.account), cmp.Compare(p.currency.String(), q.currency.String()))
}

// balance is a row of balances, with the changes that the batch decides.
type balance struct {
	payment.Balance
	status          payment.AccountStatus
	minute, started int32
	was             counters
	taken           int64 // what the batch takes of it, held or paid
	changed         bool
}

// counters are what a decision rests on, besides the money.
type counters struct {
	day, minute, started int32
	spent, limit         int64
}

// state is what the decisions about a batch need, and change.
type state struct {
	balances map[place]*balance
	accounts map[string]payment.AccountStatus // by id; an account has at least one balance
	claims   map[string][]Claim               // by key, of all clients that matter
	quotes   map[string]*quote
	parents  parents                               // of the refunds
	refunds  map[payment.ScopedKey]payment.Payment // what the refunds of the batch move, by their keys
	now      time.Time                             // the database's
}

const (
	// balancesSQL reads all balances of the parties: an account has few.
	balancesSQL = `
SELECT account_id, currency, status, available, daily_limit, spent_day, spent_today, started_minute, started_count,
	position, position_limit
FROM balances WHERE account_id = ANY($1)`

	// claimColumns are what scanClaim reads.
	claimColumns = `r.client, r.idempotency_key, r.reservation_id, r.fingerprint, r.attempt_id, r.status, ` + reasonSQL

	// A transaction for the same key may claim it after this read. Then the insert fails on the
	// unique key, and the batch runs again. A call without a client may repeat one of any client.
	claimsSQL = `
SELECT ` + claimColumns + `
FROM reservations r ` + outcomeOf + `
WHERE r.idempotency_key = ANY($1)`

	// Of a client's call, only its own claims and those without a client matter. Many clients may use
	// one key.
	clientsClaimsSQL = `
SELECT ` + claimColumns + `
FROM unnest($1::text[], $2::text[]) AS w(key, client) JOIN reservations r ON r.idempotency_key = w.key AND r.client = w.client
` + outcomeOf

	// What stands is told only if it can't be lost. The statement names a table, so that on Citus
	// it runs where the tables are.
	replicatedSQL = `SELECT FROM sweep_state WHERE ` + postgres.ReplicatedSQL

	// This one clock decides about deadlines, days and minutes, and makes the ids.
	clockSQL = `SELECT clock_timestamp()`

	// Balances are locked in the order of their accounts and currencies, and the house's after all
	// others, so two batches never wait for each other in a circle. With NO KEY, other transactions can
	// still write rows that refer to them.
	lockBalancesSQL = `
SELECT account_id, currency FROM balances WHERE account_id = ANY($1) ORDER BY account_id, currency FOR NO KEY UPDATE`
	// A join reaches all shards, so that no two of these wait for each other in a circle: Citus
	// locks the shards of one statement in order, and not those of the next.
	touchBalancesSQL = `
UPDATE balances b SET updated_at = b.updated_at FROM unnest($1::text[]) AS w(account_id) WHERE b.account_id = w.account_id
RETURNING b.account_id, b.currency`

	lockExchangeSQL = `
SELECT account_id, currency FROM balances WHERE account_id = ANY($1) AND currency = ANY($2)
ORDER BY account_id, currency FOR NO KEY UPDATE`
	touchExchangeSQL = `
UPDATE balances b SET updated_at = b.updated_at FROM unnest($1::text[]) AS w(account_id)
WHERE b.account_id = w.account_id AND b.currency = ANY($2) RETURNING b.account_id, b.currency`

	refusedSQL = `
INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason, decided_at)
SELECT id, key, sender, receiver, currency, amount, 'FAILED', reason, $8
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[])
	AS c(id, key, sender, receiver, currency, amount, reason), ` + hereSQL
)

// addBalancesSQL makes the empty balances that payments are, or will be, paid into. The account's
// lock keeps its status as it is copied.
var addBalancesSQL = &form{
	one: `
WITH owners AS MATERIALIZED (
	SELECT a.account_id, w.currency, a.status
	FROM unnest($1::text[], $2::text[]) AS w(account_id, currency) JOIN accounts a USING (account_id)
	ORDER BY a.account_id, w.currency FOR SHARE OF a
)` + insertBalancesSQL,
	rows: `
WITH held AS (
	UPDATE accounts a SET updated_at = a.updated_at FROM (SELECT DISTINCT * FROM unnest($1::text[])) AS w(account_id)
	WHERE a.account_id = w.account_id RETURNING a.account_id, a.status
), owners AS MATERIALIZED (
	SELECT a.account_id, w.currency, a.status
	FROM unnest($1::text[], $2::text[]) AS w(account_id, currency) JOIN held a USING (account_id)
)` + insertBalancesSQL,
}

const insertBalancesSQL = `
INSERT INTO balances (account_id, currency, status) SELECT account_id, currency, status FROM owners
ON CONFLICT (account_id, currency) DO NOTHING`

var (
	lockBalances  = &form{lockBalancesSQL, touchBalancesSQL}
	lockExchange  = &form{lockExchangeSQL, touchExchangeSQL}
	insertRefused = &form{refusedSQL, refusedSQL + ` RETURNING 1`}
)

// reserveAll decides about a batch.
func (l *Ledger) reserveAll(ctx context.Context, calls []reserve) (decided []Reserved, err error) {
	err = l.reserving(ctx, func(conn *pgxpool.Conn, velocity uint32) error {
		decided, err = l.reserveOrLock(ctx, conn, calls, velocity)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reserve a batch of %d: %w", len(calls), err)
	}
	return decided, nil
}

// reserveOrLock decides about a batch. If what it read does not hold any more, it decides once more,
// and locks first.
func (l *Ledger) reserveOrLock(ctx context.Context, conn *pgxpool.Conn, calls []reserve, velocity uint32) ([]Reserved, error) {
	decided, missing, err := l.reserveOn(ctx, conn, calls, velocity, false, nil)
	if postgres.Outdated(err) {
		decided, _, err = l.reserveOn(ctx, conn, calls, velocity, true, missing)
	}
	return decided, err
}

// reserving runs a reserve on a connection, with the limit of payments that a sender starts in a minute.
func (l *Ledger) reserving(ctx context.Context, run func(*pgxpool.Conn, uint32) error) error {
	rules, err := l.rules.Get(ctx)
	if err != nil {
		return err
	}
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return run(conn, rules.VelocityPerMin)
}

// reserveOn decides about a batch, and returns the balances that it had to make. If lock is set, it
// locks the balances before it reads them. Before that it makes those that were missing in the run
// before, because everybody locks an account before its balances.
func (l *Ledger) reserveOn(
	ctx context.Context, conn *pgxpool.Conn, calls []reserve, velocity uint32, lock bool, missing []place,
) (decided []Reserved, made []place, err error) {
	defer func() {
		if err != nil {
			// pgxpool sees the transaction status, and drops a connection whose rollback fails.
			postgres.RollBack(ctx, conn)
		}
	}()
	found, err := readParents(ctx, conn, calls)
	if err != nil {
		return nil, nil, err
	}
	calls = found.resolved(calls)
	b := &pgx.Batch{}
	if lock {
		l.queueBegin(b, conn, l.locks.recent())
		queueClaimsFirst(b, conn.Conn())
		found.queueLock(b)
		queueNewBalances(b, missing)
		queueLocks(b, calls, "", nil)
	}
	s, err := read(ctx, conn, b, calls)
	if err != nil {
		return nil, nil, err
	}
	s.parents = found
	decided, fresh := decide(calls, s, velocity)
	b = &pgx.Batch{}
	if !lock {
		l.queueBegin(b, conn, l.locks.recent())
	}
	if made, err = write(ctx, conn, b, calls, decided, fresh, s); err != nil {
		return nil, made, err
	}
	l.observeAccepted(calls, fresh, s.now)
	return decided, made, nil
}

// queueLocks locks the balances that the batch may change, and the quotes. how is added to the
// statements. take gets what was locked; nil: it is not needed.
func queueLocks(b *pgx.Batch, calls []reserve, how string, take func(place) error) {
	each := func(rows pgx.Rows) error {
		var account, currency string
		_, err := pgx.ForEachRow(rows, []any{&account, &currency}, func() error {
			if take == nil {
				return nil
			}
			at, err := placeOf(account, currency)
			if err != nil {
				return err
			}
			return take(at)
		})
		return err
	}
	var parties, exchanged, quotes []string
	house := []string{payment.LiquidityAccount}
	for _, c := range calls {
		parties = append(parties, c.Sender)
		if c.commit {
			parties = append(parties, c.Receiver)
		}
		if c.Exchanges() && (c.refund != nil || c.commit) {
			house = append(house, payment.SpreadAccount) // of a refund, it pays for a worse rate
		}
		if c.Exchanges() {
			exchanged = append(exchanged, c.CreditCurrency.String())
		}
		if c.Exchanges() && c.commit {
			exchanged = append(exchanged, c.DebitCurrency.String())
		}
		if c.QuoteID != "" {
			quotes = append(quotes, c.QuoteID)
		}
	}
	if len(quotes) > 0 {
		b.Queue(lockQuotesSQL, distinct(quotes))
	}
	parts, ofHouse := lockBalances, lockExchange
	if how != "" {
		parts, ofHouse = parts.and(how), ofHouse.and(how)
	}
	parts.queue(b, distinct(parties)).Query(each)
	if len(exchanged) > 0 {
		ofHouse.queue(b, distinct(house), distinct(exchanged)).Query(each)
	}
}

func placeOf(account, currency string) (place, error) {
	c, err := money.ParseCurrency(currency)
	return place{account, c}, err
}

// read reads what the decisions need, after what b has queued.
func read(ctx context.Context, conn *pgxpool.Conn, b *pgx.Batch, calls []reserve) (state, error) {
	s := state{
		balances: map[place]*balance{}, accounts: map[string]payment.AccountStatus{}, claims: map[string][]Claim{}, quotes: map[string]*quote{},
		refunds: map[payment.ScopedKey]payment.Payment{},
	}
	parties := make([]string, 0, 2*len(calls)+2)
	var quotes []string
	exchanges := false
	for _, c := range calls {
		parties = append(parties, c.Sender, c.Receiver)
		exchanges = exchanges || c.Exchanges()
		if c.QuoteID != "" {
			quotes = append(quotes, c.QuoteID)
		}
	}
	if exchanges {
		parties = append(parties, payment.LiquidityAccount, payment.SpreadAccount)
	}
	b.Queue(balancesSQL, distinct(parties)).Query(func(rows pgx.Rows) error { return s.takeBalances(rows) })
	s.queueReadClaims(b, calls)
	if len(quotes) > 0 {
		b.Queue(readQuotesSQL, distinct(quotes)).Query(func(rows pgx.Rows) error { return s.takeQuotes(rows) })
	}
	b.Queue(clockSQL).QueryRow(func(row pgx.Row) error { return row.Scan(&s.now) })
	return s, conn.SendBatch(ctx, b).Close()
}

// queueReadClaims queues the reads of the claims that may decide about the calls.
func (s state) queueReadClaims(b *pgx.Batch, calls []reserve) {
	var shared []string // the keys of calls without a client
	named := map[payment.ScopedKey]bool{}
	for _, c := range calls {
		if c.Client == "" {
			shared = append(shared, c.Key)
			continue
		}
		named[c.Scoped()], named[payment.ScopedKey{Key: c.Key}] = true, true
	}
	shared = distinct(shared)
	take := func(rows pgx.Rows) error {
		claims, err := collectClaims(rows)
		for _, c := range claims {
			s.claims[c.Key] = append(s.claims[c.Key], c)
		}
		return err
	}
	if len(shared) > 0 {
		b.Queue(claimsSQL, shared).Query(take)
	}
	var keys, clients []string
	for k := range named {
		if _, read := slices.BinarySearch(shared, k.Key); !read {
			keys, clients = append(keys, k.Key), append(clients, k.Client)
		}
	}
	if len(keys) > 0 {
		b.Queue(clientsClaimsSQL, keys, clients).Query(take)
	}
}

func (s state) takeBalances(rows pgx.Rows) error {
	defer rows.Close()
	for rows.Next() {
		var account, currency string
		v := &balance{}
		if err := rows.Scan(&account, &currency, &v.status, &v.Available, &v.DailyLimit, &v.Day, &v.SpentToday,
			&v.minute, &v.started, &v.Position, &v.PositionLimit); err != nil {
			return err
		}
		v.was = counters{v.Day, v.minute, v.started, v.SpentToday, v.DailyLimit}
		at, err := placeOf(account, currency)
		if err != nil {
			return err
		}
		s.balances[at] = v
		if s.accounts[account] != payment.Blocked {
			s.accounts[account] = v.status
		}
	}
	return rows.Err()
}

// scanClaim reads a claim's columns, and the further columns after them.
func scanClaim(rows pgx.Rows, more ...any) (Claim, error) {
	var c Claim
	var fingerprint []byte
	if err := rows.Scan(append([]any{&c.Client, &c.Key, &c.ReservationID, &fingerprint, &c.AttemptID, &c.Status, &c.Reason}, more...)...); err != nil {
		return c, err
	}
	if copy(c.Fingerprint[:], fingerprint) != len(c.Fingerprint) {
		return c, fmt.Errorf("reservation %s has a fingerprint of %d bytes", c.ReservationID, len(fingerprint))
	}
	return c, nil
}

func collectClaims(rows pgx.Rows) ([]Claim, error) {
	return pgx.CollectRows(rows, func(pgx.CollectableRow) (Claim, error) { return scanClaim(rows) })
}

// claim returns the claim that decides about a call.
func (s state) claim(c reserve) (Claim, bool) {
	claims := s.claims[c.Key]
	if len(claims) == 0 {
		return Claim{}, false
	}
	return payment.Deciding(claims, Claim.identity, payment.Identity{Client: c.Client, Fingerprint: c.Fingerprint()})
}

// decide decides about the calls one after the other. Each call sees what the calls before it left,
// so decide changes the state. Apart from that and from the new ids, it is pure. fresh lists the calls
// that make a new claim.
func decide(calls []reserve, s state, velocity uint32) (decided []Reserved, fresh []int) {
	decided = make([]Reserved, len(calls))
	for i, c := range calls {
		claim, seen := s.claim(c)
		if !seen {
			var reason payment.Reason
			if c.refund != nil {
				if c.Payment, reason, decided[i].failed = s.refund(c); decided[i].failed != nil {
					continue
				}
			}
			claim = Claim{
				ScopedKey: c.Scoped(), ReservationID: idAt(s.now, len(fresh)), Fingerprint: c.Fingerprint(), AttemptID: c.AttemptID, Status: payment.Pending,
			}
			claim.Reason = cmp.Or(c.refuse, reason)
			switch {
			case claim.Reason != "":
			case c.refund != nil:
				claim.Reason = s.giveBack(c)
			default:
				claim.Reason = s.hold(c.Payment, claim.ReservationID, velocity)
			}
			switch {
			case claim.Reason != "":
				claim.Status = payment.RolledBack
			case c.Authorizes():
				claim.Reason = payment.Authorized
			case c.commit:
				claim.Status, claim.Reason, decided[i].Paid = payment.Committed, payment.ReasonCommitted, true
			}
			s.claims[c.Key] = append(s.claims[c.Key], claim)
			fresh = append(fresh, i)
			decided[i].Claim = claim
			if from := s.balances[place{c.Sender, c.Debit().Currency}]; from != nil {
				decided[i].Balance = from.Available
			}
			continue
		}
		decided[i].Claim = claim
		// Without an attempt's id, a redelivery can't be distinguished from a second attempt.
		decided[i].Replay = c.AttemptID == "" || c.AttemptID != claim.AttemptID
	}
	return decided, fresh
}

// hold takes the funds from the balances, or returns the reason for a refusal.
func (s state) hold(p payment.Payment, id uuid.UUID, velocity uint32) payment.Reason {
	p.Deadline = payment.ClampDeadline(p.Deadline, s.now)
	parties := payment.Parties{Sender: s.accounts[p.Sender], Receiver: s.accounts[p.Receiver]}
	if reason := payment.Judge(p, parties, s.now); reason != "" {
		return reason
	}
	q := s.quotes[p.QuoteID]
	if p.QuoteID != "" {
		if reason := q.judge(p, s.now); reason != "" {
			return reason
		}
	}
	debit, credit := p.Debit(), p.Credit()
	from := s.balance(place{p.Sender, debit.Currency})
	after, reason := payment.Hold(from.Balance, debit.Minor, s.now)
	if reason != "" {
		return reason
	}
	// The payments that an account starts are counted in one place, whatever they are paid in. The
	// count is checked when the money is taken, so payments at the same time can't exceed the limit.
	// Risk only reads the count, so it would accept all of them.
	count := s.balance(place{p.Sender, money.IDR})
	minute, started := int32(s.now.Unix()/60), count.started
	if count.minute != minute {
		started = 0
	}
	if velocity > 0 && int64(started) >= int64(velocity) {
		return payment.RiskVelocity
	}
	if p.Exchanges() {
		liquidity := s.balance(place{payment.LiquidityAccount, credit.Currency})
		left, reason := payment.HoldLiquidity(liquidity.Balance, p.Exchange.MidMinor)
		if reason != "" {
			return reason
		}
		liquidity.Balance, liquidity.changed = left, true
		liquidity.taken += p.Exchange.MidMinor
	}
	from.Balance, from.changed = after, true
	from.taken += debit.Minor
	count.minute, count.started, count.changed = minute, started+1, true
	if q != nil {
		q.usedBy = id
	}
	return ""
}

// balance returns a balance; an empty one if the account has none in this currency.
func (s state) balance(at place) *balance {
	if b := s.balances[at]; b != nil {
		return b
	}
	return &balance{}
}

// write queues what was decided after what b has queued, and commits. It returns the balances that it
// makes.
func write(
	ctx context.Context, conn *pgxpool.Conn, b *pgx.Batch, calls []reserve, decided []Reserved, fresh []int, s state,
) (made []place, err error) {
	if len(fresh) > 0 {
		calls = s.withRefunds(calls)
		s.queueClaims(b, calls, decided, fresh)
		queueAuthorizations(b, calls, decided, fresh, s.now)
		s.parents.queueCounts(b)
		queueRefusals(b, calls, decided, fresh, s.now)
		made = s.missing(calls, decided, fresh)
		queueNewBalances(b, made)
		s.queueQuotes(b)
		s.queueMoves(b, calls, decided, fresh)
	}
	if len(fresh) == 0 {
		b.Queue(replicatedSQL) // nothing was written, so the commit would not wait for a standby
	}
	b.Queue("COMMIT")
	return made, conn.SendBatch(ctx, b).Close()
}

func (s state) queueClaims(b *pgx.Batch, calls []reserve, decided []Reserved, fresh []int) {
	now := s.now
	// Claims are inserted in the order of their keys, because two batches that claim the same two
	// keys must not wait for each other.
	slices.SortFunc(fresh, func(i, j int) int {
		return cmp.Or(cmp.Compare(calls[i].Key, calls[j].Key), cmp.Compare(calls[i].Client, calls[j].Client))
	})
	rows := make([]row, len(fresh))
	for at, i := range fresh {
		p, claim := calls[i].Payment, decided[i].Claim
		p.Deadline = p.HeldUntil(now)
		rows[at] = row{Record: payment.Record{
			Payment: p, Outcome: payment.Outcome{State: claim.Status}, Claimed: claim.Fingerprint, ReservedAt: now, TraceID: calls[i].trace,
		}, id: claim.ReservationID}
		if calls[i].refund != nil {
			rows[at].Note, rows[at].parent = calls[i].refund.Note, s.parents[calls[i].refund.Of()].id
		}
		if claim.Status != payment.Pending {
			rows[at].endedAt = now
		} else if p.Authorizes() {
			rows[at].AuthorizedMinor = p.Debit().Minor
		}
	}
	queueReservations(b, rows)
}

func queueRefusals(b *pgx.Batch, calls []reserve, decided []Reserved, fresh []int, now time.Time) {
	var ids []pgtype.UUID
	var keys, from, to, currencies, reasons []string
	var amounts []int64
	for _, i := range fresh {
		r, claim := calls[i].Payment, decided[i].Claim
		if claim.Status != payment.RolledBack {
			continue
		}
		ids = append(ids, pgUUID(claim.ReservationID))
		keys, from, to = append(keys, r.Key), append(from, r.Sender), append(to, r.Receiver)
		currencies, amounts = append(currencies, r.Currency.String()), append(amounts, r.AmountIDR)
		reasons = append(reasons, string(claim.Reason))
	}
	if len(ids) > 0 {
		insertRefused.queue(b, ids, keys, from, to, currencies, amounts, reasons, timestamp(now))
	}
}

// missing returns the balances that the payments are, or will be, paid into, and that are not there.
func (s state) missing(calls []reserve, decided []Reserved, fresh []int) (missing []place) {
	seen := map[place]bool{}
	for _, i := range fresh {
		if decided[i].Status == payment.RolledBack {
			continue
		}
		for _, leg := range calls[i].Legs() {
			if at := (place{leg.Account, leg.Currency}); s.balances[at] == nil && !seen[at] {
				seen[at] = true
				missing = append(missing, at)
			}
		}
	}
	return missing
}

// queueNewBalances makes balances.
func queueNewBalances(b *pgx.Batch, places []place) {
	if len(places) == 0 {
		return
	}
	var accounts, currencies []string
	for _, at := range places {
		accounts, currencies = append(accounts, at.account), append(currencies, at.currency.String())
	}
	addBalancesSQL.queue(b, accounts, currencies)
}
