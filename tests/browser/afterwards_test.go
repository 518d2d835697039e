package browser

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// merchant plays the part of a gateway for one authorized payment of USD 10.00. It keeps what is asked
// for, and refuses a refund of more than is left.
type merchant struct {
	mu       sync.Mutex
	asked    []string // path and body of each operation
	captured bool
	voided   bool
	refunded int // in cents
}

const merchantRef = "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10"

func (m *merchant) payment() string {
	state, rest := `"state":"PENDING","status":"SUCCESS","reason":"authorized","expires_at":"2026-12-03T09:30:00Z","debit_amount":"10.00"`, ""
	switch {
	case m.voided:
		state = `"state":"ROLLEDBACK","status":"FAILED","reason":"voided","debit_amount":"10.00","decided_at":"2026-11-26T09:31:00Z"`
	case m.captured:
		state = `"state":"COMMITTED","status":"SUCCESS","reason":"committed","captured":"8.00","debit_amount":"8.00","decided_at":"2026-11-26T09:31:00Z"`
	}
	if m.refunded > 0 {
		rest = fmt.Sprintf(`,"refunded":"%d.%02d","refunds":[{"idempotency_key":"refund-001","payment_key":"hold-001","state":"COMMITTED","status":"SUCCESS",`+
			`"reason":"committed","currency":"USD","amount":"%[1]d.%02[2]d","debit_currency":"USD","debit_amount":"%[1]d.%02[2]d","note":"one was broken"}]`,
			m.refunded/100, m.refunded%100)
	}
	return `{"idempotency_key":"hold-001","ref":"` + merchantRef + `",` + state + `,"authorized":"10.00","sender_id":"A","receiver_id":"SHOP","currency":"USD","amount":"10.00",` +
		`"amount_idr":155000,"debit_currency":"USD","credit_currency":"USD","credit_amount":"10.00","accepted_at":"2026-11-26T09:30:00Z","reserved_at":"2026-11-26T09:30:00.01Z"` + rest + `}`
}

func (m *merchant) serve(w http.ResponseWriter, r *http.Request) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.URL.Path != "/api/payments/hold-001" && !strings.HasPrefix(r.URL.Path, "/api/payments/"+merchantRef+"/") {
		return false
	}
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodGet {
		fmt.Fprint(w, m.payment())
		return true
	}
	var body map[string]string
	json.NewDecoder(r.Body).Decode(&body)
	operation := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	m.asked = append(m.asked, operation+" "+body["amount"]+" "+body["reason"]+" "+body["idempotency_key"])
	answer, refund := `{"status":"SUCCESS","reason":"committed","ref":"`+merchantRef+`"`, ""
	switch operation {
	case "capture":
		m.captured = true
	case "void", "cancel":
		m.voided = true
	case "refunds":
		if body["amount"] == "9.00" {
			fmt.Fprint(w, `{"status":"FAILED","reason":"refund_exceeds_payment","ref":"","message":"the payment is USD 8.00; 0.00 was refunded, and 0.00 is being refunded"}`)
			return true
		}
		m.refunded = 300
		refund = `,"refund":{"idempotency_key":"refund-001","payment_key":"hold-001","state":"COMMITTED","currency":"USD","amount":"3.00","debit_currency":"USD","debit_amount":"3.00"}`
	}
	fmt.Fprint(w, answer+refund+`}`)
	return true
}

func (m *merchant) requests() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked
}

// An authorized payment is captured on its page, and then refunded. A refusal stays in the dialog, with
// a new key for the next attempt.
func (s *suite) testAfterwards(t *testing.T) {
	m := &merchant{}
	p := s.open(t, look{url: s.front(t, m.serve) + "/payments/hold-001"}).ready()
	p.says("#record-body", "Authorized: the money is held.")
	p.says("#afterwards", "Held at first")
	if names := eval[string](p, `[...document.querySelectorAll('#afterwards button')].map((b) => b.textContent).join()`); names != "Capture,Void,Cancel the payment" {
		t.Errorf("the buttons are %q", names)
	}
	p.accessible("an authorized payment")
	p.shot("authorized-light")
	p.lighting(look{dark: true})
	p.accessible("an authorized payment, dark")
	p.lighting(look{})
	p.click(`#afterwards [data-op="capture"]`)
	p.until("the amount is asked for, and no reason", `document.getElementById('op').open && !document.getElementById('op-amount').parentElement.hidden && document.getElementById('op-reason').parentElement.hidden`)
	p.says("#op", "Amount in USD")
	p.accessible("a capture")
	p.shot("capture-light")
	p.fill("#op-amount", "8.00")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.says("#record-again", "Captured.")
	p.says("#afterwards", "Captured")
	p.until("it can be refunded", `[...document.querySelectorAll('#afterwards button')].map((b) => b.dataset.op).join() === 'refund'`)

	p.click(`#afterwards [data-op="refund"]`)
	p.until("the rest is offered", `document.getElementById('op-amount').placeholder === '8.00'`)
	p.fill("#op-amount", "9.00")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.says("#op-said", "This is more than what is left of the payment.")
	p.accessible("a refused refund")
	p.fill("#op-amount", "3.00")
	p.fill("#op-reason", "one was broken")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.says("#record-again", "Refunded.")
	p.says("#record-again", "USD 3.00 went back to A.")
	p.says("#afterwards table", "one was broken")
	p.accessible("a refunded payment")
	p.shot("refunded-light")
	asked := m.requests()
	if len(asked) != 3 || !strings.HasPrefix(asked[0], "capture 8.00  web-") || !strings.HasPrefix(asked[2], "refunds 3.00 one was broken web-") {
		t.Fatalf("the gateway got %q", asked)
	}
	if asked[1][strings.LastIndexByte(asked[1], ' '):] == asked[2][strings.LastIndexByte(asked[2], ' '):] {
		t.Error("a refund after a refusal has the same key")
	}

	for name, operation := range map[string]string{"phone": "void", "phone-cancel": "cancel"} {
		m := &merchant{}
		p := s.open(t, look{url: s.front(t, m.serve) + "/payments/hold-001?lang=id", width: 360, height: 740}).ready()
		p.says("#afterwards", "Setelah pembayaran")
		p.fits()
		p.accessible("an authorized payment, " + name)
		p.shot("authorized-" + name)
		p.click(`#afterwards [data-op="` + operation + `"]`)
		p.until("no amount is asked for", `document.getElementById('op').open && document.getElementById('op-amount').parentElement.hidden`)
		p.fits()
		p.fill("#op-reason", "stok habis")
		p.do(chromedp.KeyEvent(kb.Enter))
		p.says("#record-again", map[string]string{"void": "Dana dilepas.", "cancel": "Dibatalkan."}[operation])
		p.until("nothing is left to do", `!document.querySelector('#afterwards button')`)
		if asked := m.requests(); len(asked) != 1 || !strings.HasPrefix(asked[0], operation+"  stok habis ") {
			t.Errorf("the gateway got %q", asked)
		}
	}
}
