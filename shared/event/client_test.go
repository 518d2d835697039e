package event

import (
	"encoding/json"
	"errors"
	"testing"

	"pgw/shared/payment"
)

// An event that pgw's keys sign may name any client. An unsigned record names none, and a changed one is
// refused.
func TestOnlyASignedRequestNamesAClient(t *testing.T) {
	ring := ring(t, keys)
	p := request()
	p.Client = "acme"
	signed, err := Requested("/pgw/gateway", p, "", noon)
	if err == nil {
		err = ring.Sign(&signed)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ReadRequest(signed, ring, false); err != nil || got.Client != "acme" {
		t.Errorf("signed: %q, %v", got.Client, err)
	}
	p.Client = "another"
	forged := signed.Clone()
	if forged.DataEncoded, err = json.Marshal(PaymentRequested{Payment: p}); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRequest(forged, ring, true); !errors.Is(err, ErrSignature) {
		t.Errorf("changed: %v", err)
	}
	plain := forged.Clone()
	plain.SetType(TypeKafkaRecord)
	if got, err := ReadRequest(plain, ring, true); err != nil || got.Client != "" {
		t.Errorf("plain: %q, %v", got.Client, err)
	}
}

// The events of two clients' payments have different ids. Without a client they are those of releases
// before clients, which the golden files have.
func TestIDsAreThoseOfTheClient(t *testing.T) {
	fp := payment.Fingerprint{1}
	seen := map[string]payment.ScopedKey{}
	for _, pair := range [][2]string{{"", "k"}, {"a", "k"}, {"b", "k"}, {"a", "1 k"}, {"a 1", "k"}, {"", "of 1 a 1k"}, {"", " of 1 a 1k"}} {
		key := payment.ScopedKey{Client: pair[0], Key: pair[1]}
		for _, id := range []string{RequestedID(key, fp), ResultID(key, fp)} {
			if other, known := seen[id]; known {
				t.Errorf("%+v and %+v have one id", key, other)
			}
			seen[id] = key
		}
	}
	if got := RequestedID(payment.ScopedKey{Key: "k"}, fp); got != paymentID("request", "k", fp) {
		t.Error("the id without a client has changed")
	}
}
