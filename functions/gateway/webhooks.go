package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	jsonexp "github.com/go-json-experiment/json"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	webhooksv1 "pgw/proto/gen/webhooks/v1"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// This file serves the endpoints at which clients are told what became of their payments. The function
// webhooks keeps them. A client has its own; operators have all.

// webhookRoutes adds the routes of webhooks.
func (g *Gateway) webhookRoutes(mux apiRoutes) {
	mux.HandleFunc("POST /api/webhooks", g.postWebhook)
	mux.HandleFunc("GET /api/webhooks", g.listWebhooks, "client")
	mux.HandleFunc("GET /api/webhooks/{id}", g.getWebhook)
	mux.HandleFunc("PATCH /api/webhooks/{id}", g.patchWebhook)
	mux.HandleFunc("DELETE /api/webhooks/{id}", g.deleteWebhook)
	mux.HandleFunc("POST /api/webhooks/{id}/test", g.testWebhook)
	mux.HandleFunc("POST /api/webhooks/{id}/rotate", g.rotateWebhook)
	mux.HandleFunc("POST /api/webhooks/{id}/redeliver", g.redeliverWebhook)
	mux.HandleFunc("GET /api/webhooks/{id}/deliveries", g.listDeliveries, "status", "webhook_id", "limit", "cursor")
}

// webhookJSON is an endpoint as a client gets it.
type webhookJSON struct {
	ID             string    `json:"id"`
	Client         string    `json:"client,omitempty"`
	URL            string    `json:"url"`
	Types          []string  `json:"types"` // empty: all
	Format         string    `json:"format"`
	Thin           bool      `json:"thin"`
	Description    string    `json:"description"`
	Enabled        bool      `json:"enabled"`
	DisabledReason string    `json:"disabled_reason,omitempty"`
	DisabledAt     time.Time `json:"disabled_at,omitzero"`
	FailingSince   time.Time `json:"failing_since,omitzero"`
	Signature      string    `json:"signature"`
	PublicKey      string    `json:"public_key,omitempty"`
	Secret         string    `json:"secret,omitempty"` // told once
	OldSecretUntil time.Time `json:"old_secret_until,omitzero"`
	CreatedAt      time.Time `json:"created_at"`
	ChangedAt      time.Time `json:"changed_at"`
}

func webhookOf(e *webhooksv1.Endpoint, secret string) webhookJSON {
	types := e.GetTypes()
	if types == nil {
		types = []string{}
	}
	return webhookJSON{
		ID: e.GetEndpointId(), Client: e.GetClient(), URL: e.GetUrl(), Types: types, Format: e.GetFormat(), Thin: e.GetThin(), Description: e.GetNote(),
		Enabled: e.GetEnabled(), DisabledReason: e.GetDisabledReason(), DisabledAt: rpc.Time(e.GetDisabledAt()), FailingSince: rpc.Time(e.GetFailingSince()),
		Signature: e.GetSignature(), PublicKey: e.GetPublicKey(), Secret: secret, OldSecretUntil: rpc.Time(e.GetOldSecretUntil()),
		CreatedAt: rpc.Time(e.GetCreatedAt()), ChangedAt: rpc.Time(e.GetChangedAt()),
	}
}

// webhookScope says whose endpoints a request is about.
func webhookScope(r *http.Request) *webhooksv1.Scope {
	p := principal(r)
	return &webhooksv1.Scope{Client: clientOf(r.Context()), AnyClient: p != nil && p.OwnsAll()}
}

// readWebhook reads a JSON body into a value, and answers if it can't. A field that pgw does not know
// is refused: a client that misspells one would believe that it was set. An empty body is an empty
// object if that is allowed.
func readWebhook(w http.ResponseWriter, r *http.Request, into any, mayBeEmpty bool) bool {
	if !readable(w, r) {
		return false
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		writeProblem(w, http.StatusRequestEntityTooLarge, "The body is too large", fmt.Sprintf("It is larger than %d bytes.", maxBody))
		return false
	case err != nil:
		writeProblem(w, http.StatusBadRequest, "Bad request", "the body could not be read")
		return false
	case len(raw) == 0 && mayBeEmpty:
		return true
	}
	err = jsonexp.Unmarshal(raw, into, jsonexp.RejectUnknownMembers(true))
	var wrong *jsonexp.SemanticError
	switch {
	case err == nil:
		return true
	case errors.As(err, &wrong) && wrong.JSONPointer != "":
		field := wrong.JSONPointer.LastToken()
		problem := "has the wrong type"
		if errors.Is(err, jsonexp.ErrUnknownName) {
			problem = "is not a field of this request"
		}
		writeWrong(w, payment.Problems{problemOf(fmt.Sprintf("%.64s", field), problem)})
	default:
		writeProblem(w, http.StatusBadRequest, "Bad request", "the body is not the JSON object of this request")
	}
	return false
}

// asking returns the context of a call to webhooks.
func (g *Gateway) asking(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), g.cfg.AnswerIn)
}

// refuseWebhook answers with webhooks' refusal.
func (g *Gateway) refuseWebhook(w http.ResponseWriter, r *http.Request, err error) {
	message := status.Convert(err).Message()
	switch status.Code(err) {
	case codes.InvalidArgument:
		field, problem, _ := strings.Cut(message, ": ")
		writeWrong(w, payment.Problems{problemOf(field, problem)})
	case codes.FailedPrecondition:
		writeProblem(w, http.StatusConflict, "The webhook is disabled", message)
	case codes.ResourceExhausted:
		writeProblem(w, http.StatusConflict, "Too many webhooks", message)
	default:
		g.writeRefusal(w, r, "webhooks", err)
	}
}

// webhookBody is the body that makes or changes an endpoint. Absent fields are nil.
type webhookBody struct {
	URL         *string   `json:"url"`
	Types       *[]string `json:"types"`
	Format      *string   `json:"format"`
	Thin        *bool     `json:"thin"`
	Description *string   `json:"description"`
	Signature   *string   `json:"signature"`
	Enabled     *bool     `json:"enabled"`
}

func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func (g *Gateway) postWebhook(w http.ResponseWriter, r *http.Request) {
	var in webhookBody
	if !readWebhook(w, r, &in, false) {
		return
	}
	if in.Enabled != nil {
		writeWrong(w, payment.Problems{problemOf("enabled", "can be changed later; a new webhook is enabled")})
		return
	}
	ctx, cancel := g.asking(r)
	defer cancel()
	got, err := g.webhooks.CreateEndpoint(ctx, &webhooksv1.CreateEndpointRequest{
		Scope: webhookScope(r), Url: valueOf(in.URL), Types: valueOf(in.Types), Format: valueOf(in.Format), Thin: valueOf(in.Thin),
		Note: valueOf(in.Description), Signature: valueOf(in.Signature),
	})
	if err != nil {
		g.refuseWebhook(w, r, err)
		return
	}
	w.Header().Set("Location", "/api/webhooks/"+got.GetEndpoint().GetEndpointId())
	writeJSON(w, http.StatusCreated, webhookOf(got.Endpoint, got.Secret))
}

// listScope returns whose endpoints a list has: the request's, or those of the client that it asks for.
// seen is false if that is another client.
func listScope(r *http.Request) (scope *webhooksv1.Scope, seen bool) {
	scope = webhookScope(r)
	q := queryOf(r)
	if !q.has("client") {
		return scope, true
	}
	of := q.text("client")
	return &webhooksv1.Scope{Client: of}, scope.AnyClient || of == scope.Client
}

func (g *Gateway) listWebhooks(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := g.asking(r)
	defer cancel()
	got, all := &webhooksv1.ListEndpointsResponse{}, []webhookJSON{}
	if scope, seen := listScope(r); seen {
		var err error
		if got, err = g.webhooks.ListEndpoints(ctx, &webhooksv1.ListEndpointsRequest{Scope: scope}); err != nil {
			g.refuseWebhook(w, r, err)
			return
		}
	}
	for _, e := range got.Endpoints {
		all = append(all, webhookOf(e, ""))
	}
	writeJSON(w, http.StatusOK, struct {
		Webhooks []webhookJSON `json:"webhooks"`
	}{all})
}

func (g *Gateway) getWebhook(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := g.asking(r)
	defer cancel()
	got, err := g.webhooks.ListEndpoints(ctx, &webhooksv1.ListEndpointsRequest{Scope: webhookScope(r), EndpointId: r.PathValue("id")})
	if err == nil && len(got.Endpoints) != 1 {
		err = status.Error(codes.NotFound, "there is no such endpoint")
	}
	if err != nil {
		g.refuseWebhook(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, webhookOf(got.Endpoints[0], ""))
}

func (g *Gateway) patchWebhook(w http.ResponseWriter, r *http.Request) {
	var in webhookBody
	if !readWebhook(w, r, &in, false) {
		return
	}
	if in.Signature != nil {
		writeWrong(w, payment.Problems{problemOf("signature", "can't be changed; make another webhook")})
		return
	}
	change := &webhooksv1.UpdateEndpointRequest{
		Scope: webhookScope(r), EndpointId: r.PathValue("id"), Url: in.URL, Format: in.Format, Thin: in.Thin, Note: in.Description, Enabled: in.Enabled,
	}
	if in.Types != nil {
		change.Types = &webhooksv1.Types{Types: *in.Types}
	}
	ctx, cancel := g.asking(r)
	defer cancel()
	got, err := g.webhooks.UpdateEndpoint(ctx, change)
	if err != nil {
		g.refuseWebhook(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, webhookOf(got.Endpoint, ""))
}

func (g *Gateway) deleteWebhook(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := g.asking(r)
	defer cancel()
	if _, err := g.webhooks.DeleteEndpoint(ctx, &webhooksv1.DeleteEndpointRequest{Scope: webhookScope(r), EndpointId: r.PathValue("id")}); err != nil {
		g.refuseWebhook(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (g *Gateway) testWebhook(w http.ResponseWriter, r *http.Request) {
	if !readWebhook(w, r, &struct{}{}, true) {
		return
	}
	ctx, cancel := g.asking(r)
	defer cancel()
	got, err := g.webhooks.SendTest(ctx, &webhooksv1.SendTestRequest{Scope: webhookScope(r), EndpointId: r.PathValue("id")})
	if err != nil {
		g.refuseWebhook(w, r, err)
		return
	}
	writeJSON(w, http.StatusAccepted, struct {
		Event string `json:"webhook_id"`
	}{got.EventId})
}

func (g *Gateway) rotateWebhook(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Overlap *int64 `json:"overlap_seconds"`
	}
	if !readWebhook(w, r, &in, true) {
		return
	}
	ctx, cancel := g.asking(r)
	defer cancel()
	got, err := g.webhooks.RotateSecret(ctx, &webhooksv1.RotateSecretRequest{Scope: webhookScope(r), EndpointId: r.PathValue("id"), OverlapSeconds: in.Overlap})
	if err != nil {
		g.refuseWebhook(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, webhookOf(got.Endpoint, got.Secret))
}

func (g *Gateway) redeliverWebhook(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Event     string    `json:"webhook_id"`
		Since     time.Time `json:"since"`
		Delivered bool      `json:"delivered"`
	}
	if !readWebhook(w, r, &in, false) {
		return
	}
	ctx, cancel := g.asking(r)
	defer cancel()
	got, err := g.webhooks.Redeliver(ctx, &webhooksv1.RedeliverRequest{
		Scope: webhookScope(r), EndpointId: r.PathValue("id"), EventId: in.Event, Since: rpc.Timestamp(in.Since), Delivered: in.Delivered,
	})
	if err != nil {
		g.refuseWebhook(w, r, err)
		return
	}
	writeJSON(w, http.StatusAccepted, struct {
		Count int64 `json:"redelivered"`
	}{got.Count})
}

// deliveryJSON is what was sent to an endpoint.
type deliveryJSON struct {
	Event     string        `json:"webhook_id"`
	Type      string        `json:"type"`
	Payment   string        `json:"idempotency_key,omitempty"`
	Sequence  int32         `json:"sequence,omitempty"`
	Status    string        `json:"status"`
	CreatedAt time.Time     `json:"created_at"`
	NextAt    time.Time     `json:"next_attempt_at,omitzero"`
	EndedAt   time.Time     `json:"ended_at,omitzero"`
	Attempts  []attemptJSON `json:"attempts"`
}

type attemptJSON struct {
	Number int32     `json:"number"`
	At     time.Time `json:"at"`
	Result string    `json:"result"`
	Code   int32     `json:"code,omitempty"` // absent: there was no answer
	Millis float64   `json:"ms"`
	Answer string    `json:"answer"` // its first bytes, or what went wrong
}

func (g *Gateway) listDeliveries(w http.ResponseWriter, r *http.Request) {
	q := queryOf(r)
	limit := 0
	if q.has("limit") {
		n, err := strconv.ParseUint(q.text("limit"), 10, 16)
		if err != nil || n == 0 {
			q.note("limit", &payment.FieldError{Field: "limit", Problem: fmt.Sprintf("%.20q is not a number from 1", q.text("limit"))})
		}
		limit = int(n)
	}
	if len(q.wrong) > 0 {
		writeWrong(w, q.wrong)
		return
	}
	ctx, cancel := g.asking(r)
	defer cancel()
	got, err := g.webhooks.ListDeliveries(ctx, &webhooksv1.ListDeliveriesRequest{
		Scope: webhookScope(r), EndpointId: r.PathValue("id"), Status: q.text("status"), EventId: q.text("webhook_id"), Limit: int32(limit), Cursor: q.text("cursor"),
	})
	if err != nil {
		g.refuseWebhook(w, r, err)
		return
	}
	all := []deliveryJSON{}
	for _, d := range got.Deliveries {
		out := deliveryJSON{
			Event: d.EventId, Type: d.Type, Payment: d.PaymentKey, Sequence: d.Sequence, Status: d.Status,
			CreatedAt: rpc.Time(d.CreatedAt), NextAt: rpc.Time(d.NextAt), EndedAt: rpc.Time(d.EndedAt), Attempts: []attemptJSON{},
		}
		for _, a := range d.Attempts {
			out.Attempts = append(out.Attempts, attemptJSON{a.Number, rpc.Time(a.At), a.Result, a.Code, float64(a.Micros) / 1000, a.Answer})
		}
		all = append(all, out)
	}
	writeJSON(w, http.StatusOK, struct {
		Deliveries []deliveryJSON `json:"deliveries"`
		Next       string         `json:"next_cursor,omitempty"` // absent on the last page
	}{all, got.NextCursor})
}
