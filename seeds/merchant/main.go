// Command merchant is the program of a merchant. It pays, is told by a webhook that the payment has
// settled, verifies the signature, refunds a part, and is told about the refund. While make run runs:
//
//	go run ./seeds/merchant
//
// merchant.mjs is the same in JavaScript.
package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"pgw/shared/client"
)

func main() {
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt) // so that the webhook is removed
	defer stop()
	ctx, cancel := context.WithTimeout(interrupted, 2*time.Minute)
	defer cancel()
	gateway := "http://127.0.0.1:18080"
	if len(os.Args) > 1 {
		gateway = os.Args[1]
	}
	if err := run(ctx, gateway, os.Getenv("PGW_API_KEY"), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "merchant:", err)
		os.Exit(1)
	}
}

// run pays and refunds at a gateway, and writes what it is told.
func run(ctx context.Context, gateway, apiKey string, out io.Writer) error {
	asMe := func(_ context.Context, r *http.Request) error {
		if apiKey != "" {
			r.Header.Set("X-API-Key", apiKey)
		}
		return nil
	}
	pgw, err := client.NewClientWithResponses(gateway, client.WithRequestEditorFn(asMe))
	if err != nil {
		return err
	}
	hooks, err := listen(ctx, gateway, asMe)
	if err != nil {
		return err
	}
	defer hooks.close()

	key, err := pay(ctx, pgw)
	if err != nil {
		return err
	}
	settled, err := hooks.wait(ctx, "payment.settled", key)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "settled: %s %s of order %s\n", settled.Data.Currency, settled.Data.Amount, settled.Data.Metadata["order"])

	if err := refund(ctx, pgw, key, "4.00", "one of two was broken"); err != nil {
		return err
	}
	refunded, err := hooks.wait(ctx, "payment.refunded", key)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "refunded: %s %s\n", refunded.Data.Refund.Currency, refunded.Data.Refund.Amount)
	return nil
}

// pay makes the payment, and returns its key. An answer of 5xx says nothing about the payment, so the
// same request is sent again with the same key. The risk rules refuse a few payments at random; such a
// payment is made again with a new key.
func pay(ctx context.Context, pgw *client.ClientWithResponses) (string, error) {
	for key := "shop-" + rand.Text(); ; {
		dollars := "USD"
		got, err := pgw.CreatePaymentWithResponse(ctx, nil, client.PaymentRequest{
			SenderID: "ACC001", ReceiverID: "ACC002", Currency: dollars, Amount: "10.00", DebitCurrency: &dollars, CreditCurrency: &dollars,
			TxDate: time.Now().UTC(), IdempotencyKey: &key, Metadata: &client.Metadata{"order": "4711"},
		})
		switch {
		case ctx.Err() != nil:
			return "", ctx.Err()
		case err != nil || got.StatusCode() >= 500:
			time.Sleep(time.Second)
		case got.JSON200 == nil:
			return "", fmt.Errorf("the payment was not taken: %s", got.Body)
		case got.JSON200.Reason == client.RiskRandomReject:
			key = "shop-" + rand.Text()
		case got.JSON200.Status == client.StatusFAILED:
			return "", fmt.Errorf("the payment was refused: %s", got.JSON200.Reason)
		default:
			return key, nil
		}
	}
}

// refund gives a part of a payment back. Its key depends on what it is for, so it happens once however
// often it is asked for.
func refund(ctx context.Context, pgw *client.ClientWithResponses, payment, amount, reason string) error {
	key := payment + "-refund-1"
	for {
		got, err := pgw.CreateRefundWithResponse(ctx, payment, nil, client.RefundRequest{IdempotencyKey: &key, Amount: &amount, Reason: &reason})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil || got.StatusCode() >= 500:
			time.Sleep(time.Second)
		case got.JSON200 == nil:
			return fmt.Errorf("the refund was not taken: %s", got.Body)
		case got.JSON200.Status == client.StatusFAILED:
			return fmt.Errorf("the refund was refused: %s", got.JSON200.Reason)
		default:
			return nil
		}
	}
}

// told is the body of a webhook.
type told struct {
	Type string `json:"type"`
	Data struct {
		Key      string            `json:"idempotency_key"`
		Currency string            `json:"currency"`
		Amount   string            `json:"amount"`
		Metadata map[string]string `json:"metadata"`
		Refund   struct {
			Currency string `json:"currency"`
			Amount   string `json:"amount"`
		} `json:"refund"`
	} `json:"data"`
}

// hooks takes the webhooks of a gateway.
type hooks struct {
	secret string
	close  func()
	events chan told

	mu   sync.Mutex
	seen map[string]bool // webhook-id: a webhook may come more than once
}

// listen opens a port and registers it at the gateway.
func listen(ctx context.Context, gateway string, asMe func(context.Context, *http.Request) error) (*hooks, error) {
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(map[string]any{"url": "http://" + port.Addr().String() + "/hooks", "types": []string{"payment.settled", "payment.refunded"}})
	if err != nil {
		return nil, err
	}
	call := func(ctx context.Context, method, path string) (*http.Response, error) {
		r, err := http.NewRequestWithContext(ctx, method, gateway+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		r.Header.Set("Content-Type", "application/json")
		if err := asMe(ctx, r); err != nil {
			return nil, err
		}
		return http.DefaultClient.Do(r)
	}
	resp, err := call(ctx, http.MethodPost, "/api/webhooks")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusCreated {
		return nil, fmt.Errorf("the webhook was not added: %s %s", resp.Status, text)
	}
	var added struct{ ID, Secret string }
	if err := json.Unmarshal(text, &added); err != nil {
		return nil, err
	}
	h := &hooks{secret: added.Secret, events: make(chan told, 16), seen: map[string]bool{}}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	go server.Serve(port)
	h.close = func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if resp, err := call(ctx, http.MethodDelete, "/api/webhooks/"+added.ID); err == nil {
			resp.Body.Close()
		}
		server.Close()
	}
	return h, nil
}

// ServeHTTP takes a webhook. It believes nothing before the signature is verified.
func (h *hooks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err == nil {
		err = verify(h.secret, r.Header, body, time.Now())
	}
	var event told
	if err == nil {
		err = json.Unmarshal(body, &event)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "merchant: a webhook was refused:", err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	again := h.seen[r.Header.Get("webhook-id")]
	h.seen[r.Header.Get("webhook-id")] = true
	h.mu.Unlock()
	if !again {
		h.events <- event
	}
	w.WriteHeader(http.StatusNoContent)
}

// wait returns the event of a type about a payment. Webhooks may come in any order.
func (h *hooks) wait(ctx context.Context, kind, key string) (told, error) {
	for {
		select {
		case event := <-h.events:
			if event.Type == kind && event.Data.Key == key {
				return event, nil
			}
		case <-ctx.Done():
			return told{}, fmt.Errorf("no %s of %s has come: %w", kind, key, ctx.Err())
		}
	}
}

// tolerance is how old or how far ahead a webhook may be. An attacker who has recorded one can't use it
// later.
const tolerance = 5 * time.Minute

// verify checks the signature of a webhook as Standard Webhooks 1.0.0 says. The libraries of
// standardwebhooks.com do the same.
func verify(secret string, h http.Header, body []byte, now time.Time) error {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return fmt.Errorf("the secret is not base64: %w", err)
	}
	at, err := strconv.ParseInt(h.Get("webhook-timestamp"), 10, 64)
	if err != nil || now.Sub(time.Unix(at, 0)).Abs() > tolerance {
		return errors.New("the timestamp is missing, or too far from now")
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%d.%s", h.Get("webhook-id"), at, body)
	want := mac.Sum(nil)
	// While a secret is rotated there are two signatures.
	for signature := range strings.FieldsSeq(h.Get("webhook-signature")) {
		text, isV1 := strings.CutPrefix(signature, "v1,")
		if got, err := base64.StdEncoding.DecodeString(text); isV1 && err == nil && hmac.Equal(got, want) {
			return nil
		}
	}
	return errors.New("the signature is not valid")
}
