package function_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/shared/function"
)

type away struct{ grpc.ClientConnInterface }

func (away) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	return status.Error(codes.Unavailable, "away")
}

func (away) Publish(context.Context, string, string, cloudevents.Event) error {
	return errors.New("away")
}

// In every function, each dependency that is away is one line in the log, however often it is used.
func TestEachDependencyThatIsAwayIsOneLine(t *testing.T) {
	var text bytes.Buffer
	var on function.Dependencies
	f := function.Describe(function.Function{Name: "test"}, func(_ struct{}, made function.Dependencies) (*function.Service, error) {
		on = made
		return &function.Service{}, nil
	})
	_, err := f.Make(struct{}{}, function.Dependencies{
		Conns: map[string]grpc.ClientConnInterface{"fx": away{}, "db": away{}}, Publisher: away{}, Log: slog.New(slog.NewTextHandler(&text, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	for range 100 {
		on.Conns["fx"].Invoke(t.Context(), "/fx.v1.FxService/Convert", nil, nil)
		on.Conns["db"].Invoke(left, "/db.v1.Db/Find", nil, nil)
		on.Publisher.Publish(t.Context(), "topic", "key", cloudevents.New())
	}
	lines := strings.Split(strings.TrimSpace(text.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "asked=fx") || !strings.Contains(lines[1], "Kafka could not be used") {
		t.Errorf("%d lines:\n%s", len(lines), &text)
	}
	for name, known := range map[string]bool{"fx": true, "db": false, function.Kafka: true} {
		if state := on.Outages[name].State(); state.Up || state.Since.IsZero() == known {
			t.Errorf("%s: %+v", name, state)
		}
	}
}
