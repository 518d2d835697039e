package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgw/shared/function"
)

// environmentOf sets these variables of a system in the environment of this process, and unsets the
// others.
func environmentOf(t *testing.T, variables map[string]string) {
	t.Helper()
	for _, name := range []string{"KAFKA_BROKERS", "DATABASE_URL", "GATEWAY_URL", "DB_ADDR", "EVENT_KEYS", "RPC_TOKENS", "ALLOW_UNSIGNED_REQUESTS"} {
		t.Setenv(name, "")
		if value, set := variables[name]; set {
			t.Setenv(name, value)
		} else {
			os.Unsetenv(name)
		}
	}
}

// Operators' commands work on the system that the environment names, and never on a part of another
// one. If the environment names none, they work on the system that runs here, and the environment
// adds the settings that run.json does not have.
func TestOperatorsFindOneSystem(t *testing.T) {
	here := operatorFlags{DataDir: t.TempDir()}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(here.DataDir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	environmentOf(t, nil)
	if _, err := here.find(nil); err == nil || !strings.Contains(err.Error(), "KAFKA_BROKERS") || !strings.Contains(err.Error(), "run.json") {
		t.Errorf("no system runs here: %v", err)
	}
	write("run.json", `{"pid": 7, "kafka_brokers": ["127.0.0.1:1", "127.0.0.1:2"], "database_url": "postgres://here/", "db_addr": "127.0.0.1:3", "gateway_url": "http://here"}`)
	write("event-keys", "kept here")

	for name, tc := range map[string]struct {
		environment, flags, want map[string]string
	}{
		"the one that runs here": {nil, nil, map[string]string{
			"KAFKA_BROKERS": "127.0.0.1:1,127.0.0.1:2", "DATABASE_URL": "postgres://here/", "DB_ADDR": "127.0.0.1:3", "GATEWAY_URL": "http://here",
			"EVENT_KEYS": "kept here", "ALLOW_UNSIGNED_REQUESTS": "true", "RPC_TOKENS": "",
		}},
		"the environment fills what is missing": {map[string]string{"RPC_TOKENS": "t", "EVENT_KEYS": "given", "DB_ADDR": "elsewhere:1"}, nil, map[string]string{
			"RPC_TOKENS": "t", "EVENT_KEYS": "given", "DB_ADDR": "127.0.0.1:3", "DATABASE_URL": "postgres://here/",
		}},
		"another, by its broker": {map[string]string{"KAFKA_BROKERS": "there:1"}, nil, map[string]string{
			"KAFKA_BROKERS": "there:1", "DATABASE_URL": "", "DB_ADDR": "", "EVENT_KEYS": "", "ALLOW_UNSIGNED_REQUESTS": "",
		}},
		"another, by its ledger":  {map[string]string{"DATABASE_URL": "postgres://there/"}, nil, map[string]string{"DATABASE_URL": "postgres://there/", "KAFKA_BROKERS": ""}},
		"another, by its gateway": {map[string]string{"GATEWAY_URL": "http://there"}, nil, map[string]string{"GATEWAY_URL": "http://there", "DATABASE_URL": ""}},
		"another, by flags": {nil, map[string]string{"GATEWAY_URL": "http://there", "DATABASE_URL": "postgres://there/"}, map[string]string{
			"GATEWAY_URL": "http://there", "DATABASE_URL": "postgres://there/", "KAFKA_BROKERS": "",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			environmentOf(t, tc.environment)
			at, err := here.find(tc.flags)
			if err != nil {
				t.Fatal(err)
			}
			for variable, want := range tc.want {
				if got := (function.Variable{Name: variable}).From(at.Lookup); got != want {
					t.Errorf("%s is %q, want %q", variable, got, want)
				}
			}
		})
	}
}

// If the environment describes only half of a system, run.json does not complete it.
func TestLoadIsNotSentToHalfASystem(t *testing.T) {
	c := loadCommand{operatorFlags: operatorFlags{DataDir: t.TempDir()}, Gateway: "http://there"}
	if err := os.WriteFile(filepath.Join(c.DataDir, "run.json"), []byte(`{"gateway_url": "http://here", "database_url": "postgres://here/"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	environmentOf(t, nil)
	if at, err := c.system(); err == nil || !strings.Contains(err.Error(), "DATABASE_URL") {
		t.Errorf("%+v, %v", at, err)
	}
	c.Gateway = ""
	if at, err := c.system(); err != nil || at != (underLoad{Gateway: "http://here", Database: "postgres://here/"}) {
		t.Errorf("%+v, %v", at, err)
	}
}
