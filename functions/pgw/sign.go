package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/google/uuid"
	"google.golang.org/grpc"
	"sigs.k8s.io/yaml"

	fxv1 "pgw/proto/gen/fx/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// priceWithin is the time limit of asking fx.
const priceWithin = 10 * time.Second

// workerURL is where worker listens by default.
const workerURL = "http://localhost:19091/"

// signCommand prints the event that requests a payment, or an operation on one.
type signCommand struct {
	operatorFlags
	Body           string            `help:"A file with the JSON of POST /api/payments, or - for standard input. The flags below replace its fields."`
	Sender         string            `help:"The sender's account."`
	Receiver       string            `help:"The receiver's account."`
	Currency       string            `help:"The currency of the amount: its ISO 4217 code."`
	Amount         string            `help:"The amount in major units, such as 10.50."`
	Key            string            `help:"The idempotency key; new by default."`
	Client         string            `help:"Whose payment it is: the owner of an API key, or oidc: and the subject of a token. The key belongs to it. By default none."`
	TxDate         string            `help:"The client's date (RFC 3339); now by default."`
	Metadata       map[string]string `help:"Data that is kept with the payment, as NAME=VALUE."`
	DebitCurrency  string            `help:"The currency of the sender's balance; IDR by default."`
	CreditCurrency string            `help:"The currency of the receiver's balance; IDR by default."`

	Operation string  `enum:"payment,refund,capture,void,cancel" default:"payment" help:"What to request: a payment, or a refund, capture, void or cancellation of the payment that --of names. The amount of a refund or capture is in the currency that the sender has paid; without one it is all that is left."`
	Of        string  `help:"For an operation: the idempotency key of the payment."`
	OfClient  *string `help:"For an operation: whose payment it is. By default that of --client."`
	Note      string  `help:"For an operation: why."`

	As       string        `enum:"json,yaml,curl,kcat,kn,func" default:"json" help:"json or yaml: the event; curl, kcat, kn or func: a shell line that sends it. kn and func can't send a signature, so their event is a plain record, which is accepted only with ALLOW_UNSIGNED_REQUESTS."`
	To       string        `help:"For curl, kn and func: worker's URL. By default that of pgw run, or ${worker_url}."`
	ValidFor time.Duration `default:"1m" help:"How long the payment may be settled, or the operation carried out; 0: a minute from when the ledger gets it."`
}

func (c signCommand) Validate() error {
	if c.ValidFor < 0 {
		return errors.New("--valid-for must not be negative")
	}
	if !c.requestsPayment() {
		if c.Of == "" || (c.Amount == "") != (c.Currency == "") {
			return errors.New("--of, and both or none of --currency and --amount, are needed")
		}
		return nil
	}
	if c.Body == "" && (c.Sender == "" || c.Receiver == "" || c.Currency == "" || c.Amount == "") {
		return errors.New("--body, or --sender, --receiver, --currency and --amount are needed")
	}
	return nil
}

func (c signCommand) Run(ctx context.Context) error {
	cfg, at, err := c.config()
	if err != nil {
		return err
	}
	now, attempt := time.Now(), uuid.Must(uuid.NewV7()).String()
	var e cloudevents.Event
	if c.requestsPayment() {
		e, err = c.payment(ctx, at, cfg, now, attempt)
	} else {
		e, err = c.operation(&cfg.Keys, now, attempt, uuid.NewString())
	}
	if err != nil {
		return err
	}
	to := c.To
	if running, ok := at.Lookup("WORKER_URL"); ok && to == "" {
		to = running + "/" // in the run.json of pgw run
	}
	text, err := shape{to: cmp.Or(to, workerURL), topic: cfg.Kafka.RequestTopic, brokers: cfg.Kafka.Brokers}.write(ctx, c.As, e)
	if err != nil {
		return err
	}
	_, err = os.Stdout.WriteString(text)
	return err
}

// payment makes the signed event that requests a payment, with the price that the gateway would get.
func (c signCommand) payment(ctx context.Context, at function.Settings, cfg operatorConfig, now time.Time, attempt string) (e cloudevents.Event, err error) {
	order, err := c.order(os.Stdin, now, uuid.NewString())
	if err != nil {
		return e, err
	}
	p, err := order.Payment()
	if err != nil {
		return e, err
	}
	p.Client = c.Client
	if p.QuoteID != "" {
		return e, errors.New("quote_id: only the gateway can check a quote: pay by it there")
	}
	conns, err := dial(at, cfg.RPC, "fx")
	if err != nil {
		return e, err
	}
	defer conns["fx"].Close()
	ctx, cancel := context.WithTimeout(ctx, priceWithin)
	defer cancel()
	if p, err = priced(ctx, conns["fx"], p); err != nil {
		return e, err
	}
	return c.event(p, &cfg.Keys, now, attempt)
}

// operation makes the signed event that requests an operation. newKey is its key if there is none.
func (c signCommand) operation(keys *event.Keyring, now time.Time, attempt, newKey string) (e cloudevents.Event, err error) {
	o := payment.Operation{
		Kind: payment.OperationKind(c.Operation), Key: cmp.Or(c.Key, newKey), Client: c.Client, Payment: c.Of, Note: c.Note, AcceptedAt: now.UTC(), AttemptID: attempt,
	}
	if c.OfClient != nil {
		o = o.On(payment.ScopedKey{Client: *c.OfClient, Key: c.Of})
	}
	if c.ValidFor > 0 {
		o.Deadline = o.AcceptedAt.Add(c.ValidFor)
	}
	if c.Amount != "" {
		if o.Currency, err = money.ParseCurrency(c.Currency); err != nil {
			return e, err
		}
		amount, err := money.ParseAmount(c.Amount, o.Currency)
		if err == nil && amount.Minor <= 0 {
			err = errors.New("--amount must be positive")
		}
		if err != nil {
			return e, err
		}
		o.Minor = amount.Minor
	}
	if err := o.Validate(); err != nil {
		return e, err
	}
	if e, err = event.RequestedOperation(signSource, o, "", now); err == nil {
		err = keys.Sign(&e)
	}
	return e, err
}

// requestsPayment reports whether the event requests a payment, and not an operation on one.
func (c signCommand) requestsPayment() bool { return c.Operation == "" || c.Operation == "payment" }

// order returns the payment's request as a client sends it. newKey is its key if there is none.
func (c signCommand) order(stdin io.Reader, now time.Time, newKey string) (o payment.Order, err error) {
	if c.Body != "" {
		in := stdin
		if c.Body != "-" {
			f, err := os.Open(c.Body)
			if err != nil {
				return o, err
			}
			defer f.Close()
			in = f
		}
		decoder := json.NewDecoder(io.LimitReader(in, event.MaxBytes))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&o); err != nil {
			return o, fmt.Errorf("--body: %w", err)
		}
	}
	if c.Amount != "" {
		o.Amount = json.RawMessage(strconv.Quote(c.Amount))
	}
	if len(c.Metadata) > 0 {
		if o.Metadata, err = json.Marshal(c.Metadata); err != nil {
			return o, err
		}
	}
	o.Sender, o.Receiver, o.Currency = cmp.Or(c.Sender, o.Sender), cmp.Or(c.Receiver, o.Receiver), cmp.Or(c.Currency, o.Currency)
	o.Key = cmp.Or(c.Key, o.Key, newKey)
	o.TxDate = cmp.Or(c.TxDate, o.TxDate, now.UTC().Format(time.RFC3339))
	o.DebitCurrency, o.CreditCurrency = cmp.Or(c.DebitCurrency, o.DebitCurrency), cmp.Or(c.CreditCurrency, o.CreditCurrency)
	return o, nil
}

// priced returns the payment with the price that the gateway would get from fx.
func priced(ctx context.Context, fx grpc.ClientConnInterface, p payment.Payment) (payment.Payment, error) {
	client := fxv1.NewFxServiceClient(fx)
	var err error
	if p.InRupiah() {
		var got *fxv1.ConvertResponse
		if got, err = client.Convert(ctx, rpc.InRupiah(p.Sent())); err == nil {
			p, err = rpc.Priced(p, got)
		}
	} else {
		var got *fxv1.QuoteResponse
		if got, err = client.Quote(ctx, rpc.QuoteOf(p)); err == nil {
			p, err = rpc.Quoted(p, got)
		}
	}
	if err != nil {
		return p, fmt.Errorf("ask fx for the price: %w", err)
	}
	if p.AmountIDR <= 0 {
		return p, errors.New("amount: is worth less than one rupiah")
	}
	return p, nil
}

// signSource is the source of the events that operators sign by hand.
const signSource = "/pgw/operators"

// event makes the signed event that requests a priced payment.
func (c signCommand) event(p payment.Payment, keys *event.Keyring, now time.Time, attempt string) (cloudevents.Event, error) {
	p.AcceptedAt, p.AttemptID = now.UTC(), attempt
	if c.ValidFor > 0 {
		p.Deadline = p.AcceptedAt.Add(c.ValidFor)
	}
	if err := p.Validate(); err != nil {
		return cloudevents.Event{}, err
	}
	e, err := event.Requested(signSource, p, "", now)
	if err == nil {
		err = keys.Sign(&e)
	}
	return e, err
}

// shape writes an event in the form that a tool takes.
type shape struct {
	to, topic string
	brokers   []string
}

func (s shape) write(ctx context.Context, as string, e cloudevents.Event) (string, error) {
	switch as {
	case "yaml":
		return asYAML(e)
	case "curl":
		return s.asCurl(ctx, e)
	case "kcat":
		return s.asKcat(ctx, e)
	case "kn", "func":
		return s.asPlain(as, e)
	}
	text, err := e.MarshalJSON()
	return string(text) + "\n", err
}

// asYAML writes the fields of an event in JSON as YAML. The data is in base64, because the signature
// covers its bytes, which would change otherwise.
func asYAML(e cloudevents.Event) (string, error) {
	text, err := e.MarshalJSON()
	if err != nil {
		return "", err
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		return "", err
	}
	delete(fields, "data")
	fields["data_base64"] = base64.StdEncoding.EncodeToString(e.Data())
	out, err := yaml.Marshal(fields)
	return string(out), err
}

// header returns an event's headers in HTTP's binary mode, by their names in lower case.
func header(ctx context.Context, e cloudevents.Event) (map[string]string, error) {
	req, err := cehttp.NewHTTPRequestFromEvent(ctx, "http://worker", e)
	if err != nil {
		return nil, err
	}
	named := map[string]string{}
	for name, values := range req.Header {
		named[strings.ToLower(name)] = values[0]
	}
	return named, nil
}

// asCurl writes a line that posts an event in binary mode, in which its signature stays valid.
func (s shape) asCurl(ctx context.Context, e cloudevents.Event) (string, error) {
	named, err := header(ctx, e)
	words := []string{"curl", "-sS", "-i", "-X", "POST"}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		words = append(words, "-H", name+": "+named[name])
	}
	return shellLine(append(words, "--data-binary", string(e.Data()), s.to)...), err
}

// asKcat writes a line that publishes an event with the partitioner of pgw's own producers.
func (s shape) asKcat(ctx context.Context, e cloudevents.Event) (string, error) {
	named, err := header(ctx, e)
	words := []string{
		"kcat", "-P", "-b", strings.Join(s.brokers, ","), "-t", s.topic, "-k", e.Subject(), "-X", "partitioner=murmur2_random",
	}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		key := name
		if attribute, ok := strings.CutPrefix(name, "ce-"); ok {
			key = "ce_" + attribute
		}
		words = append(words, "-H", key+"="+named[name])
	}
	return strings.TrimSuffix(shellLine("printf", "%s", string(e.Data())), "\n") + " | " + shellLine(words...), err
}

// plainFields are the fields of a plain record.
type plainFields struct {
	Key       string         `json:"idempotency_key"`
	Sender    string         `json:"sender_id"`
	Receiver  string         `json:"receiver_id"`
	AmountIDR int64          `json:"amount_idr"`
	Currency  money.Currency `json:"currency_input"`
	TxDate    string         `json:"tx_date"`
}

// asPlain writes a line for a tool that can set an event's id, source, type and data only. Without a
// signature, worker takes the payment only as a plain record.
func (s shape) asPlain(tool string, e cloudevents.Event) (string, error) {
	if e.Type() != event.TypePaymentRequested {
		return "", fmt.Errorf("%s can't send a signature, and only a payment in rupiah is accepted without one: use curl or kcat", tool)
	}
	if signed, err := event.Decode[event.PaymentRequested](e); err == nil && signed.Client != "" {
		return "", fmt.Errorf("%s can't send a signature, and a plain record has no client: use curl or kcat", tool)
	}
	p, err := event.Decode[plainFields](e)
	if err != nil {
		return "", err
	}
	if tool == "kn" {
		return shellLine("kn", "event", "send", "--to", s.to, "--type", event.TypeKafkaRecord, "--id", e.ID(),
			"--raw-field", "idempotency_key="+p.Key, "--raw-field", "sender_id="+p.Sender, "--raw-field", "receiver_id="+p.Receiver,
			"--field", fmt.Sprint("amount_idr=", p.AmountIDR), "--raw-field", "currency_input="+p.Currency.String(), "--raw-field", "tx_date="+p.TxDate), nil
	}
	var data bytes.Buffer
	encoder := json.NewEncoder(&data)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(p); err != nil {
		return "", err
	}
	return shellLine("func", "invoke", "--format", "cloudevent", "--target", s.to, "--type", event.TypeKafkaRecord, "--id", e.ID(),
		"--source", e.Source(), "--content-type", cloudevents.ApplicationJSON, "--data", strings.TrimSpace(data.String())), nil
}

// shellLine writes words as a line of a POSIX shell.
func shellLine(words ...string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = word
		if word == "" || strings.ContainsFunc(word, func(c rune) bool {
			return !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./:=,%", c)
		}) {
			quoted[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ") + "\n"
}
