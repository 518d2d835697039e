package secret

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
)

// Every secret NAME can stand in a file instead, which NAME_FILE names. There are two kinds: those
// of atStart are read once, by FromFiles; the others are read again when they change, by Variable.

// atStart are the variables whose change needs a restart.
var atStart = []string{
	"EVENT_KEYS", "RISK_SECRET", "RPC_ADMIN_TOKEN", "KAFKA_SASL_PASSWORD",
	"DATABASE_URL", "LEDGER_DATABASE_URL", "READER_DATABASE_URL",
}

// InFile names the variable that says in which file a secret stands.
func InFile(name string) string { return name + "_FILE" }

// FromFiles reads the secrets that stand in files into the environment, for all who read it later.
// Line ends at a file's end are no part of the secret.
func FromFiles(get func(string) string, set func(name, value string) error) error {
	for _, name := range atStart {
		path := get(InFile(name))
		if path == "" {
			continue
		}
		if get(name) != "" {
			return errBoth(name)
		}
		file, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("%s: %w", InFile(name), err)
		}
		text, err := readAll(file)
		file.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", InFile(name), err)
		}
		value := strings.TrimRight(string(text), "\r\n")
		if value == "" {
			return fmt.Errorf("%s: there is nothing in %s", InFile(name), path)
		}
		if err := set(name, value); err != nil {
			return fmt.Errorf("%s: %w", name, err) // the value itself is not in it
		}
	}
	return nil
}

// Variable gives what a secret variable says: text, or what stands in the file at path, which is
// read again when it changes. It gives nil when both are empty.
func Variable[T any](name, text, path string, parse func([]byte) (T, error), log *slog.Logger) (func() T, error) {
	switch {
	case text != "" && path != "":
		return nil, errBoth(name)
	case path != "":
		file, err := Open(path, parse, log)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", InFile(name), err)
		}
		return file.Get, nil
	case text != "":
		value, err := parse([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return func() T { return value }, nil
	}
	return nil, nil
}

func errBoth(name string) error {
	return fmt.Errorf("%s and %s are both set: set one of them", name, InFile(name))
}
