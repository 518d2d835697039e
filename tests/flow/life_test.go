package flow

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// operated is the answer to an operation, or a payment as GET returns it.
type operated struct {
	Status, Reason, State, Refunded, Authorized, Captured string
	Refund                                                *struct{ Amount string }
	Payment                                               *struct{ Refunded, Captured string }
	Refunds                                               []struct{ Amount, State, Note string }
}

// ask sends a request to a path of a payment.
func (c client) ask(method, path, body string, headers ...string) (int, operated) {
	c.s.t.Helper()
	resp, text := c.do(method, "/api/payments/"+path, body, headers...)
	var got operated
	if resp.Header.Get("Content-Type") == "application/json" {
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			c.s.t.Errorf("%s: %v", text, err)
		}
	}
	return resp.StatusCode, got
}

// A payment's whole life over HTTP: it is authorized, captured in part, refunded in parts and canceled.
// Each outcome is told as the document says, and the books stay whole.
func TestAPaymentsWholeLife(t *testing.T) {
	s := start(t, options{})
	s.open(1_000_000, "A", "B")
	c := client{s, ""}
	step := func(method, path, body string, code int, outcome string) operated {
		t.Helper()
		got, answer := c.ask(method, path, body)
		if said := strings.TrimSpace(answer.Status + " " + answer.Reason); got != code || said != outcome {
			t.Fatalf("%s %s: %d %q; want %d %q", method, path, got, said, code, outcome)
		}
		return answer
	}
	if got := s.post(body("hold", "A", "B", "IDR", 100_000, "capture", "manual")); got.outcome() != "200 SUCCESS authorized" {
		t.Fatalf("authorized: %s", got)
	}
	if got := s.post(body("hold", "A", "B", "IDR", 100_000, "capture", "manual")); got.outcome() != "200 SUCCESS_REPLAY duplicate_idempo" {
		t.Errorf("authorized again: %s", got)
	}
	if held := step("GET", "hold", "", 200, "SUCCESS authorized"); held.State != "PENDING" || held.Authorized != "100000" {
		t.Errorf("authorized: %+v", held)
	}
	step("POST", "hold/refunds", `{"idempotency_key":"early"}`, 200, "FAILED payment_not_settled")
	step("POST", "hold/capture", `{"amount":"100001"}`, 200, "FAILED capture_exceeds_hold")
	if got := step("POST", "hold/capture", `{"amount":"80000","idempotency_key":"c-1"}`, 200, "SUCCESS committed"); got.Payment.Captured != "80000" {
		t.Errorf("captured: %+v", got)
	}
	step("POST", "hold/capture", `{"amount":"80000","idempotency_key":"c-1"}`, 200, "SUCCESS_REPLAY duplicate_idempo")
	step("POST", "hold/void", ``, 200, "FAILED payment_settled")
	if s.balance("A") != 920_000 || s.balance("B") != 1_080_000 {
		t.Errorf("after the capture A has %d, and B %d", s.balance("A"), s.balance("B"))
	}

	// Two refunds of 48,000 of 80,000 at the same time: one is too much.
	var asking sync.WaitGroup
	outcomes := make([]string, 2)
	for i := range outcomes {
		asking.Go(func() {
			_, got := c.ask("POST", "hold/refunds", fmt.Sprintf(`{"idempotency_key":"r-%d","amount":"48000","reason":"broken"}`, i))
			outcomes[i] = got.Status + " " + got.Reason
		})
	}
	asking.Wait()
	if both := strings.Join(outcomes, ", "); both != "SUCCESS committed, FAILED refund_exceeds_payment" && both != "FAILED refund_exceeds_payment, SUCCESS committed" {
		t.Errorf("two refunds at once: %s", both)
	}
	if got := step("POST", "hold/cancel", `{"reason":"the rest"}`, 200, "SUCCESS committed"); got.Refund == nil || got.Refund.Amount != "32000" || got.Payment.Refunded != "80000" {
		t.Errorf("canceled: %+v", got)
	}
	step("POST", "hold/refunds", `{"idempotency_key":"late"}`, 200, "FAILED refund_exceeds_payment")
	whole := step("GET", "hold", "", 200, "SUCCESS committed")
	if whole.Refunded != "80000" || whole.Captured != "80000" || len(whole.Refunds) == 0 {
		t.Errorf("the payment: %+v", whole)
	}
	if s.balance("A") != 1_000_000 || s.balance("B") != 1_000_000 {
		t.Errorf("at the end A has %d, and B %d", s.balance("A"), s.balance("B"))
	}

	if got := s.post(body("void", "A", "B", "IDR", 50_000, "capture", "manual")); got.outcome() != "200 SUCCESS authorized" {
		t.Fatalf("authorized: %s", got)
	}
	step("POST", "void/void", `{"reason":"out of stock"}`, 200, "SUCCESS committed")
	step("GET", "void", "", 200, "FAILED voided")
	step("POST", "void/capture", ``, 200, "FAILED payment_not_authorized")
	if code, _ := c.ask("POST", "nobody/cancel", ""); code != http.StatusNotFound {
		t.Errorf("a payment that nobody made: %d", code)
	}
	// As a stream; it is checked against the document while it is read.
	if resp, text := c.do("POST", "/api/payments/void/cancel", `{}`, "Accept", "text/event-stream"); resp.StatusCode != 200 || !strings.Contains(text, "event: answer") {
		t.Errorf("a stream: %s %s", resp.Status, text)
	}
}
