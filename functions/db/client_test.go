package db

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
)

// Reads are those of a client, or of all.
func TestReadsAreThoseOfAClient(t *testing.T) {
	w := newWorld(t)
	w.open(1_000, "A", "B")
	refs := map[string]string{}
	for _, client := range []string{"a", "b"} {
		p := pay("k", "A", "B", 10)
		p.Client = client
		refs[client] = w.mustReserve(p).ReservationID.String()
	}
	w.mustReserve(pay("shared", "A", "B", 10))
	decoy := pay(refs["b"], "A", "B", 10)
	decoy.Client = "d"
	w.mustReserve(decoy)
	for name, tc := range map[string]struct {
		in   *dbv1.FindRequest
		want string // whose payment; "-": none
	}{
		"a's":                      {&dbv1.FindRequest{IdempotencyKey: "k", Client: "a"}, "a"},
		"nobody's":                 {&dbv1.FindRequest{IdempotencyKey: "k", Client: "c"}, "-"},
		"without a client":         {&dbv1.FindRequest{IdempotencyKey: "shared", Client: "c"}, ""},
		"a's by ref":               {&dbv1.FindRequest{IdempotencyKey: refs["a"], OrRef: true, Client: "a"}, "a"},
		"another's by ref":         {&dbv1.FindRequest{IdempotencyKey: refs["a"], OrRef: true, Client: "b"}, "-"},
		"the operator's own first": {&dbv1.FindRequest{IdempotencyKey: "k", Client: "a", AnyClient: true}, "a"},
		"the newest of any":        {&dbv1.FindRequest{IdempotencyKey: "k", Client: "c", AnyClient: true}, "b"},
		"by a ref that is a key":   {&dbv1.FindRequest{IdempotencyKey: refs["b"], ByRef: true, AnyClient: true}, "b"},
		"any by ref":               {&dbv1.FindRequest{IdempotencyKey: refs["a"], OrRef: true, Client: "c", AnyClient: true}, "a"},
		"of an earlier gateway":    {&dbv1.FindRequest{IdempotencyKey: "k"}, "b"},
	} {
		got, err := w.Find(t.Context(), tc.in)
		if code := status.Code(err); code == codes.NotFound != (tc.want == "-") || err == nil && got.Payment.Client != tc.want {
			t.Errorf("%s: %v, %v; want %q", name, got, err, tc.want)
		}
	}
	for name, tc := range map[string]struct {
		in   *dbv1.ListRequest
		want int
	}{
		"a's, and those without a client": {&dbv1.ListRequest{Client: "a"}, 2},
		"those without a client":          {&dbv1.ListRequest{}, 1},
		"all":                             {&dbv1.ListRequest{Client: "a", AnyClient: true}, 4},
	} {
		if got, err := w.List(t.Context(), tc.in); err != nil || len(got.Payments) != tc.want {
			t.Errorf("%s: %v, %v; want %d", name, got, err, tc.want)
		}
	}
	if got, err := w.ListPayments(t.Context(), &dbv1.ListPaymentsRequest{}); err != nil || len(got.Payments) != 4 {
		t.Errorf("the list of an earlier gateway: %v, %v", got, err)
	}
	if _, err := w.Find(t.Context(), &dbv1.FindRequest{IdempotencyKey: "k", Client: "a\nb"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a client with a line feed: %v", err)
	}
}
