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
	known, err := dbv1.NewDbClient(conns["db"]).Status(ctx, &dbv1.StatusRequest{})
	if err != nil {
		return err
	}
	was := known.GetVerdict()
	before := reconcile.Conclusion{Verdict: reconcile.Verdict(was.GetVerdict()), Asked: rpc.Time(was.GetSince())}
	if !replaces(before, v) {
		slog.WarnContext(ctx, "the ledger keeps the older verdict that the books differ: only a reconciliation that compares as much replaces it; "+
			"pgw reconcile without --since and --checkpoint compares everything",
			"verdict", v.Verdict, "compared_since", v.Asked, "differs_since", rpc.Time(was.GetAt()), "differs_compared_since", before.Asked)
		return nil
	}
	_, err = dbv1.NewAdminClient(conns["db"]).RecordVerdict(ctx, &dbv1.RecordVerdictRequest{Verdict: &dbv1.Verdict{
		Verdict: string(v.Verdict), Breaches: v.Breaches, Text: verdictText(v.Text), Since: rpc.Timestamp(keptSince(before, v)),
	}})
	return err
}

// replaces reports whether a verdict replaces the one before. That the books differ stays until a
// reconciliation that compares at least as much finds that they agree: the payment that differs may be
// older than a part that agrees.
func replaces(before, now reconcile.Conclusion) bool {
	return before.Verdict != reconcile.Differs || now.Verdict == reconcile.Differs ||
		now.Verdict == reconcile.Agrees && !now.Asked.After(before.Asked)
}

// keptSince is the start of the comparison that is kept with a verdict. While the books differ, it is the earliest, so that
// a part that differs too does not hide that an older payment does.
func keptSince(before, now reconcile.Conclusion) time.Time {
	if before.Verdict == reconcile.Differs && now.Verdict == reconcile.Differs && before.Asked.Before(now.Asked) {
		return before.Asked
	}
	return now.Asked
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
