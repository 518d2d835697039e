package flow

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
)

// The answers are checked against openapi.yaml by the client.
func TestTheStateAndTheActivityOfTheSystem(t *testing.T) {
	s := start(t, options{})
	s.open(1_000_000, "A", "B")
	for n := range 3 {
		s.expect(s.pay(fmt.Sprintf("paid-%d", n), "A", "B", "IDR", 5000), "200 SUCCESS committed")
	}
	s.expect(s.pay("poor", "A", "B", "IDR", 5_000_000), "200 FAILED insufficient_funds")
	admin := dbv1.NewAdminClient(s.Conn("db"))
	if _, err := admin.Sweep(t.Context(), &dbv1.SweepRequest{}); err != nil {
		t.Fatal(err)
	}
	verdict := &dbv1.Verdict{Verdict: "agrees", Text: "The books agree."}
	if _, err := admin.RecordVerdict(t.Context(), &dbv1.RecordVerdictRequest{Verdict: verdict}); err != nil {
		t.Fatal(err)
	}

	type report struct {
		State        string
		Dependencies []struct{ Name, State string }
		Flow         []struct{ Lag *int64 }
		Ledger       *struct{ Pending *int64 }
		DeadLetters  *struct{ Waiting, Parked *int64 } `json:"dead_letters"`
		Reconcile    *struct{ Verdict string }
	}
	ask := func() (got report) {
		t.Helper()
		resp, text := client{s, ""}.do("GET", "/status", "")
		if err := json.Unmarshal([]byte(text), &got); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s %s: %v", resp.Status, text, err)
		}
		return got
	}
	s.eventually("a whole report", func() error {
		got := ask()
		if got.State != "ok" || len(got.Dependencies) != 6 || len(got.Flow) != 5 || got.Flow[0].Lag == nil || *got.Flow[0].Lag != 0 ||
			got.Ledger == nil || got.Ledger.Pending == nil || got.DeadLetters == nil || got.DeadLetters.Parked == nil || got.Reconcile == nil {
			text, _ := json.Marshal(got)
			return errors.New(string(text))
		}
		return nil
	})
	s.faults.set(func(f *faults) {
		f.rpc = func(string) error { return status.Error(codes.Unavailable, "away") }
	})
	s.eventually("a report without functions", func() error {
		if got := ask(); got.State != "down" || got.Ledger != nil {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	s.faults.set(func(f *faults) { f.rpc = nil })

	resp, text := client{s, ""}.do("GET", "/api/reports/activity", "")
	var activity struct {
		Buckets []struct{ Success, Failed int64 }
		Reasons map[string]int64
		Source  string
	}
	if err := json.Unmarshal([]byte(text), &activity); err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s %s: %v", resp.Status, text, err)
	}
	var success, failed int64
	for _, b := range activity.Buckets {
		success, failed = success+b.Success, failed+b.Failed
	}
	if success != 3 || failed != 1 || activity.Reasons["insufficient_funds"] != 1 || activity.Source != "ledger" {
		t.Errorf("%s", text)
	}
}
