package access

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// clock is set by tests.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func open(t *testing.T, cfg Config) (*Access, *clock) {
	t.Helper()
	c := &clock{noon}
	a, err := Open(cfg, prometheus.NewRegistry(), c.now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return a, c
}

func request(headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/api/payments/k", nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func newKey(t *testing.T, id string, options ...string) (given, line string) {
	t.Helper()
	given, line, err := NewKey(id, options...)
	if err != nil {
		t.Fatal(err)
	}
	return given, line
}

// A missing or contradictory configuration is an error; the gateway never starts without
// protection.
func TestConfigurationsThatAreRefused(t *testing.T) {
	_, line := newKey(t, "a", "senders=A")
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte("# none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"required without credentials": {Config{Mode: Required}, "no client could be admitted"},
		"off, and keys":                {Config{Mode: Off, Keys: line}, "AUTH is off"},
		"off, and a provider":          {Config{Issuer: "https://id.example.com"}, "AUTH is off"},
		"another mode":                 {Config{Mode: "on", Keys: line}, `"on"`},
		"a file that is not there":     {Config{Mode: Required, KeysFile: file + ".not"}, "API_KEYS_FILE"},
		"a file without a key":         {Config{Mode: Required, KeysFile: file}, "no key in it"},
		"file and variable":            {Config{Mode: Required, KeysFile: file, Keys: line}, "one of them"},
		"no audience":                  {Config{Mode: Required, Issuer: "https://id.example.com"}, "OIDC_AUDIENCE"},
		"an issuer over http":          {Config{Mode: Required, Issuer: "http://id.example.com", Audience: "pgw"}, "https"},
		"keys over http":               {Config{Mode: Required, Issuer: "https://id.example.com", JWKSURL: "http://id.example.com/keys", Audience: "pgw"}, "https"},
		"no rate":                      {Config{Mode: Required, Issuer: "https://id.example.com", Audience: "pgw"}, "OIDC_RATE"},
		"a negative bound of address":  {Config{Mode: Required, Keys: line, AddressRate: -1}, "ADDRESS_RATE"},
		"a key's line without a hash":  {Config{Mode: Required, Keys: "a senders=A"}, "needs sha256"},
		"without accounts":             {Config{Mode: Required, Keys: strings.Fields(line)[0] + " " + strings.Fields(line)[1]}, "needs sha256 and senders"},
		"a hash that is not valid":     {Config{Mode: Required, Keys: "a sha256=abc senders=A"}, "sha256 of key a"},
		"a key where its hash is":      {Config{Mode: Required, Keys: "a sha256=pgw_a.topsecret senders=A"}, "sha256 of key a"},
		"an unknown option":            {Config{Mode: Required, Keys: line + " admin=yes"}, "is none of"},
		"an option twice":              {Config{Mode: Required, Keys: line + " senders=*"}, "senders is given twice"},
		"a star in the middle":         {Config{Mode: Required, Keys: strings.Replace(line, "senders=A", "senders=A*B", 1)}, "senders of key a"},
		"an empty account":             {Config{Mode: Required, Keys: line + ","}, "senders of key a"},
		"a zero rate":                  {Config{Mode: Required, Keys: line + " rate=0"}, "rate of key a"},
		"a rate that is not a number":  {Config{Mode: Required, Keys: line + " rate=NaN"}, "rate of key a"},
		"an end that is not a time":    {Config{Mode: Required, Keys: line + " until=soon"}, "until of key a"},
		"an id with a dot":             {Config{Mode: Required, Keys: "a.b" + line[1:]}, "id"},
		"an id that is too long":       {Config{Mode: Required, Keys: strings.Repeat("a", maxKeyID+1) + line[1:]}, "64"},
		"an id twice":                  {Config{Mode: Required, Keys: line + ";" + line}, "given twice"},
	} {
		a, err := Open(tc.cfg, prometheus.NewRegistry(), time.Now, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, %v", name, a, err)
		}
		if err != nil && strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%s: the error contains the secret: %v", name, err)
		}
	}
	if a, err := Open(Config{Mode: Off}, prometheus.NewRegistry(), time.Now, slog.Default()); a != nil || err != nil {
		t.Errorf("off: %v, %v", a, err)
	}
}

func TestAcceptedKeys(t *testing.T) {
	given, line := newKey(t, "acme-1", "senders=ACME-*,JOINT")
	other, otherLine := newKey(t, "other", "senders=*")
	ends, endsLine := newKey(t, "ends", "senders=A", "until="+noon.Format(time.RFC3339))
	// The line has the client's rights, but not its secret.
	if secret := given[strings.IndexByte(given, '.')+1:]; strings.Contains(line, secret) || len(secret) != 43 {
		t.Errorf("%s beside %s", given, line)
	}
	a, clock := open(t, Config{Mode: Required, Keys: strings.Join([]string{line, otherLine, endsLine}, ";")})
	for _, key := range []string{given, other, ends} {
		if p, denied := a.Check(request(KeyHeader, key)); denied != nil || !strings.HasPrefix(key, keyPrefix+p.Name+".") {
			t.Errorf("%s: %v %v", key, p, denied)
		}
	}
	clock.at = noon.Add(time.Second)
	flipped := []byte(given)
	flipped[len(flipped)-2] ^= 1
	for name, headers := range map[string][]string{
		"none":                 nil,
		"empty":                {KeyHeader, ""},
		"one bit off":          {KeyHeader, string(flipped)},
		"longer":               {KeyHeader, given + "A"},
		"shorter":              {KeyHeader, given[:len(given)-1]},
		"much longer":          {KeyHeader, given + strings.Repeat("A", 10_000)},
		"its hash":             {KeyHeader, strings.Fields(line)[1]},
		"another's id":         {KeyHeader, keyPrefix + "other" + given[strings.IndexByte(given, '.'):]},
		"an unknown id":        {KeyHeader, keyPrefix + "nobody" + given[strings.IndexByte(given, '.'):]},
		"past its end":         {KeyHeader, ends},
		"two":                  {KeyHeader, given, KeyHeader, given},
		"a key and a token":    {KeyHeader, given, "Authorization", "Bearer x"},
		"as a bearer's token":  {"Authorization", "Bearer " + given},
		"by Basic":             {"Authorization", "Basic YTpi"},
		"with a line end more": {KeyHeader, given + "\n"},
	} {
		p, denied := a.Check(request(headers...))
		if denied == nil || denied.Code != http.StatusUnauthorized || denied.Challenge == "" || p != nil {
			t.Errorf("%s: %v, %v", name, p, denied)
		}
	}
	p, _ := a.Check(request(KeyHeader, given))
	for account, may := range map[string]bool{"ACME-1": true, "ACME-": true, "JOINT": true, "ACME": false, "JOINTLY": false, "acme-1": false, "OTHER": false, "": false} {
		if denied := a.MaySend(p, account); (denied == nil) != may || p.Owns(account) != may {
			t.Errorf("%s: %v; may %t", account, denied, may)
		}
	}
	if p.OwnsAll() || a.MaySend(nil, "OTHER") != nil {
		t.Error("OwnsAll is wrong")
	}
}

// Rotation: the new key is added, both keys are valid, then the old key is removed and is invalid.
// Nothing is restarted.
func TestKeysRotate(t *testing.T) {
	old, oldLine := newKey(t, "acme-1", "senders=A")
	fresh, freshLine := newKey(t, "acme-2", "senders=A")
	path := filepath.Join(t.TempDir(), "keys")
	put := func(lines ...string) {
		if err := os.WriteFile(path, []byte("# clients\n"+strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(oldLine)
	a, _ := open(t, Config{Mode: Required, KeysFile: path})
	in := func(key string) bool { _, denied := a.Check(request(KeyHeader, key)); return denied == nil }
	becomes := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	if !in(old) || in(fresh) {
		t.Fatal("before")
	}
	put(oldLine, freshLine)
	becomes("the new key is not taken", func() bool { return in(fresh) })
	if !in(old) {
		t.Error("the old key is refused while both should be good")
	}
	put(freshLine)
	becomes("the old key is still taken", func() bool { return !in(old) })
	if !in(fresh) {
		t.Error("the new key is refused")
	}
	// A mistake in the file does not lock out the clients.
	put("nonsense")
	time.Sleep(1100 * time.Millisecond) // until the file is checked again
	if !in(fresh) || in(old) {
		t.Error("after a mistake in the file")
	}
}

func TestRateOfAKey(t *testing.T) {
	one, oneLine := newKey(t, "one", "senders=A", "rate=2", "burst=3")
	two, twoLine := newKey(t, "two", "senders=A", "rate=0.5")
	a, clock := open(t, Config{Mode: Required, Keys: oneLine + ";" + twoLine})
	ask := func(key string) int {
		_, denied := a.Check(request(KeyHeader, key))
		if denied == nil {
			return http.StatusOK
		}
		if denied.Code == http.StatusTooManyRequests && denied.Seconds() == "0" {
			t.Error("Retry-After: 0")
		}
		return denied.Code
	}
	got := []int{ask(one), ask(one), ask(one), ask(one), ask(two), ask(two)}
	if want := []int{200, 200, 200, 429, 200, 429}; !slices.Equal(got, want) {
		t.Errorf("got %v; want %v", got, want)
	}
	_, denied := a.Check(request(KeyHeader, two))
	if denied == nil || denied.Seconds() != "2" {
		t.Errorf("Retry-After: %v", denied)
	}
	clock.at = clock.at.Add(500 * time.Millisecond)
	if got := []int{ask(one), ask(one)}; !slices.Equal(got, []int{200, 429}) {
		t.Errorf("half a second later: %v", got)
	}
	// A request with a wrong key does not use up the rate of another key.
	clock.at = clock.at.Add(time.Hour)
	for range 10 {
		ask(one[:len(one)-1] + "!")
	}
	if ask(one) != http.StatusOK {
		t.Error("wrong keys use up the right one's rate")
	}
}

// A client learns what it may still send under each limit, also when it is denied.
func TestQuotas(t *testing.T) {
	key, line := newKey(t, "one", "senders=A", "rate=2", "burst=10")
	a, clock := open(t, Config{Mode: Required, Keys: line, AddressRate: 50})
	for _, tc := range []struct {
		cost    int
		after   time.Duration
		address string
		client  string
		denied  bool
	}{
		{1, 0, "address 100 2s 99 20ms", "client 10 5s 9 500ms", false},
		{5, 0, "address 100 2s 94 120ms", "client 10 5s 4 3s", false},
		{5, 0, "address 100 2s 89 220ms", "client 10 5s 4 3s", true},
		{1, 750 * time.Millisecond, "address 100 2s 99 20ms", "client 10 5s 4 2.75s", false},
		{99, time.Hour, "address 100 2s 1 1.98s", "client 10 5s 0 5s", false},
	} {
		clock.at = clock.at.Add(tc.after)
		_, quotas, denied := a.Charge(request(KeyHeader, key), tc.cost)
		var got []string
		for _, q := range quotas {
			got = append(got, fmt.Sprint(q.Name, " ", q.Most, " ", q.Refill, " ", q.Left, " ", q.Full))
		}
		if want := []string{tc.address, tc.client}; !slices.Equal(got, want) || (denied != nil) != tc.denied {
			t.Errorf("%q, %v; want %q", got, denied, want)
		}
	}
}

func TestRateOfAnAddress(t *testing.T) {
	a, _ := open(t, Config{AddressRate: 1, Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	for _, tc := range []struct {
		from, forwarded string
		want            int
	}{
		{"192.0.2.1:1", "", 200}, {"192.0.2.1:2", "", 200}, {"192.0.2.1:3", "", 429},
		{"192.0.2.1:4", "198.51.100.7", 429}, // not a trusted proxy: its X-Forwarded-For is ignored
		{"192.0.2.2:1", "", 200},
		{"10.0.0.1:1", "203.0.113.5", 200}, {"10.0.0.1:2", "203.0.113.5", 200}, {"10.0.0.2:1", "203.0.113.5", 429},
		{"10.0.0.1:3", "192.0.2.99, 203.0.113.5, 10.9.9.9", 429}, // the client wrote the first entry
		{"10.0.0.1:4", "203.0.113.6", 200},
		{"[2001:db8::1]:1", "", 200}, {"[2001:db8::2]:1", "", 200}, {"[2001:db8::3]:1", "", 429}, {"[2001:db8:0:1::1]:1", "", 200},
		{"10.0.0.3:1", "nonsense", 200}, {"10.0.0.3:1", "nonsense", 200}, {"10.0.0.3:1", "nonsense", 429},
	} {
		r := request()
		if r.RemoteAddr = tc.from; tc.forwarded != "" {
			r.Header.Set("X-Forwarded-For", tc.forwarded)
		}
		got := http.StatusOK
		if _, denied := a.Check(r); denied != nil {
			got = denied.Code
		}
		if got != tc.want {
			t.Errorf("%s, %q: %d; want %d", tc.from, tc.forwarded, got, tc.want)
		}
	}
	// The number of limiters is limited, even if there are more addresses.
	for i := range 3 * maxLimiters {
		r := request()
		r.RemoteAddr = fmt.Sprintf("100.%d.%d.%d:1", i>>16, i>>8&255, i&255)
		a.Check(r)
	}
	if n := len(a.addresses.by); n > maxLimiters {
		t.Errorf("%d limiters are kept", n)
	}
}

func FuzzReadKeys(f *testing.F) {
	_, line, _ := NewKey("acme", "senders=A*", "rate=1", "until=2027-01-01T00:00:00Z")
	for _, seed := range []string{line, "", "#", "a senders=", "a sha256=00 senders=*"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		all, err := readKeys(text)
		if err != nil {
			return
		}
		for id, k := range all {
			if CheckKeyID(id) != nil || k.Name != id || len(k.senders) == 0 || !(k.rate > 0) || k.burst < 1 {
				t.Fatalf("%q is accepted: %+v", text, k)
			}
		}
		if k := all.find(text, noon); k != nil {
			t.Fatalf("the lines themselves are a key: %q", text)
		}
	})
}
