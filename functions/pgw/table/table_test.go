package table

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"pgw/shared/function"
)

// By default a function listens on the port at which its callers look for it. In a container PORT
// sets another one.
func TestFunctionsListenWhereCallersLook(t *testing.T) {
	want := map[string]string{
		"gateway": ":18080", "fx": ":19102", "wallet": ":19093", "risk": ":19094", "db": ":19095", "payments": ":19096", "worker": ":19091",
		"webhooks":    ":19099",
		"kafkasource": ":8080",
	}
	for _, f := range Functions {
		if got := (function.Config{}).Addr(f); want[f.Name] != "" && got != want[f.Name] {
			t.Errorf("%s listens on %s, want %s", f.Name, got, want[f.Name])
		}
		if got := (function.Config{Host: "127.0.0.1", Port: "8080"}).Addr(f); got != "127.0.0.1:8080" {
			t.Errorf("%s listens on %s, and PORT says 8080", f.Name, got)
		}
		delete(want, f.Name)
	}
	if len(want) > 0 {
		t.Errorf("not in the table: %v", want)
	}
}

// Functions drain in the table's order, so callers come before the functions that they call.
func TestCallersDrainFirst(t *testing.T) {
	place := func(name string) int {
		return slices.IndexFunc(Functions, func(f function.Function) bool { return f.Name == name })
	}
	for i, f := range Functions {
		for callee := range f.Calls {
			if place(callee) <= i {
				t.Errorf("%s calls %s, which does not come after it", f.Name, callee)
			}
		}
	}
}

// Every variable of every function has a description: its own variables, those of its connections,
// and the common ones.
func TestEveryVariableIsDescribed(t *testing.T) {
	for _, f := range Functions {
		var out bytes.Buffer
		if err := Functions.Help(&out, f); err != nil {
			t.Fatal(err)
		}
		for _, v := range Functions.Variables(f) {
			// The names of the variables for Kafka's topics and user are their description.
			if v.About == "" && !strings.HasSuffix(v.Name, "_TOPIC") && !strings.HasPrefix(v.Name, "KAFKA_SASL_") {
				t.Errorf("%s: %s has no description", f.Name, v.Name)
			}
			if !strings.Contains(out.String(), v.Name) {
				t.Errorf("%s: the help lacks %s", f.Name, v.Name)
			}
		}
		for _, name := range []string{"PORT", "DRAIN_TIMEOUT", "RPC_AUTH", "LOG_LEVEL"} {
			if strings.Count(out.String(), "\n"+name+" ") != 1 {
				t.Errorf("%s: the help does not name %s once", f.Name, name)
			}
		}
	}
}

// All functions can be built without a connection, for commands that only describe them.
func TestUnconnectedFunctionsCanBeBuilt(t *testing.T) {
	ports, err := Unconnected()
	if err != nil || len(ports) != len(Functions) {
		t.Errorf("%d ports, %v", len(ports), err)
	}
}
