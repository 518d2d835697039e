// Package load is a client that makes many payments and compares the answers that it got with the
// ledger.
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

// NoAnswer is the reason of a request without an answer.
const NoAnswer payment.Reason = "no_answer"

// maxAnswer is the maximum size of an answer, in bytes.
const maxAnswer = 64 << 10

// Answer is the answer to one request.
type Answer struct {
	HTTP       int            `json:"-"`
	RetryAfter string         `json:"-"` // the header
	Status     payment.Status `json:"status"`
	Reason     payment.Reason `json:"reason"`
	Ref        string         `json:"ref"`
	Message    string         `json:"message"` // for a person
}

// Undecided reports whether the answer says nothing about the outcome of the payment.
func (a Answer) Undecided() bool {
	return slices.Contains([]payment.Reason{
		NoAnswer, payment.QueueTimeout, payment.QueuePublishError, payment.Overloaded,
		payment.FXUnavailable, payment.WalletUnavailable, payment.RiskUnavailable, payment.LedgerUnavailable,
	}, a.Reason)
}

// Payers returns the seeded accounts that can pay all day: they have a large balance and no daily
// limit.
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

// Post sends one payment to a gateway.
func Post(ctx context.Context, client *http.Client, gateway string, body []byte) Answer {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, gateway+"/api/payments", bytes.NewReader(body))
	if err != nil {
		return Answer{Reason: NoAnswer}
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return Answer{Reason: NoAnswer}
	}
	defer resp.Body.Close()
	out := Answer{}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil || json.Unmarshal(text, &out) != nil {
		return Answer{Reason: NoAnswer}
	}
	out.HTTP, out.RetryAfter = resp.StatusCode, resp.Header.Get("Retry-After")
	return out
}

// KeyedAnswer is the answer to a request with this key.
type KeyedAnswer struct {
	Key string
	Answer
}

// Verdict is the result of the comparison of answers with the ledger.
type Verdict struct {
	Ends      map[string]string // the state in the ledger by key, such as "COMMITTED committed" or "PENDING"
	Undecided int               // the number of answers without an outcome
	Wrong     []string          // answers that the ledger contradicts
}

// Kept is the ledger's state of a key.
type Kept struct {
	Ref    string
	Status payment.ReservationStatus
	Reason payment.Reason
}

// Judge compares answers with the ledger. All keys start with prefix.
func Judge(ctx context.Context, conn postgres.Querier, prefix string, answers []KeyedAnswer) (Verdict, error) {
	var v Verdict
	claims, err := ledger.ReadClaims(ctx, conn, prefix)
	if err != nil {
		return v, err
	}
	v.Ends = make(map[string]string, len(claims))
	kept := make(map[string]Kept, len(claims))
	for _, c := range claims {
		k := Kept{c.ReservationID.String(), c.Status, c.Reason}
		kept[c.Key] = k
		v.Ends[c.Key] = strings.TrimSpace(fmt.Sprintf("%s %s", k.Status, k.Reason))
	}
	successes := map[string]int{}
	for _, a := range answers {
		k, known := kept[a.Key]
		problem := a.Contradiction(k, known)
		if a.Status == payment.Success {
			if successes[a.Key]++; successes[a.Key] > 1 {
				problem = "SUCCESS was answered twice"
			}
		}
		if a.Undecided() {
			v.Undecided++
		}
		if problem != "" {
			v.Wrong = append(v.Wrong, fmt.Sprintf("%s: answered %d %s %s %s; ledger %+v: %s", a.Key, a.HTTP, a.Status, a.Reason, a.Ref, k, problem))
		}
	}
	return v, nil
}

// Contradiction describes how an answer differs from the ledger; "" means that they agree. known
// means that the ledger has the key.
func (a Answer) Contradiction(k Kept, known bool) string {
	switch {
	case a.Status == payment.Success, a.Status == payment.SuccessReplay:
		if !known || k.Status != payment.Committed || k.Ref != a.Ref {
			return "success was answered, but the ledger has not committed it"
		}
	case a.Undecided():
	case a.Status == payment.Failed && known:
		if k.Status != payment.RolledBack || k.Reason != a.Reason {
			return "failure was answered, but the ledger has another outcome"
		}
	case a.Status == payment.Failed && a.HTTP == http.StatusOK:
		return "failure was answered, but the ledger has not recorded it"
	case a.Status == payment.Failed: // not a payment
	default:
		return "not an answer of the contract"
	}
	return ""
}
