package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The commands ask the gateway as a client does, and show its answer. What is refused, and what is not
// known, is an error in one line.
func TestPaymentCommands(t *testing.T) {
	const ref = "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10"
	var asked last
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked.set(r.Method + " " + r.URL.EscapedPath() + " " + r.Header.Get("X-API-Key") + " " + string(body))
		w.Header().Set("Content-Type", "application/json")
		key := strings.Split(r.URL.Path, "/")[3]
		switch {
		case key == "unknown":
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"type":"/docs#problem-no-payment","title":"The ledger has no payment of this key","status":404,"detail":"Ask again."}`)
		case key == "late":
			w.WriteHeader(http.StatusGatewayTimeout)
			fmt.Fprint(w, `{"status":"FAILED","reason":"queue_timeout","ref":"","message":"not decided yet"}`)
		case key == "refused":
			fmt.Fprint(w, `{"status":"FAILED","reason":"refund_exceeds_payment","ref":"","message":"the payment is USD 10.00"}`)
		case r.Method == http.MethodGet:
			fmt.Fprint(w, `{"idempotency_key":"p-1","ref":"`+ref+`","state":"COMMITTED","status":"SUCCESS","reason":"committed","sender_id":"A","receiver_id":"B",`+
				`"currency":"USD","amount_idr":155000,"debit_currency":"USD","debit_amount":"10.00","credit_currency":"SGD","credit_amount":"13.39","refunded":"6.00",`+
				`"refunds":[{"idempotency_key":"r-1","payment_key":"p-1","state":"COMMITTED","currency":"USD","amount":"6.00","debit_currency":"SGD","debit_amount":"8.03","note":"broken"}]}`)
		case strings.HasSuffix(r.URL.Path, "/refunds"):
			fmt.Fprint(w, `{"status":"SUCCESS","reason":"committed","ref":"`+ref+`","idempotency_key":"r-1",`+
				`"refund":{"idempotency_key":"r-1","payment_key":"p-1","state":"COMMITTED","currency":"USD","amount":"6.00","debit_currency":"SGD","debit_amount":"8.03"},`+
				`"payment":{"idempotency_key":"p-1","ref":"`+ref+`","currency":"USD","amount":"10.00","refunded":"6.00"}}`)
		case strings.HasSuffix(r.URL.Path, "/capture"):
			fmt.Fprint(w, `{"status":"SUCCESS","reason":"committed","ref":"`+ref+`","payment":{"idempotency_key":"p-1","ref":"`+ref+`","currency":"USD","captured":"8.00","authorized":"10.00"}}`)
		default:
			fmt.Fprint(w, `{"status":"SUCCESS_REPLAY","reason":"duplicate_idempo","ref":"`+ref+`","payment":{"idempotency_key":"p-1","ref":"`+ref+`","currency":"USD"}}`)
		}
	}))
	t.Cleanup(server.Close)
	for _, tc := range []struct {
		args    string
		request string // its beginning
		code    int
		says    string // on standard output, or of an error
	}{
		{"payment show p-1", "GET /api/payments/p-1 secret ", 0, "refunded  USD 6.00\n"},
		{"payment show p-1", "", 0, "r-1  USD 6.00  COMMITTED  broken\n"},
		{"payment show a/b --json", "GET /api/payments/a%2Fb secret ", 0, `"refunded": "6.00"`},
		{"payment refund p-1 6.00 --key r-1 --reason broken --fx current",
			`POST /api/payments/p-1/refunds secret {"amount":"6.00","fx":"current","idempotency_key":"r-1","reason":"broken"}`,
			0, "payment p-1: refunded USD 6.00; 6.00 of 10.00 is refunded (refund r-1)\n"},
		{"payment refund p-1", `POST /api/payments/p-1/refunds secret {"fx":"original","idempotency_key":"pgw-`, 0, "refunded"},
		{"payment capture p-1 8.00", `POST /api/payments/p-1/capture secret {"amount":"8.00","idempotency_key":"pgw-`, 0, "payment p-1: captured USD 8.00\n"},
		{"payment void p-1 --reason no", `POST /api/payments/p-1/void secret {"idempotency_key":"pgw-`, 0, "payment p-1: voided before\n"},
		{"payment cancel p-1 --json", `POST /api/payments/p-1/cancel secret {"idempotency_key":"pgw-`, 0, `"status": "SUCCESS_REPLAY"`},
		{"payment show unknown", "GET", 1, "pgw: The ledger has no payment of this key: Ask again.\n"},
		{"payment cancel unknown", "POST", 1, "pgw: The ledger has no payment of this key: Ask again.\n"},
		{"payment refund refused", "POST", 1, "pgw: the refund was refused: refund_exceeds_payment: the payment is USD 10.00\n"},
		{"payment refund late --key r-7", "POST", 1, "pgw: queue_timeout: not decided yet; it is not known whether this took effect: repeat the command with --key r-7\n"},
		{"payment refund p-1 --key cancel:1", "", 1, "is reserved for pgw"},
		{"payment refund p-1 --fx yesterday", "", 2, "--fx must be one of"},
		{"payment show p-1 --gateway-url http://127.0.0.1:1", "", 1, "connection refused"},
	} {
		asked.set("")
		c := pgw(t, strings.Fields(tc.args)...)
		c.Env = append(c.Env, "GATEWAY_URL="+server.URL, "PGW_API_KEY=secret")
		stdout, stderr, code := outcome(t, c)
		said := stdout + stderr
		if code != tc.code || !strings.Contains(said, tc.says) || !strings.HasPrefix(asked.get().(string), tc.request) {
			t.Errorf("pgw %s: exit code %d, stdout %q, stderr %q, request %q", tc.args, code, stdout, stderr, asked.get())
		}
		if strings.Contains(tc.args, "--json") && !json.Valid([]byte(stdout)) {
			t.Errorf("pgw %s: %q is not JSON", tc.args, stdout)
		}
		if code != 0 && (stdout != "" || strings.Count(stderr, "\n") != 1) {
			t.Errorf("pgw %s: stdout %q, stderr %q", tc.args, stdout, stderr)
		}
	}
}

// An operation that was certainly not sent is not said to be unknown.
func TestAnOperationThatWasNotSentIsNotUnknown(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for name, gateway := range map[string]string{"nothing runs": "", "nothing listens": closed.URL} {
		var c refundPayment
		c.DataDir, c.Gateway, c.Payment, c.FX = t.TempDir(), gateway, "k", "original"
		err := c.Run(t.Context())
		if err == nil || strings.Contains(err.Error(), "not known") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
