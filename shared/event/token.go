package event

import (
	"crypto/hmac"
	"encoding/base64"
	"fmt"
	"strings"
)

// Token returns data as a text that a client keeps and sends back, such as the cursor of a page. The
// client can read it, and cannot change it. It is signed with the first key. The purpose and the
// fields are signed too, so a token is of no use for anything else.
func (k *Keyring) Token(data []byte, purpose string, fields ...string) (string, error) {
	key, ok := k.keys[k.signing]
	if !ok {
		return "", fmt.Errorf("%w: there is no key to sign with", ErrSignature)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return k.signing + "." + encode(data) + "." + encode(key.macToken(data, purpose, fields)), nil
}

// OpenToken returns the data of a token that any key of the ring has signed for this purpose and
// these fields. Errors wrap ErrSignature.
func (k *Keyring) OpenToken(token, purpose string, fields ...string) ([]byte, error) {
	id, rest, _ := strings.Cut(token, ".")
	encoded, signature, _ := strings.Cut(rest, ".")
	key, ok := k.keys[id]
	data, dataErr := base64.RawURLEncoding.DecodeString(encoded)
	given, macErr := base64.RawURLEncoding.DecodeString(signature)
	if !ok || dataErr != nil || macErr != nil || !hmac.Equal(given, key.macToken(data, purpose, fields)) {
		return nil, fmt.Errorf("%w: the token is not of this system, or not for this", ErrSignature)
	}
	return data, nil
}

func (k signingKey) macToken(data []byte, purpose string, fields []string) []byte {
	// The input of an event's signature never starts with this text.
	return k.mac(appendFields([]byte("pgw token\n"), append([]string{purpose, string(data)}, fields...)...))
}
