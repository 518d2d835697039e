package webhooks

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The schemes of signatures of Standard Webhooks 1.0.0.
const (
	schemeV1  = "v1"  // HMAC-SHA-256
	schemeV1a = "v1a" // ed25519: the receiver needs no secret
)

// The prefixes of secrets and keys as texts.
const (
	prefixSecret  = "whsec_" // of v1
	prefixPrivate = "whsk_"  // of v1a
	prefixPublic  = "whpk_"  // of v1a
)

// secretBytes is the length of a new secret of v1. The specification asks for 24 to 64 bytes.
const secretBytes = 32

// secret is what signs: the bytes of a v1 secret, or the seed of a v1a key.
type secret struct {
	scheme string
	bytes  []byte
}

// newSecret makes a secret.
func newSecret(scheme string, random io.Reader) (secret, error) {
	s := secret{scheme, make([]byte, secretBytes)} // also the length of a seed of ed25519
	_, err := io.ReadFull(random, s.bytes)
	return s, err
}

// text returns the secret as its client stores it: the secret itself of v1, and the public key of v1a,
// whose private key never leaves pgw.
func (s secret) text() string {
	if s.scheme == schemeV1a {
		public := ed25519.NewKeyFromSeed(s.bytes).Public().(ed25519.PublicKey)
		return prefixPublic + base64.StdEncoding.EncodeToString(public)
	}
	return prefixSecret + base64.StdEncoding.EncodeToString(s.bytes)
}

// sign returns the signature of a message with its scheme.
func (s secret) sign(message []byte) string {
	var signature []byte
	if s.scheme == schemeV1a {
		signature = ed25519.Sign(ed25519.NewKeyFromSeed(s.bytes), message)
	} else {
		mac := hmac.New(sha256.New, s.bytes)
		mac.Write(message)
		signature = mac.Sum(nil)
	}
	return s.scheme + "," + base64.StdEncoding.EncodeToString(signature)
}

// signedHeader returns the headers of an attempt. id is the same in all attempts, and at is the time
// of this one. Each secret adds a signature: the receiver accepts the message if it knows one of them.
func signedHeader(id string, at time.Time, body []byte, secrets []secret) http.Header {
	seconds := strconv.FormatInt(at.Unix(), 10)
	message := fmt.Appendf(nil, "%s.%s.%s", id, seconds, body)
	signatures := make([]string, len(secrets))
	for i, s := range secrets {
		signatures[i] = s.sign(message)
	}
	return http.Header{
		"Webhook-Id": {id}, "Webhook-Timestamp": {seconds}, "Webhook-Signature": {strings.Join(signatures, " ")},
	}
}
