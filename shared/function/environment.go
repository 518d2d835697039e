package function

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"

	"pgw/shared/rpc"
	"pgw/shared/trace"
)

// Config is the configuration of every function.
type Config struct {
	Host   string        `envconfig:"HOST" desc:"address to listen on; empty means all"`
	Port   string        `envconfig:"PORT" desc:"the port of the function; if empty, the port that callers use by default, such as 18080 for gateway, or else 8080"`
	Admin  string        `envconfig:"ADMIN_PORT" desc:"a port of its own for /metrics, /healthz and /readyz, without TLS and without any limit of the function's port, on the address of HOST; /metrics is then only there; empty: they are on the function's port"`
	Drain  time.Duration `envconfig:"DRAIN_TIMEOUT" default:"25s" desc:"time limit of a drain after SIGTERM"`
	Conns  int           `envconfig:"MAX_CONNECTIONS" default:"8192" desc:"the most open connections; above it, waiting ones are closed"`
	HTTP2  Transport     `envconfig:"HTTP2" default:"mixed" desc:"what HTTP/2 connections carry: mixed: gRPC and all other requests, as behind Knative's proxies; alone: only gRPC, which takes half the processor time per call, and other requests use HTTP/1.1"`
	Ledger string        `envconfig:"LEDGER_SCHEMA" desc:"the ledger's schema, if several ledgers share the database: the label ledger of all metrics; empty: there is no such label"`
	Log    LogConfig
	RPC    rpc.Security
}

// Addr returns the address on which the function listens.
func (c Config) Addr(f Function) string {
	return net.JoinHostPort(c.Host, cmp.Or(c.Port, f.Port, "8080"))
}

// adminAddr returns the address of the operator's port, or an empty text if there is none.
func (c Config) adminAddr() string {
	if c.Admin == "" {
		return ""
	}
	return net.JoinHostPort(c.Host, c.Admin)
}

// LogConfig configures the log of a process.
type LogConfig struct {
	Level  slog.Level `envconfig:"LOG_LEVEL" default:"info" desc:"debug, info, warn or error"`
	Format string     `envconfig:"LOG_FORMAT" default:"json" desc:"json or text"`
}

// Logger makes the process's logger, on standard error.
func (c LogConfig) Logger() *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.Level}
	var h slog.Handler = slog.NewJSONHandler(os.Stderr, opts)
	if strings.EqualFold(c.Format, "text") {
		h = slog.NewTextHandler(os.Stderr, opts)
	}
	return slog.New(trace.Handler(h))
}

// Variable is one environment variable of a configuration. In a struct, the tags envconfig,
// default, required and desc describe it.
type Variable struct {
	Name     string
	Default  string
	Required bool
	About    string

	into reflect.Value // the field
}

// From returns the variable's value, or else its default.
func (v Variable) From(lookup func(name string) (string, bool)) string {
	if value, set := lookup(v.Name); set {
		return value
	}
	return v.Default
}

// Variables lists the variables of configurations, which are given as pointers. Each name occurs
// once.
func Variables(configs ...any) (all []Variable) {
	for _, config := range configs {
		for _, v := range variablesOf(reflect.ValueOf(config).Elem()) {
			if !slices.ContainsFunc(all, func(other Variable) bool { return other.Name == v.Name }) {
				all = append(all, v)
			}
		}
	}
	return all
}

func variablesOf(config reflect.Value, given ...any) (all []Variable) {
	for i := range config.NumField() {
		field, into := config.Type().Field(i), config.Field(i)
		if !field.IsExported() {
			continue
		}
		name := field.Tag.Get("envconfig")
		switch {
		case setGiven(into, given):
		case name != "":
			all = append(all, Variable{
				Name: name, Default: field.Tag.Get("default"), Required: field.Tag.Get("required") == "true",
				About: field.Tag.Get("desc"), into: into,
			})
		case into.Kind() == reflect.Struct:
			all = append(all, variablesOf(into, given...)...)
		}
	}
	return all
}

// setGiven stores a value of the field's type in the field, if given has one.
func setGiven(into reflect.Value, given []any) bool {
	for _, value := range given {
		if reflect.TypeOf(value) == into.Type() {
			into.Set(reflect.ValueOf(value))
			return true
		}
	}
	return false
}

// ReadEnvironment fills configurations, given as pointers, from the environment. The error names
// all missing required variables. For a variable with a wrong value, it describes the problem and
// does not repeat the value, which may be a secret.
func ReadEnvironment(into ...any) error {
	errs := []error{missing(Variables(into...), os.LookupEnv)}
	for _, config := range into {
		err := envconfig.Process("", config)
		var wrong *envconfig.ParseError
		var number *strconv.NumError // repeats the value
		switch {
		case errors.As(err, &wrong) && errors.As(wrong.Err, &number):
			errs = append(errs, fmt.Errorf("%s: is not a %s: %w", wrong.KeyName, wrong.TypeName, number.Err))
		case errors.As(err, &wrong):
			errs = append(errs, fmt.Errorf("%s: %w", wrong.KeyName, wrong.Err))
		case err != nil && errs[0] == nil:
			errs = append(errs, err)
		}
	}
	return configurationError(errs)
}

// missing names the required variables that are not set.
func missing(all []Variable, lookup func(string) (string, bool)) error {
	var names []string
	for _, v := range all {
		if _, set := lookup(v.Name); v.Required && !set && v.Default == "" && !slices.Contains(names, v.Name) {
			names = append(names, v.Name)
		}
	}
	if names == nil {
		return nil
	}
	return fmt.Errorf("%s: required, and not set", strings.Join(names, ", "))
}

func configurationError(errs []error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return nil
}

// Settings replace the environment in operators' commands, and if several functions share a
// process.
type Settings struct {
	// Lookup returns the value of a variable, as os.LookupEnv does.
	Lookup func(name string) (value string, set bool)
	// Given are values for all fields of their types, such as a kafka.Config. No variables are read
	// for these fields.
	Given []any
}

// Values are variables that replace the environment's.
type Values map[string]string

// Lookup is a Settings.Lookup.
func (v Values) Lookup(name string) (value string, set bool) {
	value, set = v[name]
	return value, set
}

// Read fills configurations, given as pointers. Its errors are those of ReadEnvironment.
func (s Settings) Read(into ...any) error {
	var all []Variable
	for _, config := range into {
		all = append(all, variablesOf(reflect.ValueOf(config).Elem(), s.Given...)...)
	}
	errs := []error{missing(all, s.Lookup)}
	for _, v := range all {
		if _, set := s.Lookup(v.Name); !set && v.Default == "" {
			continue
		}
		if err := decode(v.From(s.Lookup), v.into); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", v.Name, err))
		}
	}
	return configurationError(errs)
}

// decode reads one value. The project's own types have a method Decode. Other values are texts,
// numbers or lists separated by commas.
func decode(text string, into reflect.Value) error {
	switch own := into.Addr().Interface().(type) {
	case interface{ Decode(text string) error }:
		return own.Decode(text)
	case encoding.TextUnmarshaler:
		return own.UnmarshalText([]byte(text))
	case *time.Duration:
		d, err := time.ParseDuration(text)
		*own = d
		return withoutValue(err, "a duration, such as 300ms")
	}
	switch into.Kind() {
	case reflect.String:
		into.SetString(text)
		return nil
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		into.SetBool(b)
		return withoutValue(err, "true or false")
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, into.Type().Bits())
		into.SetInt(n)
		return withoutValue(err, "a whole number")
	case reflect.Float64:
		n, err := strconv.ParseFloat(text, 64)
		into.SetFloat(n)
		return withoutValue(err, "a number")
	case reflect.Slice:
		if strings.TrimSpace(text) == "" {
			return nil
		}
		parts := strings.Split(text, ",")
		list := reflect.MakeSlice(into.Type(), len(parts), len(parts))
		for i, part := range parts {
			if err := decode(part, list.Index(i)); err != nil {
				return err
			}
		}
		into.Set(list)
		return nil
	default:
		return fmt.Errorf("a %s can't be read from the environment", into.Type())
	}
}

// withoutValue returns an error without the value, which may be a secret.
func withoutValue(err error, want string) error {
	if err == nil {
		return nil
	}
	return errors.New("is not " + want)
}
