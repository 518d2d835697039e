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

	"pgw/seeds"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/postgres"
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
	Message    string         `json:"message"` // for a person
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
		if a.Status == payment.Active && a.DailyLimitIDR == 0 && a.BalanceIDR > 100_000_000 {
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

// Kept is what the ledger has of a key.
type Kept struct {
	Ref    string
	Status payment.ReservationStatus
	Reason payment.Reason
}

// Judge holds answers against the ledger. All keys begin with prefix.
func Judge(ctx context.Context, conn postgres.Querier, prefix string, answers []Answer) (Verdict, error) {
	var v Verdict
	claims, err := ledger.ReadClaims(ctx, conn, prefix)
	if err != nil {
		return v, err
	}
	v.Ends = make(map[string]string, len(claims))
	kept := make(map[string]Kept, len(claims))
	for key, c := range claims {
		k := Kept{c.ReservationID.String(), c.Status, c.Reason}
		kept[key] = k
		v.Ends[key] = strings.TrimSpace(fmt.Sprintf("%s %s", k.Status, k.Reason))
	}
	successes := map[string]int{}
	for _, a := range answers {
		k, known := kept[a.Key]
		problem := a.Contradiction(k, known)
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

// Contradiction says in what an answer and the ledger differ; empty when in nothing. known tells that the ledger has
// the key.
func (t Told) Contradiction(k Kept, known bool) string {
	switch {
	case t.Status == payment.Success, t.Status == payment.SuccessReplay:
		if !known || k.Status != payment.Committed || k.Ref != t.Ref {
			return "success was told, and the ledger has not committed it"
		}
	case t.Undecided():
	case t.Status == payment.Failed && known:
		if k.Status != payment.RolledBack || k.Reason != t.Reason {
			return "failure was told, and the ledger says otherwise"
		}
	case t.Status == payment.Failed && t.HTTP == http.StatusOK:
		return "failure was told, and the ledger has not recorded it"
	case t.Status == payment.Failed: // not a payment
	default:
		return "not an answer of the contract"
	}
	return ""
}
