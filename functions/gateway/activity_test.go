package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"pgw/functions/gateway/access"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/function"
	"pgw/shared/rpc"
)

func TestTheRangeOfAReport(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 30, 0, time.UTC)
	for text, want := range map[string]string{
		"":                          "11:00:00 12:00:30 1m0s 61",
		"from=2026-11-26T12:00:00Z": "12:00:00 12:00:30 1s 30",
		"from=2026-11-25T12:00:00Z": "12:00:00 12:00:30 15m0s 97",
		"to=2026-11-26T12:00:00%2B01:00&step=600": "10:00:00 11:00:00 10m0s 6",
		"step=7":         "11:00:30 12:00:30 7s 515",
		"from=yesterday": `from: "yesterday" is not a time of RFC 3339, such as 2026-01-31T09:30:00Z; + is written as %2B`,
		"from=1970-01-01T00:00:00Z&to=2400-01-01T00:00:00Z&step=3600": "step: makes 2562048 steps of the range; at most 2000",
		"from=2026-11-27T00:00:00Z":                                   "to: must be later than from",
		"step=0":                                                      "step: must be a whole number of seconds, at least 1",
		"step=1.5":                                                    "step: must be a whole number of seconds, at least 1",
		"step=1":                                                      "step: makes 3600 steps of the range; at most 2000",
	} {
		values, err := url.ParseQuery(text)
		if err != nil {
			t.Fatal(err)
		}
		q := &query{values: values}
		s := readSpan(q, now)
		got := ""
		for _, p := range q.wrong {
			got += p.Err.Error()
		}
		if q.wrong == nil {
			got = fmt.Sprint(s.from.Format(time.TimeOnly), " ", s.to.Format(time.TimeOnly), " ", s.step, " ", s.buckets())
		}
		if got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func reportAt(f *function.Port, query string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "http://localhost/api/reports/activity?"+query, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	f.Handler().ServeHTTP(w, r)
	return w
}

const anHour = "from=2026-11-26T11:00:00Z&to=2026-11-26T12:00:00Z&step=1800"

func TestActivityFromTheLedger(t *testing.T) {
	many := false
	n := &neighbours{answer: func(in, out proto.Message) error {
		asked, ok := in.(*dbv1.ActivityRequest)
		if !ok {
			return nil
		}
		if many {
			return status.Error(codes.FailedPrecondition, "the range has more than 5 payments")
		}
		if asked.Step.AsDuration() != 30*time.Minute || rpc.Time(asked.To).Sub(rpc.Time(asked.From)) != time.Hour {
			t.Errorf("db was asked %v", asked)
		}
		proto.Merge(out, &dbv1.ActivityResponse{
			Buckets: []*dbv1.ActivityBucket{
				{At: asked.From, Success: 3, Failed: 1, P50Ms: proto.Float64(1.5), P99Ms: proto.Float64(9)},
				{At: rpc.Timestamp(rpc.Time(asked.From).Add(30 * time.Minute)), Pending: 2},
			}, Reasons: map[string]int64{"insufficient_funds": 1},
		})
		return nil
	}}
	f := gatewayBeside(t, n, nil)
	const want = `{"from":"2026-11-26T11:00:00Z","to":"2026-11-26T12:00:00Z","step_seconds":1800,"buckets":[` +
		`{"at":"2026-11-26T11:00:00Z","success":3,"failed":1,"pending":0,"p50_ms":1.5,"p99_ms":9},` +
		`{"at":"2026-11-26T11:30:00Z","success":0,"failed":0,"pending":2}],"reasons":{"insufficient_funds":1},"source":"ledger"}`
	if w := reportAt(f, anHour); w.Code != http.StatusOK || strings.TrimSpace(w.Body.String()) != want {
		t.Errorf("%d %s\nwant\n%s", w.Code, w.Body, want)
	}
	many = true
	if w := reportAt(f, anHour); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "more than 5 payments") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// The numbers of Prometheus are of the step before their time, and not whole.
func TestActivityFromPrometheus(t *testing.T) {
	broken := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken {
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
		query := r.FormValue("query")
		if start := r.FormValue("start"); !strings.HasPrefix(start, "1795692600") || r.FormValue("step") != "1800" {
			t.Errorf("start %s, step %s", start, r.FormValue("step"))
		}
		series := `{"metric":{},"values":[[1795692600,"12.5"],[1795694400,"NaN"]]}`
		if strings.Contains(query, "pgw_payments_total") {
			series = `{"metric":{"status":"SUCCESS","reason":"committed"},"values":[[1795692600,"2.9"],[1795694400,"5.1"]]},
				{"metric":{"status":"FAILED","reason":"queue_timeout"},"values":[[1795694400,"1.2"]]},
				{"metric":{"status":"FAILED","reason":"commit_failed"},"values":[[1795694400,"0"]]}`
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"status":"success","data":{"resultType":"matrix","result":[%s]}}`, series)
	}))
	defer server.Close()
	s := newSystem(t, func(cfg *Config) { cfg.Prometheus = server.URL })
	const want = `{"from":"2026-11-26T11:00:00Z","to":"2026-11-26T12:00:00Z","step_seconds":1800,"buckets":[` +
		`{"at":"2026-11-26T11:00:00Z","success":3,"p50_ms":12.5,"p99_ms":12.5},` +
		`{"at":"2026-11-26T11:30:00Z","success":5,"failed":1}],"reasons":{"queue_timeout":1},"source":"prometheus"}`
	if w := reportAt(s.Port, anHour); w.Code != http.StatusOK || strings.TrimSpace(w.Body.String()) != want {
		t.Errorf("%d %s\nwant\n%s", w.Code, w.Body, want)
	}
	broken = true
	if w := reportAt(s.Port, anHour); w.Code != http.StatusBadGateway || !json.Valid(w.Body.Bytes()) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestActivityIsForOperators(t *testing.T) {
	key, line, err := access.NewKey("shop", "senders=SHOP")
	if err != nil {
		t.Fatal(err)
	}
	s := newSystem(t, func(cfg *Config) { cfg.Access = access.Config{Mode: access.Required, Keys: line} })
	if w := reportAt(s.Port, anHour, access.KeyHeader, key); w.Code != http.StatusForbidden {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestTheAddressOfPrometheusIsChecked(t *testing.T) {
	cfg := Config{Prometheus: "prometheus:9090"}
	if err := cfg.Keys.Decode("k:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="); err != nil {
		t.Fatal(err)
	}
	n := &neighbour{}
	_, err := Function.Make(cfg, function.Dependencies{Conns: map[string]grpc.ClientConnInterface{"fx": n, "wallet": n, "risk": n, "db": n}})
	if err == nil || !strings.Contains(err.Error(), "PROMETHEUS_URL") {
		t.Errorf("%v", err)
	}
}
