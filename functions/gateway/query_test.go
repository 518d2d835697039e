package gateway

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"pgw/shared/payment"
)

func texts(wrong payment.Problems) string {
	all := make([]string, len(wrong))
	for i, p := range wrong {
		all[i] = p.Field + ": " + p.Detail()
	}
	return strings.Join(all, "; ")
}

func TestQueriesHaveOnlyDeclaredParameters(t *testing.T) {
	declared := []string{"limit", "account", "metadata."}
	const has = "is not a parameter of this path; it has limit, account, metadata.NAME"
	for query, want := range map[string]string{
		"":                               "",
		"limit=1&account=A":              "",
		"metadata.order=1&metadata.b=2":  "",
		"acount=A":                       "acount: " + has,
		"LIMIT=1":                        "LIMIT: " + has,
		"metadata.=1":                    "metadata.: " + has,
		"metadata=1":                     "metadata: " + has,
		"b=&a=1":                         "a: " + has + "; b: " + has,
		"limit=1&limit=1":                "limit: is given more than once",
		"metadata.a=1&metadata.a=2":      "metadata.a: is given more than once",
		"account=":                       "account: is empty; leave it out",
		"account&limit=1":                "account: is empty; leave it out",
		"limit=%zz":                      `query: can't be decoded: invalid URL escape "%zz"`,
		"limit=1;account=A":              "query: can't be decoded: invalid semicolon separator in query",
		strings.Repeat("x", 1000) + "=1": strings.Repeat("x", 64) + ": " + has,
	} {
		if got := texts(checkQuery(query, declared)); got != want {
			t.Errorf("%.100q: %s; want %s", query, got, want)
		}
	}
}

// The reply to a payment has all that is wrong with it. Its reason and message are those of the
// first problem, as before.
func TestAllWrongFieldsAreReported(t *testing.T) {
	for name, tc := range map[string]struct {
		query, body, prefer string
		reason              payment.Reason
		message, errors     string
	}{
		"all missing": {"", `{}`, "", payment.InvalidInput, "idempotency_key: is missing", "idempotency_key: is missing; sender_id: is missing; " +
			"receiver_id: is missing; tx_date: is missing; currency: is missing; amount: is missing"},
		"wrong types": {"", `{"sender_id":1,"receiver_id":{},"currency":"XXQ","amount":"ten","tx_date":"now","idempotency_key":"k","metadata":[]}`, "",
			payment.InvalidInput, "sender_id: must be a string, not a number", "sender_id: must be a string, not a number; " +
				"receiver_id: must be a string, not a object; tx_date: must be RFC 3339, such as 2026-01-31T09:30:00Z; " +
				`currency: currency "XXQ": not an ISO 4217 currency code; amount: amount "ten": not a decimal number; ` +
				"metadata: must be an object of strings, with each name once"},
		"currencies": {"", `{"sender_id":"A","receiver_id":"LIQUIDITY","currency":"XXQ","amount":1,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":"k",` +
			`"debit_currency":"usd","quote_id":"q"}`, "", payment.InvalidInput, "receiver_id: LIQUIDITY is pgw's own account",
			`receiver_id: LIQUIDITY is pgw's own account; currency: currency "XXQ": not an ISO 4217 currency code; ` +
				`debit_currency: currency "usd": not an ISO 4217 currency code; quote_id: is not a UUID`},
		"keys of headers": {"", `{"sender_id":"A","receiver_id":"B","currency":"USD","amount":1}`, "", payment.InvalidInput,
			"Idempotency-Key: is given more than once", "Idempotency-Key: is given more than once; tx_date: is missing"},
		"no JSON":      {"x=1", `{`, "", payment.BadJSON, "the body is not a JSON object: unexpected end of JSON input", "x: is not a parameter of this path, which has none"},
		"a name twice": {"", `{"currency":"USD","CURRENCY":"SGD"}`, "", payment.BadJSON, "currency: is given more than once", "currency: is given more than once"},
		"unknown fields": {"", `{"sender_id":"A","receiver_id":"B","currency":"USD","amout":1,"amount":1,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":"k","x":{"y":1},"amout":2}`,
			"respond-async, Handling=strict", payment.InvalidInput, "amout: is not a field of this request", "amout: is not a field of this request; x: is not a field of this request"},
	} {
		r := httptest.NewRequest(http.MethodPost, "/api/payments?"+tc.query, strings.NewReader(tc.body))
		r.Header.Set("Prefer", tc.prefer)
		if strings.HasPrefix(name, "keys") {
			r.Header["Idempotency-Key"] = []string{"one", "two"}
		}
		_, refusal := readPayment(httptest.NewRecorder(), r)
		if refusal == nil {
			t.Errorf("%s: is accepted", name)
			continue
		}
		if got := texts(refusal.wrong); refusal.Reason != tc.reason || refusal.message != tc.message || got != tc.errors {
			t.Errorf("%s: %s, %q,\n%s; want\n%s", name, refusal.Reason, refusal.message, got, tc.errors)
		}
	}
}

func TestUnknownFieldsAreNamed(t *testing.T) {
	known := `{"sender_id":"A","receiver_id":"B","currency":"USD","amount":1,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":"k"`
	for more, want := range map[string]string{
		``:                                     "",
		`,"metadata":{"x":"y"}`:                "",
		`,"amout":2,"n":{"x":[{"y":1}]}`:       `"amout", "n"`,
		`,"a\"b\\":1,"S\u00f8ren":2`:           `"a\"b\\", %"S%c3%b8ren"`,
		`,"a\r\nSet-Cookie: b":1`:              `%"a%0d%0aSet-Cookie: b"`,
		`,"` + strings.Repeat("x", 99) + `":1`: `"` + strings.Repeat("x", 64) + `"`,
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/api/payments", strings.NewReader(known+more+"}"))
		if _, refusal := readPayment(w, r); refusal != nil {
			t.Errorf("%s: %s", more, refusal.message)
		}
		if got := w.Header().Get("Pgw-Unknown-Fields"); got != want {
			t.Errorf("%s: %s; want %s", more, got, want)
		}
	}
	for prefer, want := range map[string]string{
		"": "", "handling=strict": "handling=strict", `handling="strict"; x=y`: "handling=strict", "handling=lenient, handling=strict": "handling=lenient",
		"wait=5": "", "handling=odd": "",
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/api/payments", strings.NewReader(known+"}"))
		r.Header.Set("Prefer", prefer)
		if _, refusal := readPayment(w, r); refusal != nil {
			t.Errorf("%s: %s", prefer, refusal.message)
		}
		if got := w.Header().Get("Preference-Applied"); got != want {
			t.Errorf("%s: %s; want %s", prefer, got, want)
		}
	}
}
