package gateway

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/trace"
)

func TestAPaymentIsALineIfAsked(t *testing.T) {
	var text bytes.Buffer
	usd, err := money.ParseCurrency("USD")
	if err != nil {
		t.Fatal(err)
	}
	p := payment.Payment{Key: "k-1", Client: "shop", Sender: "sender-account", Receiver: "receiver-account", Minor: 1050, Currency: usd, AmountIDR: 1}
	out := reply{Outcome: payment.Standing(payment.Committed, payment.ReasonCommitted, "r-1", false)}
	g := &Gateway{log: slog.New(trace.Handler(slog.NewTextHandler(&text, nil)))}
	off := testing.AllocsPerRun(100, func() { g.logAnswer(t.Context(), p, out, time.Now()) })
	if off != 0 || text.Len() != 0 {
		t.Errorf("without LOG_PAYMENTS: %v allocations, %s", off, &text)
	}
	g.cfg.LogPayments = true
	g.logAnswer(t.Context(), p, out, time.Now())
	line := text.String()
	for _, want := range []string{"level=INFO msg=answered", "status=SUCCESS", "reason=committed", "ref=r-1", "took_ms=", "amount=10.50", "currency=USD", "client=shop", "idempotency_key=k-1"} {
		if !strings.Contains(line, want) {
			t.Errorf("no %s in %s", want, line)
		}
	}
	if strings.Contains(line, "account") || strings.Count(line, "\n") != 1 {
		t.Errorf("%s", line)
	}
}
