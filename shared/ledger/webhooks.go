package ledger

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgw/shared/batch"
	"pgw/shared/postgres"
)

// Webhooks keeps the endpoints of clients, the events that they are told, and the deliveries. It has
// a pool of its own, whose login needs no rights on the books. Make it with OpenWebhooks; end it with
// Close.
type Webhooks struct {
	pool     *pgxpool.Pool
	adds     *batch.Batcher[newEvent, []Delivery]
	finishes *batch.Batcher[finished, bool]
}

// The bounds of batches of webhooks. With two lanes the batches are smaller, and cost more in all.
const (
	hooksAtOnce, hooksLanes, hooksWaiting = 64, 1, 4096
	hooksCloseWithin                      = 5 * time.Second
)

// OpenWebhooks opens the pool. It connects on first use. An error names DATABASE_URL.
func OpenWebhooks(cfg postgres.Config) (*Webhooks, error) {
	pool, err := postgres.Open(cfg)
	if err != nil {
		return nil, err
	}
	bounds := batch.Config{Max: hooksAtOnce, Lanes: hooksLanes, Queue: hooksWaiting}
	return &Webhooks{
		pool:     pool,
		adds:     batch.New(bounds, together(pool, newEvent.compare, newEvent.queue)),
		finishes: batch.New(bounds, together(pool, finished.compare, finished.queue)),
	}, nil
}

// Close serves the calls that wait, and closes the connections.
func (w *Webhooks) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), hooksCloseWithin)
	defer cancel()
	w.adds.Close(ctx)     // its error says that calls were cut off, which have heard so
	w.finishes.Close(ctx) // likewise
	w.pool.Close()
}

// Ready returns the reason why the tables can't be used.
func (w *Webhooks) Ready(ctx context.Context) error { return CheckSchema(ctx, w.pool, KnownSchema()) }

// EndpointStatus says whether an endpoint gets events.
type EndpointStatus string

// The statuses of an endpoint.
const (
	EndpointEnabled  EndpointStatus = "ENABLED"
	EndpointDisabled EndpointStatus = "DISABLED"
)

// The reasons for which an endpoint is disabled.
const (
	DisabledByClient = "by_client"
	DisabledGone     = "gone"    // it has answered 410
	DisabledFailing  = "failing" // every attempt has failed for too long
)

// DeliveryStatus is how far the delivery of an event to an endpoint is.
type DeliveryStatus string

// The statuses of a delivery.
const (
	DeliveryPending   DeliveryStatus = "PENDING"
	DeliveryDelivered DeliveryStatus = "DELIVERED"
	DeliveryFailed    DeliveryStatus = "FAILED"   // the last attempt of the schedule has failed
	DeliveryWithheld  DeliveryStatus = "WITHHELD" // the endpoint was disabled
)

// Endpoint is an address at which a client is told what became of its payments.
type Endpoint struct {
	ID           uuid.UUID
	Client       string
	URL          string
	Types        []string // the types of the events that it gets; empty: all
	Format       string
	Thin         bool
	Note         string
	Status       EndpointStatus
	Reason       string    // why it is disabled
	FailingSince time.Time // zero: its last attempt succeeded
	Created      time.Time
	Changed      time.Time
	Disabled     time.Time
	Secrets      []SealedSecret // the newest first
}

// SealedSecret is an encrypted secret of an endpoint.
type SealedSecret struct {
	ID      uuid.UUID
	Kind    string // v1 or v1a
	KeyID   string // the key that encrypts it
	Sealed  []byte
	Created time.Time
	Expires time.Time // zero: it is the current one
}

// WebhookEvent is what clients are told.
type WebhookEvent struct {
	ID       string // depends only on what happened
	Client   string
	Type     string
	Payment  string // its key; empty: the event is not about a payment
	Sequence int    // the event's place in the life of the payment; 0: after all others of it
	Data     string // JSON
	At       time.Time
}

// Delivery is an event that must be sent to an endpoint.
type Delivery struct {
	Endpoint uuid.UUID
	Event    WebhookEvent
	Tries    int // attempts since it was made or sent again
}

// Scope says whose endpoints a call is about.
type Scope struct {
	Client string
	All    bool // of all clients, for operators
}

// ErrNoEndpoint means that the scope has no endpoint, or no delivery, of the given id.
var ErrNoEndpoint = errors.New("there is no such endpoint or delivery")

// ErrManyEndpoints means that the client has as many endpoints as it may have.
var ErrManyEndpoints = errors.New("the client has too many endpoints")

const (
	endpointColumns = `endpoint_id, client, url, types, format, thin, note, status, reason, failing_since, created_at, changed_at, disabled_at`

	inScope = `($1 OR client = $2)`

	// statementClock is where an update takes the time from that uses it in a CASE: Citus allows
	// neither volatile functions in updates nor others than immutable ones in a CASE.
	statementClock = `(SELECT statement_timestamp() AS now) c`

	versionSQL = `SELECT coalesce(md5(string_agg(version::text, ',' ORDER BY endpoint_id)), '') FROM webhook_endpoints`

	endpointsSQL = `SELECT ` + endpointColumns + ` FROM webhook_endpoints WHERE ` + inScope + ` AND ($3::uuid IS NULL OR endpoint_id = $3)
ORDER BY client, created_at, endpoint_id LIMIT $4`

	secretsSQL = `
SELECT endpoint_id, secret_id, kind, key_id, sealed, created_at, expires_at FROM webhook_secrets
WHERE endpoint_id = ANY($1) AND (expires_at IS NULL OR expires_at > clock_timestamp()) ORDER BY created_at DESC, secret_id`

	lockEndpointsSQL = `SELECT pg_advisory_xact_lock(19, hashtext($1))`

	insertEndpointSQL = `
WITH has AS MATERIALIZED (SELECT count(*) AS endpoints FROM webhook_endpoints WHERE client = $2)
INSERT INTO webhook_endpoints (endpoint_id, client, url, types, format, thin, note, status)
SELECT $1, $2, $3, $4, $5, $6, $7, 'ENABLED' FROM has WHERE endpoints < $8
RETURNING 1`

	insertSecretSQL = `INSERT INTO webhook_secrets (secret_id, endpoint_id, kind, key_id, sealed) VALUES ($1, $2, $3, $4, $5)`

	changeEndpointSQL = `
UPDATE webhook_endpoints SET url = coalesce($4, url), types = coalesce($5, types), format = coalesce($6, format), thin = coalesce($7, thin),
	note = coalesce($8, note), status = coalesce($9, status),
	reason = CASE WHEN $9 = 'DISABLED' AND status <> 'DISABLED' THEN 'by_client' WHEN $9 = 'ENABLED' THEN '' ELSE reason END,
	disabled_at = CASE WHEN $9 = 'DISABLED' AND status <> 'DISABLED' THEN c.now WHEN $9 = 'ENABLED' THEN NULL ELSE disabled_at END,
	failing_since = CASE WHEN $9 = 'ENABLED' AND status <> 'ENABLED' THEN NULL ELSE failing_since END,
	version = $10, changed_at = c.now
FROM ` + statementClock + ` WHERE ` + inScope + ` AND endpoint_id = $3`

	touchSQL = `UPDATE webhook_endpoints SET version = $4, changed_at = statement_timestamp() WHERE ` + inScope + ` AND endpoint_id = $3`

	withholdSQL = `UPDATE webhook_deliveries SET status = 'WITHHELD', ended_at = statement_timestamp() WHERE endpoint_id = $1 AND status = 'PENDING'`

	deleteEndpointSQL = `DELETE FROM webhook_endpoints WHERE ` + inScope + ` AND endpoint_id = $3`

	// At most two secrets of a kind sign: the new one, and the one that was current until now.
	retireSQL = `
WITH old AS (DELETE FROM webhook_secrets WHERE endpoint_id = $1 AND kind = $2 AND expires_at IS NOT NULL)
UPDATE webhook_secrets SET expires_at = statement_timestamp() + $3::interval WHERE endpoint_id = $1 AND kind = $2 AND expires_at IS NULL`

	// insertEventSQL adds an event and its deliveries once. Endpoints get only what happened since
	// they were made, and nothing that is so old that its row may have been deleted: a replay of
	// Kafka's topics must not tell the past again. A delivery that the caller sends itself is due
	// again after the lease.
	insertEventSQL = `
WITH getting AS MATERIALIZED (
	SELECT n.endpoint_id, CASE WHEN n.status = 'ENABLED' THEN 'PENDING' ELSE 'WITHHELD' END AS status,
		clock_timestamp() + CASE WHEN n.endpoint_id = ANY($8) THEN $9::interval ELSE interval '0' END AS due_at,
		CASE WHEN n.status = 'ENABLED' THEN NULL ELSE clock_timestamp() END AS ended_at
	FROM webhook_endpoints n WHERE n.client = $2 AND n.created_at <= $7 AND (n.types = '{}' OR $3 = ANY(n.types))
		AND $7 > clock_timestamp() - $10::interval
), event AS (
	INSERT INTO webhook_events (event_id, client, type, payment_key, sequence, data, happened_at)
	SELECT $1, $2, $3, $4, $5, $6, $7 WHERE EXISTS (SELECT FROM getting)
	ON CONFLICT (event_id) DO NOTHING RETURNING event_id
)
INSERT INTO webhook_deliveries (endpoint_id, event_id, status, due_at, ended_at)
SELECT g.endpoint_id, e.event_id, g.status, g.due_at, g.ended_at FROM event e, getting g
RETURNING endpoint_id, status`

	lockTellingSQL  = `SELECT pg_advisory_xact_lock(20, hashtext($1 || ' ' || $2))`
	nextSequenceSQL = `SELECT coalesce(max(sequence), 0) FROM webhook_events WHERE client = $1 AND payment_key = $2`

	insertTestSQL = `
WITH getting AS MATERIALIZED (
	SELECT client FROM webhook_endpoints WHERE ` + inScope + ` AND endpoint_id = $3
), event AS (
	INSERT INTO webhook_events (event_id, client, type, data, happened_at) SELECT $4, client, $5, $6, $7 FROM getting RETURNING event_id
)
INSERT INTO webhook_deliveries (endpoint_id, event_id, status, due_at) SELECT $3, event_id, 'PENDING', clock_timestamp() FROM event
RETURNING 1`

	// dueSQL finds the endpoints with due deliveries. It steps through the index from one endpoint
	// to the next, so an endpoint with a million rows costs as much as one with one.
	dueSQL = `
WITH RECURSIVE waiting AS (
	(SELECT endpoint_id, due_at FROM webhook_deliveries WHERE status = 'PENDING' ORDER BY endpoint_id, due_at LIMIT 1)
	UNION ALL
	SELECT next.endpoint_id, next.due_at FROM waiting w CROSS JOIN LATERAL (
		SELECT d.endpoint_id, d.due_at FROM webhook_deliveries d WHERE d.status = 'PENDING' AND d.endpoint_id > w.endpoint_id
		ORDER BY d.endpoint_id, d.due_at LIMIT 1) next
)
SELECT endpoint_id FROM waiting WHERE due_at <= clock_timestamp()`

	// leaseSQL takes due deliveries, for each endpoint as many as can be sent to it now. Rows that
	// another replica takes at the same time are passed over.
	leaseSQL = `
WITH taken AS MATERIALIZED (
	SELECT d.endpoint_id, d.event_id FROM unnest($1::uuid[], $2::int[]) AS w(endpoint_id, n) CROSS JOIN LATERAL (
		SELECT endpoint_id, event_id FROM webhook_deliveries
		WHERE endpoint_id = w.endpoint_id AND status = 'PENDING' AND due_at <= clock_timestamp()
		ORDER BY due_at LIMIT w.n FOR UPDATE SKIP LOCKED) d
), leased AS (
	UPDATE webhook_deliveries d SET due_at = statement_timestamp() + $3::interval FROM taken t
	WHERE d.endpoint_id = t.endpoint_id AND d.event_id = t.event_id RETURNING d.endpoint_id, d.event_id, d.tries
)
SELECT l.endpoint_id, l.tries, e.event_id, e.client, e.type, e.payment_key, e.sequence, e.data, e.happened_at
FROM leased l JOIN webhook_events e USING (event_id)`

	releaseSQL = `UPDATE webhook_deliveries SET due_at = statement_timestamp() WHERE endpoint_id = $1 AND event_id = $2 AND status = 'PENDING'`

	// finishSQL records an attempt. Its commit does not wait for the disk: if the server crashes, the
	// delivery is due again and the endpoint gets the event twice, which at least once allows.
	// A failed attempt does not change a delivery that was delivered or withheld meanwhile.
	finishSQL = `
WITH moved AS (
	UPDATE webhook_deliveries SET attempts = attempts + 1,
		tries = CASE WHEN status = 'PENDING' THEN tries + 1 ELSE tries END,
		status = CASE WHEN $3 THEN 'DELIVERED' WHEN status = 'PENDING' AND $4::interval IS NULL THEN 'FAILED' ELSE status END,
		due_at = CASE WHEN status = 'PENDING' THEN next.due ELSE due_at END,
		ended_at = CASE WHEN $3 OR status = 'PENDING' AND $4::interval IS NULL THEN c.now ELSE ended_at END
	FROM ` + statementClock + `, (SELECT statement_timestamp() + coalesce($4::interval, interval '0') AS due) next
	WHERE endpoint_id = $1 AND event_id = $2 RETURNING attempts
), noted AS (
	INSERT INTO webhook_attempts (endpoint_id, event_id, number, at, code, result, micros, answer)
	SELECT $1, $2, attempts, $5, $6, $7, $8, $9 FROM moved
	RETURNING 1
), health AS (
	UPDATE webhook_endpoints SET failing_since = CASE WHEN $3 THEN NULL ELSE c.now END
	FROM ` + statementClock + ` WHERE endpoint_id = $1 AND (failing_since IS NULL) <> $3
)
SELECT set_config('synchronous_commit', 'off', true), failing_since IS NOT NULL AND failing_since < clock_timestamp() - $10::interval
FROM webhook_endpoints WHERE endpoint_id = $1`

	disableSQL = `
UPDATE webhook_endpoints SET status = 'DISABLED', reason = $2, disabled_at = statement_timestamp(), version = $3, changed_at = statement_timestamp()
WHERE endpoint_id = $1 AND status = 'ENABLED' RETURNING client, url, failing_since`

	deliveriesSQL = `
SELECT d.status, d.attempts, d.due_at, d.created_at, d.ended_at, e.event_id, e.client, e.type, e.payment_key, e.sequence, e.data, e.happened_at
FROM webhook_deliveries d JOIN webhook_events e USING (event_id) JOIN webhook_endpoints n USING (endpoint_id)
WHERE ($1 OR n.client = $2) AND d.endpoint_id = $3 AND ($4 = '' OR d.status = $4) AND ($5 = '' OR d.event_id = $5)
	AND ($6::timestamptz IS NULL OR (d.created_at, d.event_id) < ($6, $7))
ORDER BY d.created_at DESC, d.event_id DESC LIMIT $8`

	attemptsSQL = `
SELECT event_id, number, at, code, result, micros, answer FROM webhook_attempts
WHERE endpoint_id = $1 AND event_id = ANY($2) ORDER BY event_id, number`

	redeliverSQL = `
UPDATE webhook_deliveries d SET status = 'PENDING', tries = 0, due_at = statement_timestamp(), ended_at = NULL
FROM webhook_endpoints n
WHERE n.endpoint_id = d.endpoint_id AND n.status = 'ENABLED' AND ($1 OR n.client = $2) AND d.endpoint_id = $3
	AND ($4 = '' OR d.event_id = $4) AND ($5::timestamptz IS NULL OR d.created_at >= $5) AND ($6 OR d.status <> 'DELIVERED')`

	backlogSQL = `
SELECT (SELECT count(*) FROM (SELECT FROM webhook_deliveries WHERE status = 'PENDING' LIMIT 100001) p),
	(SELECT coalesce(extract(epoch FROM clock_timestamp() - min(due_at)), 0) FROM webhook_deliveries WHERE status = 'PENDING' AND due_at < clock_timestamp()),
	(SELECT count(*) FROM webhook_endpoints WHERE status = 'ENABLED'),
	(SELECT count(*) FROM webhook_endpoints WHERE failing_since IS NOT NULL AND status = 'ENABLED'),
	(SELECT count(*) FROM webhook_endpoints WHERE status = 'DISABLED')`

	tidySQL = `
DELETE FROM webhook_events WHERE event_id IN (
	SELECT event_id FROM webhook_events e WHERE created_at < clock_timestamp() - $1::interval
		AND NOT EXISTS (SELECT FROM webhook_deliveries d WHERE d.event_id = e.event_id AND d.status = 'PENDING')
	ORDER BY created_at LIMIT $2)`

	otherKeysSQL = `SELECT endpoint_id, secret_id, kind, key_id, sealed, created_at, expires_at FROM webhook_secrets WHERE key_id <> $1 LIMIT 100`
	resealSQL    = `UPDATE webhook_secrets SET key_id = $2, sealed = $3 WHERE secret_id = $1`
)

// timeOrZero reads a time that may be null.
func timeOrZero(t pgtype.Timestamptz) time.Time {
	if !t.Valid {
		return time.Time{}
	}
	return t.Time.UTC()
}

// Endpoints reads the endpoints of a scope with their secrets, sorted by client and age. id is
// uuid.Nil for all. most is the largest number of them; 0: there is no limit.
func (w *Webhooks) Endpoints(ctx context.Context, of Scope, id uuid.UUID, most int32) ([]Endpoint, error) {
	rows, err := w.pool.Query(ctx, endpointsSQL, of.All, of.Client, uuid.NullUUID{UUID: id, Valid: id != uuid.Nil}, pgtype.Int4{Int32: most, Valid: most > 0})
	if err != nil {
		return nil, fmt.Errorf("read endpoints: %w", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e Endpoint, err error) {
		var failing, created, changed, disabled pgtype.Timestamptz
		err = row.Scan(&e.ID, &e.Client, &e.URL, &e.Types, &e.Format, &e.Thin, &e.Note, &e.Status, &e.Reason, &failing, &created, &changed, &disabled)
		e.FailingSince, e.Created, e.Changed, e.Disabled = timeOrZero(failing), timeOrZero(created), timeOrZero(changed), timeOrZero(disabled)
		return e, err
	})
	if err != nil || len(found) == 0 {
		return nil, wrapped("read endpoints", err)
	}
	place, ids := map[uuid.UUID]int{}, make([]uuid.UUID, len(found))
	for i, e := range found {
		place[e.ID], ids[i] = i, e.ID
	}
	rows, err = w.pool.Query(ctx, secretsSQL, ids)
	if err != nil {
		return nil, fmt.Errorf("read secrets: %w", err)
	}
	var secret SealedSecret
	var endpoint uuid.UUID
	var created, expires pgtype.Timestamptz
	_, err = pgx.ForEachRow(rows, []any{&endpoint, &secret.ID, &secret.Kind, &secret.KeyID, &secret.Sealed, &created, &expires}, func() error {
		secret.Created, secret.Expires = timeOrZero(created), timeOrZero(expires)
		at := place[endpoint]
		found[at].Secrets = append(found[at].Secrets, secret)
		secret = SealedSecret{}
		return nil
	})
	return found, wrapped("read secrets", err)
}

func wrapped(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// Version returns a text that changes with every change of an endpoint or its secrets.
func (w *Webhooks) Version(ctx context.Context) (version string, err error) {
	err = w.pool.QueryRow(ctx, versionSQL).Scan(&version)
	return version, wrapped("read the endpoints' version", err)
}

// AddEndpoint adds an endpoint with its secrets, unless its client has most endpoints already. Then
// it returns ErrManyEndpoints.
func (w *Webhooks) AddEndpoint(ctx context.Context, e Endpoint, most int) error {
	err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockEndpointsSQL, e.Client); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, insertEndpointSQL, e.ID, e.Client, e.URL, orEmpty(e.Types), e.Format, e.Thin, e.Note, most)
		if err == nil && tag.RowsAffected() == 0 {
			err = ErrManyEndpoints
		}
		for _, s := range e.Secrets {
			if err == nil {
				_, err = tx.Exec(ctx, insertSecretSQL, s.ID, e.ID, s.Kind, s.KeyID, s.Sealed)
			}
		}
		return err
	})
	return wrapped("add an endpoint", err)
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// EndpointChange is what changes of an endpoint. Nil fields stay as they are.
type EndpointChange struct {
	URL    *string
	Types  *[]string
	Format *string
	Thin   *bool
	Note   *string
	Status *EndpointStatus
}

// ChangeEndpoint changes an endpoint. An endpoint that is disabled withholds what waits for it. It
// returns ErrNoEndpoint if the scope has none with the id.
func (w *Webhooks) ChangeEndpoint(ctx context.Context, of Scope, id uuid.UUID, c EndpointChange) error {
	var types any
	if c.Types != nil {
		types = orEmpty(*c.Types)
	}
	err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, changeEndpointSQL, of.All, of.Client, id, c.URL, types, c.Format, c.Thin, c.Note, c.Status, uuid.New())
		if err == nil && tag.RowsAffected() == 0 {
			err = ErrNoEndpoint
		}
		if err == nil && c.Status != nil && *c.Status == EndpointDisabled {
			_, err = tx.Exec(ctx, withholdSQL, id)
		}
		return err
	})
	return wrapped("change an endpoint", err)
}

// DeleteEndpoint deletes an endpoint with its deliveries. It returns ErrNoEndpoint if the scope has
// none with the id.
func (w *Webhooks) DeleteEndpoint(ctx context.Context, of Scope, id uuid.UUID) error {
	tag, err := w.pool.Exec(ctx, deleteEndpointSQL, of.All, of.Client, id)
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrNoEndpoint
	}
	return wrapped("delete an endpoint", err)
}

// RotateSecret adds a secret. The one of its kind that was current until now also signs for the time
// of overlap. It returns ErrNoEndpoint if the scope has no endpoint with the id.
func (w *Webhooks) RotateSecret(ctx context.Context, of Scope, id uuid.UUID, s SealedSecret, overlap time.Duration) error {
	err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, touchSQL, of.All, of.Client, id, uuid.New()) // also locks the endpoint
		if err == nil && tag.RowsAffected() == 0 {
			err = ErrNoEndpoint
		}
		if err == nil {
			_, err = tx.Exec(ctx, retireSQL, id, s.Kind, overlap)
		}
		if err == nil {
			_, err = tx.Exec(ctx, insertSecretSQL, s.ID, id, s.Kind, s.KeyID, s.Sealed)
		}
		return err
	})
	return wrapped("rotate a secret", err)
}

// Terms are the times of sending.
type Terms struct {
	Lease time.Duration // after which a delivery that somebody has taken is due again
	Keep  time.Duration // for how long events are kept
}

// AddEvent adds an event and a delivery for each endpoint of its client that wants it. If the event
// is known, or is older than all endpoints, AddEvent adds nothing. It returns the deliveries to send
// now: those to the endpoints of mine, which the caller has taken.
func (w *Webhooks) AddEvent(ctx context.Context, e WebhookEvent, mine []uuid.UUID, t Terms) (taken []Delivery, err error) {
	if e.Sequence > 0 || e.Payment == "" {
		taken, err = w.adds.Do(ctx, newEvent{e, mine, t})
		return taken, wrapped("add an event", err)
	}
	err = pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockTellingSQL, e.Client, e.Payment); err != nil {
			return err
		}
		var last int
		if err := tx.QueryRow(ctx, nextSequenceSQL, e.Client, e.Payment).Scan(&last); err != nil {
			return err
		}
		e.Sequence = max(last, SequenceDecided) + 1
		b := &pgx.Batch{}
		newEvent{e, mine, t}.queue(b, &taken)
		return tx.SendBatch(ctx, b).Close()
	})
	return taken, wrapped("add an event", err)
}

// newEvent is a call of AddEvent whose place is known.
type newEvent struct {
	WebhookEvent
	mine []uuid.UUID
	Terms
}

func (e newEvent) compare(other newEvent) int { return strings.Compare(e.ID, other.ID) }

func (e newEvent) queue(b *pgx.Batch, taken *[]Delivery) {
	b.Queue(insertEventSQL, e.ID, e.Client, e.Type, e.Payment, e.Sequence, e.Data, e.At, e.mine, e.Lease, e.Keep).Query(func(rows pgx.Rows) error {
		*taken = nil
		var id uuid.UUID
		var status DeliveryStatus
		_, err := pgx.ForEachRow(rows, []any{&id, &status}, func() error {
			if status == DeliveryPending && slices.Contains(e.mine, id) {
				*taken = append(*taken, Delivery{Endpoint: id, Event: e.WebhookEvent})
			}
			return nil
		})
		return err
	})
}

// The places of a payment's events: it is authorized, it is decided, and what follows takes the
// places behind.
const (
	SequenceAuthorized = 1
	SequenceDecided    = 2
)

// AddTest adds an event for one endpoint, whatever types it wants. It returns ErrNoEndpoint if the
// scope has none with the id.
func (w *Webhooks) AddTest(ctx context.Context, of Scope, id uuid.UUID, e WebhookEvent) error {
	tag, err := w.pool.Exec(ctx, insertTestSQL, of.All, of.Client, id, e.ID, e.Type, e.Data, e.At)
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrNoEndpoint
	}
	return wrapped("add a test event", err)
}

// Due returns the endpoints with due deliveries.
func (w *Webhooks) Due(ctx context.Context) ([]uuid.UUID, error) {
	rows, err := w.pool.Query(ctx, dueSQL)
	if err != nil {
		return nil, fmt.Errorf("find due deliveries: %w", err)
	}
	due, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	return due, wrapped("find due deliveries", err)
}

// Take takes up to most[i] due deliveries of endpoint i. They are due again after the lease.
func (w *Webhooks) Take(ctx context.Context, endpoints []uuid.UUID, most []int32, lease time.Duration) ([]Delivery, error) {
	rows, err := w.pool.Query(ctx, leaseSQL, endpoints, most, lease)
	if err != nil {
		return nil, fmt.Errorf("take due deliveries: %w", err)
	}
	taken, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d Delivery, err error) {
		e := &d.Event
		err = row.Scan(&d.Endpoint, &d.Tries, &e.ID, &e.Client, &e.Type, &e.Payment, &e.Sequence, &e.Data, &e.At)
		return d, err
	})
	return taken, wrapped("take due deliveries", err)
}

// Release makes a delivery that was taken and not sent due again.
func (w *Webhooks) Release(ctx context.Context, endpoint uuid.UUID, event string) error {
	_, err := w.pool.Exec(ctx, releaseSQL, endpoint, event)
	return wrapped("release a delivery", err)
}

// Attempt is what became of sending a delivery.
type Attempt struct {
	Endpoint  uuid.UUID
	Event     string
	Number    int // from 1; set by the ledger
	At        time.Time
	Code      int // the HTTP status; 0: there was no answer
	Result    string
	Delivered bool
	Took      time.Duration
	Answer    string // the first bytes of the answer, or what went wrong
	// Retry is the time until the next attempt; 0: there is none.
	Retry time.Duration
}

// Finish records an attempt. failing reports whether all attempts at the endpoint have failed for
// longer than tooLong.
func (w *Webhooks) Finish(ctx context.Context, a Attempt, tooLong time.Duration) (failing bool, err error) {
	failing, err = w.finishes.Do(ctx, finished{a, tooLong})
	return failing && !a.Delivered, wrapped("record an attempt", err)
}

// finished is a call of Finish.
type finished struct {
	Attempt
	tooLong time.Duration
}

func (f finished) compare(other finished) int {
	return cmp.Or(bytes.Compare(f.Endpoint[:], other.Endpoint[:]), strings.Compare(f.Event, other.Event))
}

func (f finished) queue(b *pgx.Batch, failing *bool) {
	retry := pgtype.Interval{Microseconds: f.Retry.Microseconds(), Valid: f.Retry > 0}
	b.Queue(finishSQL, f.Endpoint, f.Event, f.Delivered, retry, f.At, f.Code, f.Result, f.Took.Microseconds(), f.Answer, f.tooLong).QueryRow(func(row pgx.Row) error {
		var setting string
		err := row.Scan(&setting, failing)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil // the endpoint was deleted meanwhile
		}
		return err
	})
}

// Disable disables an endpoint that is enabled, and withholds what waits for it. In the same
// transaction it adds the event that notice makes of the endpoint, for the client's other endpoints.
func (w *Webhooks) Disable(ctx context.Context, id uuid.UUID, reason string, t Terms, notice func(Endpoint) WebhookEvent) (disabled bool, err error) {
	err = pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		e := Endpoint{ID: id, Reason: reason, Status: EndpointDisabled}
		var failing pgtype.Timestamptz
		err := tx.QueryRow(ctx, disableSQL, id, reason, uuid.New()).Scan(&e.Client, &e.URL, &failing)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		e.FailingSince, disabled = timeOrZero(failing), true
		if _, err = tx.Exec(ctx, withholdSQL, id); err != nil {
			return err
		}
		n := notice(e)
		_, err = tx.Exec(ctx, insertEventSQL, n.ID, n.Client, n.Type, n.Payment, n.Sequence, n.Data, n.At, []uuid.UUID{}, t.Lease, t.Keep)
		return err
	})
	return disabled && err == nil, wrapped("disable an endpoint", err)
}

// DeliveryRecord is a delivery as it is listed.
type DeliveryRecord struct {
	Delivery
	Status   DeliveryStatus
	Attempts []Attempt
	Due      time.Time // of a PENDING one: when it is sent next
	Created  time.Time
	Ended    time.Time
}

// DeliveryFilter selects deliveries of an endpoint, the newest first.
type DeliveryFilter struct {
	Status DeliveryStatus // empty: all
	Event  string         // empty: all
	// Only those older than this place; a zero time: from the newest.
	BeforeTime  time.Time
	BeforeEvent string
	Limit       int
}

// Deliveries lists the deliveries of an endpoint with their attempts.
func (w *Webhooks) Deliveries(ctx context.Context, of Scope, id uuid.UUID, f DeliveryFilter) ([]DeliveryRecord, error) {
	rows, err := w.pool.Query(ctx, deliveriesSQL, of.All, of.Client, id, f.Status, f.Event, timestamp(f.BeforeTime), f.BeforeEvent, f.Limit)
	if err != nil {
		return nil, fmt.Errorf("list deliveries: %w", err)
	}
	place, events := map[string]int{}, []string{}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d DeliveryRecord, err error) {
		var ended pgtype.Timestamptz
		e := &d.Event
		err = row.Scan(&d.Status, &d.Tries, &d.Due, &d.Created, &ended, &e.ID, &e.Client, &e.Type, &e.Payment, &e.Sequence, &e.Data, &e.At)
		d.Endpoint, d.Ended = id, timeOrZero(ended)
		place[e.ID] = len(events)
		events = append(events, e.ID)
		return d, err
	})
	if err != nil || len(found) == 0 {
		return nil, wrapped("list deliveries", err)
	}
	rows, err = w.pool.Query(ctx, attemptsSQL, id, events)
	if err != nil {
		return nil, fmt.Errorf("list attempts: %w", err)
	}
	a := Attempt{Endpoint: id}
	var micros int64
	_, err = pgx.ForEachRow(rows, []any{&a.Event, &a.Number, &a.At, &a.Code, &a.Result, &micros, &a.Answer}, func() error {
		a.Took = time.Duration(micros) * time.Microsecond
		d := &found[place[a.Event]]
		d.Attempts = append(d.Attempts, a)
		return nil
	})
	return found, wrapped("list attempts", err)
}

// Redelivery says which deliveries of an endpoint are sent again.
type Redelivery struct {
	Event     string    // only this one; empty: all
	Since     time.Time // only those that were made since; zero: all
	Delivered bool      // also those that were delivered
}

// Redeliver makes deliveries due again, from the beginning of the schedule. It returns how many. An
// endpoint that is disabled gets nothing.
func (w *Webhooks) Redeliver(ctx context.Context, of Scope, id uuid.UUID, r Redelivery) (int, error) {
	tag, err := w.pool.Exec(ctx, redeliverSQL, of.All, of.Client, id, r.Event, timestamp(r.Since), r.Delivered)
	return int(tag.RowsAffected()), wrapped("redeliver", err)
}

// Backlog is what waits, for operators.
type Backlog struct {
	Pending int64         // deliveries that wait, counted up to 100,001
	Behind  time.Duration // how long the oldest due one has waited
	// Endpoints that are enabled, those of them whose last attempt failed, and disabled ones.
	Enabled, Failing, Disabled int64
}

// Backlog reads what waits.
func (w *Webhooks) Backlog(ctx context.Context) (b Backlog, err error) {
	var behind float64
	err = w.pool.QueryRow(ctx, backlogSQL).Scan(&b.Pending, &behind, &b.Enabled, &b.Failing, &b.Disabled)
	b.Behind = time.Duration(behind * float64(time.Second))
	return b, wrapped("count what waits", err)
}

// Tidy deletes up to most events that are older than keep and wait for nobody.
func (w *Webhooks) Tidy(ctx context.Context, keep time.Duration, most int) (int, error) {
	tag, err := w.pool.Exec(ctx, tidySQL, keep, most)
	return int(tag.RowsAffected()), wrapped("delete old events", err)
}

// Reseal encrypts secrets anew that another key than the given one encrypts, up to a hundred of them.
// reseal returns the new bytes of a secret of an endpoint.
func (w *Webhooks) Reseal(ctx context.Context, key string, reseal func(endpoint uuid.UUID, s SealedSecret) ([]byte, error)) (int, error) {
	type owned struct {
		endpoint uuid.UUID
		SealedSecret
	}
	rows, err := w.pool.Query(ctx, otherKeysSQL, key)
	if err != nil {
		return 0, fmt.Errorf("read secrets of other keys: %w", err)
	}
	others, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (o owned, err error) {
		var created, expires pgtype.Timestamptz
		err = row.Scan(&o.endpoint, &o.ID, &o.Kind, &o.KeyID, &o.Sealed, &created, &expires)
		return o, err
	})
	if err != nil {
		return 0, fmt.Errorf("read secrets of other keys: %w", err)
	}
	for i, o := range others {
		sealed, err := reseal(o.endpoint, o.SealedSecret)
		if err == nil {
			_, err = w.pool.Exec(ctx, resealSQL, o.ID, key, sealed)
		}
		if err != nil {
			return i, fmt.Errorf("encrypt a secret anew: %w", err)
		}
	}
	return len(others), nil
}
