package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// What operators read about Postgres is in pgw's own words, without names and values.
func TestProblemIsInOwnWords(t *testing.T) {
	const secret = "db-7.internal user=pgw_ledger"
	for text, err := range map[string]error{
		"starting":         &pgconn.PgError{Code: "57P03", Message: secret},
		"shut down":        &pgconn.PgError{Code: "57P01", Message: secret},
		"no connection":    fmt.Errorf("reserve: %w", &pgconn.PgError{Code: "53300", Message: secret}),
		"no disk":          &pgconn.PgError{Code: "53100", Message: secret},
		"the login":        &pgconn.PgError{Code: "28P01", Message: secret},
		"no such database": &pgconn.PgError{Code: "3D000", Message: secret},
		"lacks a right":    &pgconn.PgError{Code: "42501", Message: secret},
		"pgw migrate":      &pgconn.PgError{Code: "42P01", Message: secret},
		"standby":          &pgconn.PgError{Code: "25006", Message: secret},
		"SQLSTATE 40001":   &pgconn.PgError{Code: "40001", Message: secret},
		"can't be reached": fmt.Errorf("connect: %w", connectError(t)),
		"not answer":       fmt.Errorf("%s: %w", secret, context.DeadlineExceeded),
		"connection":       fmt.Errorf("%s: %w", secret, io.ErrUnexpectedEOF),
		"the log of db":    errors.New(secret),
	} {
		if got := Problem(err); !strings.Contains(got, text) || strings.Contains(got, "internal") || strings.Contains(got, "127.0.0.1") {
			t.Errorf("%v: %q; want %q", err, got, text)
		}
	}
	if got := Problem(nil); got != "" {
		t.Error(got)
	}
}

// connectError is the error of a port where nobody listens.
func connectError(t *testing.T) error {
	_, err := pgconn.Connect(t.Context(), "postgres://pgw@127.0.0.1:1/pgw")
	return err
}
