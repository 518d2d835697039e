package kafkasource

import (
	"strings"
	"testing"

	"pgw/shared/function"
)

// kafkasource is built from its environment like every function, and finds each sink of the
// project's manifests.
func TestKafkaSourceIsAFunction(t *testing.T) {
	all := "gateway=http://gateway,worker=http://worker,payments=http://payments,db=http://db:8080/base=1,webhooks=http://webhooks"
	for sinks, want := range map[string]string{all: "", "worker": "must be SERVICE=URL", "worker=http://worker": "SINKS has no URL for the service"} {
		values := function.Values{"SINKS": sinks, "KAFKA_BROKERS": "nowhere.invalid:9092"}
		config, err := Function.Configure(function.Settings{Lookup: values.Lookup})
		if err == nil {
			_, err = Function.Make(config, function.Dependencies{})
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("SINKS=%q: %v", sinks, err)
		}
	}
}
