package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"pgw/shared/client"
	"pgw/shared/payment"
)

// paymentCommand reads payments and operates on them at the gateway, as a client does. So each
// operation is published, and all who wait for its result hear it.
type paymentCommand struct {
	Show    showPayment    `cmd:"" help:"Show a payment, with its refunds."`
	Refund  refundPayment  `cmd:"" help:"Give a settled payment back to its sender, or a part of it."`
	Capture capturePayment `cmd:"" help:"Pay the receiver from the money that an authorized payment holds. The rest goes back to the sender."`
	Void    voidPayment    `cmd:"" help:"Give the money that an authorized payment holds back to its sender."`
	Cancel  cancelPayment  `cmd:"" help:"Roll a payment back that is not settled, or refund what is left of a settled one."`
}

// askWithin is the time limit of one request to the gateway. The gateway answers within 5 s.
const askWithin = 15 * time.Second

// maxAnswer is the largest answer of the gateway that is read, in bytes.
const maxAnswer = 1 << 20

// paymentFlags are common to these commands.
type paymentFlags struct {
	operatorFlags
	dataFlags
	Gateway string `name:"gateway-url" help:"The gateway's URL, instead of GATEWAY_URL."`
	APIKey  string `name:"api-key" env:"PGW_API_KEY" help:"An API key for the gateway, if it needs one. On the command line other users of the machine can see it."`
	Payment string `arg:"" help:"The payment's idempotency key or its ref. Another client's payment is named by its ref."`
}

// answered is an answer of the gateway.
type answered struct {
	code        int
	contentType string
	body        []byte
}

// ask sends one request to the gateway.
func (f paymentFlags) ask(ctx context.Context, send func(context.Context, *client.Client) (*http.Response, error)) (answered, error) {
	var at struct {
		Gateway string `envconfig:"GATEWAY_URL" required:"true"`
	}
	settings, err := f.find(map[string]string{"GATEWAY_URL": f.Gateway})
	if err == nil {
		err = settings.Read(&at)
	}
	if err != nil {
		return answered{}, err
	}
	gateway, err := client.NewClient(at.Gateway, client.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
		if f.APIKey != "" {
			r.Header.Set("X-API-Key", f.APIKey)
		}
		return nil
	}))
	if err != nil {
		return answered{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	resp, err := send(ctx, gateway)
	if err != nil {
		return answered{}, err
	}
	defer resp.Body.Close()
	got := answered{code: resp.StatusCode, contentType: resp.Header.Get("Content-Type")}
	got.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return got, err
}

// problem returns what a problem document says, or the status if the answer is another one.
func (a answered) problem() error {
	var problem struct{ Title, Detail string }
	if json.Unmarshal(a.body, &problem) != nil || problem.Title == "" {
		return fmt.Errorf("the gateway answered %d %s", a.code, http.StatusText(a.code))
	}
	return errors.New(strings.TrimSuffix(problem.Title+": "+problem.Detail, ": "))
}

type showPayment struct{ paymentFlags }

func (c showPayment) Run(ctx context.Context) error {
	got, err := c.ask(ctx, func(ctx context.Context, gateway *client.Client) (*http.Response, error) {
		return gateway.GetPayment(ctx, c.Payment)
	})
	if err != nil {
		return err
	}
	if got.code != http.StatusOK {
		return got.problem()
	}
	var p client.Payment
	if err := json.Unmarshal(got.body, &p); err != nil {
		return fmt.Errorf("the gateway's answer can't be read: %w", err)
	}
	return c.print(json.RawMessage(got.body), func(to io.Writer) error { return paymentText(to, p) })
}

// paymentText writes a payment for a person.
func paymentText(to io.Writer, p client.Payment) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, name+"\t"+format+"\n", args...) }
	row("payment", "%s", p.IdempotencyKey)
	row("ref", "%s", p.Ref)
	state := string(p.State)
	if p.Status != nil && p.Reason != nil {
		state += fmt.Sprintf(": %s, %s", *p.Status, *p.Reason)
	}
	row("state", "%s", state)
	row("from", "%s, %s %s", p.SenderID, p.DebitCurrency, p.DebitAmount)
	row("to", "%s, %s %s", p.ReceiverID, p.CreditCurrency, p.CreditAmount)
	for _, amount := range []struct {
		name string
		of   *client.MajorUnits
	}{{"authorized", p.Authorized}, {"captured", p.Captured}, {"refunded", p.Refunded}, {"refunding", p.Refunding}} {
		if amount.of != nil {
			row(amount.name, "%s %s", p.DebitCurrency, *amount.of)
		}
	}
	if p.ExpiresAt != nil {
		row("held until", "%s", p.ExpiresAt.Format(time.RFC3339))
	}
	if p.PaymentKey != nil {
		row("refund of", "%s", *p.PaymentKey)
	}
	if p.Note != nil {
		row("note", "%s", *p.Note)
	}
	if err := w.Flush(); err != nil || p.Refunds == nil || len(*p.Refunds) == 0 {
		return err
	}
	fmt.Fprintln(to, "\nrefunds:")
	for _, r := range *p.Refunds {
		note := ""
		if r.Note != nil {
			note = *r.Note
		}
		fmt.Fprintf(w, "%s\t%s %s\t%s\t%s\n", r.IdempotencyKey, r.Currency, r.Amount, r.State, note)
	}
	return w.Flush()
}

// operationFlags are common to the commands that change a payment.
type operationFlags struct {
	paymentFlags
	Key string `help:"The operation's own idempotency key, new by default. A key counts once: repeat a command whose result is unknown with the key that its error names."`
}

// operation is an operation that a command asks for.
type operation struct {
	kind payment.OperationKind
	send func(ctx context.Context, gateway *client.Client, key *string) (*http.Response, error)
}

// run asks for an operation, and prints what it has done. A refusal is an error.
func (f operationFlags) run(ctx context.Context, o operation) error {
	key := cmp.Or(f.Key, "pgw-"+uuid.Must(uuid.NewV7()).String())
	if err := cmp.Or(payment.CheckID("--key", key, payment.MaxKey), payment.CheckNames(key, "", "")); err != nil {
		return err
	}
	asked := false
	got, err := f.ask(ctx, func(ctx context.Context, gateway *client.Client) (*http.Response, error) {
		asked = true
		return o.send(ctx, gateway, &key)
	})
	var network *net.OpError
	if err != nil && (!asked || errors.As(err, &network) && network.Op == "dial") {
		return err // nothing was sent
	}
	unknown := fmt.Sprintf("it is not known whether this took effect: repeat the command with --key %s", key)
	if err != nil {
		return fmt.Errorf("%w; %s", err, unknown)
	}
	var answer client.OperationAnswer
	switch err := json.Unmarshal(got.body, &answer); {
	case got.contentType != "application/json":
		return got.problem()
	case err != nil:
		return fmt.Errorf("the gateway's answer can't be read: %w; %s", err, unknown)
	}
	message := ""
	if answer.Message != nil {
		message = ": " + *answer.Message
	}
	switch {
	case got.code >= http.StatusInternalServerError:
		return fmt.Errorf("%s%s; %s", answer.Reason, message, unknown)
	case answer.Status == client.StatusFAILED:
		return fmt.Errorf("the %s was refused: %s%s", o.kind, answer.Reason, message)
	}
	return f.print(json.RawMessage(got.body), func(to io.Writer) error { return operationText(to, o.kind, answer) })
}

// operationText writes what an operation has done.
func operationText(to io.Writer, kind payment.OperationKind, a client.OperationAnswer) error {
	done := map[payment.OperationKind]string{
		payment.Refund: "refunded", payment.Capture: "captured", payment.Void: "voided", payment.Cancel: "canceled",
	}[kind]
	if a.Status == client.StatusSUCCESSREPLAY {
		done += " before"
	}
	text := done
	if a.Payment != nil {
		text = fmt.Sprintf("payment %s: %s", a.Payment.IdempotencyKey, done)
		switch {
		case a.Refund != nil:
			text += fmt.Sprintf(" %s %s", a.Refund.Currency, a.Refund.Amount)
		case a.Payment.Captured != nil:
			text += fmt.Sprintf(" %s %s", a.Payment.Currency, *a.Payment.Captured)
		}
		if a.Payment.Refunded != nil && a.Payment.Amount != nil {
			text += fmt.Sprintf("; %s of %s is refunded", *a.Payment.Refunded, *a.Payment.Amount)
		}
	}
	if a.IdempotencyKey != nil {
		text += fmt.Sprintf(" (%s %s)", kind, *a.IdempotencyKey)
	}
	_, err := fmt.Fprintln(to, text)
	return err
}

// given returns a pointer to a flag's value, or nil if it is not given.
func given(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

type refundPayment struct {
	operationFlags
	Amount string `arg:"" optional:"" help:"What the sender gets back, in major units of the currency in which it has paid; by default all that is left."`
	Reason string `help:"Why. It is kept with the refund."`
	FX     string `name:"fx" enum:"original,current" default:"original" help:"The price of a refund between two currencies: original, that of the payment, or current, that of now."`
}

func (c refundPayment) Run(ctx context.Context) error {
	return c.run(ctx, operation{payment.Refund, func(ctx context.Context, gateway *client.Client, key *string) (*http.Response, error) {
		fx := client.RefundRequestFx(c.FX)
		return gateway.CreateRefund(ctx, c.Payment, nil, client.RefundRequest{IdempotencyKey: key, Amount: given(c.Amount), Reason: given(c.Reason), Fx: &fx})
	}})
}

type capturePayment struct {
	operationFlags
	Amount string `arg:"" optional:"" help:"What the sender pays, in major units; by default all that is held."`
}

func (c capturePayment) Run(ctx context.Context) error {
	return c.run(ctx, operation{payment.Capture, func(ctx context.Context, gateway *client.Client, key *string) (*http.Response, error) {
		return gateway.CapturePayment(ctx, c.Payment, nil, client.CaptureRequest{IdempotencyKey: key, Amount: given(c.Amount)})
	}})
}

type voidPayment struct {
	operationFlags
	Reason string `help:"Why."`
}

func (c voidPayment) Run(ctx context.Context) error {
	return c.run(ctx, operation{payment.Void, func(ctx context.Context, gateway *client.Client, key *string) (*http.Response, error) {
		return gateway.VoidPayment(ctx, c.Payment, nil, client.VoidRequest{IdempotencyKey: key, Reason: given(c.Reason)})
	}})
}

type cancelPayment struct {
	operationFlags
	Reason string `help:"Why. It is kept with the refund, if there is one."`
}

func (c cancelPayment) Run(ctx context.Context) error {
	return c.run(ctx, operation{payment.Cancel, func(ctx context.Context, gateway *client.Client, key *string) (*http.Response, error) {
		return gateway.CancelPayment(ctx, c.Payment, nil, client.CancelRequest{IdempotencyKey: key, Reason: given(c.Reason)})
	}})
}
