package db

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/function"
	"pgw/shared/ledger"
)

func TestStatusHasTheSweepAndTheVerdict(t *testing.T) {
	w := newWorld(t)
	ask := func() *dbv1.StatusResponse {
		t.Helper()
		got, err := w.Status(t.Context(), &dbv1.StatusRequest{})
		if err != nil || !got.PostgresUp || got.PostgresSince == nil || got.PostgresProblem != "" || int(got.GetSchema()) != ledger.KnownSchema() {
			t.Fatalf("%v, %v", got, err)
		}
		return got
	}
	if got := ask(); got.LastSweep != nil || got.Verdict != nil {
		t.Errorf("a new ledger: %v", got)
	}
	w.open(100, "A", "B")
	w.mustReserve(pay("held", "A", "B", 70))
	if _, err := w.Sweep(t.Context(), &dbv1.SweepRequest{}); err != nil {
		t.Fatal(err)
	}
	since := timestamppb.New(time.Date(2026, 1, 31, 9, 30, 0, 0, time.UTC))
	verdict := &dbv1.Verdict{Verdict: "differs", Breaches: 2, Text: "the books differ", Since: since}
	if _, err := w.RecordVerdict(t.Context(), &dbv1.RecordVerdictRequest{Verdict: verdict}); err != nil {
		t.Fatal(err)
	}
	got := ask()
	if s := got.LastSweep; s.GetPending() != 1 || s.GetHeldIdr() != 70 || s.GetAt() == nil || s.GetOldestPendingAt() == nil {
		t.Errorf("the sweep: %v", s)
	}
	if v := got.Verdict; v.GetVerdict() != "differs" || v.GetBreaches() != 2 || v.GetText() != "the books differ" || v.GetAt() == nil || !proto.Equal(v.Since, since) {
		t.Errorf("the verdict: %v", v)
	}
	if _, err := w.RecordVerdict(t.Context(), &dbv1.RecordVerdictRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no verdict: %v", err)
	}
}

func TestLettersWithAnActionAreListed(t *testing.T) {
	w := newWorld(t)
	for _, at := range []struct {
		topic     string
		partition int32
		offset    int64
	}{{"parked", 0, 3}, {"parked", 0, 5}, {"parked", 0, 5}, {"parked", 1, 7}, {"parked", 2, 9}, {"other", 0, 6}} {
		_, err := w.RecordDeadLetterAction(t.Context(), &dbv1.RecordDeadLetterActionRequest{Action: &dbv1.DeadLetterAction{
			Topic: at.topic, Partition: at.partition, Offset: at.offset, Action: "REDRIVEN", Operator: "me",
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := w.ActedLetters(t.Context(), &dbv1.ActedLettersRequest{Topic: "parked", From: map[int32]int64{0: 4, 1: 0, 3: 0}})
	if err != nil || len(got.Acted) != 2 || fmt.Sprint(got.Acted[0].GetOffsets(), got.Acted[1].GetOffsets()) != "[5] [7]" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestActivityIsReported(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	got := w.mustReserve(pay("paid", "A", "B", 70))
	w.mustFinish(ledger.Finish{ReservationID: got.ReservationID})
	w.mustReserve(pay("poor", "A", "B", 70))
	from := time.Now().Add(-time.Minute).Truncate(time.Second)
	in := &dbv1.ActivityRequest{From: timestamppb.New(from), To: timestamppb.New(from.Add(2 * time.Hour)), Step: durationpb.New(time.Hour)}
	out, err := w.Activity(t.Context(), in)
	if err != nil || len(out.Buckets) != 2 || out.Reasons["insufficient_funds"] != 1 {
		t.Fatalf("%v, %v", out, err)
	}
	if b := out.Buckets[0]; b.Success != 1 || b.Failed != 1 || b.P50Ms == nil || b.P99Ms == nil || !b.At.AsTime().Equal(from) {
		t.Errorf("the first bucket: %v", b)
	}
	if b := out.Buckets[1]; b.Success != 0 || b.P50Ms != nil {
		t.Errorf("the second bucket: %v", b)
	}
	in.Step = durationpb.New(time.Millisecond)
	if _, err := w.Activity(t.Context(), in); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a step of a millisecond: %v", err)
	}
}

// logged is a log that can be read while it is written.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) lines() (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.text.String()), "\n")
}

// While Postgres is away, Status says so and since when, and does not wait for it. An outage with
// thousands of failed calls is two lines in the log: when it begins and when it ends.
func TestStatusAnswersWhilePostgresIsAway(t *testing.T) {
	wire, url := embeddedtest.NewWireTo(t, migrated.Postgres(t))
	var ahead atomic.Int64 // of the clock
	log := &logged{}
	cfg := Config{DatabaseURL: url, BatchMax: 64, BatchLanes: 2, QueueMax: 4096}
	d, err := open(cfg, function.Dependencies{
		Publisher: &published{}, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
		Log: slog.New(slog.NewTextHandler(log, nil)), Registry: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.ledger.Close(context.Background()) })
	until := func(what string, is func(*dbv1.StatusResponse) bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; {
			got, err := d.Status(t.Context(), &dbv1.StatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if is(got) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %v", what, got)
			}
		}
	}
	until("up", func(s *dbv1.StatusResponse) bool { return s.PostgresUp && s.Schema != nil })
	wire.Deafen(true)
	wire.Silence()
	until("away", func(s *dbv1.StatusResponse) bool { return !s.PostgresUp })
	got, err := d.Status(t.Context(), &dbv1.StatusRequest{})
	if err != nil || got.PostgresUp || !strings.Contains(got.PostgresProblem, "Postgres") || got.PostgresSince == nil || got.Schema != nil || got.LastSweep != nil {
		t.Errorf("while it is away: %v, %v", got, err)
	}
	for range 3 {
		if _, err := d.ledger.Balance(t.Context(), "A"); err == nil {
			t.Error("a balance was read")
		}
	}
	wire.Deafen(false)
	ahead.Store(int64(20 * time.Second))
	until("up again", func(s *dbv1.StatusResponse) bool { return s.PostgresUp && s.Schema != nil })
	lines := log.lines()
	if len(lines) != 2 || !strings.Contains(lines[0], `msg="Postgres could not be used"`) || !strings.Contains(lines[1], `msg="over: Postgres could not be used"`) {
		t.Errorf("%d lines:\n%s", len(lines), strings.Join(lines, "\n"))
	}
}
