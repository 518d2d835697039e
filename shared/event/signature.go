package event

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
)

// ExtSignature is the extension with the signature "v2.KEYID.SIGNATURE". In version 1 it is
// "KEYID.SIGNATURE".
const ExtSignature = "pgwsignature"

// Version is the version of a signature, which defines the attributes that it covers.
type Version int

const (
	// V1 covers type, id, source and data. No decision may depend on the other attributes of such
	// an event.
	V1 Version = 1
	// V2 also covers subject, time and partition key. These are all the attributes that functions
	// and operators use.
	V2 Version = 2
)

// minSecret is the minimum length of a secret in bytes: the output length of HMAC-SHA-256.
const minSecret = 32

// ErrSignature means that an event has no signature or a wrong one. It can never succeed.
var ErrSignature = errors.New("event signature")

// Keyring signs with its first key and accepts all its keys. This allows key rotation: append the
// new key, wait until every function has it, move it to the front, then remove the old key.
//
// Events are signed in version 2. A signature of version 1 is accepted from a key that may have
// made it. A key that ends with ":v2" never made one. So version 1 ends when the last key without
// ":v2" is removed.
type Keyring struct {
	signing string
	keys    map[string]signingKey
}

type signingKey struct {
	secret []byte
	onlyV2 bool
	macs   *sync.Pool // of hash.Hash: a new one costs more than its use for an event
}

func newSigningKey(secret []byte, onlyV2 bool) signingKey {
	return signingKey{secret, onlyV2, &sync.Pool{New: func() any { return hmac.New(sha256.New, secret) }}}
}

// mac returns the code of the parts one after the other.
func (k signingKey) mac(parts ...[]byte) []byte {
	h, _ := k.macs.Get().(hash.Hash)
	defer k.macs.Put(h)
	h.Reset()
	for _, part := range parts {
		h.Write(part)
	}
	return h.Sum(nil)
}

// Decode parses "ID:BASE64:v2,ID:BASE64", the format of the variable EVENT_KEYS.
func (k *Keyring) Decode(text string) error {
	*k = Keyring{keys: map[string]signingKey{}}
	for entry := range strings.SplitSeq(text, ",") {
		id, encoded, ok := strings.Cut(strings.TrimSpace(entry), ":")
		if !ok || id == "" || strings.Contains(id, ".") {
			return errors.New("want ID:BASE64[:v2][,ID:BASE64[:v2]], an ID without a dot")
		}
		encoded, kind, marked := strings.Cut(encoded, ":")
		if marked && kind != "v2" {
			return fmt.Errorf("key %q: only :v2 may follow its secret", id)
		}
		secret, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return fmt.Errorf("secret of key %q is not base64", id)
		}
		if len(secret) < minSecret {
			return fmt.Errorf("secret of key %q is %d bytes long; must have at least %d", id, len(secret), minSecret)
		}
		if _, doubled := k.keys[id]; doubled {
			return fmt.Errorf("key %q is given twice", id)
		}
		if k.signing == "" {
			k.signing = id
		}
		k.keys[id] = newSigningKey(secret, marked)
	}
	return nil
}

// Empty reports whether there are no keys.
func (k *Keyring) Empty() bool { return len(k.keys) == 0 }

// Sign sets the signature that is made with the first key.
func (k *Keyring) Sign(e *cloudevents.Event) error {
	key, ok := k.keys[k.signing]
	if !ok {
		return fmt.Errorf("%w: there is no key to sign with", ErrSignature)
	}
	e.SetExtension(ExtSignature, "v2."+k.signing+"."+base64.RawURLEncoding.EncodeToString(key.macV2(e)))
	return nil
}

// Verify accepts a signature by any key of the ring. It compares in constant time. Errors wrap
// ErrSignature.
func (k *Keyring) Verify(e cloudevents.Event) error {
	_, err := k.Verified(e)
	return err
}

// Verified is like Verify and returns the version, for callers that use more attributes than type,
// id, source and data.
func (k *Keyring) Verified(e cloudevents.Event) (Version, error) {
	text := extension(&e, ExtSignature)
	if text == "" {
		return 0, fmt.Errorf("%w: %s %s has none", ErrSignature, e.Type(), e.ID())
	}
	version, mac := V1, signingKey.macV1
	id, encoded, _ := strings.Cut(text, ".")
	// No key's id contains a dot, so a signature with two dots is not of version 1.
	if keyID, rest, ok := strings.Cut(encoded, "."); ok {
		if id != "v2" {
			return 0, fmt.Errorf("%w: that of %s %s is of an unknown version", ErrSignature, e.Type(), e.ID())
		}
		version, mac = V2, signingKey.macV2
		id, encoded = keyID, rest
	}
	key, ok := k.keys[id]
	if !ok {
		return 0, fmt.Errorf("%w: %s %s is signed by an unknown key", ErrSignature, e.Type(), e.ID())
	}
	given, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || !hmac.Equal(given, mac(key, &e)) {
		return 0, fmt.Errorf("%w: that of %s %s is wrong", ErrSignature, e.Type(), e.ID())
	}
	if version == V1 && key.onlyV2 {
		return 0, fmt.Errorf("%w: that of %s %s is of v1, and its key is only for v2", ErrSignature, e.Type(), e.ID())
	}
	return version, nil
}

// macV2 covers the attributes that are used and that do not change during delivery. Functions use
// type, id, source, time and data. Operators' commands find an event by its subject and partition
// key, and sinks choose the partition by the latter. The time is signed as an instant, because
// KafkaSource formats it again. Not covered are the media type of the data, which no function uses
// and which proxies change; the trace; and the attributes that delivery adds.
func (k signingKey) macV2(e *cloudevents.Event) []byte {
	at := ""
	if !e.Time().IsZero() {
		at = e.Time().UTC().Format(time.RFC3339Nano)
	}
	// The input of version 1 never starts with this text: it starts with the length of the type.
	text := append(make([]byte, 0, usualFields), "pgw v2\n"...)
	text = appendFields(text, e.SpecVersion(), e.Type(), e.ID(), e.Source(), e.Subject(), at, extension(e, ExtPartitionKey))
	return k.mac(text, e.Data())
}

// macV1 computes the signature of version 1.
func (k signingKey) macV1(e *cloudevents.Event) []byte {
	return k.mac(appendFields(nil, e.Type(), e.ID(), e.Source()), e.Data())
}

// extension returns the text of an extension; empty if there is none. Event.Extensions would copy all of
// them.
func extension(e *cloudevents.Event, name string) string {
	if c, ok := e.Context.(*cloudevents.EventContextV1); ok {
		text, _ := c.Extensions[name].(string)
		return text
	}
	text, _ := e.Extensions()[name].(string)
	return text
}

// usualFields is more than the fields of most events have, in bytes.
const usualFields = 512

// appendFields appends each field after its length, so two different lists never produce the same
// bytes.
func appendFields(to []byte, fields ...string) []byte {
	for _, field := range fields {
		to = append(binary.BigEndian.AppendUint32(to, uint32(len(field))), field...)
	}
	return to
}
