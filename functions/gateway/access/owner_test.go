package access

import (
	"testing"
	"time"
)

// Two keys of one owner are one client. Without an owner, a key is a client of its own.
func TestKeysHaveOwners(t *testing.T) {
	for option, want := range map[string]string{"": "shop-2027", "owner=shop": "shop"} {
		options := []string{"senders=A"}
		if option != "" {
			options = append(options, option)
		}
		given, line, err := NewKey("shop-2027", options...)
		if err != nil {
			t.Fatal(err)
		}
		all, err := readKeys(line)
		if err != nil {
			t.Fatal(err)
		}
		if k := all.find(given, time.Now()); k == nil || k.Client != want || k.Name != "shop-2027" {
			t.Errorf("%q: %+v; want the client %s", option, k, want)
		}
	}
	// A token's client has a colon, so no key can have it.
	for _, owner := range []string{"oidc:somebody", "", "a b"} {
		if _, line, err := NewKey("k", "senders=A", "owner="+owner); err == nil {
			t.Errorf("the owner %q: %s", owner, line)
		}
	}
}
