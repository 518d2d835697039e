package browser

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"pgw/functions/pgw/reconcile"
	"pgw/shared/event"
	"pgw/shared/kafka"
)

// downloads lets the tab save files, and returns their folder.
func (p *tab) downloads() string {
	p.t.Helper()
	folder := p.t.TempDir()
	if _, err := chromedp.CallBrowser(p.ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
		Behavior: browser.SetDownloadBehaviorBehaviorAllow, BrowserContextID: chromedp.FromContext(p.ctx).BrowserContextID, DownloadPath: folder,
	}); err != nil {
		p.t.Fatal(err)
	}
	return folder
}

// saved waits for a file. The browser may reserve its name with an empty file.
func (p *tab) saved(path string) string {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if err == nil && len(text) > 0 {
			return string(text)
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("the file was not saved, or is empty: %v", err)
		}
	}
}

// Each view has an address: it can be opened, reloaded and gone back to. An unknown one says so.
func (s *suite) testAddresses(t *testing.T) {
	headings := map[string]string{
		"/": "Send a payment", "/payments": "Payments", "/payments/no/such%20key": "Payment", "/accounts": "Accounts", "/webhooks": "Webhooks", "/operations": "Operations",
	}
	for path, heading := range headings {
		p := s.open(t, look{url: s.url + path}).ready()
		p.expect(statusText(http.StatusNotFound))
		p.says(".view:not([hidden]) h1", heading)
		if shown := eval[int](p, `document.querySelectorAll('.view:not([hidden])').length`); shown != 1 {
			t.Errorf("%s: %d views are shown", path, shown)
		}
	}

	p := s.open(t, look{url: s.url + "/payments?lang=id"}).ready()
	p.says(".view:not([hidden]) h1", "Pembayaran")
	p.click(`.top nav a[data-view="operations"]`)
	p.says(".view:not([hidden]) h1", "Operasi")
	p.until("the address has the view and the language", `location.pathname === '/operations' && location.search === '?lang=id'`)
	p.until("the heading has the focus, and the tab its name", `document.activeElement.tagName === 'H1' && document.title === 'Operasi · pgw'`)
	if current := eval[string](p, `document.querySelector('.top nav [aria-current="page"]').textContent`); current != "Operasi" {
		t.Errorf("the current view is called %q", current)
	}
	p.do(chromedp.NavigateBack())
	p.says(".view:not([hidden]) h1", "Pembayaran")
	p.do(chromedp.NavigateForward())
	p.says(".view:not([hidden]) h1", "Operasi")
	p.do(chromedp.Reload())
	p.ready().says(".view:not([hidden]) h1", "Operasi")
	p.click(`.languages a[lang="en"]`)
	p.until("the same view is in English", `document.documentElement?.lang === 'en' && document.documentElement.dataset.ready && location.pathname === '/operations'`)

	p = s.open(t, look{url: s.url + "/nothing/here"}).ready()
	p.expect(statusText(http.StatusNotFound))
	p.says(".view:not([hidden]) h1", "There is nothing at this address.")
	p.accessible("an unknown address")
	p.shot("lost-light")
	p.click(`.lost a[href="/payments"]`)
	p.says(".view:not([hidden]) h1", "Payments")
}

// Payments are filtered by an address, and read a page at a time. A file has all that match.
func (s *suite) testPayments(t *testing.T) {
	sender, receiver := s.accounts(t)
	var mu sync.Mutex
	var asked []string
	url := s.front(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/api/payments" && r.Method == http.MethodGet {
			mu.Lock()
			asked = append(asked, r.URL.RawQuery)
			mu.Unlock()
		}
		return false
	})
	p := s.open(t, look{url: url}).ready()
	p.form(sender, receiver, "1000", "IDR")
	p.click(`[data-case="crowd"]`)
	p.says("#crowd-result", "100 settled")
	p.click(`.top nav a[data-view="payments"]`)
	p.fill("#list-account", sender)
	p.do(chromedp.KeyEvent(kb.Enter))
	p.says("#list .said", "25 shown, newest first.")
	p.until("the address has the filter", fmt.Sprintf(`location.pathname + location.search === '/payments?account=%s'`, sender))
	p.says("#list-table thead", "Time and key")
	p.until("times have an offset", `/GMT/.test(document.querySelector('#list-table tbody time').textContent)`)
	p.accessible("payments")
	p.shot("payments-light")
	p.lighting(look{dark: true})
	p.accessible("payments, dark")
	p.shot("payments-dark")
	p.lighting(look{})
	refs := map[string]bool{}
	for n := 1; n <= 4; n++ {
		for _, href := range eval[[]string](p, `[...document.querySelectorAll('#list-table tbody a')].map((a) => a.href)`) {
			refs[href] = true
		}
		if n < 4 {
			first := eval[string](p, `document.querySelector('#list-table tbody a').href`)
			p.click("#list-older")
			p.until("the next page is shown", fmt.Sprintf(`document.querySelector('#list-table tbody a')?.href !== %q && !document.querySelector('#list .body').hidden`, first))
		}
	}
	if len(refs) != 100 {
		t.Errorf("four pages have %d different payments", len(refs))
	}
	p.do(chromedp.NavigateBack())
	p.until("the page before is shown", `location.search.includes('before=') && !document.getElementById('list-older').hidden && !document.querySelector('#list .body').hidden`)
	p.click("#list-newest")
	p.until("the newest are shown", `!location.search.includes('before=')`)

	folder := p.downloads()
	p.click("#list-csv")
	p.says("#list-exported", "100 payments were saved as a file. These are all that match.")
	rows, err := csv.NewReader(strings.NewReader(p.saved(filepath.Join(folder, "payments.csv")))).ReadAll()
	if err != nil || len(rows) != 101 || rows[0][0] != "idempotency_key" || rows[1][5] != sender {
		t.Errorf("%v, %d rows", err, len(rows))
	}

	p.choose("list-status", "SUCCESS")
	p.fill("#list-min_amount", "500")
	p.click(`#list-form button.primary`)
	p.says("#list-problem", "An amount needs a currency.")
	p.fill("#list-currency", "IDR")
	eval[bool](p, `(document.getElementById('list-from').value = '2026-01-02T03:04', true)`)
	want := eval[string](p, `new Date('2026-01-02T03:04').toISOString()`)
	p.click(`#list-form button.primary`)
	p.until("the filter is in the address", `new URLSearchParams(location.search).get('min_amount') === '500'`)
	p.says("#list .said", "25 shown")
	mu.Lock()
	last := asked[len(asked)-1]
	mu.Unlock()
	for _, part := range []string{"status=SUCCESS", "currency=IDR", "min_amount=500", "account=" + sender, "from=" + strings.ReplaceAll(want, ":", "%3A")} {
		if !strings.Contains(last, part) {
			t.Errorf("%s lacks %s", last, part)
		}
	}
	p.do(chromedp.Reload())
	p.ready().until("the form has the filter of the address", `document.getElementById('list-from').value === '2026-01-02T03:04' && document.getElementById('list-currency').value === 'IDR'`)

	for name, l := range map[string]look{"phone": {}, "phone-dark": {dark: true, language: "id"}} {
		l.url, l.width, l.height = s.url+"/payments?account="+sender, 360, 740
		p := s.open(t, l).ready()
		p.until("payments are shown", `document.querySelector('#list-table tbody tr')`)
		p.fits()
		p.accessible("payments, " + name)
		p.shot("payments-" + name)
	}
}

// A payment has its own address. The same key again moves nothing.
func (s *suite) testPayment(t *testing.T) {
	sender, receiver := s.accounts(t)
	p := s.open(t, look{}).ready()
	p.form(sender, receiver, "10", "USD")
	key := eval[string](p, `document.getElementById('idempotency').value`)
	p.click("#send")
	p.says("#outcome", "Settled.")
	p = s.open(t, look{url: s.url + "/payments"}).ready()
	p.fill("#find-key", key)
	p.do(chromedp.KeyEvent(kb.Enter))
	p.says("#record-heading", "Payment of USD 10.00")
	p.until("the address has the key", fmt.Sprintf(`location.pathname === '/payments/%s'`, key))
	p.says("#record-body .stages", "In the ledger") // the ledger's times: another tab paid
	p.says("#record-body", "IDR 15,500")
	p.says("#record-body .entries", receiver)
	eval[bool](p, `([...document.querySelectorAll('#record-body button')].find((b) => b.textContent.includes('again')).click(), true)`)
	p.says("#record-again", "Already settled: nothing moved this time.")
	if s.balance(t, sender) != 845_000 {
		t.Errorf("the sender has %d", s.balance(t, sender))
	}
	p.accessible("the same key again")
	p.shot("payment-again")
	p.click(fmt.Sprintf(`#record-body a[href="/accounts/%s"]`, sender))
	p.says("#account-balances", "845,000")
}

// An account has an address, and so has what it had at a time.
func (s *suite) testAccounts(t *testing.T) {
	sender, _ := s.accounts(t)
	p := s.open(t, look{url: s.url + "/accounts/" + sender}).ready()
	p.says("#account-heading", sender)
	p.says("#account-state", "Active")
	p.says("#account-balances", "1,000,000")
	p.click("#statement-form button")
	p.says("#statement-said", "1 entry shown")
	p.until("the address has the statement", `new URLSearchParams(location.search).get('currency') === 'IDR' && /^\d{4}-\d\d-\d\d$/.test(new URLSearchParams(location.search).get('from'))`)
	p.do(chromedp.Reload())
	p.ready().says("#statement-said", "1 entry shown")
	p.do(chromedp.Navigate(s.url + "/accounts/" + sender + "?currency=IDR&from=2020-01-01&to=2020-01-31"))
	p.ready().says("#statement-said", "No entries in this period.")
	p.until("the form has the period", `document.getElementById('statement-from').value === '2020-01-01' && document.getElementById('statement-to').value === '2020-01-31'`)
	p.do(chromedp.Navigate(s.url + "/accounts/" + sender))
	p.ready().says("#account-balances", "1,000,000")
	p.click("#statement-form button")
	p.says("#statement-said", "1 entry shown")
	p.accessible("an account")
	p.shot("accounts-light")
	p.lighting(look{dark: true})
	p.accessible("an account, dark")
	p.shot("accounts-dark")
	p.do(chromedp.Navigate(s.url + "/accounts/" + sender + "?at=2020-01-01T00:00:00Z"))
	p.ready().says("#account .said", "2020")
	p.until("the past is shown", `!document.getElementById('account-past').hidden && document.getElementById('account-balances').hidden`)
	p.accessible("an account in the past")
	phone := s.open(t, look{url: s.url + "/accounts/" + sender, width: 360, height: 740, dark: true, language: "id"}).ready()
	phone.says("#account-balances", "1.000.000")
	phone.fits()
	phone.accessible("an account, phone")
	phone.shot("accounts-phone-dark")
}

const statusJSON = `{"at":"2026-11-26T10:00:00Z","state":"degraded",
	"dependencies":[{"name":"fx","state":"down","since":"2026-11-26T09:58:00Z","detail":"connection refused"},{"name":"wallet","state":"up","since":"2026-11-26T08:00:00Z"},
		{"name":"postgres","state":"unknown"}],
	"flow":[{"from":"gateway","to":"worker","topic":"payments.request","group":"pgw-worker","lag":12,"rate_per_second":41.5},
		{"from":"worker","to":"gateway","topic":"payments.result","lag":0,"rate_per_second":41.4},{"from":"worker","to":"webhooks","topic":"payments.result"},
		{"from":"outside","to":"db","topic":"ledger.accounts","lag":0,"rate_per_second":0}],
	"ledger":{"pending":3,"held_idr":45000,"oldest_pending_at":"2026-11-26T09:59:30Z","last_sweep_at":"2026-11-26T09:59:45Z","schema":14},
	"dead_letters":{"waiting":1,"parked":0},"reconcile":{"at":"2026-11-26T09:00:00Z","verdict":"agrees","breaches":0,"text":"All 120 payments agree."}}`

// inWords is statusJSON with what a real reconciliation says.
func inWords(r reconcile.Report) string {
	return strings.Replace(statusJSON, `"All 120 payments agree."`, strconv.Quote(reconcile.Conclude(r, nil, r.At).Text), 1)
}

// operator answers as a gateway whose operator asks. redriven gets the letters that were sent again.
func operator(redriven *sync.Map, status ...string) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		var body string
		switch {
		case r.URL.Path == "/status":
			if body = statusJSON; len(status) > 0 {
				body = status[0]
			}
		case r.URL.Path == "/api/dead-letters":
			body = `{"letters":[{"id":"a1","event_id":"e1","type":"pgw.payment.requested.v1","key":"web-1","reason":"bad_signature","error":"no key k2","at":"2026-11-26T09:30:00Z","state":"waiting"}]}`
			if _, done := redriven.Load("a1"); done {
				body = `{"letters":[]}`
			}
		case r.URL.Path == "/api/dead-letters/a1/redrive" && r.Method == http.MethodPost:
			text, _ := io.ReadAll(r.Body)
			redriven.Store("a1", string(text))
			body = `{"id":"a1","state":"redriven"}`
		case r.URL.Path == "/api/reports/activity":
			from, _ := time.Parse(time.RFC3339, r.FormValue("from"))
			to, _ := time.Parse(time.RFC3339, r.FormValue("to"))
			step, _ := time.ParseDuration(r.FormValue("step") + "s")
			var buckets []string
			for i, at := 0, from; at.Before(to) && step > 0; i, at = i+1, at.Add(step) {
				buckets = append(buckets, fmt.Sprintf(`{"at":%q,"success":%d,"failed":%d,"pending":0,"p50_ms":%d,"p99_ms":%d}`, at.Format(time.RFC3339), 100+i%7*10, i%5, 12+i%4, 40+i%9))
			}
			body = `{"buckets":[` + strings.Join(buckets, ",") + `],"reasons":{"insufficient_funds":30,"risk_random_reject":7},"source":"ledger"}`
		default:
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, body)
		return true
	}
}

func (s *suite) testOperations(t *testing.T) {
	redriven := &sync.Map{}
	url := s.front(t, operator(redriven))
	p := s.open(t, look{url: url + "/operations"}).ready()
	p.says("#status-state", "A part is not well.")
	p.says("#dependencies", "connection refused")
	if said := eval[string](p, `document.querySelector('#flow svg').getAttribute('aria-label')`); !strings.Contains(said, "gateway → worker, payments.request: 41.5/s, lag 12") ||
		!strings.Contains(said, "worker → webhooks, payments.result: rate not known, lag not known") {
		t.Errorf("the flow says %q", said)
	}
	p.says("#ledger", "IDR 45,000")
	p.says("#reconcile", "The books agree.")
	p.says("#letters-table", "bad_signature")
	p.until("there are two charts with axes", `document.querySelectorAll('#activity .chart').length === 2 && [...document.querySelectorAll('#activity .chart')].every((c) => c.querySelectorAll('text').length > 6)`)
	p.until("an hour has 60 intervals", `document.querySelectorAll('#activity figure:first-child tbody tr').length === 60`)
	p.accessible("operations")
	p.shot("operations-light")
	p.lighting(look{dark: true})
	p.accessible("operations, dark")
	p.shot("operations-dark")
	p.click(`#activity a[data-span="day"]`)
	p.until("a day has 48 intervals, at its own address", `location.search === '?span=day' && document.querySelectorAll('#activity figure:first-child tbody tr').length === 48`)

	p.until("the books have rupiah", `[...document.querySelectorAll('#books-table tbody tr')].some((r) => r.textContent.includes('IDR') && r.textContent.includes('zero'))`)

	p.click("#letters-table button")
	p.until("the note is asked for", `document.getElementById('act').open`)
	p.accessible("a dead letter")
	p.fill("#act-note", "the key is back")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.says("#letters-done", "The letter was sent again.")
	p.says("#letters .said", "No dead letter waits.")
	if note, _ := redriven.Load("a1"); note != `{"note":"the key is back"}` {
		t.Errorf("the gateway got %v", note)
	}

	// A page that nobody uses stops reading, so that idle functions can stop.
	eval[bool](p, `(globalThis.realNow = performance.now.bind(performance), performance.now = () => realNow() + 600_000, true)`)
	p.says("#paused", "Paused")
	p.accessible("a page that is paused")
	p.do(chromedp.KeyEvent(kb.Shift))
	p.until("it goes on", `document.getElementById('paused').textContent === ''`)

	// What a reconciliation says is in the page's language.
	at := time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC)
	report := reconcile.Report{At: at, Since: at, Accounts: 1004, Checks: []reconcile.Result{
		{Check: reconcile.RequestDecided, Examined: 12_000}, {Check: reconcile.Funded, Examined: 7}, {Check: reconcile.Account, Breaches: 2},
	}}
	phone := s.open(t, look{url: s.front(t, operator(&sync.Map{}, inWords(report))) + "/operations", width: 360, height: 740, language: "id"}).ready()
	phone.says("#reconcile", "Pelanggaran: account 2.")
	phone.says("#reconcile", "(1.004 rekening), lalu 12.000 pembayaran yang diminta dan 7 pendanaan dibandingkan dengan peristiwanya, sejak")
	phone.until("the flow is in Indonesian", `document.querySelector('#flow svg').getAttribute('aria-label').includes('dari luar → db')`)
	phone.until("charts are shown", `document.querySelectorAll('#activity .chart').length === 2 && document.querySelector('#letters-table tbody tr')`)
	phone.fits()
	phone.accessible("operations, phone")
	phone.shot("operations-phone")
	for text, want := range map[string]string{
		reconcile.Conclude(reconcile.Report{}, nil, at).Text:                         "sejauh yang masih disimpan topik",
		reconcile.Conclude(reconcile.Report{}, errors.New("kafka is away"), at).Text: "tidak dapat diperiksa: kafka is away",
		"another text": "another text",
	} {
		if said := eval[string](phone, fmt.Sprintf(`import('/page/verdict.js').then((m) => m.verdict(%q).map((e) => e.textContent).join(' '))`, text)); !strings.Contains(said, want) {
			t.Errorf("%s is said as %s", text, said)
		}
	}
}

// An operator redrives and closes letters of the real gateway.
func (s *suite) testLetters(t *testing.T) {
	producer, err := kafka.NewProducer(s.kafka, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close(context.Background())
	for _, key := range []string{"letter-1", "letter-2"} {
		// A plain record that is not a payment: worker refuses it, and payments has nothing to close out.
		e, err := event.New(event.TypeAccountFunded, "forged-"+key, "/nobody", key, map[string]string{}, time.Now())
		if err == nil {
			err = producer.Publish(t.Context(), s.kafka.AccountsTopic, key, e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p := s.open(t, look{url: s.url + "/operations"}).ready()
	p.until("both letters are shown", `document.querySelectorAll('#letters-table tbody tr').length === 2`)
	p.says("#letters-table", "signature")
	p.until("nothing is drawn of what is not there", `!document.body.textContent.includes('undefined')`)
	p.until("the flow is drawn as wide as its place", `document.querySelector('#flow svg').viewBox.baseVal.width > 400`)
	p.until("letters are counted once", `/2/.test(document.getElementById('letters-counts').textContent)`)
	p.accessible("dead letters")
	p.shot("letters-light")
	act := func(button, note string) {
		t.Helper()
		p.click("#letters-table tbody tr:first-child button:nth-of-type(" + button + ")")
		p.until("the note is asked for", `document.getElementById('act').open`)
		p.fill("#act-note", note)
		p.do(chromedp.KeyEvent(kb.Enter))
	}
	p.expect(statusText(http.StatusConflict))
	act("1", "send it again")
	p.says("#act-said", "would fail again for its signature")
	p.click("#act-close")
	for left := 1; left >= 0; left-- {
		act("2", "a test's")
		p.says("#letters-done", "The letter was closed.")
		p.until("it is gone", fmt.Sprintf(`document.querySelectorAll('#letters-table tbody tr').length === %d`, left))
	}
	p.says("#letters .said", "No dead letter waits.")
	var actions int
	if err := s.conn.QueryRow(t.Context(), `SELECT count(*) FROM dead_letter_actions WHERE action = 'DISCARDED' AND note = 'a test''s'`).Scan(&actions); err != nil || actions != 2 {
		t.Errorf("%d actions are recorded, %v", actions, err)
	}
}

// A section says why it shows nothing: the gateway has no such thing, the key may not see it, or
// there is no key.
func (s *suite) testNotShown(t *testing.T) {
	problem := func(w http.ResponseWriter, code int, title string) bool {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"type":"about:blank","title":%q,"status":%d}`, title, code)
		return true
	}
	url := s.front(t, func(w http.ResponseWriter, r *http.Request) bool {
		key := r.Header.Get("X-API-Key")
		switch {
		case r.URL.Path == "/status" && key == "operator":
			return operator(&sync.Map{})(w, r)
		case r.URL.Path == "/status":
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"at":"2026-11-26T10:00:00Z","state":"ok"}`)
			return true
		case strings.HasPrefix(r.URL.Path, "/api/") && key == "":
			return problem(w, http.StatusUnauthorized, "Unauthorized")
		case r.URL.Path == "/api/dead-letters" && key != "operator":
			return problem(w, http.StatusForbidden, "Only for operators")
		case r.URL.Path == "/api/dead-letters" || r.URL.Path == "/api/reports/activity":
			return problem(w, http.StatusNotFound, "Not configured")
		}
		return false
	})
	p := s.open(t, look{url: url + "/operations"})
	for _, code := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound} {
		p.expect(statusText(code))
	}
	p.says("#status-state", "All is well.")
	p.says("#dependencies", "This is for operators.")
	p.says("#letters .said", "This needs a key.")
	p.says("#activity .said", "This needs a key.")
	p.accessible("operations without a key")
	p.shot("operations-no-key")
	p.do(chromedp.SendKeys("#key-input", "a merchant\r"))
	p.says("#letters .said", "Your key may not see this. Only for operators")
	p.says("#activity .said", "This gateway does not offer this.")
	p.click("#letters .said button")
	p.do(chromedp.SendKeys("#key-input", "operator\r"))
	p.says("#letters .said", "This gateway does not offer this.")
	p.says("#dependencies", "connection refused")
	// The key is known on every view.
	p.click(`.top nav a[data-view="payments"]`)
	p.until("payments are read", `!document.querySelector('#list .body').hidden`)
}
