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
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
)

// ExtSignature is the extension that carries "v2.KEYID.SIGNATURE"; of events of before, "KEYID.SIGNATURE".
const ExtSignature = "pgwsignature"

// Version of a signature says what it covers.
type Version int

const (
	// V1 covers type, id, source and data. Nothing else of such an event may decide anything.
	V1 Version = 1
	// V2 covers subject, time and partition key too: all that functions and operators act on.
	V2 Version = 2
)

// minSecret is the least a secret may have, in bytes: the block that HMAC-SHA-256 is strong by.
const minSecret = 32

// ErrSignature means an event without a signature, or with a wrong one: it can never work.
var ErrSignature = errors.New("event signature")

// Keyring signs with its first key and accepts all of them, which is what lets keys be rotated: add the
// new one behind, wait until every function has it, move it to the front, take the old one away.
//
// Events are signed in version 2. Signatures of version 1 are accepted by the keys that may have made them: a key that
// is written with ":v2" at its end has made none. So version 1 ends when the last key without it is rotated out.
type Keyring struct {
	signing string
	keys    map[string]signingKey
}

type signingKey struct {
	secret []byte
	onlyV2 bool
}

// Decode reads "ID:BASE64:v2,ID:BASE64": the form of the EVENT_KEYS variable.
func (k *Keyring) Decode(text string) error {
	*k = Keyring{keys: map[string]signingKey{}}
	for entry := range strings.SplitSeq(text, ",") {
		id, encoded, ok := strings.Cut(strings.TrimSpace(entry), ":")
		if !ok || id == "" || strings.Contains(id, ".") {
			return errors.New("want ID:BASE64[:v2][,ID:BASE64[:v2]], an ID without a dot")
		}
		encoded, kind, marked := strings.Cut(encoded, ":")
		if marked && kind != "v2" {
			return fmt.Errorf("key %q: behind its secret may stand :v2 alone", id)
		}
		secret, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return fmt.Errorf("secret of key %q is not base64", id)
		}
		if len(secret) < minSecret {
			return fmt.Errorf("secret of key %q is %d bytes long; at least %d", id, len(secret), minSecret)
		}
		if _, doubled := k.keys[id]; doubled {
			return fmt.Errorf("key %q is given twice", id)
		}
		if k.signing == "" {
			k.signing = id
		}
		k.keys[id] = signingKey{secret: secret, onlyV2: marked}
	}
	return nil
}

// Sign sets the signature by the first key.
func (k *Keyring) Sign(e *cloudevents.Event) error {
	key, ok := k.keys[k.signing]
	if !ok {
		return fmt.Errorf("%w: there is no key to sign with", ErrSignature)
	}
	e.SetExtension(ExtSignature, "v2."+k.signing+"."+base64.RawURLEncoding.EncodeToString(macV2(key.secret, e)))
	return nil
}

// Verify accepts a signature by any key of the ring, in constant time.
func (k *Keyring) Verify(e cloudevents.Event) error {
	_, err := k.Verified(e)
	return err
}

// Verified is Verify for who acts on more than type, id, source and data: it tells what the signature covers.
func (k *Keyring) Verified(e cloudevents.Event) (Version, error) {
	text, _ := e.Extensions()[ExtSignature].(string)
	if text == "" {
		return 0, fmt.Errorf("%w: %s %s has none", ErrSignature, e.Type(), e.ID())
	}
	version, mac := V1, macV1
	id, encoded, _ := strings.Cut(text, ".")
	// No key's id has a dot, so what has two is not of version 1.
	if keyID, rest, ok := strings.Cut(encoded, "."); ok {
		if id != "v2" {
			return 0, fmt.Errorf("%w: that of %s %s is of an unknown version", ErrSignature, e.Type(), e.ID())
		}
		version, mac = V2, macV2
		id, encoded = keyID, rest
	}
	key, ok := k.keys[id]
	if !ok {
		return 0, fmt.Errorf("%w: %s %s is signed by an unknown key", ErrSignature, e.Type(), e.ID())
	}
	given, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || !hmac.Equal(given, mac(key.secret, &e)) {
		return 0, fmt.Errorf("%w: that of %s %s is wrong", ErrSignature, e.Type(), e.ID())
	}
	if version == V1 && key.onlyV2 {
		return 0, fmt.Errorf("%w: that of %s %s is of v1, which its key is not for", ErrSignature, e.Type(), e.ID())
	}
	return version, nil
}

// macV2 covers what is acted on, and survives its way. Functions act on type, id, source, time and data; operators'
// commands find an event by its subject and partition key, and the sinks place it by the latter. The time is the
// instant, since KafkaSource writes the text of it anew. What is left out: the data's media type, which no function
// acts on and which proxies write anew; the trace; and the attributes that delivery adds.
func macV2(secret []byte, e *cloudevents.Event) []byte {
	at := ""
	if !e.Time().IsZero() {
		at = e.Time().UTC().Format(time.RFC3339Nano)
	}
	partitionKey, _ := e.Extensions()[ExtPartitionKey].(string)
	h := hmac.New(sha256.New, secret)
	// No text of version 1 begins so: there it is the length of the type.
	h.Write([]byte("pgw v2\n"))
	writeFields(h, e.SpecVersion(), e.Type(), e.ID(), e.Source(), e.Subject(), at, partitionKey)
	h.Write(e.Data())
	return h.Sum(nil)
}

// macV1 is how events were signed before.
func macV1(secret []byte, e *cloudevents.Event) []byte {
	h := hmac.New(sha256.New, secret)
	writeFields(h, e.Type(), e.ID(), e.Source())
	h.Write(e.Data())
	return h.Sum(nil)
}

// writeFields writes each field behind its length, so that no two lists write the same bytes.
func writeFields(h hash.Hash, fields ...string) {
	var size [4]byte
	for _, field := range fields {
		binary.BigEndian.PutUint32(size[:], uint32(len(field)))
		h.Write(size[:])
		h.Write([]byte(field))
	}
}
