package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"pgw/shared/trace"
)

// Standby configures reads from a standby.
type Standby struct {
	URL      string        `envconfig:"READER_DATABASE_URL" desc:"URL of a standby to read from; reads go to DATABASE_URL while the standby is away or too far behind; empty: all reads go there"`
	MaxStale time.Duration `envconfig:"READER_MAX_STALENESS" default:"1s" desc:"how far a standby may be behind, so that it is read from"`
}

const (
	defaultMaxStale = time.Second
	leastMaxStale   = 100 * time.Millisecond
	// checksInBound is how often the standby is measured within MaxStale.
	checksInBound = 4
	// standbyWithin is the time limit of a short read at the standby. After it, the primary is asked.
	standbyWithin = 500 * time.Millisecond
)

// Readers read from a standby if there is one and it is not too far behind, and else from the primary.
// Make them with OpenReaders; end them with Close.
//
// A standby is as old as the newest state of the primary that it is known to have. So a loop asks the
// primary for its position in the WAL, and each connection to the standby asks for the position that
// the standby has replayed. No clock of a server is used, and an idle primary makes no standby stale.
type Readers struct {
	primary, standby *pgxpool.Pool // standby is nil if there is none
	maxStale         time.Duration
	outage           *trace.Outage // of the standby
	reads            *prometheus.CounterVec
	stop             context.CancelFunc
	stopped          chan struct{}

	mu     sync.Mutex
	marks  []mark    // of the primary, the oldest first
	least  time.Time // what is read must show at least the primary's state at this time
	shown  time.Time // the age of the standby, as it was measured last; zero: not known
	usable bool
	why    error // why the standby is not used
}

// mark is a position of the primary: everything that it showed at a time is before this.
type mark struct {
	lsn int64
	at  time.Time // when the position was asked for
}

// StandbyState is what is known of a standby.
type StandbyState struct {
	There bool          // one is configured
	Used  bool          // reads go to it
	Stale time.Duration // what it shows is at most this old; -1: not known
	Err   error         // why it is not used
}

// Queries is where a read runs: a pool or a connection.
type Queries interface {
	Querier
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}

// OpenReaders opens the pools. They connect on first use. An error names the variable of the URL.
func OpenReaders(cfg Config, from Standby, log *slog.Logger) (*Readers, error) {
	cfg.ReadOnly = true
	r := &Readers{maxStale: max(leastMaxStale, cmp.Or(from.MaxStale, defaultMaxStale)), stopped: make(chan struct{})}
	if from.URL != "" {
		cfg.MaxConns++ // for the loop
	}
	var err error
	if r.primary, err = Open(cfg); err != nil {
		return nil, err
	}
	if from.URL == "" {
		close(r.stopped)
		return r, nil
	}
	r.outage = trace.NewOutage(log, time.Now, "the standby is not used; reads go to the primary")
	at := cfg
	at.URL, at.Outage, at.Now = SchemaOf(r.primary.Config().ConnConfig).In(from.URL), nil, nil
	at.Pool = "standby"
	if cfg.Pool != "" {
		at.Pool = cfg.Pool + "_standby"
	}
	if r.standby, err = Open(at); err != nil {
		r.primary.Close()
		return nil, fmt.Errorf("READER_%w", err)
	}
	if cfg.Registerer != nil {
		r.measure(cfg.Registerer, at.Pool)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go r.run(ctx)
	return r, nil
}

func (r *Readers) measure(reg prometheus.Registerer, pool string) {
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"pool": pool}, reg)
	auto := promauto.With(reg)
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pgw_postgres_standby_staleness_seconds",
		Help: "What the standby shows is at most this old; -1 if that is not known. Reads go to the primary above READER_MAX_STALENESS.",
	}, func() float64 {
		if s := r.State(); s.Stale >= 0 {
			return s.Stale.Seconds()
		}
		return -1
	})
	r.reads = auto.NewCounterVec(prometheus.CounterOpts{
		Name: "pgw_postgres_standby_reads_total",
		Help: "Reads that may use the standby, by where they were answered.",
	}, []string{"from"})
	r.reads.WithLabelValues("standby")
	r.reads.WithLabelValues("primary")
}

// Close closes the connections.
func (r *Readers) Close() {
	if r.stop != nil {
		r.stop()
	}
	<-r.stopped
	if r.standby != nil {
		r.standby.Close()
	}
	r.primary.Close()
}

// Primary is the pool of the primary.
func (r *Readers) Primary() *pgxpool.Pool { return r.primary }

// ShowFrom makes all later reads show at least what the primary shows now.
func (r *Readers) ShowFrom(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.After(r.least) {
		r.least = now
	}
}

// State returns what is known of the standby.
func (r *Readers) State() StandbyState {
	if r.standby == nil {
		return StandbyState{Stale: -1}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := StandbyState{There: true, Stale: -1, Err: r.why}
	if !r.shown.IsZero() {
		s.Stale = time.Since(r.shown)
	}
	s.Used = r.usable && s.Stale >= 0 && s.Stale <= r.maxStale
	if !s.Used && s.Err == nil {
		s.Err = errBehind
	}
	return s
}

var (
	errBehind   = errors.New("the standby is too far behind the primary")
	errPromoted = errors.New("the server of READER_DATABASE_URL is no standby")
	errApart    = errors.New("the standby has more than the primary: it follows another server")
)

// StandbyProblem says in pgw's own words why a standby is not used.
func StandbyProblem(err error) string {
	if errors.Is(err, errBehind) || errors.Is(err, errPromoted) || errors.Is(err, errApart) {
		return err.Error()
	}
	return Problem(err)
}

// Read runs a read at the standby, or at the primary if the standby can't answer, or is too far behind.
// behind says that the standby has answered, for callers that must know. A read at the standby has the
// time limit within, 0 means 500 ms. After it, read runs again at the primary.
func (r *Readers) Read(ctx context.Context, within time.Duration, read func(context.Context, Queries) error) (behind bool, err error) {
	if r.standby != nil {
		err := r.atStandby(ctx, cmp.Or(within, standbyWithin), read)
		if err == nil {
			r.count("standby")
			return true, nil
		}
		if ctx.Err() != nil {
			return false, err
		}
		r.count("primary")
	}
	return false, read(ctx, r.primary)
}

func (r *Readers) count(from string) {
	if r.reads != nil {
		r.reads.WithLabelValues(from).Inc()
	}
}

func (r *Readers) atStandby(ctx context.Context, within time.Duration, read func(context.Context, Queries) error) error {
	r.mu.Lock()
	usable := r.usable
	r.mu.Unlock()
	if !usable {
		return errBehind
	}
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := r.onConnection(limited, read)
	if err != nil && ctx.Err() == nil && (away(err) || limited.Err() != nil) {
		r.mu.Lock()
		r.usable, r.why = false, err // until the loop finds that it answers
		r.mu.Unlock()
	}
	return err
}

func (r *Readers) onConnection(ctx context.Context, read func(context.Context, Queries) error) error {
	conn, err := r.standby.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	shows, err := r.shows(ctx, conn)
	if err != nil {
		return err
	}
	if err := r.fresh(shows); err != nil {
		return err
	}
	if err := read(ctx, conn); err != nil {
		return err
	}
	return r.fresh(shows) // the read may have taken long
}

func (r *Readers) fresh(shows time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if shows.IsZero() || time.Since(shows) > r.maxStale || shows.Before(r.least) {
		return errBehind
	}
	return nil
}

// showsKey is where a connection keeps the result of shows. Connections of one URL may lead to different
// standbys.
const showsKey = "pgw shows"

// shows returns the time of the newest state of the primary that a connection to the standby shows, or a
// later one. It asks the standby only if what it knows is too old.
func (r *Readers) shows(ctx context.Context, conn *pgxpool.Conn) (time.Time, error) {
	kept := conn.Conn().PgConn().CustomData()
	if at, ok := kept[showsKey].(time.Time); ok && time.Since(at) <= r.maxStale/2 {
		r.mu.Lock()
		least := r.least
		r.mu.Unlock()
		if !at.Before(least) {
			return at, nil
		}
	}
	replayed, err := replayed(ctx, conn)
	if err != nil {
		return time.Time{}, err
	}
	at := r.newest(replayed)
	kept[showsKey] = at
	return at, nil
}

// newest returns the time of the newest mark that a standby has replayed.
func (r *Readers) newest(replayed int64) (at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.marks {
		if m.lsn <= replayed {
			at = m.at
		}
	}
	return at
}

func replayed(ctx context.Context, q Querier) (int64, error) {
	var lsn *int64
	err := q.QueryRow(ctx, `SELECT CASE WHEN pg_is_in_recovery() THEN (pg_last_wal_replay_lsn() - '0/0')::bigint END`).Scan(&lsn)
	if err == nil && lsn == nil {
		err = errPromoted
	}
	if err != nil {
		return 0, err
	}
	return *lsn, nil
}

// run measures the standby until ctx ends.
func (r *Readers) run(ctx context.Context) {
	defer close(r.stopped)
	tick := time.NewTicker(r.maxStale / checksInBound)
	defer tick.Stop()
	for {
		r.check(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// check asks the standby, and then the primary. What the primary shows is only a mark for later checks.
// Everything that a standby of this primary has is before the mark.
func (r *Readers) check(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, max(standbyWithin, r.maxStale))
	defer cancel()
	has, err := replayed(limited, r.standby)
	// The primary is asked in any case. That it can't be reached is not the standby's fault.
	limitedToo, cancelToo := context.WithTimeout(ctx, max(standbyWithin, r.maxStale))
	defer cancelToo()
	next := mark{at: time.Now()}
	asked := r.primary.QueryRow(limitedToo, `SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint`).Scan(&next.lsn)
	if ctx.Err() != nil {
		return
	}
	if err == nil && asked == nil && has > next.lsn {
		err = errApart
	}
	var shows time.Time
	if err == nil {
		shows = r.newest(has)
	}
	r.mu.Lock()
	if asked == nil {
		old := 0
		for old < len(r.marks) && time.Since(r.marks[old].at) > 2*r.maxStale {
			old++
		}
		r.marks = append(r.marks[old:], next)
	}
	r.usable, r.why = err == nil, err
	switch {
	case errors.Is(err, errApart), errors.Is(err, errPromoted):
		r.shown = time.Time{}
	case shows.After(r.shown): // what it has once shown it still has
		r.shown = shows
	}
	shows = r.shown
	r.mu.Unlock()
	if err == nil && asked == nil && !shows.IsZero() && time.Since(shows) > r.maxStale {
		err = errBehind
	}
	if err == nil && shows.IsZero() {
		return // it has not been measured yet
	}
	r.outage.Note(ctx, err)
}
