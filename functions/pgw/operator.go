package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/rpc"
)

// operatorFlags find the system that an operator's command works on: the environment describes it, with the
// variables of the functions; where it says nothing of a broker or a database, it is the pgw run of the data
// directory. Never half of each.
type operatorFlags struct {
	DataDir string `env:"PGW_DATA_DIR" default:".pgw" help:"Where the run.json of pgw run is, which is used when neither KAFKA_BROKERS nor DATABASE_URL is set."`
}

// operatorConfig is what the operators' commands read from the environment.
type operatorConfig struct {
	DatabaseURL   string        `envconfig:"DATABASE_URL"`
	DBAddr        string        `envconfig:"DB_ADDR" default:"localhost:19095"`
	Keys          event.Keyring `envconfig:"EVENT_KEYS"`
	AllowUnsigned bool          `envconfig:"ALLOW_UNSIGNED_REQUESTS"`
	RPC           rpc.Security
	Kafka         kafka.Config
}

func (f operatorFlags) config() (operatorConfig, error) {
	var cfg operatorConfig
	_, brokers := os.LookupEnv("KAFKA_BROKERS")
	_, database := os.LookupEnv("DATABASE_URL")
	if !brokers && !database {
		if err := f.fromRun(); err != nil {
			return cfg, err
		}
	}
	if err := function.ReadEnvironment(&cfg); err != nil {
		return cfg, err
	}
	return cfg, nil
}

// fromRun puts what run.json says into the environment of this process.
func (f operatorFlags) fromRun() error {
	at, err := findSystem(f.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set KAFKA_BROKERS, DATABASE_URL and EVENT_KEYS, or start pgw run here: there is no run.json in %s", f.DataDir)
	}
	if err != nil {
		return err
	}
	found := map[string]string{
		"KAFKA_BROKERS": strings.Join(at.Brokers, ","), "DATABASE_URL": at.Database, "DB_ADDR": at.DB, "ALLOW_UNSIGNED_REQUESTS": "true",
	}
	if keys, err := os.ReadFile(filepath.Join(f.DataDir, "event-keys")); err == nil {
		found["EVENT_KEYS"] = string(keys)
	}
	for name, value := range found {
		if _, set := os.LookupEnv(name); !set {
			os.Setenv(name, value)
		}
	}
	return nil
}
