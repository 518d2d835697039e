package postgres

import (
	"bytes"
	"errors"
	"io"

	"github.com/jackc/pgx/v5/pgproto3"
)

// With synchronous replication, a commit waits until a standby has it. When somebody cancels this wait
// or stops the server, Postgres reports success with a warning, although no standby may have what was
// committed. If this server is lost then, the transaction is lost too. Such a success must not be
// told: it is unknown whether the transaction takes effect.

// ReplicatedSQL is a SQL condition that is always true. It belongs into every statement that reads an
// outcome which is then told. A server shows rows that no standby may have if their wait was
// cancelled, as pgx does when it gives up a connection, or if the server was started again. They are
// lost if the server is. Where standbys are synchronous, a transaction with this condition writes an
// empty message, so its commit waits until a standby has everything that its statement could see.
// Elsewhere nothing is written. A standby can't write, and shows only what it has.
const ReplicatedSQL = `(SELECT count(pg_logical_emit_message(true, 'pgw', '')) FROM (SELECT) once
	WHERE current_setting('synchronous_standby_names') <> '' AND NOT pg_is_in_recovery()) >= 0`

// errNotReplicated is the error of a commit whose wait for a standby was cancelled. The connection is
// closed, as after any other loss of an answer.
var errNotReplicated = errors.New("the server has committed, and a standby may not have it: its wait for one was cancelled")

// notReplicated is the end of that warning's message: its last field is the server's routine, which no
// setting translates, between the zero bytes of the field before it and of the message's end. A row of
// text has no zero bytes, so it is never taken for this.
var notReplicated = []byte("\x00RSyncRepWaitForLSN\x00\x00")

// newFrontend makes the reader of a server's messages. It fails at the warning, before the success that
// follows it.
func newFrontend(r io.Reader, w io.Writer) *pgproto3.Frontend {
	return pgproto3.NewFrontend(&replicated{Reader: r}, w)
}

// replicated is the stream of a server's messages up to the warning.
type replicated struct {
	io.Reader
	before []byte // the end of what was read so far; a warning may come in two parts
	failed bool
}

// Read implements io.Reader.
func (r *replicated) Read(p []byte) (int, error) {
	if r.failed {
		return 0, errNotReplicated
	}
	n, err := r.Reader.Read(p)
	keep := len(notReplicated) - 1
	seam := append(r.before, p[:min(n, keep)]...)
	if bytes.Contains(p[:n], notReplicated) || bytes.Contains(seam, notReplicated) {
		r.failed = true
		return 0, errNotReplicated
	}
	last := p[:n]
	if n < keep {
		last = seam
	}
	r.before = append(r.before[:0], last[max(0, len(last)-keep):]...)
	return n, err
}
