package postgres

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// The first two characters of SQLSTATEs, and whole ones, that Problem knows.
const (
	invalidAuthorization  = "28"
	insufficientResources = "53"
	undefinedDatabase     = "3D000"
	insufficientPrivilege = "42501"
	readOnly              = "25006"
	startingUp            = "57P03"
)

// Problem says in pgw's own words why Postgres could not be used. The server's own text, which may
// name hosts, logins and values, is for the log.
func Problem(err error) string {
	var connecting *pgconn.ConnectError
	var schema *SchemaError
	switch state := sqlState(err); {
	case err == nil:
		return ""
	case state == startingUp:
		return "Postgres is starting or recovering"
	case strings.HasPrefix(state, operatorIntervention):
		return "Postgres ends connections: it is shut down, or an administrator has ended them"
	case state == tooManyConnections:
		return "Postgres has no connection free"
	case strings.HasPrefix(state, insufficientResources):
		return "Postgres has no memory or no disk left"
	case strings.HasPrefix(state, invalidAuthorization):
		return "Postgres refuses the login of DATABASE_URL"
	case state == undefinedDatabase:
		return "there is no such database as DATABASE_URL names"
	case state == insufficientPrivilege:
		return "the login of DATABASE_URL lacks a right"
	case state == undefinedTable:
		return "the schema is not there: run pgw migrate"
	case state == readOnly:
		return "Postgres takes no writes: it is a standby"
	case state != "":
		return "Postgres refuses a statement, with the SQLSTATE " + state
	case errors.As(err, &schema):
		return "the login has another schema than LEDGER_SCHEMA"
	case errors.As(err, &connecting):
		return "Postgres can't be reached"
	case errors.Is(err, context.DeadlineExceeded):
		return "Postgres does not answer in time"
	case away(err):
		return "the connection to Postgres has failed"
	}
	return "Postgres can't be used; the log of db says why"
}
