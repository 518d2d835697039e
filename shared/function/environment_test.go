package function

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
)

type color string

func (c *color) Decode(text string) error {
	if text != "red" {
		return errors.New("must be red")
	}
	*c = color(text)
	return nil
}

// inner is a group that several configurations may contain.
type inner struct {
	Host string `envconfig:"HOST" required:"true" desc:"the address"`
	dial func()
}

type sample struct {
	Name  string         `envconfig:"NAME" required:"true"`
	Count int            `envconfig:"COUNT" default:"7"`
	Big   int64          `envconfig:"BIG"`
	Rate  float64        `envconfig:"RATE"`
	On    bool           `envconfig:"ON" default:"true"`
	Wait  time.Duration  `envconfig:"WAIT" default:"300ms"`
	List  []string       `envconfig:"LIST"`
	Nets  []netip.Prefix `envconfig:"NETS"`
	Color color          `envconfig:"COLOR"`
	Group inner
	own   int //nolint:unused // unexported fields are not read
}

func from(values Values) Settings { return Settings{Lookup: values.Lookup} }

func TestConfigurationsAreRead(t *testing.T) {
	var got sample
	err := from(Values{
		"NAME": "n", "BIG": "9000000000", "RATE": "2.5", "LIST": "a,b", "NETS": "10.0.0.0/8,::1/128", "COLOR": "red", "HOST": "h", "ON": "false",
	}).Read(&got)
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "n" || got.Count != 7 || got.Big != 9_000_000_000 || got.Rate != 2.5 || got.On || got.Wait != 300*time.Millisecond ||
		!slices.Equal(got.List, []string{"a", "b"}) || len(got.Nets) != 2 || got.Color != "red" || got.Group.Host != "h" {
		t.Errorf("%+v", got)
	}
	// An empty value that is set is not replaced by the default.
	if err := from(Values{"NAME": "", "HOST": "", "LIST": "", "COUNT": ""}).Read(&got); err == nil || !strings.Contains(err.Error(), "COUNT") {
		t.Errorf("an empty number: %v", err)
	}
}

// The error names everything that is missing or wrong in all configurations, each name once.
func TestAllThatIsMissingIsNamedAtOnce(t *testing.T) {
	err := from(Values{"COUNT": "hunter2", "COLOR": "blue"}).Read(&sample{}, &inner{})
	if err == nil {
		t.Fatal("nothing is missing")
	}
	for _, want := range []string{"NAME, HOST: required, and not set", "COUNT: is not a whole number", "COLOR: must be red"} {
		if strings.Count(err.Error(), want) != 1 {
			t.Errorf("%q is not named once: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the value is repeated: %v", err)
	}
}

// A given group stays unchanged, with fields that no variable can set.
func TestAGroupCanBeGiven(t *testing.T) {
	settings := from(Values{"NAME": "n", "HOST": "not this one"})
	settings.Given = []any{inner{Host: "given", dial: func() {}}}
	var got sample
	if err := settings.Read(&got); err != nil || got.Group.Host != "given" || got.Group.dial == nil {
		t.Errorf("%+v, %v", got, err)
	}
}

// described is a small function that calls two others.
func described(service Service) Function {
	return Describe(Function{
		Name: "sample", Port: "1234", Calls: map[string]string{"db": "keeps it", "fx": "prices it"}, Events: "/in", Publishes: Rarely,
	}, func(cfg sample, on Dependencies) (*Service, error) {
		if cfg.Name == "" || on.Now == nil || on.Random == nil || on.Log == nil || on.Registry == nil {
			return nil, errors.New("something is missing")
		}
		return &service, nil
	})
}

func TestAFunctionIsBuiltOfItsDescription(t *testing.T) {
	events := func(context.Context, cloudevents.Event) error { return nil }
	port, err := described(Service{Events: events}).Make(sample{Name: "n"}, Dependencies{})
	if err != nil || port.Name != "sample" || port.EventsPath != "/in" || port.Log == nil || port.Registry == nil {
		t.Errorf("%+v, %v", port, err)
	}
	if _, err := described(Service{Events: events}).Make(inner{}, Dependencies{}); err == nil || !strings.Contains(err.Error(), "inner") {
		t.Errorf("another function's configuration: %v", err)
	}
	if _, err := described(Service{}).Make(sample{Name: "n"}, Dependencies{}); err == nil || !strings.Contains(err.Error(), "/in") {
		t.Errorf("a function without events, described with a path for them: %v", err)
	}
}

// The help has the function's own variables, the addresses of the functions that it calls, Kafka's
// variables and the common ones.
func TestHelpListsEveryVariable(t *testing.T) {
	f := described(Service{})
	table := Table{f, {Name: "db", Port: "19095"}, {Name: "fx", Port: "19102"}}
	var out bytes.Buffer
	if err := table.Help(&out, f); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"NAME yes", "COUNT 7", "HOST yes the address", "DB_ADDR localhost:19095 gRPC address of db, which keeps it",
		"FX_ADDR localhost:19102 gRPC address of fx, which prices it", "KAFKA_BROKERS yes host:port of brokers, separated by commas",
		"DRAIN_TIMEOUT 25s time limit of a drain after SIGTERM",
	} {
		if !slices.ContainsFunc(strings.Split(out.String(), "\n"), func(line string) bool { return strings.Join(strings.Fields(line), " ") == want }) {
			t.Errorf("the help lacks %q:\n%s", want, &out)
		}
	}
}
