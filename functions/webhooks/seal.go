package webhooks

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/google/uuid"

	"pgw/shared/ledger"
)

// Sealer encrypts endpoints' secrets for the database, by AES-256-GCM. The first key encrypts, all of
// them decrypt. So a key is rotated by putting a new one in front; the function then encrypts
// everything anew, and after a minute the old one can go.
type Sealer struct {
	keys    map[string]cipher.AEAD
	sealing string // the id of the first key
}

const sealingKeyBytes = 32

// Decode parses "ID:BASE64,ID:BASE64", the format of the variable WEBHOOK_SECRET_KEYS.
func (s *Sealer) Decode(text string) error {
	*s = Sealer{keys: map[string]cipher.AEAD{}}
	for entry := range strings.SplitSeq(text, ",") {
		id, encoded, ok := strings.Cut(strings.TrimSpace(entry), ":")
		if !ok || id == "" {
			return errors.New("want ID:BASE64[,ID:BASE64]")
		}
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return fmt.Errorf("key %q is not base64", id)
		}
		if len(key) != sealingKeyBytes {
			return fmt.Errorf("key %q is %d bytes long; must have %d", id, len(key), sealingKeyBytes)
		}
		if s.keys[id] != nil {
			return fmt.Errorf("key %q is given twice", id)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return fmt.Errorf("key %q: %w", id, err)
		}
		if s.keys[id], err = cipher.NewGCM(block); err != nil {
			return fmt.Errorf("key %q: %w", id, err)
		}
		if s.sealing == "" {
			s.sealing = id
		}
	}
	return nil
}

// bound returns what an encrypted secret is bound to, so that nobody can move it to another endpoint.
func bound(endpoint, id uuid.UUID, kind string) []byte {
	return append(append(endpoint[:], id[:]...), kind...)
}

// seal encrypts a secret of an endpoint.
func (s *Sealer) seal(endpoint, id uuid.UUID, plain secret, random io.Reader) (ledger.SealedSecret, error) {
	key := s.keys[s.sealing]
	if key == nil {
		return ledger.SealedSecret{}, errors.New("WEBHOOK_SECRET_KEYS has no key")
	}
	nonce := make([]byte, key.NonceSize())
	if _, err := io.ReadFull(random, nonce); err != nil {
		return ledger.SealedSecret{}, err
	}
	return ledger.SealedSecret{
		ID: id, Kind: plain.scheme, KeyID: s.sealing, Sealed: key.Seal(nonce, nonce, plain.bytes, bound(endpoint, id, plain.scheme)),
	}, nil
}

// open decrypts a secret of an endpoint.
func (s *Sealer) open(endpoint uuid.UUID, sealed ledger.SealedSecret) (secret, error) {
	key := s.keys[sealed.KeyID]
	if key == nil {
		return secret{}, fmt.Errorf("WEBHOOK_SECRET_KEYS lacks the key %q", sealed.KeyID)
	}
	if len(sealed.Sealed) < key.NonceSize() {
		return secret{}, fmt.Errorf("secret %s is too short", sealed.ID)
	}
	nonce, text := sealed.Sealed[:key.NonceSize()], sealed.Sealed[key.NonceSize():]
	plain, err := key.Open(nil, nonce, text, bound(endpoint, sealed.ID, sealed.Kind))
	if err != nil {
		return secret{}, fmt.Errorf("secret %s can't be decrypted by the key %q", sealed.ID, sealed.KeyID)
	}
	return secret{sealed.Kind, plain}, nil
}
