package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"pgw/functions/gateway/access"
	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
	"pgw/shared/trace"
)

const paymentRef = "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10"

// shop is a gateway with a ledger of some payments, whose operations are decided by a function.
type shop struct {
	agreeable
	*function.Port
	t        *testing.T
	keys     event.Keyring
	payments []payment.Record
	refunds  []payment.Record
	decide   func(event.OperationRequested) (event.OperationResult, error) // an error: of publishing
	fxErr    error
	findErr  error
	log      bytes.Buffer

	mu    sync.Mutex
	asked []event.OperationRequested
}

// settledInDollars is a payment of USD 10.00 for SGD 13.39 from A to B.
func settledInDollars() payment.Record {
	usd, _ := money.ParseCurrency("USD")
	sgd, _ := money.ParseCurrency("SGD")
	rate, _ := money.ParseRate("1.339")
	mid, _ := money.ParseRate("1.34")
	return payment.Record{
		Payment: payment.Payment{
			Key: "p-1", Sender: "A", Receiver: "B", Currency: usd, Minor: 1000, DebitCurrency: usd, CreditCurrency: sgd, AmountIDR: 155_000,
			DebitMinor: 1000, CreditMinor: 1339, Exchange: payment.Exchange{
				Rate: rate, MidRate: mid, MidMinor: 1340, Remainder: "0",
				Steps: []payment.Step{{From: usd, To: sgd, RateID: "r", Rate: rate, MidRate: mid}},
			},
		},
		Outcome: payment.Standing(payment.Committed, payment.ReasonCommitted, paymentRef, false),
		Claimed: payment.Fingerprint{1},
	}
}

func (s *shop) Invoke(ctx context.Context, method string, in, out any, opts ...grpc.CallOption) error {
	switch out := out.(type) {
	case *commonv1.Record:
		in := in.(*dbv1.FindRequest)
		if s.findErr != nil {
			return s.findErr
		}
		for _, rec := range s.payments {
			if (rec.Key == in.IdempotencyKey || rec.Ref == in.IdempotencyKey) && (in.AnyClient || rec.Client == in.Client) {
				proto.Merge(out, rpc.FromRecord(rec))
				return nil
			}
		}
		return status.Error(codes.NotFound, "no such payment")
	case *dbv1.ListRefundsResponse:
		for _, rec := range s.refunds {
			out.Refunds = append(out.Refunds, rpc.FromRecord(rec))
		}
		return nil
	case *fxv1.QuoteResponse:
		if s.fxErr != nil {
			return s.fxErr
		}
		asked := in.(*fxv1.QuoteRequest)
		if asked.DebitCurrency != "SGD" || asked.CreditCurrency != "USD" || asked.FixedCurrency != "USD" || asked.AmountMinor != 1000 {
			s.t.Errorf("fx was asked for %v", asked)
		}
		proto.Merge(out, &fxv1.QuoteResponse{
			DebitMinor: 1350, CreditMinor: 1000, AmountIdr: 155_000, Rate: "0.74", RateId: "r2",
			Exchange: &commonv1.Exchange{Rate: "0.74", MidRate: "0.745", MidMinor: 1005, Remainder: "0", Steps: []*commonv1.Step{
				{FromCurrency: "SGD", ToCurrency: "USD", RateId: "r2", Rate: "0.74", MidRate: "0.745"},
			}},
		})
		return nil
	}
	return s.agreeable.Invoke(ctx, method, in, out, opts...)
}

// Publish takes a request, and delivers its result as KafkaSource would.
func (s *shop) Publish(ctx context.Context, topic, key string, e cloudevents.Event) error {
	request, err := event.ReadOperation(e, &s.keys)
	if err != nil || topic != "requests" || key != request.Payment {
		s.t.Errorf("published %s to %s with the key %s: %v", e, topic, key, err)
		return err
	}
	s.mu.Lock()
	s.asked = append(s.asked, request)
	s.mu.Unlock()
	result, err := s.decide(request)
	if err != nil {
		return err
	}
	result.Kind, result.Key, result.Client = request.Kind, request.Key, request.Client
	result.Payment, result.PaymentClient = request.Payment, request.PaymentClient
	result.Fingerprint, result.ReplyTo = request.Fingerprint(), request.ReplyTo
	if result.AttemptID == "" {
		result.AttemptID = request.AttemptID
	}
	back := event.Outbox{Source: "/pgw/worker", Keys: &s.keys, To: delivery{s}, Now: time.Now}
	return back.OperationResult(ctx, "results", result)
}

type delivery struct{ *shop }

func (d delivery) Publish(ctx context.Context, _, _ string, e cloudevents.Event) error {
	r, err := cehttp.NewHTTPRequestFromEvent(ctx, "http://127.0.0.1/events", e)
	if err != nil {
		return err
	}
	w := httptest.NewRecorder()
	d.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusAccepted {
		d.t.Errorf("a result was answered %d %s", w.Code, w.Body)
	}
	return nil
}

func newShop(t *testing.T, payments ...payment.Record) *shop {
	t.Helper()
	return newShopFor(t, access.Config{}, payments...)
}

func newShopFor(t *testing.T, allowed access.Config, payments ...payment.Record) *shop {
	t.Helper()
	s := &shop{t: t, payments: payments}
	if err := s.keys.Decode("k:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=:v2"); err != nil {
		t.Fatal(err)
	}
	cfg := Config{AnswerIn: 300 * time.Millisecond, MinWaiting: 8, MaxWaiting: 8, Keys: s.keys, LogPayments: true, Access: allowed}
	cfg.Kafka.RequestTopic = "requests"
	var err error
	s.Port, err = Function.Make(cfg, function.Dependencies{
		Conns: map[string]grpc.ClientConnInterface{"fx": s, "wallet": s, "risk": s, "db": s}, Publisher: s,
		Log: slog.New(trace.Handler(slog.NewTextHandler(&s.log, nil))),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.decide = func(event.OperationRequested) (event.OperationResult, error) {
		return event.OperationResult{}, errors.New("no operation was expected")
	}
	return s
}

func (s *shop) send(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1"+path, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

// refunded is the result of a refund of USD 6.00.
func refunded(event.OperationRequested) (event.OperationResult, error) {
	usd, _ := money.ParseCurrency("USD")
	sgd, _ := money.ParseCurrency("SGD")
	return event.OperationResult{
		Outcome: payment.Standing(payment.Committed, payment.ReasonCommitted, "refund-ref", false), PaymentRef: paymentRef,
		SenderCurrency: usd, SenderMinor: 600, ReceiverCurrency: sgd, ReceiverMinor: 803, AmountMinor: 1000, RefundedMinor: 600,
	}, nil
}

// A refund is asked for by an event and answered with what it gave back.
func TestARefund(t *testing.T) {
	s := newShop(t, settledInDollars())
	s.decide = refunded
	w := s.send("POST", "/api/payments/p-1/refunds", `{"idempotency_key":"r-1","amount":"6.00","reason":"broken"}`)
	var got operationAnswer
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if got.Status != payment.Success || got.Ref != "refund-ref" || got.Key != "r-1" || got.Refund == nil || got.Payment == nil {
		t.Fatalf("%s", w.Body)
	}
	if r := *got.Refund; r.Amount != "6.00" || r.Currency.String() != "USD" || r.DebitAmount != "8.03" || r.PaymentKey != "p-1" || r.Note != "broken" {
		t.Errorf("the refund is %+v", r)
	}
	if p := *got.Payment; p.Ref != paymentRef || p.Amount != "10.00" || p.Refunded != "6.00" || p.Refunding != "" || p.Captured != "" {
		t.Errorf("the payment is %+v", p)
	}
	op := s.asked[0]
	if op.Kind != payment.Refund || op.Minor != 600 || op.Note != "broken" || !op.Exchange.IsZero() || op.Deadline.Sub(op.AcceptedAt) != payment.DecideWithin {
		t.Errorf("published %+v", op)
	}
	for _, want := range []string{"operation=refund", "operation_key=r-1", "idempotency_key=p-1", "status=SUCCESS", "amount=6.00", "currency=USD"} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("no %s in %s", want, &s.log)
		}
	}
	if got := counted(t, s.Registry); got["pgw_gateway_operations_total refund"] != 1 || got["pgw_gateway_operations_total done"] != 1 {
		t.Errorf("counted %v", got)
	}
	if stages := w.Header().Get("Server-Timing"); !strings.Contains(stages, "publish") || !strings.Contains(stages, "total") {
		t.Errorf("Server-Timing is %q", stages)
	}
}

// At the current rate, the event has fx's price for the opposite direction. If there is none, nothing is
// published, and the client may try again.
func TestARefundAtTheCurrentRate(t *testing.T) {
	s := newShop(t, settledInDollars())
	s.decide = refunded
	body := `{"idempotency_key":"r-1","amount":"6.00","fx":"current"}`
	if w := s.send("POST", "/api/payments/p-1/refunds", body); w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if price := s.asked[0].Exchange; price.MidRate.String() != "0.745" || len(price.Steps) != 1 {
		t.Errorf("published the price %+v", price)
	}
	s.fxErr = status.Error(codes.NotFound, "no rate")
	w := s.send("POST", "/api/payments/p-1/refunds", body)
	if w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), "fx_unavailable") || w.Header().Get("Retry-After") == "" || len(s.asked) != 1 {
		t.Errorf("%d %s, %d published", w.Code, w.Body, len(s.asked))
	}
}

// Each kind of operation has its path, needs no body, and gets a key if it has none.
func TestCaptureVoidAndCancelNeedNoBody(t *testing.T) {
	usd, _ := money.ParseCurrency("USD")
	for kind, has := range map[payment.OperationKind]string{
		payment.Capture: `"authorized":"10.00","captured":"6.00"`, payment.Void: `"authorized":"10.00"`, payment.Cancel: `"refund":{"idempotency_key":"cancel:1"`,
	} {
		s := newShop(t, settledInDollars())
		s.decide = func(event.OperationRequested) (event.OperationResult, error) {
			d := event.OperationResult{Outcome: payment.Standing(payment.Committed, payment.ReasonCommitted, "o", false), AuthorizedMinor: 1000}
			switch kind {
			case payment.Capture:
				d.AmountMinor = 600
			case payment.Cancel:
				d.RefundKey, d.SenderCurrency, d.SenderMinor, d.ReceiverCurrency, d.ReceiverMinor = "cancel:1", usd, 1000, usd, 1000
			}
			return d, nil
		}
		w := s.send("POST", "/api/payments/p-1/"+string(kind), "")
		var got operationAnswer
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Key == "" || !strings.Contains(w.Body.String(), has) {
			t.Errorf("%s: %d %s", kind, w.Code, w.Body)
		}
		if s.asked[0].Kind != kind || s.asked[0].Key != got.Key {
			t.Errorf("%s: published %+v", kind, s.asked[0])
		}
	}
}

// Each answer has the status that a payment's answer has.
func TestAnswersToOperations(t *testing.T) {
	usd, _ := money.ParseCurrency("USD")
	decide := func(out payment.Outcome) func(event.OperationRequested) (event.OperationResult, error) {
		return func(event.OperationRequested) (event.OperationResult, error) {
			return event.OperationResult{Outcome: out, SenderCurrency: usd, AmountMinor: 1000, RefundedMinor: 600, RefundingMinor: 100}, nil
		}
	}
	failing := func(err error) func(event.OperationRequested) (event.OperationResult, error) {
		return func(event.OperationRequested) (event.OperationResult, error) { return event.OperationResult{}, err }
	}
	const good = `{"idempotency_key":"r-1","amount":"6.00"}`
	for name, tc := range map[string]struct {
		path, body string
		decide     func(event.OperationRequested) (event.OperationResult, error)
		headers    []string
		findErr    error
		code       int
		has        string
		header     [2]string
	}{
		"too much": {"p-1/refunds", good, decide(payment.Decline(payment.RefundExceedsPayment)), nil, nil,
			200, `"message":"the payment is USD 10.00; 6.00 was refunded, and 1.00 is being refunded"`, [2]string{}},
		"a replay": {"p-1/refunds", good, decide(payment.Standing(payment.Committed, "", "o", true)), nil, nil,
			200, "duplicate_idempo", [2]string{replayedHeader, "true"}},
		"another attempt's result": {"p-1/refunds", good, func(event.OperationRequested) (event.OperationResult, error) {
			return event.OperationResult{Outcome: payment.Standing(payment.Committed, payment.ReasonCommitted, "o", false), AttemptID: "earlier"}, nil
		}, nil, nil, 200, "SUCCESS_REPLAY", [2]string{replayedHeader, "true"}},
		"another request's key": {"p-1/refunds", good, decide(payment.Decline(payment.IdempotencyMismatch)), nil, nil,
			422, "idempotency_mismatch", [2]string{replayedHeader, ""}},
		"not sent": {"p-1/refunds", good, failing(kafka.ErrNotSent), nil, nil,
			502, "queue_publish_error", [2]string{"Retry-After", "1"}},
		"perhaps sent": {"p-1/refunds", good, failing(errors.New("the acknowledgement is lost")), nil, nil,
			504, `"deadline":`, [2]string{"Retry-After", "1"}},
		"the ledger is away": {"p-1/refunds", good, nil, nil, status.Error(codes.Unavailable, "down"),
			502, "ledger_unavailable", [2]string{"Retry-After", "1"}},
		"the ledger is full": {"p-1/refunds", good, nil, nil, status.Error(codes.ResourceExhausted, "full"),
			503, "overloaded", [2]string{"Retry-After", "1"}},
		"an unknown payment":       {"p-2/cancel", "", nil, nil, nil, 404, "try again until its deadline", [2]string{"Content-Type", "application/problem+json"}},
		"no key":                   {"p-1/refunds", `{"amount":"6.00"}`, nil, nil, nil, 400, `"field":"idempotency_key"`, [2]string{}},
		"a key in the header":      {"p-1/refunds", `{"amount":"6.00"}`, decide(payment.Decline(payment.RefundTooSmall)), []string{"Idempotency-Key", "r-1"}, nil, 200, "refund_too_small", [2]string{}},
		"not JSON":                 {"p-1/refunds", `{`, nil, nil, nil, 400, "bad_json", [2]string{}},
		"a field twice":            {"p-1/refunds", `{"amount":"1","amount":"2"}`, nil, nil, nil, 400, "more than once", [2]string{}},
		"another currency":         {"p-1/refunds", `{"idempotency_key":"r","amount":"6","currency":"SGD"}`, nil, nil, nil, 400, "must be USD", [2]string{}},
		"an unknown field":         {"p-1/refunds", `{"idempotency_key":"r","note":"x"}`, decide(payment.Decline(payment.RefundTooSmall)), nil, nil, 200, "", [2]string{unknownFieldsHeader, `"note"`}},
		"an unknown field, strict": {"p-1/refunds", `{"idempotency_key":"r","note":"x"}`, nil, []string{"Prefer", "handling=strict"}, nil, 400, `"field":"note"`, [2]string{}},
		"an amount of a void":      {"p-1/void", `{"amount":"6"}`, nil, nil, nil, 400, "is not a field of a void", [2]string{}},
		"a form":                   {"p-1/void", `{}`, nil, []string{"Content-Type", "text/xml"}, nil, 415, "", [2]string{}},
		"a query":                  {"p-1/void?force=1", `{}`, nil, nil, nil, 400, "force", [2]string{}},
	} {
		s := newShop(t, settledInDollars())
		s.findErr = tc.findErr
		if tc.decide != nil {
			s.decide = tc.decide
		}
		w := s.send("POST", "/api/payments/"+tc.path, tc.body, tc.headers...)
		if w.Code != tc.code || !strings.Contains(w.Body.String(), tc.has) {
			t.Errorf("%s: %d %s; want %d and %s", name, w.Code, w.Body, tc.code, tc.has)
		}
		if h := tc.header; h[0] != "" && w.Header().Get(h[0]) != h[1] {
			t.Errorf("%s: %s is %q; want %q", name, h[0], w.Header().Get(h[0]), h[1])
		}
		kind := map[int]string{200: "refused", 400: "invalid", 422: "invalid", 502: "not_sent", 503: "not_sent", 504: "unknown"}[w.Code]
		if strings.Contains(w.Body.String(), "SUCCESS_REPLAY") {
			kind = "replayed"
		}
		if got := counted(t, s.Registry)["pgw_gateway_operations_total "+kind]; kind != "" && got != 1 && !strings.Contains(tc.path, "?") {
			t.Errorf("%s: %s is %v", name, kind, got)
		}
		if tc.decide == nil && len(s.asked) > 0 {
			t.Errorf("%s: published %+v", name, s.asked)
		}
	}
}

// A stream tells the stages and then the answer.
func TestAnOperationAsAStream(t *testing.T) {
	s := newShop(t, settledInDollars())
	s.decide = refunded
	w := s.send("POST", "/api/payments/p-1/refunds", `{"idempotency_key":"r-1"}`, "Accept", "text/event-stream")
	text := w.Body.String()
	if !strings.Contains(text, "event: stage\ndata: {\"stage\":\"publish\"") || !strings.Contains(text, `event: answer`) ||
		!strings.Contains(text, `"http_status":200,"status":"SUCCESS"`) || !strings.Contains(text, `"refunded":"6.00"`) {
		t.Errorf("%s", text)
	}
}

// A refund is for the payment's receiver and for operators. The client that made the payment may see its
// refunds, and may not take money back from the receiver. All others are answered as if there were no
// payment. The receiver names it by its ref, and the refund's key is the receiver's own.
func TestWhoMayOperate(t *testing.T) {
	theirs := settledInDollars()
	theirs.Client = "payer"
	var lines []string
	keys := map[string]string{"": ""}
	for _, client := range [][2]string{{"payer", "A"}, {"merchant", "B"}, {"other", "A,C"}, {"operator", "*"}} {
		key, line, err := access.NewKey(client[0], "senders="+client[1])
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
		keys[client[0]] = key
	}
	for name, tc := range map[string]struct {
		client, path string
		code, list   int
	}{
		"the client":              {"payer", "p-1", 403, 200},
		"the client, by the ref":  {"payer", paymentRef, 403, 200},
		"without its accounts":    {"payer", "p-2", 404, 404},
		"the receiver":            {"merchant", paymentRef, 200, 200},
		"the receiver, by key":    {"merchant", "p-1", 404, 404},
		"the sender":              {"other", paymentRef, 404, 404},
		"an operator":             {"operator", paymentRef, 200, 200},
		"an operator, by key":     {"operator", "p-1", 404, 404},
		"of no client":            {"merchant", "p-3", 200, 200},
		"of no client, to others": {"other", "p-3", 404, 404},
		"everybody, without AUTH": {"", paymentRef, 200, 200},
	} {
		theirs, foreign := settledInDollars(), settledInDollars()
		theirs.Client, foreign.Client = "payer", "payer"
		foreign.Key, foreign.Ref, foreign.Sender = "p-2", "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a12", "D"
		allowed := access.Config{}
		if tc.client != "" {
			allowed = access.Config{Mode: access.Required, Keys: strings.Join(lines, ";")}
		}
		nobodys := settledInDollars()
		nobodys.Key, nobodys.Ref = "p-3", "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a13"
		s := newShopFor(t, allowed, theirs, foreign, nobodys)
		s.decide = refunded
		for method, code := range map[string]int{"POST": tc.code, "GET": tc.list} {
			w := s.send(method, "/api/payments/"+tc.path+"/refunds", `{"idempotency_key":"r-1"}`, access.KeyHeader, keys[tc.client])
			if told := strings.Contains(w.Body.String(), paymentRef); w.Code != code || code == 404 && told != (tc.client == "operator") {
				t.Errorf("%s: %s: %d %s; want %d", name, method, w.Code, w.Body, code)
			}
		}
		want := payment.ScopedKey{Client: "payer", Key: "p-1"}
		if tc.path == "p-3" {
			want = payment.ScopedKey{Key: "p-3"}
		}
		if tc.code != 200 && len(s.asked) != 0 {
			t.Errorf("%s: published %+v", name, s.asked)
		}
		if tc.code == 200 && (len(s.asked) != 1 || s.asked[0].Of() != want || s.asked[0].Client != tc.client) {
			t.Errorf("%s: published %+v", name, s.asked)
		}
	}
}

// GET tells what was refunded, and the refunds. A refund tells its payment.
func TestAPaymentTellsItsRefunds(t *testing.T) {
	rec := settledInDollars()
	rec.RefundedMinor, rec.RefundingMinor = 600, 100
	back := payment.Record{
		Payment: payment.Payment{
			Key: "r-1", Sender: "B", Receiver: "A", Currency: rec.Currency, DebitCurrency: rec.CreditCurrency, CreditCurrency: rec.DebitCurrency,
			DebitMinor: 803, CreditMinor: 600, AmountIDR: 93_000, Exchange: payment.Exchange{MidMinor: 600},
		},
		Outcome:    payment.Standing(payment.Committed, payment.ReasonCommitted, "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a11", false),
		PaymentKey: "p-1", Note: "broken", Claimed: payment.Fingerprint{2},
	}
	s := newShop(t, rec, back)
	s.refunds = []payment.Record{back}
	one := `{"idempotency_key":"r-1","payment_key":"p-1","ref":"0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a11","state":"COMMITTED","status":"SUCCESS","reason":"committed",` +
		`"currency":"USD","amount":"6.00","debit_currency":"SGD","debit_amount":"8.03","note":"broken"}`
	for path, want := range map[string][]string{
		"p-1":         {`"refunded":"6.00","refunding":"1.00"`, `"refunds":[` + one + `]`, `"status":"SUCCESS"`},
		"p-1/refunds": {`{"refunds":[` + one + `]}`},
		"r-1":         {`"payment_key":"p-1"`, `"note":"broken"`, `pgw.refund.requested.v1`, `pgw.refund.result.v1`},
	} {
		w := s.send("GET", "/api/payments/"+path, "")
		for _, text := range want {
			if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), text) {
				t.Errorf("%s: %d %s; want %s", path, w.Code, w.Body, text)
			}
		}
		if strings.Contains(w.Body.String(), "minor") || strings.Contains(w.Body.String(), "hold_seconds") {
			t.Errorf("%s: %s", path, w.Body)
		}
	}
	rec.Key, rec.RefundedMinor, rec.RefundingMinor = "odd/refunds", 0, 0
	s.payments = append(s.payments, rec)
	if w := s.send("GET", "/api/payments/odd/refunds", ""); !strings.Contains(w.Body.String(), `"idempotency_key":"odd/refunds"`) {
		t.Errorf("a key that ends in /refunds: %d %s", w.Code, w.Body)
	}
}

// GET tells what an authorized payment holds, and until when; later what was captured.
func TestAPaymentTellsItsAuthorization(t *testing.T) {
	rec := settledInDollars()
	rec.AuthorizedMinor, rec.Deadline = 1000, time.Date(2026, 2, 7, 9, 30, 0, 0, time.UTC)
	rec.Outcome = payment.Standing(payment.Pending, payment.Authorized, paymentRef, false)
	s := newShop(t, rec)
	want := `"status":"SUCCESS","reason":"authorized"`
	if w := s.send("GET", "/api/payments/p-1", ""); !strings.Contains(w.Body.String(), want) || !strings.Contains(w.Body.String(), `"authorized":"10.00","expires_at":"2026-02-07T09:30:00Z"`) {
		t.Errorf("%s", w.Body)
	}
	s.payments[0].DebitMinor, s.payments[0].Outcome = 600, payment.Standing(payment.Committed, payment.ReasonCommitted, paymentRef, false)
	if w := s.send("GET", "/api/payments/p-1", ""); !strings.Contains(w.Body.String(), `"authorized":"10.00","captured":"6.00"`) || strings.Contains(w.Body.String(), "expires_at") {
		t.Errorf("%s", w.Body)
	}
}

// A payment with capture: manual holds its money for AUTHORIZE_FOR.
func TestAManualPaymentIsHeld(t *testing.T) {
	for capture, want := range map[string]int64{"": 0, payment.CaptureAutomatic: 0, payment.CaptureManual: 7 * 24 * 3600, "later": -1} {
		var held int64 = -1
		n := &neighbours{answer: func(in, out proto.Message) error {
			if in, ok := in.(*dbv1.CloseRequest); ok {
				held = in.Payment.HoldSeconds
			}
			return dollars(&commonv1.Balance{Currency: "USD"})(in, out)
		}}
		w := postTo(gatewayBeside(t, n, notPublished), "/api/payments", fromDollars(map[string]string{"capture": capture}))
		if held != want || (want < 0) != (w.Code == http.StatusBadRequest) {
			t.Errorf("%q: held for %d s: %d %s", capture, held, w.Code, w.Body)
		}
	}
	for _, hold := range []time.Duration{time.Second, 1000 * time.Hour} {
		if _, err := Function.Make(Config{HoldFor: hold}, function.Dependencies{}); err == nil || !strings.Contains(err.Error(), "AUTHORIZE_FOR") {
			t.Errorf("%s: %v", hold, err)
		}
	}
}

// An authorized payment that is sent again is a replay, also where fx has no price for it now.
func TestAnAuthorizedPaymentIsReplayed(t *testing.T) {
	out := replayed(payment.Standing(payment.Pending, payment.Authorized, "r", false))
	if out.Status != payment.SuccessReplay || out.Ref != "r" {
		t.Errorf("%+v", out)
	}
	if out := replayed(payment.Standing(payment.Pending, "", "r", false)); out.Status != "" {
		t.Errorf("a payment that is not decided: %+v", out)
	}
}
