package access

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A key is pgw_ID.SECRET. The prefix lets scanners find a key that was committed by mistake. The id
// finds the key's line and is not secret. The secret is 256 random bits, so a fast hash at each
// request is safe: a slow hash only protects secrets that can be guessed, such as passwords.
const (
	keyPrefix   = "pgw_"
	secretBytes = 32
	maxKeyID    = 64
	maxKey      = 256

	defaultRate = 100
)

// key is one line of the file.
type key struct {
	Principal
	hash  [sha256.Size]byte
	until time.Time // zero: the key does not expire
}

// keys are the keys by id.
type keys map[string]*key

// readKeys parses lines of: ID sha256=HEX senders=A,B* [owner=SHOP] [rate=50] [burst=100]
// [until=2027-01-31T00:00:00Z].
func readKeys(text string) (keys, error) {
	all := keys{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		k, err := readKey(fields)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if all[k.Name] != nil {
			return nil, fmt.Errorf("line %d: key %s is given twice; two keys of one client need two ids", n, k.Name)
		}
		all[k.Name] = k
	}
	if len(all) == 0 {
		return nil, errors.New("there is no key in it")
	}
	return all, nil
}

// The errors of readKey contain the names of options but not their values, because a line may
// contain a key in place of its hash.
func readKey(fields []string) (*key, error) {
	k := &key{Principal: Principal{Name: fields[0], Client: fields[0], rate: defaultRate}}
	if err := CheckKeyID(k.Name); err != nil {
		return nil, err
	}
	given := map[string]bool{}
	for _, field := range fields[1:] {
		name, value, _ := strings.Cut(field, "=")
		if given[name] {
			return nil, fmt.Errorf("%.20s is given twice", name)
		}
		given[name] = true
		var err error
		switch name {
		case "sha256":
			var raw []byte
			if raw, err = hex.DecodeString(value); err == nil && len(raw) != len(k.hash) {
				err = errors.New("wrong length")
			}
			copy(k.hash[:], raw)
		case "senders":
			k.senders, err = readAccounts(strings.Split(value, ","))
		case "owner":
			k.Client, err = value, CheckKeyID(value)
		case "rate":
			if k.rate, err = strconv.ParseFloat(value, 64); err == nil && !(k.rate > 0 && k.rate <= 1e6) {
				err = errors.New("out of range")
			}
		case "burst":
			if k.burst, err = strconv.Atoi(value); err == nil && (k.burst < 1 || k.burst > 1e6) {
				err = errors.New("out of range")
			}
		case "until":
			k.until, err = time.Parse(time.RFC3339, value)
		default:
			return nil, fmt.Errorf("an option of key %s is none of sha256, senders, owner, rate, burst, until", k.Name)
		}
		if err != nil {
			return nil, fmt.Errorf("%s of key %s can't be read", name, k.Name)
		}
	}
	if !given["sha256"] || !given["senders"] {
		return nil, fmt.Errorf("key %s needs sha256 and senders", k.Name)
	}
	if k.burst == 0 {
		k.burst = max(1, int(2*k.rate))
	}
	return k, nil
}

// CheckKeyID checks a key's id.
func CheckKeyID(id string) error {
	if id == "" || len(id) > maxKeyID {
		return fmt.Errorf("a key's id must have 1 to %d characters", maxKeyID)
	}
	for _, c := range id {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return errors.New("a key's id may have letters, digits, - and _")
		}
	}
	return nil
}

func readAccounts(names []string) (accounts, error) {
	for _, name := range names {
		if at := strings.IndexByte(name, '*'); name == "" || at >= 0 && at != len(name)-1 {
			return nil, errors.New("accounts are ids, or prefixes of ids that end in *")
		}
	}
	if len(names) == 0 {
		return nil, errors.New("no account is named")
	}
	return names, nil
}

// find returns the given key if it is known, correct and not expired, else nil.
func (ks keys) find(given string, now time.Time) *key {
	id, _, _ := strings.Cut(strings.TrimPrefix(given, keyPrefix), ".")
	if len(given) > maxKey {
		return nil
	}
	k := ks[id]
	sum := sha256.Sum256([]byte(given))
	if k == nil {
		// An unknown id takes as long as a known one.
		subtle.ConstantTimeCompare(sum[:], make([]byte, len(sum)))
		return nil
	}
	if subtle.ConstantTimeCompare(sum[:], k.hash[:]) != 1 || !k.until.IsZero() && now.After(k.until) {
		return nil
	}
	return k
}

// NewKey makes a key. given is the key for the client, and line is the line for the file of keys.
// options are the options of the line.
func NewKey(id string, options ...string) (given, line string, err error) {
	raw := make([]byte, secretBytes)
	rand.Read(raw)
	given = keyPrefix + id + "." + base64.RawURLEncoding.EncodeToString(raw)
	sum := sha256.Sum256([]byte(given))
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s sha256=%x", id, sum)
	for _, o := range options {
		fmt.Fprintf(&b, " %s", o)
	}
	if _, err := readKeys(b.String()); err != nil {
		return "", "", err
	}
	return given, b.String(), nil
}
