package gateway

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"

	prometheusapi "github.com/prometheus/client_golang/api"
	prometheusv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// The report of activity: payments over time, for charts. It comes from Prometheus if PROMETHEUS_URL
// is set, and else from the ledger, which counts a limited number of payments.

const (
	usualRange  = time.Hour
	mostBuckets = 2_000
	// countWithin is the time limit of a report.
	countWithin = 5 * time.Second
)

// usualSteps are the steps of a report that names none. The first one is used that makes at most
// usualBuckets of the range.
var usualSteps = []time.Duration{
	time.Second, 5 * time.Second, 15 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour,
}

const usualBuckets = 120

// source says where a report's numbers come from.
type source string

// The sources. The ledger counts payments by the time when it reserved them, with those that are still
// pending. Prometheus has the gateway's counts of answers, with those that never reached the ledger.
const (
	fromLedger     source = "ledger"
	fromPrometheus source = "prometheus"
)

// bucketJSON is one step of the range. A number that is not known is absent.
type bucketJSON struct {
	At      time.Time `json:"at"`
	Success *int64    `json:"success,omitempty"`
	Failed  *int64    `json:"failed,omitempty"`
	Pending *int64    `json:"pending,omitempty"`
	P50     *float64  `json:"p50_ms,omitempty"`
	P99     *float64  `json:"p99_ms,omitempty"`
}

type activityJSON struct {
	From    time.Time        `json:"from"`
	To      time.Time        `json:"to"`
	Step    int64            `json:"step_seconds"`
	Buckets []bucketJSON     `json:"buckets"`
	Reasons map[string]int64 `json:"reasons"` // of failed payments
	Source  source           `json:"source"`
}

// span is the range of a report.
type span struct {
	from, to time.Time
	step     time.Duration
}

// readSpan reads the range that a client asks for. Its start is rounded down to a whole step, so that
// the buckets of two reports are the same.
func readSpan(q *query, now time.Time) (s span) {
	wrong := func(field, problem string) { q.note(field, &payment.FieldError{Field: field, Problem: problem}) }
	s.from, s.to = q.time("from").UTC(), q.time("to").UTC()
	if !q.has("to") {
		s.to = now.UTC()
	}
	if !q.has("from") {
		s.from = s.to.Add(-usualRange)
	}
	length := s.to.Sub(s.from)
	if q.has("step") {
		n, err := strconv.ParseInt(q.text("step"), 10, 32)
		if err != nil || n < 1 {
			wrong("step", "must be a whole number of seconds, at least 1")
		}
		s.step = time.Duration(n) * time.Second
	} else {
		for _, s.step = range usualSteps {
			if length <= usualBuckets*s.step {
				break
			}
		}
	}
	switch {
	case q.wrong != nil:
		return s
	case length <= 0:
		wrong("to", "must be later than from")
		return s
	}
	s.from = s.from.Truncate(s.step)
	if n := s.buckets(); n > mostBuckets {
		wrong("step", fmt.Sprintf("makes %d steps of the range; at most %d", n, mostBuckets))
	}
	return s
}

// buckets is the number of steps. The last one may be shorter than the others.
func (s span) buckets() int { return int((s.to.Sub(s.from)-1)/s.step) + 1 }

// getActivity serves a report, for operators.
func (g *Gateway) getActivity(w http.ResponseWriter, r *http.Request) {
	if !isOperator(principal(r)) {
		writeProblem(w, http.StatusForbidden, "Not your payments", "The report is of all payments. Only a client that may send from all accounts can read it.")
		return
	}
	q := queryOf(r)
	s := readSpan(q, g.now())
	if q.wrong != nil {
		writeWrong(w, q.wrong)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), countWithin)
	defer cancel()
	if g.prometheus != nil {
		out, err := countByPrometheus(ctx, g.prometheus, s)
		if err != nil {
			g.counting.Note(r.Context(), err)
			writeProblem(w, http.StatusBadGateway, "Prometheus can't be asked now", "The report comes from PROMETHEUS_URL. Try again.")
			return
		}
		g.counting.Note(r.Context(), nil)
		writeJSON(w, http.StatusOK, out)
		return
	}
	got, err := g.db.Activity(ctx, &dbv1.ActivityRequest{From: rpc.Timestamp(s.from), To: rpc.Timestamp(s.to), Step: durationpb.New(s.step)})
	if status.Code(err) == codes.FailedPrecondition {
		writeProblem(w, http.StatusBadRequest, "Too many payments", status.Convert(err).Message())
		return
	}
	if err != nil {
		g.writeRefusal(w, r, "the ledger", err)
		return
	}
	writeJSON(w, http.StatusOK, activityOf(got, s))
}

func (s span) report(from source) activityJSON {
	return activityJSON{
		From: s.from, To: s.to, Step: int64(s.step / time.Second), Buckets: make([]bucketJSON, s.buckets()), Reasons: map[string]int64{}, Source: from,
	}
}

func activityOf(got *dbv1.ActivityResponse, s span) activityJSON {
	out := s.report(fromLedger)
	out.Buckets = out.Buckets[:0]
	for _, b := range got.Buckets {
		out.Buckets = append(out.Buckets, bucketJSON{rpc.Time(b.At), &b.Success, &b.Failed, &b.Pending, b.P50Ms, b.P99Ms})
	}
	for reason, n := range got.Reasons {
		out.Reasons[reason] = n
	}
	return out
}

// ranger is the part of Prometheus's API that a report needs.
type ranger interface {
	QueryRange(ctx context.Context, query string, r prometheusv1.Range, opts ...prometheusv1.Option) (model.Value, prometheusv1.Warnings, prometheusv1.Infos, error)
}

// openPrometheus returns nil if there is no Prometheus.
func openPrometheus(address string) (ranger, error) {
	if address == "" {
		return nil, nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("PROMETHEUS_URL: is not an http or https URL")
	}
	client, err := prometheusapi.NewClient(prometheusapi.Config{Address: address})
	if err != nil {
		return nil, errors.New("PROMETHEUS_URL: is not a URL")
	}
	return prometheusv1.NewAPI(client), nil
}

// The queries of a report. Each value is of the step that ends at its time.
const (
	answersQuery  = `sum by (status, reason) (increase(pgw_payments_total{status!="SUCCESS_REPLAY"}[%ds]))`
	quantileQuery = `histogram_quantile(%g, sum by (le) (increase(pgw_stage_seconds_bucket{stage="total"}[%ds]))) * 1000`
)

func countByPrometheus(ctx context.Context, by ranger, s span) (activityJSON, error) {
	out := s.report(fromPrometheus)
	ends := prometheusv1.Range{Start: s.from.Add(s.step), End: s.from.Add(time.Duration(s.buckets()) * s.step), Step: s.step}
	each := func(query string, take func(labels model.Metric, b *bucketJSON, value float64)) error {
		got, _, _, err := by.QueryRange(ctx, query, ends)
		if err != nil {
			return err
		}
		series, ok := got.(model.Matrix)
		if !ok {
			return fmt.Errorf("the answer of Prometheus is a %s", got.Type())
		}
		for _, one := range series {
			for _, v := range one.Values {
				i := int(v.Timestamp.Time().Sub(s.from)/s.step) - 1
				if value := float64(v.Value); i >= 0 && i < len(out.Buckets) && !math.IsNaN(value) && !math.IsInf(value, 0) {
					take(one.Metric, &out.Buckets[i], value)
				}
			}
		}
		return nil
	}
	for i := range out.Buckets {
		out.Buckets[i].At = s.from.Add(time.Duration(i) * s.step)
	}
	seconds := int64(s.step / time.Second)
	// An increase is not whole: Prometheus extrapolates it to the ends of the step.
	reasons := map[string]float64{}
	err := each(fmt.Sprintf(answersQuery, seconds), func(labels model.Metric, b *bucketJSON, value float64) {
		into := &b.Failed
		if labels["status"] == model.LabelValue(payment.Success) {
			into = &b.Success
		} else {
			reasons[string(labels["reason"])] += value
		}
		if *into == nil {
			*into = new(int64)
		}
		**into += int64(math.Round(value))
	})
	for _, q := range []struct {
		quantile float64
		into     func(*bucketJSON) **float64
	}{{0.5, func(b *bucketJSON) **float64 { return &b.P50 }}, {0.99, func(b *bucketJSON) **float64 { return &b.P99 }}} {
		if err == nil {
			err = each(fmt.Sprintf(quantileQuery, q.quantile, seconds), func(_ model.Metric, b *bucketJSON, value float64) {
				rounded := math.Round(value*1000) / 1000
				*q.into(b) = &rounded
			})
		}
	}
	for reason, n := range reasons {
		if n = math.Round(n); n > 0 {
			out.Reasons[reason] = int64(n)
		}
	}
	return out, err
}
