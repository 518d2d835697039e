package gateway

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/function"
	"pgw/shared/payment"
)

const quoteID = "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10"

// fromDollars is the JSON of a payment or a quote from a balance in dollars to one in Singapore dollars.
func fromDollars(change map[string]string) string {
	fields := map[string]string{
		"sender_id": "A", "receiver_id": "B", "currency": "USD", "amount": "10.00", "debit_currency": "USD", "credit_currency": "SGD",
		"tx_date": "2026-01-31T09:30:00Z", "idempotency_key": "k",
	}
	for name, value := range change {
		fields[name] = value
	}
	text, _ := json.Marshal(fields)
	return string(text)
}

func postTo(f *function.Port, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1"+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	f.Handler().ServeHTTP(w, r)
	return w
}

// dollars answers for a sender with so many US cents, fx and a ledger with the quote. A nil balance is a
// wallet of a release that knows only rupiah.
func dollars(balance *commonv1.Balance) func(in, out proto.Message) error {
	price := &commonv1.Exchange{
		Rate: "1.339", MidRate: "1.34", MidMinor: 1340, Remainder: "0",
		Steps: []*commonv1.Step{{FromCurrency: "USD", ToCurrency: "SGD", RateId: "r", Rate: "1.339", MidRate: "1.34"}},
	}
	return func(_, out proto.Message) error {
		switch out := out.(type) {
		case *walletv1.GetAccountResponse:
			if balance != nil {
				out.Balances = []*commonv1.Balance{{Currency: "IDR"}, balance}
			}
		case *fxv1.QuoteResponse:
			out.DebitMinor, out.CreditMinor, out.Exchange = 1000, 1339, price
			out.AmountIdr, out.Rate, out.RateId = 155_000, "1.339", "r"
		case *dbv1.Quote:
			out.QuoteId, out.Payment = quoteID, &commonv1.Payment{
				SenderId: "A", ReceiverId: "B", CurrencyInput: "USD", AmountMinor: 1000, DebitCurrency: "USD", CreditCurrency: "SGD",
				DebitMinor: 1000, CreditMinor: 1338, Exchange: price, AmountIdr: 155_001, Rate: "1.338", RateId: "r",
			}
		}
		return nil
	}
}

// The balance in the debit currency is checked, with its own limit. A refusal is recorded with what
// would have been moved.
func TestTheBalanceInTheDebitCurrencyIsChecked(t *testing.T) {
	for name, tc := range map[string]struct {
		balance *commonv1.Balance
		want    payment.Reason // "": sent on
	}{
		"enough":               {&commonv1.Balance{Currency: "USD", AvailableMinor: 1000}, ""},
		"too little":           {&commonv1.Balance{Currency: "USD", AvailableMinor: 999}, payment.InsufficientFunds},
		"another currency":     {&commonv1.Balance{Currency: "SGD", AvailableMinor: 99999}, payment.InsufficientFunds},
		"its limit":            {&commonv1.Balance{Currency: "USD", AvailableMinor: 9999, DailyLimitMinor: 1000, SpentTodayMinor: 1}, payment.DailyLimitExceeded},
		"an older wallet":      {nil, ""},
		"within the limit too": {&commonv1.Balance{Currency: "USD", AvailableMinor: 9999, DailyLimitMinor: 1000}, ""},
	} {
		published := 0
		n := &neighbours{answer: dollars(tc.balance)}
		w := postTo(gatewayBeside(t, n, func() error { published++; return nil }), "/api/payments", fromDollars(nil))
		if tc.want == "" {
			if published != 1 || len(n.refused) > 0 {
				t.Errorf("%s: %s", name, w.Body)
			}
			continue
		}
		if !strings.Contains(w.Body.String(), string(tc.want)) || published != 0 || len(n.refused) != 1 || n.refused[0].Payment.DebitMinor != 1000 {
			t.Errorf("%s: %s, recorded %v", name, w.Body, n.refused)
		}
	}
}

// A payment by a quote has the quote's price. If the quote is for another payment, or there is none, the
// refusal is recorded with the price of now. If the ledger can't be asked, nothing is known.
func TestAPaymentByAQuote(t *testing.T) {
	rich := dollars(&commonv1.Balance{Currency: "USD", AvailableMinor: 999})
	for name, tc := range map[string]struct {
		change   map[string]string
		quote    error
		want     payment.Reason
		amount   int64 // in rupiah, as recorded; 0: not recorded
		httpCode int
	}{
		// The sender has too little, so the price that was used is in the record.
		"its own":           {nil, nil, payment.InsufficientFunds, 155_001, 200},
		"of another amount": {map[string]string{"amount": "11.00"}, nil, payment.QuoteMismatch, 155_000, 200},
		"another receiver":  {map[string]string{"receiver_id": "C"}, nil, payment.QuoteMismatch, 155_000, 200},
		"the other side":    {map[string]string{"currency": "SGD"}, nil, payment.QuoteMismatch, 155_000, 200},
		"other balances":    {map[string]string{"credit_currency": "EUR"}, nil, payment.QuoteMismatch, 155_000, 200},
		"none":              {nil, status.Error(codes.NotFound, "no such quote"), payment.QuoteMismatch, 155_000, 200},
		"the ledger is away": {
			nil, status.Error(codes.Unavailable, "down"), payment.LedgerUnavailable, 0, 502,
		},
		"the ledger is older": {
			nil, status.Error(codes.Unimplemented, "what?"), payment.LedgerUnavailable, 0, 502,
		},
		"not an id": {map[string]string{"quote_id": "4711"}, nil, payment.InvalidInput, 0, 400},
	} {
		n := &neighbours{answer: func(in, out proto.Message) error {
			if _, ok := out.(*dbv1.Quote); ok && tc.quote != nil {
				return tc.quote
			}
			return rich(in, out)
		}}
		change := map[string]string{"quote_id": quoteID}
		for field, value := range tc.change {
			change[field] = value
		}
		w := postTo(gatewayBeside(t, n, notPublished), "/api/payments", fromDollars(change))
		if w.Code != tc.httpCode || !strings.Contains(w.Body.String(), `"`+string(tc.want)+`"`) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if recorded := len(n.refused) == 1; recorded != (tc.amount > 0) || recorded && n.refused[0].Payment.AmountIdr != tc.amount {
			t.Errorf("%s: recorded %v", name, n.refused)
		}
	}
}

// Each problem for which there is no quote has its status.
func TestPostQuote(t *testing.T) {
	good := dollars(nil)
	for name, tc := range map[string]struct {
		body   string
		answer func(in, out proto.Message) error // replaces the good answer if it is not nil
		code   int
		has    string // in the body
		retry  string // Retry-After
	}{
		"given": {fromDollars(nil), func(_, out proto.Message) error {
			if out, ok := out.(*dbv1.PutQuoteResponse); ok {
				out.Quote = &dbv1.Quote{QuoteId: quoteID}
			}
			return nil
		}, 201, `"credit_amount":"13.39","rate":"1.339","mid_rate":"1.34","spread":"0.01"`, ""},
		"too many": {fromDollars(nil), func(_, out proto.Message) error {
			if out, ok := out.(*dbv1.PutQuoteResponse); ok {
				out.RetryAfter = durationpb.New(4100 * time.Millisecond)
			}
			return nil
		}, 429, "open quotes", "5"},
		"no JSON":            {`{`, nil, 400, "JSON", ""},
		"no sender":          {fromDollars(map[string]string{"sender_id": ""}), nil, 400, "sender_id: is missing", ""},
		"an unknown code":    {fromDollars(map[string]string{"debit_currency": "usd"}), nil, 400, "debit_currency: ", ""},
		"three currencies":   {fromDollars(map[string]string{"currency": "EUR"}), nil, 400, "must be debit_currency or credit_currency", ""},
		"a field twice":      {`{"sender_id":"A","sender_id":"B"}`, nil, 400, "more than once", ""},
		"too large":          {`{"sender_id":"` + strings.Repeat("A", maxBody) + `"}`, nil, 413, "larger", ""},
		"fx is away":         {fromDollars(nil), failing[*fxv1.QuoteResponse](codes.Unavailable), 502, "Try again", "1"},
		"fx is full":         {fromDollars(nil), failing[*fxv1.QuoteResponse](codes.ResourceExhausted), 503, "Try again", "1"},
		"fx has no rate":     {fromDollars(nil), failing[*fxv1.QuoteResponse](codes.NotFound), 400, "no rate for USD and SGD", ""},
		"too little":         {fromDollars(nil), failing[*fxv1.QuoteResponse](codes.InvalidArgument), 400, "amount: ", ""},
		"wallet is away":     {fromDollars(nil), failing[*walletv1.GetAccountResponse](codes.Unavailable), 502, "Try again", "1"},
		"unknown accounts":   {fromDollars(nil), failing[*walletv1.GetAccountResponse](codes.NotFound), 404, "sender_id: there is no", ""},
		"the ledger is away": {fromDollars(nil), failing[*dbv1.PutQuoteResponse](codes.Unavailable), 502, "Try again", "1"},
		"the ledger is full": {fromDollars(nil), failing[*dbv1.PutQuoteResponse](codes.ResourceExhausted), 503, "Try again", "1"},
	} {
		n := &neighbours{answer: func(in, out proto.Message) error {
			if err := good(in, out); err != nil || tc.answer == nil {
				return err
			}
			return tc.answer(in, out)
		}}
		w := postTo(gatewayBeside(t, n, notPublished), "/api/quotes", tc.body)
		if w.Code != tc.code || !strings.Contains(w.Body.String(), tc.has) || w.Header().Get("Retry-After") != tc.retry {
			t.Errorf("%s: %d %s, Retry-After %q", name, w.Code, w.Body, w.Header().Get("Retry-After"))
		}
		if want := "application/problem+json"; w.Code >= 400 && w.Header().Get("Content-Type") != want {
			t.Errorf("%s: a %s", name, w.Header().Get("Content-Type"))
		}
	}
}

// failing fails the calls with an answer of one type.
func failing[T proto.Message](code codes.Code) func(in, out proto.Message) error {
	return func(_, out proto.Message) error {
		if _, ok := out.(T); ok {
			return status.Error(code, "amount_minor: is too small")
		}
		return nil
	}
}

// How long a quote holds is bounded.
func TestQuoteTTLIsBounded(t *testing.T) {
	for _, ttl := range []time.Duration{time.Millisecond, time.Hour} {
		cfg := Config{QuoteTTL: ttl}
		if _, err := Function.Make(cfg, function.Dependencies{}); err == nil || !strings.Contains(err.Error(), "QUOTE_TTL") {
			t.Errorf("%s: %v", ttl, err)
		}
	}
}
