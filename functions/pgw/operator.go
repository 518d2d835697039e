package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"

	"pgw/functions/pgw/table"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/postgres"
	"pgw/shared/rpc"
)

// operatorFlags find the system that an operator's command works on. All of these commands find it
// in the same way:
//
//   - If the environment names a system, by KAFKA_BROKERS, DATABASE_URL or GATEWAY_URL, it describes
//     the whole system. It is never mixed with another one, so no command goes to a system that the
//     operator did not mean.
//   - Otherwise the system is the pgw run of the data directory, as its run.json describes it. The
//     environment adds missing settings, such as keys and tokens.
type operatorFlags struct {
	DataDir string `env:"PGW_DATA_DIR" default:".pgw" help:"Directory of the run.json of pgw run, which describes the system; environment variables add the missing settings. If KAFKA_BROKERS, DATABASE_URL or GATEWAY_URL is set, run.json is not used, and the environment describes the whole system."`
}

// naming has the variables that name a system.
var naming = []string{"KAFKA_BROKERS", "DATABASE_URL", "GATEWAY_URL"}

// databaseConfig names the ledger's database.
type databaseConfig struct {
	URL    string          `envconfig:"DATABASE_URL"`
	Schema postgres.Schema `envconfig:"LEDGER_SCHEMA"`
}

// ledger returns the URL of the ledger, or an error if there is none.
func (c databaseConfig) ledger() (string, error) {
	if c.URL == "" {
		return "", errors.New("DATABASE_URL is not set")
	}
	return c.Schema.In(c.URL), nil
}

// operatorConfig is the configuration that most operators' commands need.
type operatorConfig struct {
	Database      databaseConfig
	Keys          event.Keyring `envconfig:"EVENT_KEYS"`
	AllowUnsigned bool          `envconfig:"ALLOW_UNSIGNED_REQUESTS"`
	RPC           rpc.Security
	Kafka         kafka.Config
}

func (f operatorFlags) config() (cfg operatorConfig, at function.Settings, err error) {
	if at, err = f.find(nil); err == nil {
		err = at.Read(&cfg)
	}
	return cfg, at, err
}

// find returns the system's settings. The command's own flags have the effect of environment
// variables.
func (f operatorFlags) find(flags map[string]string) (function.Settings, error) {
	environment := func(name string) (string, bool) {
		if value := flags[name]; value != "" {
			return value, true
		}
		return os.LookupEnv(name)
	}
	for _, name := range naming {
		if _, set := environment(name); set {
			return function.Settings{Lookup: environment}, nil
		}
	}
	found, err := f.readRunFile()
	if errors.Is(err, fs.ErrNotExist) && namesFunction(environment) {
		return function.Settings{Lookup: environment}, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("set %s, or start pgw run here: there is no run.json in %s", strings.Join(naming, ", "), f.DataDir)
	}
	return function.Settings{Lookup: func(name string) (string, bool) {
		if value, set := found[name]; set {
			return value, true
		}
		if value, set := environment(name); set || name != "EVENT_KEYS" {
			return value, set
		}
		keys, err := os.ReadFile(filepath.Join(f.DataDir, "event-keys"))
		return string(keys), err == nil
	}}, err
}

// namesFunction reports whether the environment has the address of a function. That is enough for a
// command that only calls functions, if no system runs here.
func namesFunction(environment func(string) (string, bool)) bool {
	for _, f := range table.Functions {
		if _, set := environment(table.Functions.Address(f.Name).Name); set {
			return true
		}
	}
	return false
}

// readRunFile returns the settings in run.json, by the names of the corresponding variables.
func (f operatorFlags) readRunFile() (map[string]string, error) {
	text, err := os.ReadFile(filepath.Join(f.DataDir, "run.json"))
	if err != nil {
		return nil, err
	}
	var says struct {
		Brokers []string `json:"kafka_brokers"`
	}
	var all map[string]any
	if err := errors.Join(json.Unmarshal(text, &says), json.Unmarshal(text, &all)); err != nil {
		return nil, fmt.Errorf("run.json: %w", err)
	}
	// pgw run accepts plain records too.
	found := map[string]string{"KAFKA_BROKERS": strings.Join(says.Brokers, ","), "ALLOW_UNSIGNED_REQUESTS": "true"}
	for name, value := range all {
		if text, ok := value.(string); ok {
			found[strings.ToUpper(name)] = text
		}
	}
	return found, nil
}

// connect connects to functions of the system, each by its name. done closes the connections.
func (f operatorFlags) connect(names ...string) (conns map[string]*grpc.ClientConn, done func(), err error) {
	var cfg struct{ RPC rpc.Security }
	at, err := f.find(nil)
	if err == nil {
		err = at.Read(&cfg)
	}
	if err != nil {
		return nil, nil, err
	}
	if conns, err = dial(at, cfg.RPC, names...); err != nil {
		return nil, nil, err
	}
	return conns, func() {
		for _, conn := range conns {
			conn.Close()
		}
	}, nil
}

// dial connects to functions of the system, each by its name.
func dial(at function.Settings, security rpc.Security, names ...string) (conns map[string]*grpc.ClientConn, err error) {
	callers, err := security.Open(slog.Default())
	if err != nil {
		return nil, err
	}
	conns = map[string]*grpc.ClientConn{}
	for _, name := range names {
		address := table.Functions.Address(name)
		if conns[name], err = callers.Dial(address.From(at.Lookup)); err != nil {
			return nil, fmt.Errorf("%s: %w", address.Name, err)
		}
	}
	return conns, nil
}
