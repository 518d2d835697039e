package main

import (
	"reflect"
	"regexp"
	"testing"

	"github.com/alecthomas/kong"

	"pgw/functions/db"
	"pgw/functions/fx"
	"pgw/functions/gateway"
	"pgw/functions/payments"
	"pgw/functions/risk"
	"pgw/functions/wallet"
	"pgw/functions/worker"
	"pgw/shared/function"
	"pgw/shared/secret"
)

// Each variable that holds a secret has a NAME_FILE. The two can't be set together.
func TestEachSecretCanStandInAFile(t *testing.T) {
	variables := map[string]bool{}
	var add func(reflect.Type)
	add = func(of reflect.Type) {
		for i := range of.NumField() {
			f := of.Field(i)
			if name := f.Tag.Get("envconfig"); name != "" {
				variables[name] = true
			} else if f.Type.Kind() == reflect.Struct {
				add(f.Type)
			}
		}
	}
	for _, config := range []any{
		function.Config{}, gateway.Config{}, worker.Config{}, payments.Config{}, db.Config{}, fx.Config{}, wallet.Config{}, risk.Config{}, operatorConfig{},
	} {
		add(reflect.TypeOf(config))
	}
	parser, err := kong.New(&commands{}, grammar()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range parser.Model.Leaves(false) {
		for _, flag := range command.Flags {
			for _, name := range flag.Envs {
				variables[name] = true
			}
		}
	}
	secrets := regexp.MustCompile(`(KEYS|SECRET|PASSWORD|TOKENS?|HASHES|DATABASE_URL)$`)
	found := 0
	for name := range variables {
		if !secrets.MatchString(name) {
			continue
		}
		found++
		both := func(asked string) string {
			if asked == name || asked == secret.InFile(name) {
				return "x"
			}
			return ""
		}
		atStart := secret.FromFiles(both, func(string, string) error { return nil }) != nil
		if again := variables[secret.InFile(name)]; atStart == again {
			t.Errorf("%s: read from a file at start: %t; and read again: %t", name, atStart, again)
		}
	}
	if found < 10 {
		t.Errorf("found %d secrets among %d variables", found, len(variables))
	}
}
