// Package table lists pgw's functions.
package table

import (
	"encoding/base64"
	"fmt"
	"strings"

	"pgw/functions/db"
	"pgw/functions/fx"
	"pgw/functions/gateway"
	"pgw/functions/kafkasource"
	"pgw/functions/payments"
	"pgw/functions/risk"
	"pgw/functions/wallet"
	"pgw/functions/webhooks"
	"pgw/functions/worker"
	"pgw/shared/event"
	"pgw/shared/function"
)

// Functions are all functions in the order in which they drain: callers come before the functions
// that they call.
var Functions = function.Table{
	gateway.Function,
	kafkasource.Function,
	worker.Function,
	payments.Function,
	webhooks.Function,
	wallet.Function,
	risk.Function,
	fx.Function,
	db.Function,
}

// Sinks returns the functions that receive events, in the format of the variable SINKS. url returns
// the URL of a function.
func Sinks(url func(name string) string) string {
	var sinks []string
	for _, f := range Functions {
		if f.Events != "" {
			sinks = append(sinks, f.Name+"="+url(f.Name))
		}
	}
	return strings.Join(sinks, ",")
}

// Unconnected builds every function with its defaults and without connections. The functions cannot
// run, but their routes and metrics are the same as in a running system.
func Unconnected() (map[string]*function.Port, error) {
	needed := function.Values{
		"DATABASE_URL": "postgres://nowhere.invalid/", "READER_DATABASE_URL": "postgres://nowhere.invalid/", "KAFKA_BROKERS": "nowhere.invalid:9092",
		"RISK_SECRET": "of no use to anybody", "SINKS": Sinks(func(name string) string { return "http://" + name }),
		"WEBHOOK_SECRET_KEYS": "none:" + base64.StdEncoding.EncodeToString(make([]byte, 32)),
	}
	settings := function.Settings{Lookup: needed.Lookup, Given: []any{event.Keyring{}}}
	ports := map[string]*function.Port{}
	for _, f := range Functions {
		config, err := f.Configure(settings)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		if ports[f.Name], err = f.Make(config, function.Dependencies{}); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return ports, nil
}
