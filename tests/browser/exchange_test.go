package browser

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// A user pays from a balance in dollars into one in Singapore dollars, by a firm price that counts
// down. The rates are those of the seeds: USD/SGD 1.339 · 1.340 · 1.341.
func (s *suite) testExchange(t *testing.T) {
	sender, receiver := s.accounts(t)
	s.give(t, sender, 10_000, "USD")
	p := s.open(t, look{}).ready()
	p.exchange(sender, receiver, "USD", "SGD", "10", "USD")
	p.says("#sender-balance", "USD 100.00 available")
	p.says("#receiver-balance", "SGD 0.00 available")
	p.says("#send", "Get a firm price")
	if !eval[bool](p, `document.getElementById('indication').hidden && document.getElementById('firm').hidden`) {
		t.Error("a price is shown before it was asked for")
	}
	p.click("#send")
	p.says("#firm-credit", "SGD 13.39")
	p.says("#firm-debit", "USD 10.00")
	p.says("#firm-rate", "1 USD = SGD 1.339")
	p.says("#firm-spread", "SGD 0.01")
	p.says("#send", "Pay USD 10.00 for SGD 13.39")
	p.says("#firm-left", "This price holds for another")
	left := func() int {
		seconds, _ := strconv.Atoi(eval[string](p, `/\d+/.exec(document.getElementById('firm-left').textContent)?.[0] ?? '0'`))
		return seconds
	}
	first := left()
	if first < 5 || first > 30 {
		t.Errorf("the price holds for %d s", first)
	}
	p.until("the price counts down", `Number(/\d+/.exec(document.getElementById('firm-left').textContent)[0]) < `+strconv.Itoa(first))
	p.accessible("with a firm price")
	p.shot("price")
	if s.has(t, sender, "USD") != 10_000 {
		t.Error("asking for a price has moved money")
	}

	p.click("#send")
	p.says("#outcome", "Settled.")
	p.says("#balances", "USD 90.00")
	p.says("#balances", "SGD 13.39")
	if usd, sgd := s.has(t, sender, "USD"), s.has(t, receiver, "SGD"); usd != 9000 || sgd != 1339 {
		t.Errorf("the sender has USD %d, and the receiver SGD %d", usd, sgd)
	}
	p.says("#payments li:first-child", "USD 10.00")
	p.says("#payments li:first-child", "SGD 13.39 received")
	// The price was for one payment: the next one needs another.
	p.says("#send", "Get a firm price")

	p.click("#payments li:first-child a")
	p.says("#record-body", "1 USD = SGD 1.34")
	p.says("#record-body", sender)
	p.says("#record-body .entries", "SGD 13.39")
	p.says("#record-body .grid", "USD → SGD")
	p.accessible("details of an exchange")
	p.shot("payment-exchange")
	p.do(chromedp.NavigateBack())
	p.until("the form is back", `!document.getElementById('view-try').hidden`)

	// What the receiver gets can be fixed instead. Another amount needs another price.
	p.exchange(sender, receiver, "USD", "SGD", "20", "SGD")
	p.click("#send")
	p.says("#firm-debit", "USD 14.94")
	p.says("#firm-credit", "SGD 20.00")
	p.fill("#amount", "21")
	p.until("the price is gone", `document.getElementById('firm').hidden`)
	p.says("#send", "Get a firm price")
	// Between rupiah balances nothing has changed.
	p.choose("debit", "IDR")
	p.choose("credit", "IDR")
	p.choose("currency", "USD")
	p.says("#quote", "IDR 325,500")
	p.says("#send", "Pay USD 21.00")

	phone := s.open(t, look{width: 360, height: 740, dark: true, language: "id"}).ready()
	phone.exchange(sender, receiver, "USD", "SGD", "5", "USD")
	phone.says("#send", "Minta harga pasti")
	phone.click("#send")
	phone.says("#firm-left", "Harga ini berlaku")
	phone.fits()
	phone.accessible("with a firm price, on a phone")
	phone.shot("price-phone")
}

// answered sends a request on to the gateway and returns its answer.
func (s *suite) answered(t *testing.T, r *http.Request) (status int, header http.Header, body []byte) {
	resp, err := http.Post(s.url+r.URL.Path, "application/json", r.Body)
	if err != nil {
		t.Error(err)
		return http.StatusBadGateway, http.Header{}, nil
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Error(err)
	}
	return resp.StatusCode, resp.Header, body
}

// A price that has ended is not paid by: the page asks for another one.
func (s *suite) testPriceEnds(t *testing.T) {
	sender, receiver := s.accounts(t)
	s.give(t, sender, 10_000, "USD")
	var short atomic.Bool
	short.Store(true)
	url := s.front(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || r.URL.Path != "/api/quotes" || !short.CompareAndSwap(true, false) {
			return false
		}
		status, header, body := s.answered(t, r)
		var quote map[string]any
		if err := json.Unmarshal(body, &quote); err != nil {
			t.Error(err)
		}
		quote["expires_at"] = time.Now().Add(3 * time.Second)
		body, _ = json.Marshal(quote)
		w.Header().Set("Content-Type", header.Get("Content-Type"))
		w.WriteHeader(status)
		io.Copy(w, bytes.NewReader(body))
		return true
	})
	p := s.open(t, look{url: url}).ready()
	p.exchange(sender, receiver, "USD", "SGD", "10", "USD")
	p.click("#send")
	p.says("#firm-left", "This price has expired.")
	p.says("#send", "Get a firm price")
	p.accessible("with a price that has ended")
	p.click("#send")
	p.says("#send", "Pay USD 10.00 for SGD 13.39")
	p.click("#send")
	p.says("#outcome", "Settled.")
	if s.has(t, sender, "USD") != 9000 {
		t.Errorf("the sender has %d", s.has(t, sender, "USD"))
	}
}

// A gateway that gives no firm prices takes the payment at the price of the moment. The problem of a
// price that can't be given is shown.
func (s *suite) testEarlierGateway(t *testing.T) {
	sender, receiver := s.accounts(t)
	s.give(t, sender, 10_000, "USD")
	var full atomic.Bool
	full.Store(true)
	url := s.front(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || r.URL.Path != "/api/quotes" {
			return false
		}
		w.Header().Set("Content-Type", "application/problem+json")
		if full.CompareAndSwap(true, false) {
			w.WriteHeader(http.StatusTooManyRequests)
			io.WriteString(w, `{"type":"about:blank","title":"Too many quotes","status":429,"detail":"pay by one of them first"}`)
		} else {
			w.WriteHeader(http.StatusMethodNotAllowed)
		}
		return true
	})
	p := s.open(t, look{url: url}).ready()
	p.expect(statusText(http.StatusTooManyRequests))
	p.expect(statusText(http.StatusMethodNotAllowed))
	p.exchange(sender, receiver, "USD", "SGD", "10", "USD")
	p.click("#send")
	p.says("#firm-problem", "Too many quotes: pay by one of them first")
	p.accessible("without a price")
	p.click("#send")
	p.says("#send", "Pay USD 10.00")
	p.click("#send")
	p.says("#outcome", "Settled.")
	if s.has(t, sender, "USD") != 9000 || s.has(t, receiver, "SGD") != 1339 {
		t.Error("the payment did not move USD 10.00 and SGD 13.39")
	}
}

// An account has all its balances on the page, with a statement that adds up and can be saved.
func (s *suite) testStatement(t *testing.T) {
	sender, receiver := s.accounts(t)
	s.give(t, sender, 12_345, "USD")
	p := s.open(t, look{}).ready()
	p.form(sender, receiver, "1000", "IDR")
	p.click(`[data-case="crowd"]`)
	p.says("#crowd-result", "100 settled")
	p.click(`.top nav a[data-view="accounts"]`)
	p.until("the view is shown", `document.activeElement.id === 'account-heading'`)
	p.fill("#account-id", "NOBODY")
	p.expect(statusText(http.StatusNotFound))
	p.click("#account-form button")
	p.says("#account .said", "There is no such account")
	p.fill("#account-id", sender)
	p.do(chromedp.KeyEvent(kb.Enter))
	p.says("#account-balances", "123.45")
	p.says("#account-balances", "900,000")
	p.until("the address has the account", `location.pathname === '/accounts/`+sender+`'`)
	p.choose("statement-currency", "IDR")
	p.click("#statement-form button")
	p.says("#statement-said", "20 entries shown")
	p.says("#statement", "Balance so far")
	for n := 40; n <= 100; n += 20 {
		p.click("#statement-more")
		p.says("#statement-said", strconv.Itoa(n)+" entries shown")
	}
	p.click("#statement-more")
	p.until("all of it is shown", `document.getElementById('statement-more').hidden`)
	p.says("#statement-said", "101 entries shown") // the funding and 100 payments
	p.says("#statement tbody tr:first-child", "0")
	p.says("#statement tbody tr:last-child", "900,000")
	p.says("#statement tbody tr:last-child", "Closing balance")
	p.says("#statement tbody tr:nth-child(2)", "Funding")
	p.accessible("a statement")
	p.shot("statement")

	folder := p.downloads()
	p.click("#statement-csv")
	rows := p.saved(filepath.Join(folder, "statement-"+sender+"-IDR.csv"))
	if strings.Count(rows, ",payment,") != 100 || !strings.HasPrefix(rows, "booked_at,") || !strings.Contains(rows, ",closing_balance,") {
		t.Errorf("%d payments are in the file: %.200s", strings.Count(rows, ",payment,"), rows)
	}
	p.says("#statement-said", "saved as a file")

	phone := s.open(t, look{url: s.url + "/accounts", width: 360, height: 740, language: "id"}).ready()
	phone.fill("#account-id", sender)
	phone.do(chromedp.KeyEvent(kb.Enter))
	phone.says("#account-balances", "123,45")
	phone.choose("statement-currency", "IDR")
	phone.click("#statement-form button")
	phone.says("#statement-said", "20 entri")
	phone.fits()
	phone.accessible("a statement on a phone")
	phone.shot("statement-phone")
}
