// Package load is a client that pays a lot and believes nothing: what it was told is held against the ledger.
package load

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"pgw/seeds"
	"pgw/shared/payment"
)

// NoAnswer is what a request heard when nobody was there.
const NoAnswer payment.Reason = "no_answer"

// maxAnswer bounds an answer, in bytes.
const maxAnswer = 64 << 10

// Told is what one request heard.
type Told struct {
	HTTP       int            `json:"-"`
	RetryAfter string         `json:"-"` // the header
	Status     payment.Status `json:"status"`
	Reason     payment.Reason `json:"reason"`
	Ref        string         `json:"ref"`
}

// Undecided tells that the answer claims nothing about the payment.
func (t Told) Undecided() bool {
	return slices.Contains([]payment.Reason{
		NoAnswer, payment.QueueTimeout, payment.QueuePublishError, payment.Overloaded,
		payment.FXUnavailable, payment.WalletUnavailable, payment.RiskUnavailable, payment.LedgerUnavailable,
	}, t.Reason)
}

// Payers are the seeded accounts that can pay all day: rich, and without a limit.
func Payers() ([]string, error) {
	accounts, err := seeds.Accounts()
	if err != nil {
		return nil, err
	}
	var payers []string
	for _, a := range accounts {
		if a.Status == "ACTIVE" && a.DailyLimitIDR == 0 && a.BalanceIDR > 100_000_000 {
			payers = append(payers, a.ID)
		}
	}
	return payers, nil
}

// Post asks a gateway for one payment.
func Post(ctx context.Context, client *http.Client, gateway string, body []byte) Told {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, gateway+"/api/payments", bytes.NewReader(body))
	if err != nil {
		return Told{Reason: NoAnswer}
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return Told{Reason: NoAnswer}
	}
	defer resp.Body.Close()
	out := Told{}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil || json.Unmarshal(text, &out) != nil {
		return Told{Reason: NoAnswer}
	}
	out.HTTP, out.RetryAfter = resp.StatusCode, resp.Header.Get("Retry-After")
	return out
}

// Answer is what a request of a key heard.
type Answer struct {
	Key string
	Told
}

// Verdict is how answers stand against the ledger.
type Verdict struct {
	Ends      map[string]string // by key: how the ledger has it, such as "COMMITTED committed" or "PENDING"
	Undecided int               // answers that claim nothing
	Wrong     []string          // answers that the ledger contradicts
}

// kept is what the ledger has of a key.
type kept struct {
	ref    string
	status payment.ReservationStatus
	reason payment.Reason
}

// Judge holds answers against the ledger. All keys begin with prefix.
func Judge(ctx context.Context, conn *pgx.Conn, prefix string, answers []Answer) (Verdict, error) {
	var v Verdict
	rows, err := conn.Query(ctx, `
SELECT r.idempotency_key, r.reservation_id::text, r.status, coalesce(p.reason, '')
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id WHERE starts_with(r.idempotency_key, $1)`, prefix)
	if err != nil {
		return v, err
	}
	ledger := map[string]kept{}
	var key string
	var k kept
	if _, err := pgx.ForEachRow(rows, []any{&key, &k.ref, &k.status, &k.reason}, func() error { ledger[key] = k; return nil }); err != nil {
		return v, err
	}
	v.Ends = make(map[string]string, len(ledger))
	for key, k := range ledger {
		v.Ends[key] = strings.TrimSpace(fmt.Sprintf("%s %s", k.status, k.reason))
	}
	successes := map[string]int{}
	for _, a := range answers {
		k, known := ledger[a.Key]
		problem := contradiction(a.Told, k, known)
		if a.Status == payment.Success {
			if successes[a.Key]++; successes[a.Key] > 1 {
				problem = "SUCCESS was told twice"
			}
		}
		if a.Undecided() {
			v.Undecided++
		}
		if problem != "" {
			v.Wrong = append(v.Wrong, fmt.Sprintf("%s: told %d %s %s %s; ledger %+v: %s", a.Key, a.HTTP, a.Status, a.Reason, a.Ref, k, problem))
		}
	}
	return v, nil
}

// contradiction says in what an answer and the ledger differ.
func contradiction(a Told, k kept, known bool) string {
	switch {
	case a.Status == payment.Success, a.Status == payment.SuccessReplay:
		if !known || k.status != payment.Committed || k.ref != a.Ref {
			return "success was told, and the ledger has not committed it"
		}
	case a.Undecided():
	case a.Status == payment.Failed && a.HTTP == http.StatusOK:
		if !known || k.status != payment.RolledBack || k.reason != a.Reason {
			return "failure was told, and the ledger says otherwise"
		}
	case a.Status == payment.Failed:
		if known && k.status != payment.RolledBack {
			return "failure was told, and the ledger says otherwise"
		}
	default:
		return "not an answer of the contract"
	}
	return ""
}
