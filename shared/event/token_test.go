package event

import (
	"errors"
	"strings"
	"testing"
)

// A token is opened only as it was made: by a key of the ring, for the same purpose and fields.
func TestATokenCannotBeChanged(t *testing.T) {
	const secret, other = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "YWJjZGVmZ2hpamFiY2RlZmdoaWphYmNkZWZnaGlqYWI="
	ring := func(text string) *Keyring {
		t.Helper()
		var k Keyring
		if err := k.Decode(text); err != nil {
			t.Fatal(err)
		}
		return &k
	}
	k := ring("k1:" + secret)
	token, err := k.Token([]byte("data"), "page", "A", "USD")
	if err != nil {
		t.Fatal(err)
	}
	for name, ring := range map[string]*Keyring{"the same ring": k, "a ring with a newer key": ring("k2:" + other + ",k1:" + secret)} {
		if data, err := ring.OpenToken(token, "page", "A", "USD"); err != nil || string(data) != "data" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	parts := strings.Split(token, ".")
	for name, open := range map[string]func() ([]byte, error){
		"another purpose":      func() ([]byte, error) { return k.OpenToken(token, "list", "A", "USD") },
		"another field":        func() ([]byte, error) { return k.OpenToken(token, "page", "B", "USD") },
		"fields joined":        func() ([]byte, error) { return k.OpenToken(token, "page", "AUSD") },
		"other data":           func() ([]byte, error) { return k.OpenToken(parts[0]+".ZGF0YQA."+parts[2], "page", "A", "USD") },
		"no signature":         func() ([]byte, error) { return k.OpenToken(parts[0]+"."+parts[1], "page", "A", "USD") },
		"nothing":              func() ([]byte, error) { return k.OpenToken("", "page", "A", "USD") },
		"an unknown key":       func() ([]byte, error) { return ring("k2:"+secret).OpenToken(token, "page", "A", "USD") },
		"another key's secret": func() ([]byte, error) { return ring("k1:"+other).OpenToken(token, "page", "A", "USD") },
	} {
		if data, err := open(); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if _, err := (&Keyring{}).Token(nil, "page"); !errors.Is(err, ErrSignature) {
		t.Errorf("without a key: %v", err)
	}
}
