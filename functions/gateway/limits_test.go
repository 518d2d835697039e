package gateway

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"pgw/shared/payment"
)

// Each limit of a payment's JSON, at the limit and above it.
func TestLimitsOfAPayment(t *testing.T) {
	fields := func(change ...string) string {
		all := []string{
			"sender_id", `"A"`, "receiver_id", `"B"`, "currency", `"USD"`, "amount", `10`, "tx_date", `"2026-01-31T09:30:00Z"`, "idempotency_key", `"k"`,
		}
		all = append(all, change...)
		for i := 0; i < 12; i += 2 {
			for j := 12; j < len(all); j += 2 {
				if all[j] == all[i] {
					all[i+1], all[j] = all[j+1], ""
				}
			}
		}
		var parts []string
		for i := 0; i < len(all); i += 2 {
			if all[i] != "" {
				parts = append(parts, fmt.Sprintf("%q:%s", all[i], all[i+1]))
			}
		}
		return "{" + strings.Join(parts, ",") + "}"
	}
	more := func(text string) string { return strings.TrimSuffix(fields(), "}") + "," + text + "}" }
	many := func(n int) string {
		var parts []string
		for i := range n {
			parts = append(parts, fmt.Sprintf(`"note_%d":null`, i))
		}
		return more(strings.Join(parts, ","))
	}
	deep := func(n int) string { return more(`"note":` + strings.Repeat("[", n) + strings.Repeat("]", n)) }
	sized := func(n int) string { return fields() + strings.Repeat(" ", n-len(fields())) }
	text := func(n int) string { return `"` + strings.Repeat("x", n) + `"` }

	for name, tc := range map[string]struct {
		body string
		code int    // 0: accepted
		says string // a part of the message
	}{
		"a payment":                          {fields(), 0, ""},
		"body at its most":                   {sized(maxBody), 0, ""},
		"body over it":                       {sized(maxBody + 1), 413, "16384"},
		"sender at its longest":              {fields("sender_id", text(payment.MaxAccountID)), 0, ""},
		"sender over it":                     {fields("sender_id", text(payment.MaxAccountID+1)), 400, "sender_id: is 65 bytes long; at most 64"},
		"receiver at its longest":            {fields("receiver_id", text(payment.MaxAccountID)), 0, ""},
		"receiver over it":                   {fields("receiver_id", text(payment.MaxAccountID+1)), 400, "receiver_id: is 65"},
		"key at its longest":                 {fields("idempotency_key", text(payment.MaxKey)), 0, ""},
		"key over it":                        {fields("idempotency_key", text(payment.MaxKey+1)), 400, "idempotency_key: is 201"},
		"date at its longest":                {fields("tx_date", `"2026-01-31T09:30:00.`+strings.Repeat("0", 40-26)+`+07:00"`), 0, ""},
		"date over it":                       {fields("tx_date", `"2026-01-31T09:30:00.`+strings.Repeat("0", 41-26)+`+07:00"`), 400, "tx_date"},
		"the first character of ASCII":       {fields("idempotency_key", `"a b"`), 0, ""},
		"a control character":                {fields("idempotency_key", `"a\u001fb"`), 400, "idempotency_key: has a character"},
		"the last character of ASCII":        {fields("idempotency_key", `"~"`), 0, ""},
		"delete":                             {fields("idempotency_key", `"a\u007fb"`), 400, "idempotency_key: has a character"},
		"a line end, for a header":           {fields("sender_id", `"A\r\nX-Admin: 1"`), 400, "sender_id: has a character"},
		"not ASCII":                          {fields("receiver_id", `"B\u00e9"`), 400, "receiver_id: has a character"},
		"not UTF-8":                          {fields("receiver_id", "\"B\xff\""), 400, "receiver_id: has a character"},
		"a null byte":                        {fields("sender_id", `"A\u0000"`), 400, "sender_id: has a character"},
		"depth at its most":                  {deep(maxDepth - 1), 0, ""},
		"depth over it":                      {deep(maxDepth), 400, "8 levels"},
		"depth far over it":                  {deep(8000), 400, "8 levels"},
		"as many fields as may be":           {many(maxFields - 6), 0, ""},
		"one more":                           {many(maxFields - 5), 400, "64 fields"},
		"unknown":                            {more(`"note":"hello"`), 0, ""},
		"unknown, twice":                     {more(`"note":1,"note":2`), 0, ""},
		"a known name as a value":            {more(`"note":"sender_id"`), 0, ""},
		"a known name further in":            {more(`"note":{"sender_id":"X","sender_id":"Y"}`), 0, ""},
		"a quote and a colon within a value": {more(`"note":"\"sender_id\": 5"`), 0, ""},
		"sender twice":                       {more(`"sender_id":"A"`), 400, "sender_id: is given more than once"},
		"amount twice":                       {more(`"amount" : 1`), 400, "amount: is given more than once"},
		"receiver twice, in another case":    {more(`"Receiver_ID":"C"`), 400, "receiver_id: is given more than once"},
		"currency twice, escaped":            {more(`"\u0063urrency":"IDR"`), 400, "currency: is given more than once"},
		"key twice, by another K":            {more(`"idempotency_\u212aey":"other"`), 400, "idempotency_key: is given more than once"},
		"date twice":                         {more(`"tx_date":"2026-01-31T09:30:00Z"`), 400, "tx_date: is given more than once"},
	} {
		got, refusal := readPayment(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/api/payments", strings.NewReader(tc.body)))
		switch {
		case refusal == nil && tc.code != 0:
			t.Errorf("%s is accepted: %+v", name, got)
		case refusal != nil && tc.code == 0:
			t.Errorf("%s is refused: %s", name, refusal.message)
		case refusal != nil:
			code := refusal.code
			if code == 0 {
				code = httpStatus[refusal.Reason]
			}
			if code != tc.code || !strings.Contains(refusal.message, tc.says) {
				t.Errorf("%s: %d, %q; want %d and %q", name, code, refusal.message, tc.code, tc.says)
			}
		}
	}
}

// The check runs for every payment, so it must not allocate.
func TestCheckingTheShapeAllocatesNothing(t *testing.T) {
	raw := []byte(`{"sender_id":"ACC001","receiver_id":"ACC002","currency":"USD","amount":10,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":"test-001"}`)
	if n := testing.AllocsPerRun(100, func() {
		if unknown, err := checkShape(raw, fieldNames, fieldNames); err != nil || unknown != nil {
			t.Fatal(unknown, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
