package webhooks

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	webhooksv1 "pgw/proto/gen/webhooks/v1"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

const (
	// defaultOverlap and maxOverlap are how long an old secret signs too.
	defaultOverlap, maxOverlap = 24 * time.Hour, 7 * 24 * time.Hour
	// maxListed is the most endpoints in a list, which fit into a message.
	maxListed = 5000
	// The number of deliveries on a page.
	defaultPage, maxPage = 20, 100
)

// deliveryStatuses are the statuses of deliveries as callers name them.
var deliveryStatuses = map[string]ledger.DeliveryStatus{
	"pending": ledger.DeliveryPending, "delivered": ledger.DeliveryDelivered, "failed": ledger.DeliveryFailed, "withheld": ledger.DeliveryWithheld,
}

func scopeOf(in *webhooksv1.Scope) ledger.Scope {
	return ledger.Scope{Client: in.GetClient(), All: in.GetAnyClient()}
}

// translated turns the store's errors into those of an RPC.
func translated(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ledger.ErrNoEndpoint):
		return status.Error(codes.NotFound, "there is no such endpoint")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unavailable, "the store of webhooks can't be used now")
}

func wrong(field, problem string) error {
	return status.Error(codes.InvalidArgument, (&payment.FieldError{Field: field, Problem: problem}).Error())
}

func endpointID(text string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil {
		return id, status.Error(codes.NotFound, "there is no such endpoint") // as for any id that nobody has
	}
	return id, nil
}

// checkTypes checks a list of types, and returns it sorted with each type once.
func checkTypes(given []string) ([]string, error) {
	for _, t := range given {
		if !slices.Contains(types, t) {
			return nil, wrong("types", fmt.Sprintf("has %.50q; want some of %s", t, strings.Join(types, ", ")))
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(given))), nil
}

func checkFormat(given string) error {
	if given != formatWebhook && given != formatCloudEvents {
		return wrong("format", fmt.Sprintf("is %.50q; want %s or %s", given, formatWebhook, formatCloudEvents))
	}
	return nil
}

func (w *Webhooks) checkURL(given string) error {
	if err := w.guard.checkURL(given); err != nil {
		return wrong("url", err.Error())
	}
	return nil
}

func checkNote(given string) error {
	if err := payment.CheckText("description", given, payment.MaxNote); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

// newSealed makes a secret of an endpoint, and encrypts it.
func (w *Webhooks) newSealed(endpoint uuid.UUID, scheme string) (secret, ledger.SealedSecret, error) {
	plain, err := newSecret(scheme, w.secrets)
	if err != nil {
		return plain, ledger.SealedSecret{}, status.Error(codes.Internal, "a secret could not be made")
	}
	sealed, err := w.cfg.SecretKeys.seal(endpoint, uuid.Must(uuid.NewV7()), plain, w.secrets)
	if err != nil {
		return plain, sealed, status.Error(codes.Internal, "a secret could not be encrypted")
	}
	return plain, sealed, nil
}

// CreateEndpoint implements webhooks.v1.Webhooks.
func (w *Webhooks) CreateEndpoint(ctx context.Context, in *webhooksv1.CreateEndpointRequest) (*webhooksv1.EndpointResponse, error) {
	scheme := cmp.Or(in.Signature, schemeV1)
	if scheme != schemeV1 && scheme != schemeV1a {
		return nil, wrong("signature", fmt.Sprintf("is %.50q; want %s or %s", scheme, schemeV1, schemeV1a))
	}
	wanted, err := checkTypes(in.Types)
	for _, problem := range []error{w.checkURL(in.Url), checkFormat(cmp.Or(in.Format, formatWebhook)), checkNote(in.Note)} {
		if err == nil {
			err = problem
		}
	}
	if err != nil {
		return nil, err
	}
	e := ledger.Endpoint{
		ID: uuid.Must(uuid.NewV7()), Client: in.GetScope().GetClient(), URL: in.Url, Types: wanted,
		Format: cmp.Or(in.Format, formatWebhook), Thin: in.Thin, Note: in.Note,
	}
	plain, sealed, err := w.newSealed(e.ID, scheme)
	if err != nil {
		return nil, err
	}
	e.Secrets = []ledger.SealedSecret{sealed}
	switch err := w.keeper.AddEndpoint(ctx, e, w.cfg.MaxOfClient); {
	case errors.Is(err, ledger.ErrManyEndpoints):
		return nil, status.Errorf(codes.ResourceExhausted, "the client has %d endpoints, as many as it may have", w.cfg.MaxOfClient)
	case err != nil:
		return nil, translated(err)
	}
	select {
	case <-time.After(w.spread):
	case <-ctx.Done():
	}
	return w.changed(ctx, ledger.Scope{Client: e.Client}, e.ID, plain.text())
}

// changed returns an endpoint after its change, which this replica uses from now on.
func (w *Webhooks) changed(ctx context.Context, of ledger.Scope, id uuid.UUID, text string) (*webhooksv1.EndpointResponse, error) {
	if err := w.endpoints.Refresh(ctx); err != nil {
		return nil, translated(err)
	}
	found, err := w.keeper.Endpoints(ctx, of, id, 0)
	if err == nil && len(found) == 0 {
		err = ledger.ErrNoEndpoint
	}
	if err != nil {
		return nil, translated(err)
	}
	return &webhooksv1.EndpointResponse{Endpoint: w.fromEndpoint(found[0]), Secret: text}, nil
}

func (w *Webhooks) fromEndpoint(e ledger.Endpoint) *webhooksv1.Endpoint {
	out := &webhooksv1.Endpoint{
		EndpointId: e.ID.String(), Client: e.Client, Url: e.URL, Types: e.Types, Format: e.Format, Thin: e.Thin, Note: e.Note,
		Enabled: e.Status == ledger.EndpointEnabled, DisabledReason: e.Reason,
		CreatedAt: rpc.Timestamp(e.Created), ChangedAt: rpc.Timestamp(e.Changed), DisabledAt: rpc.Timestamp(e.Disabled),
		FailingSince: rpc.Timestamp(e.FailingSince),
	}
	for _, s := range e.Secrets {
		if !s.Expires.IsZero() {
			out.OldSecretUntil = rpc.Timestamp(s.Expires)
			continue
		}
		out.Signature = s.Kind
		if plain, err := w.cfg.SecretKeys.open(e.ID, s); err == nil && s.Kind == schemeV1a {
			out.PublicKey = plain.text()
		}
	}
	return out
}

// ListEndpoints implements webhooks.v1.Webhooks.
func (w *Webhooks) ListEndpoints(ctx context.Context, in *webhooksv1.ListEndpointsRequest) (*webhooksv1.ListEndpointsResponse, error) {
	id := uuid.Nil
	var err error
	if in.EndpointId != "" {
		if id, err = endpointID(in.EndpointId); err != nil {
			return nil, err
		}
	}
	found, err := w.keeper.Endpoints(ctx, scopeOf(in.Scope), id, maxListed)
	if err == nil && id != uuid.Nil && len(found) == 0 {
		err = ledger.ErrNoEndpoint
	}
	if err != nil {
		return nil, translated(err)
	}
	out := &webhooksv1.ListEndpointsResponse{}
	for _, e := range found {
		out.Endpoints = append(out.Endpoints, w.fromEndpoint(e))
	}
	return out, nil
}

// UpdateEndpoint implements webhooks.v1.Webhooks.
func (w *Webhooks) UpdateEndpoint(ctx context.Context, in *webhooksv1.UpdateEndpointRequest) (*webhooksv1.EndpointResponse, error) {
	id, err := endpointID(in.EndpointId)
	if err != nil {
		return nil, err
	}
	c := ledger.EndpointChange{URL: in.Url, Format: in.Format, Thin: in.Thin, Note: in.Note}
	if in.Url != nil {
		err = w.checkURL(*in.Url)
	}
	if in.Format != nil && err == nil {
		err = checkFormat(*in.Format)
	}
	if in.Note != nil && err == nil {
		err = checkNote(*in.Note)
	}
	if in.Types != nil && err == nil {
		var wanted []string
		wanted, err = checkTypes(in.Types.Types)
		c.Types = &wanted
	}
	if err != nil {
		return nil, err
	}
	if in.Enabled != nil {
		to := ledger.EndpointDisabled
		if *in.Enabled {
			to = ledger.EndpointEnabled
		}
		c.Status = &to
	}
	if err := w.keeper.ChangeEndpoint(ctx, scopeOf(in.Scope), id, c); err != nil {
		return nil, translated(err)
	}
	return w.changed(ctx, scopeOf(in.Scope), id, "")
}

// DeleteEndpoint implements webhooks.v1.Webhooks.
func (w *Webhooks) DeleteEndpoint(ctx context.Context, in *webhooksv1.DeleteEndpointRequest) (*webhooksv1.DeleteEndpointResponse, error) {
	id, err := endpointID(in.EndpointId)
	if err != nil {
		return nil, err
	}
	if err := w.keeper.DeleteEndpoint(ctx, scopeOf(in.Scope), id); err != nil {
		return nil, translated(err)
	}
	return &webhooksv1.DeleteEndpointResponse{}, translated(w.endpoints.Refresh(ctx))
}

// RotateSecret implements webhooks.v1.Webhooks.
func (w *Webhooks) RotateSecret(ctx context.Context, in *webhooksv1.RotateSecretRequest) (*webhooksv1.EndpointResponse, error) {
	id, err := endpointID(in.EndpointId)
	if err != nil {
		return nil, err
	}
	overlap := defaultOverlap
	if in.OverlapSeconds != nil {
		if *in.OverlapSeconds < 0 || *in.OverlapSeconds > int64(maxOverlap/time.Second) {
			return nil, wrong("overlap_seconds", fmt.Sprintf("is %d; must be 0 to %d", *in.OverlapSeconds, int64(maxOverlap/time.Second)))
		}
		overlap = time.Duration(*in.OverlapSeconds) * time.Second
	}
	of := scopeOf(in.Scope)
	found, err := w.keeper.Endpoints(ctx, of, id, 0)
	if err == nil && len(found) == 0 {
		err = ledger.ErrNoEndpoint
	}
	if err != nil {
		return nil, translated(err)
	}
	scheme := schemeV1
	for _, s := range found[0].Secrets {
		if s.Expires.IsZero() {
			scheme = s.Kind
		}
	}
	plain, sealed, err := w.newSealed(id, scheme)
	if err != nil {
		return nil, err
	}
	if err := w.keeper.RotateSecret(ctx, of, id, sealed, overlap); err != nil {
		return nil, translated(err)
	}
	return w.changed(ctx, of, id, plain.text())
}

// SendTest implements webhooks.v1.Webhooks.
func (w *Webhooks) SendTest(ctx context.Context, in *webhooksv1.SendTestRequest) (*webhooksv1.SendTestResponse, error) {
	id, err := endpointID(in.EndpointId)
	if err != nil {
		return nil, err
	}
	e := testEvent("msg_"+uuid.Must(uuid.NewV7()).String(), w.now().UTC())
	if err := w.enabled(ctx, scopeOf(in.Scope), id); err != nil {
		return nil, err
	}
	if err := w.keeper.AddTest(ctx, scopeOf(in.Scope), id, e); err != nil {
		return nil, translated(err)
	}
	w.poke()
	return &webhooksv1.SendTestResponse{EventId: e.ID}, nil
}

// enabled returns an error unless the scope has the endpoint and it is enabled.
func (w *Webhooks) enabled(ctx context.Context, of ledger.Scope, id uuid.UUID) error {
	found, err := w.keeper.Endpoints(ctx, of, id, 0)
	if err == nil && len(found) == 0 {
		err = ledger.ErrNoEndpoint
	}
	if err != nil {
		return translated(err)
	}
	if found[0].Status != ledger.EndpointEnabled {
		return status.Error(codes.FailedPrecondition, "the endpoint is disabled: enable it first")
	}
	return nil
}

// ListDeliveries implements webhooks.v1.Webhooks.
func (w *Webhooks) ListDeliveries(ctx context.Context, in *webhooksv1.ListDeliveriesRequest) (*webhooksv1.ListDeliveriesResponse, error) {
	id, err := endpointID(in.EndpointId)
	if err != nil {
		return nil, err
	}
	f := ledger.DeliveryFilter{Event: in.EventId, Limit: int(cmp.Or(in.Limit, defaultPage))}
	if f.Limit < 1 || f.Limit > maxPage {
		return nil, wrong("limit", fmt.Sprintf("is %d; must be 1 to %d", in.Limit, maxPage))
	}
	if in.Status != "" {
		if f.Status = deliveryStatuses[in.Status]; f.Status == "" {
			return nil, wrong("status", fmt.Sprintf("is %.50q; want pending, delivered, failed or withheld", in.Status))
		}
	}
	if in.Cursor != "" {
		if f.BeforeTime, f.BeforeEvent, err = readCursor(in.Cursor); err != nil {
			return nil, wrong("cursor", "is not a next_cursor")
		}
	}
	of := scopeOf(in.Scope)
	endpoints, err := w.keeper.Endpoints(ctx, of, id, 0)
	if err == nil && len(endpoints) == 0 {
		err = ledger.ErrNoEndpoint
	}
	if err != nil {
		return nil, translated(err)
	}
	f.Limit++ // one more says whether there is another page
	found, err := w.keeper.Deliveries(ctx, of, id, f)
	if err != nil {
		return nil, translated(err)
	}
	out := &webhooksv1.ListDeliveriesResponse{}
	if len(found) == f.Limit {
		found = found[:f.Limit-1]
		last := found[len(found)-1]
		out.NextCursor = cursor(last.Created, last.Event.ID)
	}
	for _, d := range found {
		out.Deliveries = append(out.Deliveries, fromDelivery(d))
	}
	return out, nil
}

func cursor(at time.Time, event string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(at.UTC().Format(time.RFC3339Nano) + " " + event))
}

func readCursor(text string) (at time.Time, event string, err error) {
	plain, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return at, "", err
	}
	before, event, found := strings.Cut(string(plain), " ")
	if !found {
		return at, "", errors.New("no place")
	}
	at, err = time.Parse(time.RFC3339Nano, before)
	return at, event, err
}

func fromDelivery(d ledger.DeliveryRecord) *webhooksv1.Delivery {
	out := &webhooksv1.Delivery{
		EventId: d.Event.ID, Type: d.Event.Type, PaymentKey: d.Event.Payment, Sequence: int32(d.Event.Sequence),
		Status: strings.ToLower(string(d.Status)), CreatedAt: rpc.Timestamp(d.Created), EndedAt: rpc.Timestamp(d.Ended),
	}
	if d.Status == ledger.DeliveryPending {
		out.NextAt = rpc.Timestamp(d.Due)
	}
	for _, a := range d.Attempts {
		out.Attempts = append(out.Attempts, &webhooksv1.Attempt{
			Number: int32(a.Number), At: rpc.Timestamp(a.At), Result: a.Result, Code: int32(a.Code), Micros: a.Took.Microseconds(), Answer: a.Answer,
		})
	}
	return out
}

// Redeliver implements webhooks.v1.Webhooks.
func (w *Webhooks) Redeliver(ctx context.Context, in *webhooksv1.RedeliverRequest) (*webhooksv1.RedeliverResponse, error) {
	id, err := endpointID(in.EndpointId)
	if err != nil {
		return nil, err
	}
	since := rpc.Time(in.Since)
	if (in.EventId == "") == since.IsZero() {
		return nil, wrong("since", "or webhook_id: give one of the two")
	}
	of := scopeOf(in.Scope)
	if err := w.enabled(ctx, of, id); err != nil {
		return nil, err
	}
	// A client that names an event wants it again, also if it was delivered.
	n, err := w.keeper.Redeliver(ctx, of, id, ledger.Redelivery{Event: in.EventId, Since: since, Delivered: in.Delivered || in.EventId != ""})
	if err == nil && n == 0 && in.EventId != "" {
		return nil, status.Error(codes.NotFound, "there is no such event for the endpoint")
	}
	if err != nil {
		return nil, translated(err)
	}
	w.poke()
	return &webhooksv1.RedeliverResponse{Count: int64(n)}, nil
}
