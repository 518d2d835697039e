package browser

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

func TestPage(t *testing.T) {
	s := newSuite(t)
	t.Run("pay", s.testPay)
	t.Run("replay", s.testReplay)
	t.Run("refusals", s.testRefusals)
	t.Run("fields", s.testFields)
	t.Run("crowd", s.testCrowd)
	t.Run("languages", s.testLanguages)
	t.Run("phone", s.testPhone)
	t.Run("dark", s.testDark)
	t.Run("keyboard", s.testKeyboard)
	t.Run("addresses", s.testAddresses)
	t.Run("payments", s.testPayments)
	t.Run("payment", s.testPayment)
	t.Run("afterwards", s.testAfterwards)
	t.Run("accounts", s.testAccounts)
	t.Run("webhooks", s.testWebhooks)
	t.Run("webhooks_operator", s.testWebhooksOfOperators)
	t.Run("operations", s.testOperations)
	t.Run("letters", s.testLetters)
	t.Run("not_shown", s.testNotShown)
	t.Run("key", s.testKey)
	t.Run("grafana", s.testGrafana)
	t.Run("cut", s.testCut)
	t.Run("undecided", s.testUndecided)
	t.Run("exchange", s.testExchange)
	t.Run("price_ends", s.testPriceEnds)
	t.Run("earlier_gateway", s.testEarlierGateway)
	t.Run("statement", s.testStatement)
}

// A user pays and follows the whole payment.
func (s *suite) testPay(t *testing.T) {
	sender, receiver := s.accounts(t)
	p := s.open(t, look{}).ready()
	p.accessible("at first")
	p.shot("light")
	p.form(sender, receiver, "10", "USD")
	p.says("#quote", "IDR 155,000")
	p.says("#rate", "1 USD = IDR 15,500")
	p.says("#sender-balance", "IDR 1,000,000 available")
	p.says("#send", "Pay USD 10.00")
	key := eval[string](p, `document.getElementById('idempotency').value`)
	p.click("#send")
	p.says("#outcome", "Settled.")
	p.says("#next", "200 · SUCCESS · committed")
	p.says("#balances", "845,000")
	if s.balance(t, sender) != 845_000 || s.balance(t, receiver) != 1_155_000 {
		t.Errorf("the sender has %d, the receiver %d", s.balance(t, sender), s.balance(t, receiver))
	}
	for _, want := range []string{sender + "\tIDR 1,000,000\tIDR 845,000", receiver + "\tIDR 1,000,000\tIDR 1,155,000"} {
		if got := strings.ReplaceAll(p.text("#balances"), "\u00a0", " "); !strings.Contains(got, want) {
			t.Errorf("balances %q lack %q", got, want)
		}
	}
	// Each stage has a time, and its bar lies within the track.
	for _, bar := range eval[[]struct {
		Name, MS    string
		Left, Width float64
	}](p, `[...document.querySelectorAll('#stages li:not([hidden])')].map((li) => {
		const bar = li.querySelector('i').getBoundingClientRect(), track = li.querySelector('.track').getBoundingClientRect();
		return {Name: li.querySelector('.name').innerText, MS: li.querySelector('.ms').innerText, Left: (bar.left - track.left) / track.width, Width: bar.width / track.width};
	})`) {
		if !regexp.MustCompile(`^[\d.,]+ m?s$`).MatchString(bar.MS) || bar.Left < -0.01 || bar.Left+bar.Width > 1.01 {
			t.Errorf("stage %+v", bar)
		}
	}
	if total := p.text("#way-total"); !strings.HasSuffix(total, "in all") {
		t.Errorf("total %q", total)
	}
	if eval[string](p, `document.getElementById('idempotency').value`) == key {
		t.Error("the next payment would have the same key")
	}
	p.says("#payments li", sender)
	p.accessible("after a payment")
	p.shot("light-paid")

	// The first payment in the list is this one. Its details come from the ledger.
	p.click("#payments li:first-child a")
	p.says("#record-body", key)
	p.says("#record-body", "pgw.payment.result.v1")
	p.says("#record-body", "IDR 15,500")
	p.says("#record-body .stages", "Reserve") // the stages of a payment of this tab
	link := eval[string](p, `document.querySelector('#record-body a[href*="traces"]').href`)
	if !regexp.MustCompile(`^http://traces\.invalid/trace/[0-9a-f]{32}$`).MatchString(link) {
		t.Errorf("trace link %q", link)
	}
	p.accessible("details")
	p.shot("payment-light")
	if href := eval[string](p, `document.querySelector('.top nav li:last-child a').href`); href != s.grafana.url {
		t.Errorf("Grafana is at %q", href)
	}
}

// The same payment again, by the outcome's button and by the case: the page shows the first answer,
// and no money moves.
func (s *suite) testReplay(t *testing.T) {
	sender, receiver := s.accounts(t)
	p := s.open(t, look{}).ready()
	p.form(sender, receiver, "5000", "IDR")
	p.click(`[data-case="again"]`)
	p.says("#outcome", "Already settled")
	if s.balance(t, sender) != 999_000 {
		t.Errorf("after one payment of 1,000 the sender has %d", s.balance(t, sender))
	}
	p.until("the payment has ended", `document.getElementById('send').getAttribute('aria-disabled') === 'false'`)
	p.click("#send")
	p.says("#outcome", "Settled.")
	p.click("#next button")
	p.says("#outcome", "Already settled: nothing moved this time.")
	p.says("#next", "200 · SUCCESS_REPLAY · duplicate_idempo")
	p.says("#balances", "994,000")
	if s.balance(t, sender) != 994_000 {
		t.Errorf("the sender has %d", s.balance(t, sender))
	}
	p.shot("replay")
}

func (s *suite) testRefusals(t *testing.T) {
	sender, receiver := s.accounts(t)
	p := s.open(t, look{}).ready()
	p.form(sender, receiver, "1000", "IDR")
	for name, want := range map[string][2]string{
		"funds":    {"Not enough funds.", "insufficient_funds"},
		"risk":     {"Risk says no: both accounts are the same.", "risk_same_party"},
		"currency": {"This currency is not known, or has no rate.", "unsupported_currency"},
	} {
		p.click(`[data-case="` + name + `"]`)
		p.says("#next", want[1])
		p.says("#outcome", want[0])
		p.until("the payment has ended", `document.getElementById('send').getAttribute('aria-disabled') === 'false'`)
		p.shot("refused-" + name)
	}
	p.expect(statusText(http.StatusNotFound)) // of the accounts that do not exist
	for _, tc := range []struct{ sender, receiver, amount, want string }{
		{"NOBODY", receiver, "1000", "The sender's account does not exist."},
		{sender, "NOBODY", "1000", "The receiver's account does not exist."},
		{"ACC004", receiver, "1000", "The sender's account is blocked."},
		{sender, "ACC004", "1000", "The receiver's account is blocked."},
		{sender, "ACC013", "1000", "Risk says no: one of the accounts is on its list."},
		{sender, receiver, "999", "Risk says no: the amount is below the minimum."},
		{"ACC001", receiver, "10000001", "Risk says no: the amount is above the maximum."},
		{"ACC001", receiver, "2000000000000", "Not enough funds."}, // refused before risk's limit is checked
	} {
		p.form(tc.sender, tc.receiver, tc.amount, "IDR")
		p.click("#send")
		p.says("#outcome", tc.want)
		p.until("the payment has ended", `document.getElementById('send').getAttribute('aria-disabled') === 'false'`)
	}
	p.says("#sender-balance", "available")
	// Each of them is in the ledger.
	p.says("#payments li:first-child", "Not enough funds.")

	// A key that another payment has used.
	p.form(sender, receiver, "1000", "IDR")
	key := eval[string](p, `document.getElementById('idempotency').value`)
	p.click("#send")
	p.says("#outcome", "Settled.")
	p.form(sender, receiver, "2000", "IDR")
	p.fill("#idempotency", key)
	p.click("#send")
	p.says("#outcome", "This key belongs to another payment.")
	if got := s.balance(t, sender) + s.balance(t, receiver); got != 2_000_000 || s.balance(t, sender) != 999_000 {
		t.Errorf("the sender has %d, both together %d", s.balance(t, sender), got)
	}
}

// A wrong field shows its problem, and nothing is sent.
func (s *suite) testFields(t *testing.T) {
	sender, receiver := s.accounts(t)
	p := s.open(t, look{}).ready()
	p.expect(statusText(http.StatusBadRequest)) // of the quote that is too large
	p.form(sender, receiver, "10", "USD")
	for amount, want := range map[string]string{
		"": "Please fill this in.", "ten": "Write a number", "1,000": "thousands separators", "1.000.000": "thousands separators",
		"1.2345": "USD has 2 decimal places.", "0": "more than zero", "0.00": "more than zero", "-5": "Write a number", "99999999999999999": "The gateway answered",
	} {
		p.fill("#amount", amount)
		p.click("#send")
		p.says("#amount-problem", want)
		p.until("the field has the focus, and is called invalid", `document.activeElement.id === 'amount' && document.activeElement.getAttribute('aria-invalid') === 'true'`)
		// The amount that is too large looks right to the page, and is sent.
		p.until("nothing is under way", `document.getElementById('send').getAttribute('aria-disabled') !== 'true'`)
	}
	p.accessible("with an error")
	p.shot("invalid")
	p.fill("#amount", "1.5")
	p.fill("#sender", " ")
	p.click("#send")
	p.says("#sender-problem", "Please fill this in.")
	if s.balance(t, sender) != 1_000_000 {
		t.Error("something was paid")
	}
	p.click("#pick")
	p.until("two accounts are picked", `/^ACC/.test(document.getElementById('sender').value) && document.getElementById('sender-problem').textContent === ''`)
	before := eval[[]string](p, `['sender', 'receiver'].map((id) => document.getElementById(id).value)`)
	p.click("#swap")
	if after := eval[[]string](p, `['receiver', 'sender'].map((id) => document.getElementById(id).value)`); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("swapped %v, got %v", before, after)
	}
}

func (s *suite) testCrowd(t *testing.T) {
	sender, receiver := s.accounts(t)
	p := s.open(t, look{}).ready()
	p.form(sender, receiver, "1000", "IDR")
	p.click(`[data-case="crowd"]`)
	p.says("#crowd-result", "100 settled, 0 refused")
	p.says("#crowd-result", "The sender has IDR 100,000 less: exactly 100 × IDR 1,000. It adds up.")
	if s.balance(t, sender) != 900_000 || s.balance(t, receiver) != 1_100_000 {
		t.Errorf("the sender has %d, the receiver %d", s.balance(t, sender), s.balance(t, receiver))
	}
	if n := eval[int](p, `document.querySelectorAll('#crowd-cells .good').length`); n != 100 {
		t.Errorf("%d cells are good", n)
	}
	p.accessible("after a hundred")
	p.shot("crowd")
}

func (s *suite) testLanguages(t *testing.T) {
	sender, receiver := s.accounts(t)
	p := s.open(t, look{language: "id-ID,id,en"}).ready()
	if lang := eval[string](p, `document.documentElement.lang`); lang != "id" {
		t.Errorf("the page is in %q", lang)
	}
	p.says("h1", "Kirim pembayaran dan ikuti sampai tuntas.")
	p.form(sender, receiver, "1,50", "USD")
	p.says("#quote", "Rp 23.250")
	p.click("#send")
	p.says("#outcome", "Tuntas.")
	p.says("#balances", "Rp 976.750")
	p.accessible("in Indonesian")
	p.shot("indonesian")
	p.fill("#amount", "1.500")
	p.click("#send")
	p.says("#amount-problem", "pemisah ribuan")

	p.click(`.languages a[lang="en"]`)
	p.until("the page is in English", `document.documentElement?.lang === 'en' && document.documentElement.dataset.ready`)
	p.says("h1", "Send a payment and watch it settle.")
	if s.balance(t, sender) != 976_750 {
		t.Errorf("the sender has %d", s.balance(t, sender))
	}
}

func (s *suite) testPhone(t *testing.T) {
	sender, receiver := s.accounts(t)
	for name, l := range map[string]look{"phone": {width: 360, height: 740}, "phone-dark": {width: 360, height: 740, dark: true, language: "id"}} {
		p := s.open(t, l).ready()
		p.fits()
		p.form(sender, receiver, "1000", "IDR")
		p.click("#send")
		p.until("it is settled", `document.querySelector('#outcome.good')`)
		p.until("balances are shown", `!document.getElementById('balances').hidden`)
		p.fits()
		p.accessible(name)
		p.shot(name)
		p.click(`[data-case="crowd"]`)
		p.until("a hundred are answered", `document.querySelector('#crowd-result .title')`)
		p.fits()
		p.click("#payments li:first-child a")
		p.until("details are shown", `document.querySelector('#record-body .times')`)
		p.fits()
		p.accessible(name + ", details")
		p.shot("payment-" + name)
	}
}

func (s *suite) testDark(t *testing.T) {
	sender, receiver := s.accounts(t)
	p := s.open(t, look{dark: true}).ready()
	if ground := eval[string](p, `getComputedStyle(document.body).backgroundColor`); ground != "rgb(15, 18, 20)" {
		t.Errorf("the ground is %s", ground)
	}
	p.accessible("dark, at first")
	p.form(sender, receiver, "10", "USD")
	p.click("#send")
	p.says("#outcome", "Settled.")
	p.until("balances are shown", `!document.getElementById('balances').hidden`)
	p.accessible("dark, after a payment")
	p.shot("dark")
	p.click(`[data-case="funds"]`)
	p.says("#outcome", "Not enough funds.")
	p.accessible("dark, refused")
	p.click("#payments li:first-child a")
	p.until("details are shown", `document.querySelector('#record-body .times')`)
	p.accessible("dark, details")
	p.shot("payment-dark")
}

// A payment by keyboard only, from the first key to the outcome, and without animations when the
// user has switched them off.
func (s *suite) testKeyboard(t *testing.T) {
	sender, receiver := s.accounts(t)
	p := s.open(t, look{still: true}).ready()
	focus := func() string { return eval[string](p, `document.activeElement.id || document.activeElement.className`) }
	// reach presses Tab until a field has the focus. Each stop on the way must show its focus.
	reach := func(id string) {
		for range 30 {
			p.do(chromedp.KeyEvent(kb.Tab))
			if !eval[bool](p, `(() => { const e = document.activeElement, s = getComputedStyle(e); return e !== document.body && parseFloat(s.outlineWidth) >= 2 && s.outlineStyle !== 'none'; })()`) {
				t.Errorf("%s has the focus, but nothing shows it", focus())
			}
			if focus() == id {
				return
			}
		}
		t.Fatalf("Tab does not reach %s", id)
	}
	reach("skip")
	p.do(chromedp.KeyEvent(kb.Enter))
	reach("sender")
	write := func(text string) {
		p.do(chromedp.KeyEvent("a", chromedp.KeyModifiers(chromedp.ModifierCtrl)))
		p.insert(text)
	}
	write(sender)
	reach("receiver")
	write(receiver)
	reach("amount")
	write("2")
	reach("currency")
	p.do(chromedp.KeyEvent("SGD"))
	p.says("#quote", "IDR 23,200")
	reach("send")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.says("#outcome", "Settled.")
	if focus() != "send" {
		t.Errorf("the focus went to %s", focus())
	}
	if role := eval[string](p, `document.getElementById('outcome').getAttribute('role')`); role != "status" {
		t.Errorf("the outcome is announced as %q", role)
	}
	if s.balance(t, sender) != 1_000_000-23_200 {
		t.Errorf("the sender has %d", s.balance(t, sender))
	}
	if moving := eval[int](p, `document.getAnimations().length`); moving != 0 {
		t.Errorf("%d things move", moving)
	}
}

// front is the gateway with a handler before it.
func (s *suite) front(t *testing.T, before func(w http.ResponseWriter, r *http.Request) (done bool)) string {
	target, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !before(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// When a key is needed, the page asks the user for it and then continues.
func (s *suite) testKey(t *testing.T) {
	sender, receiver := s.accounts(t)
	url := s.front(t, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/api/") || r.Header.Get("X-API-Key") == "the right one" {
			return false
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, `{"type":"about:blank","title":"Unauthorized","status":401}`)
		return true
	})
	p := s.open(t, look{url: url})
	p.expect(statusText(http.StatusUnauthorized))
	p.until("the key is asked for", `document.activeElement.id === 'key-input'`)
	p.accessible("asking for a key")
	p.shot("key")
	p.do(chromedp.SendKeys("#key-input", "a wrong one\r"))
	p.says("#key-refused", "does not accept this key")
	p.do(chromedp.SendKeys("#key-input", "the right one\r"))
	p.ready()
	p.form(sender, receiver, "1000", "IDR")
	p.click("#send")
	p.says("#outcome", "Settled.")
	if !eval[bool](p, `document.getElementById('key').hidden && sessionStorage.length === 0 && localStorage.length === 0 && !location.href.includes('right')`) {
		t.Error("the key is stored outside the memory, or is shown")
	}
}

// Grafana's panels stand beside the form, in the page's theme, and each has a name. Nothing else
// may be framed.
func (s *suite) testGrafana(t *testing.T) {
	frames := func(p *tab) []string {
		return eval[[]string](p, `[...document.querySelectorAll('iframe')].map((f) => f.title)`)
	}
	// shown waits until the page has requested every panel, and compares the requests with what
	// Grafana knows.
	shown := func(p *tab, theme string) {
		t.Helper()
		panels := map[string]bool{"pgw-overview 1": true, "pgw-overview 5": true, "pgw-overview 4": true, "pgw-ledger 1": true}
		for deadline := time.Now().Add(patience); len(panels) > 0; time.Sleep(20 * time.Millisecond) {
			for _, r := range s.grafana.asked() {
				q := r.URL.Query()
				board := strings.Split(r.URL.Path, "/")
				if len(board) != 5 || r.URL.Path != "/grafana/d-solo/"+board[3]+"/"+board[3] || q.Get("from") != "now-15m" || q.Get("to") != "now" ||
					q.Get("refresh") != "5s" || len(q) != 5 || r.Header.Get("Sec-Fetch-Dest") != "iframe" || r.Header.Get("Referer") != "" {
					t.Errorf("Grafana was asked for %s, as %q from %q", r.URL, r.Header.Get("Sec-Fetch-Dest"), r.Header.Get("Referer"))
				}
				if q.Get("theme") == theme { // requests of the page before this one may arrive late
					delete(panels, board[3]+" "+q.Get("panelId"))
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("not asked for within %s, in %s: %v", patience, theme, panels)
			}
		}
	}
	// reached makes the browser load each panel, because panels far outside the view are not
	// loaded.
	reached := func(p *tab) {
		t.Helper()
		eval[bool](p, `document.querySelectorAll('iframe').forEach((f) => { f.loading = 'eager'; }) ?? true`)
	}

	s.grafana.asked()
	p := s.open(t, look{width: 1440, height: 900}).ready()
	reached(p)
	shown(p, "light")
	english := frames(p)
	if len(english) != 4 || english[0] != "Payments a second, a panel of Grafana" {
		t.Errorf("panels %q", english)
	}
	// The panels are beside the form: right of it, and at its height.
	if !eval[bool](p, `(() => {
		const panel = document.querySelector('iframe').getBoundingClientRect(), way = document.getElementById('way').getBoundingClientRect();
		return panel.left > way.right && panel.top >= way.top && panel.top < way.bottom && panel.height > 120;
	})()`) {
		t.Error("the panels are not beside the form")
	}
	p.fits()
	p.accessible("with panels")
	p.shot("grafana-light")

	// Tab moves from one panel to the next. Within a panel, Grafana shows the focus.
	p.do(chromedp.Focus(`#panels a`))
	for i := range english {
		p.do(chromedp.KeyEvent(kb.Tab))
		p.until(fmt.Sprintf("the focus is in panel %d", i+1), fmt.Sprintf(`document.activeElement === document.querySelectorAll('iframe')[%d]`, i))
	}

	// When the theme changes, the panels change. They add no steps to the browser's history.
	steps := eval[int](p, `history.length`)
	p.lighting(look{dark: true})
	reached(p)
	shown(p, "dark")
	if now := eval[int](p, `history.length`); now != steps {
		t.Errorf("the history has grown from %d to %d", steps, now)
	}
	p.accessible("with panels, dark")
	p.shot("grafana-dark")

	// Neither another origin nor the gateway itself may be framed.
	var asked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer other.Close()
	p.expect("Content Security Policy")
	for _, address := range []string{other.URL + "/grafana/d-solo/pgw-overview", strings.Replace(s.grafana.url, "127.0.0.1", "localhost", 1), s.url + "/docs", "data:text/html,hello"} {
		refused := eval[string](p, fmt.Sprintf(`new Promise((resolve) => {
			document.addEventListener('securitypolicyviolation', (e) => resolve(e.effectiveDirective), {once: true});
			const frame = document.createElement('iframe');
			frame.src = %q;
			document.body.append(frame);
			setTimeout(() => resolve('framed'), %d);
		})`, address, patience.Milliseconds()/2))
		if refused != "frame-src" {
			t.Errorf("%s: %s", address, refused)
		}
	}
	if n := asked.Load(); n != 0 || len(s.grafana.asked()) != 0 {
		t.Errorf("another origin was asked %d times", n)
	}

	p = s.open(t, look{width: 360, height: 740, language: "id"}).ready()
	reached(p)
	shown(p, "light")
	p.fits()
	if indonesian := frames(p); len(indonesian) != 4 || indonesian[0] != "Pembayaran per detik, panel Grafana" {
		t.Errorf("panels %q", indonesian)
	}
	p.accessible("with panels, on a phone")
	p.shot("grafana-phone")
}

// The answer is lost on its way: the payment was made, and trying again does not pay again.
func (s *suite) testCut(t *testing.T) {
	sender, receiver := s.accounts(t)
	var cut atomic.Bool
	cut.Store(true)
	url := s.front(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || !cut.CompareAndSwap(true, false) {
			return false
		}
		resp, err := http.Post(s.url+r.URL.Path, "application/json", r.Body)
		if err != nil {
			t.Error(err)
		} else {
			resp.Body.Close()
		}
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "event: stage\ndata: {\"stage\":\"fx\",\"ms\":0.1}\n\n")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	p := s.open(t, look{url: url}).ready()
	p.expect("net::ERR_INCOMPLETE_CHUNKED_ENCODING")
	p.form(sender, receiver, "1000", "IDR")
	key := eval[string](p, `document.getElementById('idempotency').value`)
	p.click("#send")
	p.says("#outcome", "No answer came.")
	p.shot("no-answer")
	if now := eval[string](p, `document.getElementById('idempotency').value`); now != key {
		t.Errorf("the key has changed from %s to %s", key, now)
	}
	p.click("#next button")
	p.says("#outcome", "Already settled")
	if s.balance(t, sender) != 999_000 {
		t.Errorf("the sender has %d", s.balance(t, sender))
	}
}

// A payment that is not decided in time: the page says when its outcome is final, and shows what is
// known.
func (s *suite) testUndecided(t *testing.T) {
	sender, receiver := s.accounts(t)
	url := s.front(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "event: stage\ndata: {\"stage\":\"wait\",\"ms\":5000}\n\nevent: answer\ndata: {\"http_status\":504,\"status\":\"FAILED\","+
			"\"reason\":\"queue_timeout\",\"ref\":\"\",\"deadline\":\"2026-11-24T10:00:00Z\"}\n\n")
		return true
	})
	p := s.open(t, look{url: url}).ready()
	p.expect(statusText(http.StatusNotFound)) // the ledger has not seen the payment
	p.form(sender, receiver, "1000", "IDR")
	p.click("#send")
	p.says("#outcome", "Not decided yet.")
	p.says("#next", "504 · FAILED · queue_timeout")
	p.says("#stages", "5.00 s")
	p.accessible("undecided")
	p.click("#next button:last-of-type")
	p.says("#record", "The ledger has no payment")
}
