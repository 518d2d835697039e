package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"

	webhooksv1 "pgw/proto/gen/webhooks/v1"
	"pgw/shared/rpc"
)

// webhookCommand manages the endpoints at which clients are told what became of their payments.
type webhookCommand struct {
	Add       addWebhook       `cmd:"" help:"Add a webhook for a client. Its secret is printed this once."`
	List      listWebhooks     `cmd:"" help:"List the webhooks of all clients, or of one."`
	Show      showWebhook      `cmd:"" help:"Show a webhook, and what was sent to it last, with all attempts."`
	Change    changeWebhook    `cmd:"" help:"Change a webhook: its URL, its types, how its events look, or whether it is enabled."`
	Remove    removeWebhook    `cmd:"" help:"Delete a webhook, and the record of what was sent to it."`
	Test      testWebhook      `cmd:"" help:"Send a test event to a webhook."`
	Rotate    rotateWebhook    `cmd:"" help:"Make a new secret, printed this once. The old one signs too for a day, or as long as --overlap says."`
	Redeliver redeliverWebhook `cmd:"" help:"Send an event again, or all events since a time."`
}

// anyClient is the scope of operators.
func anyClient(client string) *webhooksv1.Scope {
	return &webhooksv1.Scope{Client: client, AnyClient: true}
}

// webhookFlags are common to these commands.
type webhookFlags struct {
	operatorFlags
	dataFlags
}

func (f webhookFlags) ask(ctx context.Context, do func(context.Context, webhooksv1.WebhooksClient) error) error {
	return f.call(ctx, "webhooks", func(ctx context.Context, conn grpc.ClientConnInterface) error {
		return do(ctx, webhooksv1.NewWebhooksClient(conn))
	})
}

// webhookView is a webhook as it is printed.
type webhookView struct {
	ID           string    `json:"id"`
	Client       string    `json:"client"`
	URL          string    `json:"url"`
	Types        []string  `json:"types"`
	Format       string    `json:"format"`
	Thin         bool      `json:"thin"`
	Description  string    `json:"description"`
	State        string    `json:"state"` // enabled, failing, or disabled and why
	Since        time.Time `json:"since,omitzero"`
	Signature    string    `json:"signature"`
	PublicKey    string    `json:"public_key,omitempty"`
	Secret       string    `json:"secret,omitempty"`
	OldSecretEnd time.Time `json:"old_secret_until,omitzero"`
	CreatedAt    time.Time `json:"created_at"`
}

func viewOf(e *webhooksv1.Endpoint, secret string) webhookView {
	v := webhookView{
		ID: e.GetEndpointId(), Client: e.GetClient(), URL: e.GetUrl(), Types: e.GetTypes(), Format: e.GetFormat(), Thin: e.GetThin(), Description: e.GetNote(),
		State: "enabled", Signature: e.GetSignature(), PublicKey: e.GetPublicKey(), Secret: secret, OldSecretEnd: rpc.Time(e.GetOldSecretUntil()),
		CreatedAt: rpc.Time(e.GetCreatedAt()),
	}
	switch failing := rpc.Time(e.GetFailingSince()); {
	case !e.GetEnabled():
		v.State, v.Since = "disabled: "+e.GetDisabledReason(), rpc.Time(e.GetDisabledAt())
	case !failing.IsZero():
		v.State, v.Since = "failing", failing
	}
	return v
}

func (v webhookView) text(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "webhook\t%s\nclient\t%s\nURL\t%s\ntypes\t%s\nformat\t%s\n", v.ID, cmp.Or(v.Client, "(none)"), v.URL, cmp.Or(strings.Join(v.Types, ", "), "all"), v.Format)
	if v.Thin {
		fmt.Fprintf(w, "thin\tits events name the payment only\n")
	}
	if v.Description != "" {
		fmt.Fprintf(w, "for\t%s\n", v.Description)
	}
	state := v.State
	if !v.Since.IsZero() {
		state += ", since " + v.Since.Format(time.RFC3339)
	}
	fmt.Fprintf(w, "state\t%s\nsignature\t%s\n", state, v.Signature)
	if v.PublicKey != "" {
		fmt.Fprintf(w, "public key\t%s\n", v.PublicKey)
	}
	if v.Secret != "" {
		fmt.Fprintf(w, "secret\t%s\n", v.Secret)
	}
	if !v.OldSecretEnd.IsZero() {
		fmt.Fprintf(w, "old secret\tsigns too until %s\n", v.OldSecretEnd.Format(time.RFC3339))
	}
	return w.Flush()
}

type addWebhook struct {
	webhookFlags
	URL       string   `arg:"" help:"The URL that gets the events."`
	Client    string   `help:"Whose payments it is told: the name of an API key's owner or a token's subject. By default of callers without a name."`
	Types     []string `help:"The types of events, separated by commas, such as payment.settled,payment.refunded. By default all."`
	Format    string   `default:"webhook" enum:"webhook,cloudevents" help:"webhook: as Standard Webhooks says; cloudevents: a structured CloudEvent."`
	Thin      bool     `help:"Its events name the payment only."`
	For       string   `help:"What it is for."`
	Signature string   `default:"v1" enum:"v1,v1a" help:"v1: HMAC-SHA-256 with a secret; v1a: ed25519, whose public key is printed."`
}

func (c addWebhook) Run(ctx context.Context) error {
	var view webhookView
	err := c.ask(ctx, func(ctx context.Context, hooks webhooksv1.WebhooksClient) error {
		got, err := hooks.CreateEndpoint(ctx, &webhooksv1.CreateEndpointRequest{
			Scope: anyClient(c.Client), Url: c.URL, Types: c.Types, Format: c.Format, Thin: c.Thin, Note: c.For, Signature: c.Signature,
		})
		view = viewOf(got.GetEndpoint(), got.GetSecret())
		return err
	})
	if err != nil {
		return err
	}
	return c.print(view, view.text)
}

type listWebhooks struct {
	webhookFlags
	Client *string `help:"Only those of this client; an empty name: of callers without one."`
}

func (c listWebhooks) Run(ctx context.Context) error {
	scope := anyClient("")
	if c.Client != nil {
		scope = &webhooksv1.Scope{Client: *c.Client}
	}
	all := []webhookView{}
	err := c.ask(ctx, func(ctx context.Context, hooks webhooksv1.WebhooksClient) error {
		got, err := hooks.ListEndpoints(ctx, &webhooksv1.ListEndpointsRequest{Scope: scope})
		for _, e := range got.GetEndpoints() {
			all = append(all, viewOf(e, ""))
		}
		return err
	})
	if err != nil {
		return err
	}
	return c.print(all, func(to io.Writer) error {
		w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "webhook\tclient\tstate\ttypes\tURL")
		for _, v := range all {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.ID, cmp.Or(v.Client, "(none)"), v.State, cmp.Or(strings.Join(v.Types, ","), "all"), v.URL)
		}
		return w.Flush()
	})
}

// oneWebhook is common to the commands about one webhook.
type oneWebhook struct {
	webhookFlags
	ID string `arg:"" help:"The webhook's id, as pgw webhook list prints it."`
}

type showWebhook struct {
	oneWebhook
	Status string `help:"Only deliveries of this status: pending, delivered, failed or withheld."`
	Limit  int32  `default:"10" help:"The most deliveries."`
}

// shownWebhook is a webhook with its last deliveries.
type shownWebhook struct {
	webhookView
	Deliveries []deliveryView `json:"deliveries"`
}

type deliveryView struct {
	Event     string        `json:"webhook_id"`
	Type      string        `json:"type"`
	Payment   string        `json:"idempotency_key,omitempty"`
	Status    string        `json:"status"`
	CreatedAt time.Time     `json:"created_at"`
	NextAt    time.Time     `json:"next_attempt_at,omitzero"`
	Attempts  []attemptView `json:"attempts"`
}

type attemptView struct {
	At     time.Time `json:"at"`
	Result string    `json:"result"`
	Code   int32     `json:"code,omitempty"`
	Millis float64   `json:"ms"`
	Answer string    `json:"answer"`
}

func (c showWebhook) Run(ctx context.Context) error {
	var shown shownWebhook
	err := c.ask(ctx, func(ctx context.Context, hooks webhooksv1.WebhooksClient) error {
		got, err := hooks.ListEndpoints(ctx, &webhooksv1.ListEndpointsRequest{Scope: anyClient(""), EndpointId: c.ID})
		if err != nil || len(got.Endpoints) != 1 {
			return err
		}
		shown.webhookView = viewOf(got.Endpoints[0], "")
		sent, err := hooks.ListDeliveries(ctx, &webhooksv1.ListDeliveriesRequest{Scope: anyClient(""), EndpointId: c.ID, Status: c.Status, Limit: c.Limit})
		for _, d := range sent.GetDeliveries() {
			v := deliveryView{Event: d.EventId, Type: d.Type, Payment: d.PaymentKey, Status: d.Status, CreatedAt: rpc.Time(d.CreatedAt), NextAt: rpc.Time(d.NextAt)}
			for _, a := range d.Attempts {
				v.Attempts = append(v.Attempts, attemptView{rpc.Time(a.At), a.Result, a.Code, float64(a.Micros) / 1000, a.Answer})
			}
			shown.Deliveries = append(shown.Deliveries, v)
		}
		return err
	})
	if err != nil {
		return err
	}
	return c.print(shown, shown.text)
}

func (s shownWebhook) text(to io.Writer) error {
	if err := s.webhookView.text(to); err != nil {
		return err
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, d := range s.Deliveries {
		fmt.Fprintf(w, "\n%s\t%s\t%s\t%s\n", d.CreatedAt.Format(time.RFC3339), d.Type, d.Status, cmp.Or(d.Payment, d.Event))
		for _, a := range d.Attempts {
			result := a.Result
			if a.Code != 0 {
				result += fmt.Sprint(" ", a.Code)
			}
			fmt.Fprintf(w, "  %s\t%s\t%.1f ms\t%.80q\n", a.At.Format(time.RFC3339), result, a.Millis, a.Answer)
		}
		if !d.NextAt.IsZero() {
			fmt.Fprintf(w, "  next attempt\t%s\t\t\n", d.NextAt.Format(time.RFC3339))
		}
	}
	return w.Flush()
}

type changeWebhook struct {
	oneWebhook
	URL    *string  `name:"url" help:"The URL."`
	Types  []string `help:"The types of events, separated by commas; all: every type."`
	Format *string  `help:"webhook or cloudevents."`
	Thin   *bool    `negatable:"" help:"Its events name the payment only."`
	For    *string  `help:"What it is for."`
	Enable *bool    `negatable:"" help:"Enable it, or with --no-enable disable it."`
}

func (c changeWebhook) Run(ctx context.Context) error {
	change := &webhooksv1.UpdateEndpointRequest{Scope: anyClient(""), EndpointId: c.ID, Url: c.URL, Format: c.Format, Thin: c.Thin, Note: c.For, Enabled: c.Enable}
	switch {
	case len(c.Types) == 1 && c.Types[0] == "all":
		change.Types = &webhooksv1.Types{}
	case len(c.Types) > 0:
		change.Types = &webhooksv1.Types{Types: c.Types}
	}
	var view webhookView
	err := c.ask(ctx, func(ctx context.Context, hooks webhooksv1.WebhooksClient) error {
		got, err := hooks.UpdateEndpoint(ctx, change)
		view = viewOf(got.GetEndpoint(), "")
		return err
	})
	if err != nil {
		return err
	}
	return c.print(view, view.text)
}

type removeWebhook struct{ oneWebhook }

func (c removeWebhook) Run(ctx context.Context) error {
	return c.ask(ctx, func(ctx context.Context, hooks webhooksv1.WebhooksClient) error {
		_, err := hooks.DeleteEndpoint(ctx, &webhooksv1.DeleteEndpointRequest{Scope: anyClient(""), EndpointId: c.ID})
		if err == nil {
			_, err = fmt.Printf("webhook %s is removed\n", c.ID)
		}
		return err
	})
}

type testWebhook struct{ oneWebhook }

func (c testWebhook) Run(ctx context.Context) error {
	var sent struct {
		Event string `json:"webhook_id"`
	}
	err := c.ask(ctx, func(ctx context.Context, hooks webhooksv1.WebhooksClient) error {
		got, err := hooks.SendTest(ctx, &webhooksv1.SendTestRequest{Scope: anyClient(""), EndpointId: c.ID})
		sent.Event = got.GetEventId()
		return err
	})
	if err != nil {
		return err
	}
	return c.print(sent, func(to io.Writer) error {
		_, err := fmt.Fprintf(to, "the test event %s is being sent; pgw webhook show %s prints what became of it\n", sent.Event, c.ID)
		return err
	})
}

type rotateWebhook struct {
	oneWebhook
	Overlap time.Duration `default:"24h" help:"For how long the old secret signs too; 0s: not at all."`
}

func (c rotateWebhook) Run(ctx context.Context) error {
	var view webhookView
	overlap := int64(c.Overlap / time.Second)
	err := c.ask(ctx, func(ctx context.Context, hooks webhooksv1.WebhooksClient) error {
		got, err := hooks.RotateSecret(ctx, &webhooksv1.RotateSecretRequest{Scope: anyClient(""), EndpointId: c.ID, OverlapSeconds: &overlap})
		view = viewOf(got.GetEndpoint(), got.GetSecret())
		return err
	})
	if err != nil {
		return err
	}
	return c.print(view, view.text)
}

type redeliverWebhook struct {
	oneWebhook
	Event     string        `help:"This event: its webhook-id."`
	Since     time.Duration `help:"All events of the last hours, such as 24h."`
	Delivered bool          `help:"With --since: also those that were delivered."`
}

func (c redeliverWebhook) Run(ctx context.Context) error {
	if (c.Event == "") == (c.Since <= 0) {
		return usageError{errors.New("give either --event or --since"), "webhook redeliver"}
	}
	again := &webhooksv1.RedeliverRequest{Scope: anyClient(""), EndpointId: c.ID, EventId: c.Event, Delivered: c.Delivered}
	if c.Event == "" {
		again.Since = rpc.Timestamp(time.Now().Add(-c.Since))
	}
	var done struct {
		Count int64 `json:"redelivered"`
	}
	err := c.ask(ctx, func(ctx context.Context, hooks webhooksv1.WebhooksClient) error {
		got, err := hooks.Redeliver(ctx, again)
		done.Count = got.GetCount()
		return err
	})
	if err != nil {
		return err
	}
	return c.print(done, func(to io.Writer) error {
		_, err := fmt.Fprintf(to, "sent again: %d\n", done.Count)
		return err
	})
}
