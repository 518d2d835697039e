package event

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
)

// ExtSignature is the extension that carries "KEYID.SIGNATURE".
const ExtSignature = "pgwsignature"

// minSecret is the least a secret may have, in bytes: the block that HMAC-SHA-256 is strong by.
const minSecret = 32

// ErrSignature means an event without a signature, or with a wrong one: it can never work.
var ErrSignature = errors.New("event signature")

// Keyring signs with its first key and accepts all of them, which is what lets keys be rotated: add the
// new one behind, wait until every function has it, move it to the front, take the old one away.
type Keyring struct {
	signing string
	secrets map[string][]byte
}

// Decode reads "ID:BASE64,ID:BASE64": the form of the EVENT_KEYS variable. It makes Keyring an
// envconfig.Decoder.
func (k *Keyring) Decode(text string) error {
	*k = Keyring{secrets: map[string][]byte{}}
	for entry := range strings.SplitSeq(text, ",") {
		id, encoded, ok := strings.Cut(strings.TrimSpace(entry), ":")
		if !ok || id == "" || strings.Contains(id, ".") {
			return errors.New("want ID:BASE64[,ID:BASE64], an ID without a dot")
		}
		secret, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return fmt.Errorf("secret of key %q is not base64", id)
		}
		if len(secret) < minSecret {
			return fmt.Errorf("secret of key %q is %d bytes long; at least %d", id, len(secret), minSecret)
		}
		if _, doubled := k.secrets[id]; doubled {
			return fmt.Errorf("key %q is given twice", id)
		}
		if k.signing == "" {
			k.signing = id
		}
		k.secrets[id] = secret
	}
	return nil
}

// Sign sets the signature by the first key.
func (k *Keyring) Sign(e *cloudevents.Event) error {
	secret, ok := k.secrets[k.signing]
	if !ok {
		return fmt.Errorf("%w: there is no key to sign with", ErrSignature)
	}
	e.SetExtension(ExtSignature, k.signing+"."+base64.RawURLEncoding.EncodeToString(mac(secret, e)))
	return nil
}

// Verify accepts a signature by any key of the ring, in constant time.
func (k *Keyring) Verify(e cloudevents.Event) error {
	text, _ := e.Extensions()[ExtSignature].(string)
	if text == "" {
		return fmt.Errorf("%w: %s %s has none", ErrSignature, e.Type(), e.ID())
	}
	id, encoded, _ := strings.Cut(text, ".")
	secret, ok := k.secrets[id]
	if !ok {
		return fmt.Errorf("%w: %s %s is signed by an unknown key", ErrSignature, e.Type(), e.ID())
	}
	given, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || !hmac.Equal(given, mac(secret, &e)) {
		return fmt.Errorf("%w: that of %s %s is wrong", ErrSignature, e.Type(), e.ID())
	}
	return nil
}

// mac covers what a function acts on: type, id, source and data. Subject and partition key are left out:
// they only repeat what is in the data, and transports may re-encode them.
func mac(secret []byte, e *cloudevents.Event) []byte {
	h := hmac.New(sha256.New, secret)
	var size [4]byte
	for _, field := range [...]string{e.Type(), e.ID(), e.Source()} {
		binary.BigEndian.PutUint32(size[:], uint32(len(field)))
		h.Write(size[:])
		h.Write([]byte(field))
	}
	h.Write(e.Data())
	return h.Sum(nil)
}
