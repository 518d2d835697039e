package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"pgw/functions/pgw/allinone"
	"pgw/functions/pgw/table"
)

// A function is started without the grammar. The grammar must have the same functions, for the
// help.
func TestFunctionsAreCommands(t *testing.T) {
	parser, err := kong.New(newCommands(), grammar()...)
	if err != nil {
		t.Fatal(err)
	}
	var commands, functions []string
	for _, command := range parser.Model.Leaves(false) {
		if kind := command.Target.Type(); kind == reflect.TypeFor[functionCommand]() || kind == reflect.TypeFor[sourcesCommand]() {
			commands = append(commands, command.Name)
		}
	}
	for _, f := range table.Functions {
		functions = append(functions, f.Name)
	}
	slices.Sort(commands)
	slices.Sort(functions)
	if !slices.Equal(commands, functions) {
		t.Errorf("commands %v; functions %v", commands, functions)
	}
}

// By default, make run listens on the ports that callers use, which are also the ports of functions
// that run by themselves.
func TestRunListensWhereCallersLook(t *testing.T) {
	parser, err := kong.New(newCommands(), grammar()...)
	if err != nil {
		t.Fatal(err)
	}
	ports := map[string]string{}
	for _, command := range parser.Model.Leaves(false) {
		for _, flag := range command.Flags {
			if command.Name == "run" {
				ports[flag.Name] = flag.PlaceHolder
			}
		}
	}
	for flag, want := range map[string]string{
		"gateway-port": "18080", "fx-port": "19102", "wallet-port": "19093", "risk-port": "19094", "db-port": "19095", "payments-port": "19096",
		"webhooks-port": "19099", "worker-port": "19091", "kafka-port": "19092",
	} {
		if ports[flag] != want {
			t.Errorf("--%s is %q by default, want %s", flag, ports[flag], want)
		}
	}
	var flags commands
	flags.Run.Ports = portFlags()
	for i, name := range allinone.Listening() {
		if port, err := flags.Run.functionPort(i); err != nil || strconv.Itoa(port) != ports[name+"-port"] {
			t.Errorf("%s listens on %d by default: %v", name, port, err)
		}
	}
}

// An offset moves every port that is not given itself. The error about a busy port names the part of the system, the
// port and both ways out.
func TestAnOffsetMovesThePorts(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := busy.Addr().(*net.TCPAddr).Port
	functions := []string{"run"} // with any port for each function
	for _, name := range allinone.Listening() {
		functions = append(functions, "--"+name+"-port=0")
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"the first function": {[]string{"run", fmt.Sprint("--port-offset=", port-18080)}, fmt.Sprintf("gateway needs port %d (PGW_GATEWAY_PORT", port)},
		"the broker":         {slices.Concat(functions, []string{fmt.Sprint("--port-offset=", port-19092)}), fmt.Sprintf("kafka needs port %d (PGW_KAFKA_PORT", port)},
		"a given port":       {slices.Concat(functions, []string{"--port-offset=1", fmt.Sprint("--kafka-port=", port)}), fmt.Sprintf("kafka needs port %d (", port)},
	} {
		given := newCommands()
		parser, err := kong.New(given, grammar()...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(c.args); err != nil {
			t.Fatal(err)
		}
		_, _, err = given.Run.listen()
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "PGW_PORT_OFFSET") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A Grafana address that the page can't frame is refused at the start. The error names the setting.
func TestRunWantsAGrafanaThatCanBeFramed(t *testing.T) {
	for address, ok := range map[string]bool{"": true, "http://127.0.0.1:3000": true, "grafana:3000": false, "http://a;b": false} {
		t.Setenv("GRAFANA_URL", address)
		parser, err := kong.New(newCommands(), grammar()...)
		if err != nil {
			t.Fatal(err)
		}
		_, err = parser.Parse([]string{"run"})
		if ok && err != nil || !ok && (err == nil || !strings.Contains(err.Error(), "grafana-url") || !strings.Contains(err.Error(), "must ")) {
			t.Errorf("GRAFANA_URL=%q: %v", address, err)
		}
	}
}

// The flags of earlier versions of kafkasource still work.
func TestTheStandInsOldFlags(t *testing.T) {
	parser, err := kong.New(newCommands(), grammar()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"MANIFESTS_DIR", "SINKS", "KAFKA_GROUP_PREFIX", "PARITY", "KAFKA_BROKERS"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	k, err := parser.Parse([]string{"kafkasource", "--manifests", "/m", "--sinks", "a=http://a,b=http://b", "--group-prefix", "p-", "--parity"})
	if err != nil {
		t.Fatal(err)
	}
	k.BindTo(t.Context(), (*context.Context)(nil))
	if err := k.Run(); err == nil || !strings.Contains(err.Error(), "KAFKA_BROKERS") { // the committed offsets are in Kafka
		t.Errorf("%v", err)
	}
	for name, want := range map[string]string{"MANIFESTS_DIR": "/m", "SINKS": "a=http://a,b=http://b", "KAFKA_GROUP_PREFIX": "p-", "PARITY": "true"} {
		if got := os.Getenv(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// A function's help has the table of the variables that it reads.
func TestAFunctionsHelpNamesItsVariables(t *testing.T) {
	for _, f := range table.Functions {
		var out bytes.Buffer
		parser, err := kong.New(newCommands(), append(grammar(), kong.Writers(&out, &out), kong.Exit(func(int) {}))...)
		if err != nil {
			t.Fatal(err)
		}
		parser.Parse([]string{f.Name, "--help"})
		for _, v := range table.Functions.Variables(f) {
			if !strings.Contains(out.String(), "\n"+v.Name+" ") {
				t.Errorf("the help of %s lacks %s", f.Name, v.Name)
			}
		}
	}
}
