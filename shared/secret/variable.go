package secret

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
)

// Every secret NAME can also be in a file whose path is in NAME_FILE. There are two kinds.
// FromFiles reads the secrets of atStart once. Variable reads the other secrets, again after each
// change of their file.

// atStart are the variables whose change needs a restart.
var atStart = []string{
	"EVENT_KEYS", "RISK_SECRET", "RPC_ADMIN_TOKEN", "DEAD_LETTER_TOKEN", "KAFKA_SASL_PASSWORD",
	"DATABASE_URL", "LEDGER_DATABASE_URL", "READER_DATABASE_URL", "WEBHOOKS_DATABASE_URL", "WEBHOOK_SECRET_KEYS",
}

// InFile returns the name of the variable that holds the path of a secret's file.
func InFile(name string) string { return name + "_FILE" }

// FromFiles reads the secrets that are in files, and sets them in the environment with set. It
// removes line ends at the end of a file. Errors name the variable.
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
			return fmt.Errorf("%s: %w", name, err) // the error does not contain the value
		}
	}
	return nil
}

// Variable returns the value of a secret variable. It is parsed from text, or from the file at
// path, which is read again when it changes. Variable returns nil if both are empty, and an error
// if both are set.
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
