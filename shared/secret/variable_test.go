package secret

import (
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecretsFromFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	for name, tc := range map[string]struct {
		text        string
		given, want map[string]string
		problem     []string // parts of the error
	}{
		"none":          {"s", map[string]string{"EVENT_KEYS": "k"}, map[string]string{}, nil},
		"one":           {"s\n", map[string]string{"EVENT_KEYS_FILE": path}, map[string]string{"EVENT_KEYS": "s"}, nil},
		"spaces stay":   {" s \r\n", map[string]string{"KAFKA_SASL_PASSWORD_FILE": path}, map[string]string{"KAFKA_SASL_PASSWORD": " s "}, nil},
		"an empty one":  {"s", map[string]string{"RISK_SECRET": "", "RISK_SECRET_FILE": path}, map[string]string{"RISK_SECRET": "s"}, nil},
		"both":          {"s", map[string]string{"DATABASE_URL": "u", "DATABASE_URL_FILE": path}, nil, []string{"DATABASE_URL and DATABASE_URL_FILE"}},
		"nothing in it": {"\n", map[string]string{"EVENT_KEYS_FILE": path}, nil, []string{"EVENT_KEYS_FILE", "nothing", path}},
		"not there":     {"s", map[string]string{"EVENT_KEYS_FILE": path + ".not"}, nil, []string{"EVENT_KEYS_FILE", path + ".not"}},
		"too large":     {strings.Repeat("s", maxBytes+1), map[string]string{"EVENT_KEYS_FILE": path}, nil, []string{"EVENT_KEYS_FILE", path, "larger"}},
	} {
		write(t, path, tc.text)
		got := map[string]string{}
		err := FromFiles(func(name string) string { return tc.given[name] }, func(name, value string) error { got[name] = value; return nil })
		if (err == nil) != (tc.problem == nil) || err == nil && !maps.Equal(got, tc.want) {
			t.Errorf("%s: %v, %v; want %v, %q", name, got, err, tc.want, tc.problem)
		}
		for _, part := range tc.problem {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v; want %q in it", name, err, part)
			}
		}
	}
}

func TestAVariableOrItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	write(t, path, "of the file")
	parse := func(text []byte) (string, error) {
		if string(text) == "bad" {
			return "", errors.New("is bad")
		}
		return string(text), nil
	}
	variable := func(text, path string) (func() string, error) {
		return Variable("TOKENS", text, path, parse, slog.New(slog.DiscardHandler))
	}
	if get, err := variable("", ""); get != nil || err != nil {
		t.Errorf("neither: %v", err)
	}
	if get, err := variable("of the variable", ""); err != nil || get() != "of the variable" {
		t.Errorf("the variable: %v", err)
	}
	if get, err := variable("", path); err != nil || get() != "of the file" {
		t.Errorf("the file: %v", err)
	}
	for want, given := range map[string][2]string{
		"TOKENS and TOKENS_FILE": {"one", path}, "TOKENS: is bad": {"bad", ""}, "TOKENS_FILE: ": {"", path + ".not"},
	} {
		if get, err := variable(given[0], given[1]); err == nil || get != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v; want %s", err, want)
		}
	}
}
