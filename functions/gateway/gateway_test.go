package gateway

import (
	"strings"
	"testing"
)

// Replicas that share one description differ only in their environment. A replica whose URL cannot
// be expanded does not start.
func TestReplicaURLNamesTheReplica(t *testing.T) {
	t.Setenv("HOSTNAME", "3f2a")
	t.Setenv("EMPTY", "")
	for url, want := range map[string]string{
		"": "", "http://10.0.0.7:8080": "http://10.0.0.7:8080", "http://$HOSTNAME:8080": "http://3f2a:8080", "http://${HOSTNAME}:8080": "http://3f2a:8080",
	} {
		if got, err := expand(url); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", url, got, err, want)
		}
	}
	if got, err := expand("http://$EMPTY:8080"); err == nil || !strings.Contains(err.Error(), "EMPTY") {
		t.Errorf("a name that is not set: %q, %v", got, err)
	}
}
