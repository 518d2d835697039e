package payment

// ScopedKey is an idempotency key with the client in whose scope it is unique. Client is empty for the
// scope that all callers without a client share.
type ScopedKey struct{ Client, Key string }

// Scoped returns the payment's key in its client's scope.
func (p Payment) Scoped() ScopedKey { return ScopedKey{p.Client, p.Key} }

// Identity is what distinguishes the requests with one key: whose they are, and what they ask for.
type Identity struct {
	Client      string
	Fingerprint Fingerprint
}

// Identity returns the payment's identity.
func (p Payment) Identity() Identity { return Identity{p.Client, p.Fingerprint()} }

// Identity returns the identity of the request that made the record.
func (r Record) Identity() Identity { return Identity{r.Client, r.Claimed} }

// Deciding returns the claim that decides about a request, among the claims of the request's key. of
// returns a claim's identity. It is the claim of the request's client. If the client has none, it is
// one with the same content where either has no client: releases before clients name none, and a
// client may repeat a request that such a release took. It must not pay twice.
func Deciding[C any](claims []C, of func(C) Identity, request Identity) (decides C, found bool) {
	for _, c := range claims {
		switch id := of(c); {
		case id.Client == request.Client:
			return c, true
		case !found && id.Fingerprint == request.Fingerprint && (id.Client == "" || request.Client == ""):
			decides, found = c, true
		}
	}
	return decides, found
}
