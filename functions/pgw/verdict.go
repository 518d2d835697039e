package main

import (
	"context"
	"log/slog"
	"strings"
	"time"
	"unicode"

	"pgw/functions/pgw/reconcile"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/function"
	"pgw/shared/rpc"
)

// notTold says that operators don't see a verdict at /status.
const notTold = "the verdict could not be kept in the ledger, so /status does not have it"

// teller gives the ledger the verdict of a reconciliation.
type teller func(ctx context.Context, r reconcile.Report, failed error, now time.Time) error

const (
	tellWithin = 10 * time.Second
	// maxVerdictText is the most bytes that the ledger keeps of a verdict's text.
	maxVerdictText = 2000
)

// recordVerdict has db keep a verdict, if DB_ADDR says where db is. The reconciliation itself needs only
// the right to read.
func recordVerdict(ctx context.Context, at function.Settings, security rpc.Security, v reconcile.Conclusion) error {
	if _, set := at.Lookup("DB_ADDR"); !set {
		slog.DebugContext(ctx, notTold, "reason", "DB_ADDR is not set")
		return nil
	}
	conns, err := dial(at, security, "db")
	if err != nil {
		return err
	}
	defer conns["db"].Close()
	ctx, cancel := context.WithTimeout(ctx, tellWithin)
	defer cancel()
	_, err = dbv1.NewAdminClient(conns["db"]).RecordVerdict(ctx, &dbv1.RecordVerdictRequest{Verdict: &dbv1.Verdict{
		Verdict: string(v.Verdict), Breaches: v.Breaches, Text: verdictText(v.Text),
	}})
	return err
}

// verdictText returns a text as the ledger keeps it: an error may have several lines, and be long.
func verdictText(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	return strings.ToValidUTF8(text[:min(len(text), maxVerdictText)], "")
}
