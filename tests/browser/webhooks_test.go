package browser

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// A merchant adds a webhook, keeps its secret, tries it, sees each attempt, sends an event again, and
// deletes the webhook. The gateway, the function webhooks and the requests are real.
func (s *suite) testWebhooks(t *testing.T) {
	sender, receiver := s.accounts(t)
	var secret atomic.Pointer[string]
	var broken atomic.Bool
	var unverified, moved atomic.Int32
	program := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			var library *standardwebhooks.Webhook
			if library, err = standardwebhooks.NewWebhook(*secret.Load()); err == nil {
				err = library.Verify(body, r.Header)
			}
		}
		if r.URL.Path == "/other" {
			moved.Add(1)
		}
		switch {
		case err != nil:
			unverified.Add(1)
			http.Error(w, err.Error(), http.StatusBadRequest)
		case broken.Load():
			http.Error(w, "the shop is closed", http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	defer program.Close()

	p := s.open(t, look{url: s.url + "/webhooks"}).ready()
	for _, name := range []string{"clipboard-read", "clipboard-write"} {
		if _, err := chromedp.CallBrowser(p.ctx, browser.SetPermission, browser.SetPermissionParams{
			Permission: &browser.PermissionDescriptor{Name: name}, Setting: browser.PermissionSettingGranted,
			BrowserContextID: chromedp.FromContext(p.ctx).BrowserContextID,
		}); err != nil {
			t.Fatal(err)
		}
	}
	p.says("#hooks .said", "There is no webhook yet.")
	p.accessible("no webhook")
	p.expect(statusText(http.StatusBadRequest))
	p.fill("#hook-url", "http://10.0.0.1/")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.says("#hook-add-said", "is not a public address")
	p.until("the field has the focus and is marked", `document.activeElement.id === 'hook-url' && document.activeElement.getAttribute('aria-invalid') === 'true'`)
	p.accessible("a URL that is refused")
	p.shot("webhooks-refused")

	p.fill("#hook-url", program.URL+"/hooks")
	p.fill("#hook-note", "the shop")
	p.click(`#hook-add [value="payment.settled"]`)
	p.click(`#hook-add [value="payment.refunded"]`)
	p.click("#hook-add-do")
	p.says("#hooks-secret", "The webhook was added.")
	told := p.text("#hooks-secret .secret")
	if !strings.HasPrefix(told, "whsec_") {
		t.Fatalf("the secret is %q", told)
	}
	secret.Store(&told)
	p.until("the secret has the focus", `document.activeElement.classList.contains('secret')`)
	p.click("#hooks-secret button")
	p.says("#hooks-secret", "Copied.")
	if copied := eval[string](p, `navigator.clipboard.readText()`); copied != told {
		t.Errorf("the clipboard has %q", copied)
	}
	p.says("#hooks-table", program.URL+"/hooks")
	p.says("#hooks-table", "payment.refunded, payment.settled")
	p.accessible("a new webhook")
	p.shot("webhooks-light")
	p.lighting(look{dark: true})
	p.accessible("a new webhook, dark")
	p.shot("webhooks-dark")
	p.lighting(look{})

	p.click("#hooks-secret a")
	p.says("#hook-heading", program.URL+"/hooks")
	p.until("it has its own address", `/^\/webhooks\/[0-9a-f-]{36}$/.test(location.pathname)`)
	p.until("the secret is gone", fmt.Sprintf(`!document.documentElement.textContent.includes(%q)`, told))
	at := eval[string](p, `location.pathname`)
	p.says("#sent .said", "Nothing was sent yet.")
	pressIn := func(p *tab, label string) {
		t.Helper()
		p.until(label+" is there", fmt.Sprintf(`[...document.querySelectorAll('#hook-actions button')].some((b) => b.textContent === %q)`, label))
		eval[bool](p, fmt.Sprintf(`([...document.querySelectorAll('#hook-actions button')].find((b) => b.textContent === %q).click(), true)`, label))
	}
	press := func(label string) { t.Helper(); pressIn(p, label) }
	press("Send a test event")
	p.says("#hook-done", "The test event is on its way.")
	p.says("#sent-table", "webhook.test")
	p.says("#sent-table", "204 · delivered")

	broken.Store(true)
	pay := s.open(t, look{}).ready()
	pay.form(sender, receiver, "10", "USD")
	pay.click("#send")
	pay.says("#outcome", "Settled.")
	p.says("#sent-table", "503 · server error")
	p.says("#sent-table", "the shop is closed")
	p.says("#hook-facts", "Failing")
	p.accessible("a webhook")
	p.shot("webhook-light")
	p.lighting(look{dark: true})
	p.accessible("a webhook, dark")
	p.shot("webhook-dark")
	p.lighting(look{})

	broken.Store(false)
	p.choose("sent-status", "delivered")
	p.until("the address has the filter", `location.search === '?status=delivered'`)
	p.until("one was delivered", `document.querySelectorAll('#sent-table tbody tr').length === 1`)
	p.click("#sent-table tbody button")
	p.says("#hook-done", "1 event is sent again.")
	p.until("it has two attempts", `document.querySelectorAll('#sent-table tbody tr:has(code:first-of-type) .attempts li').length >= 2`)
	p.choose("sent-status", "")
	p.until("the filter is gone", `location.search === ''`)
	p.click("#again-do")
	p.says("#again-said", "Please fill this in.")
	eval[bool](p, `(document.getElementById('again-since').value = '2026-01-02T03:04', true)`)
	p.click("#again-delivered")
	p.click("#again-do")
	p.says("#hook-done", "2 events are sent again.")
	p.says("#hook-facts", "Enabled")

	// The webhook's address and events are changed. A wrong address changes nothing.
	press("Change")
	p.until("the dialog shows what it is", fmt.Sprintf(`document.getElementById('hook-change').open && document.getElementById('change-url').value === %q
		&& [...document.querySelectorAll('#hook-change [name="type"]:checked')].map((box) => box.value).join() === 'payment.settled,payment.refunded'`, program.URL+"/hooks"))
	p.accessible("changing a webhook")
	p.shot("webhook-change")
	p.lighting(look{dark: true})
	p.accessible("changing a webhook, dark")
	p.shot("webhook-change-dark")
	p.lighting(look{})
	p.fill("#change-url", "http://10.0.0.1/")
	p.click("#hook-change-do")
	p.says("#hook-change-said", "is not a public address")
	p.until("the field has the focus and is marked", `document.activeElement.id === 'change-url' && document.activeElement.getAttribute('aria-invalid') === 'true'`)
	p.accessible("a new URL that is refused")
	p.shot("webhook-change-refused")
	p.fill("#change-url", program.URL+"/other")
	p.click(`#hook-change [value="payment.settled"]`)
	p.click(`#hook-change [value="payment.failed"]`)
	p.fill("#change-note", "the new shop")
	p.click("#hook-change-do")
	p.says("#hook-done", "The change is saved.")
	p.says("#hook-heading", program.URL+"/other")
	p.says("#hook-facts", "payment.failed, payment.refunded")
	p.says("#hook-facts", "the new shop")
	press("Send a test event")
	p.says("#hook-done", "The test event is on its way.")
	p.until("it is delivered", `document.querySelectorAll('#sent-table tbody tr').length === 3 && document.querySelector('#sent-table tbody tr').innerText.includes('204')`)
	if moved.Load() == 0 {
		t.Error("it was not sent to the new address")
	}
	press("Change")
	p.click("#hook-change-do") // without a change
	p.says("#hook-done", "The change is saved.")

	press("New secret")
	p.until("it asks first", `document.getElementById('hook-ask').open`)
	p.accessible("asking before a new secret")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.says("#hook-secret", "There is a new secret.")
	rotated := p.text("#hook-secret .secret")
	if rotated == told {
		t.Error("it is the old secret")
	}
	secret.Store(&rotated)
	p.says("#hook-facts", "The old secret signs until")
	p.accessible("a new secret")
	p.shot("webhook-secret")
	press("Disable")
	p.says("#hook-done", "It is disabled.")
	p.says("#hook-facts", "by its client")
	p.accessible("a webhook that is disabled")
	press("Enable")
	p.says("#hook-done", "It is enabled.")

	for name, l := range map[string]look{"phone": {}, "phone-dark": {dark: true, language: "id"}} {
		for _, path := range []string{"/webhooks", at} {
			l.url, l.width, l.height = s.url+path, 360, 740
			phone := s.open(t, l).ready()
			phone.expect(statusText(http.StatusNotFound)) // it reads on after the webhook is deleted
			phone.until("something is shown", `document.querySelector('.view:not([hidden]) tbody tr')`)
			phone.fits()
			phone.accessible("webhooks, " + name)
			phone.shot(map[bool]string{true: "webhook-", false: "webhooks-"}[path == at] + name)
			if path == at {
				pressIn(phone, map[string]string{"": "Change", "id": "Ubah"}[l.language])
				phone.fits()
				phone.accessible("changing a webhook, " + name)
				phone.shot("webhook-change-" + name)
			}
		}
	}

	press("Delete")
	p.until("it asks first", `document.getElementById('hook-ask').open`)
	p.shot("webhook-delete")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.says("#hooks .said", "There is no webhook yet.")
	p.expect(statusText(http.StatusNotFound))
	p.do(chromedp.Navigate(s.url + at))
	p.ready().says("#hook .said", "There is no such webhook, or it belongs to another client.")
	if n := unverified.Load(); n > 0 {
		t.Errorf("%d requests could not be verified", n)
	}
}

// Operators filter by a client. Without a key the page says that it needs one.
func (s *suite) testWebhooksOfOperators(t *testing.T) {
	hook := func(id, client string) string {
		return fmt.Sprintf(`{"id":%q,"client":%q,"url":"https://%s.example/hooks","types":[],"format":"cloudevents","thin":true,"description":"","enabled":false,"disabled_reason":"gone",
			"signature":"v1","created_at":"2026-11-26T10:00:00Z","changed_at":"2026-11-26T10:00:00Z"}`, id, client, client)
	}
	url := s.front(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/api/webhooks" {
			return false
		}
		if r.Header.Get("X-API-Key") != "operator" {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"type":"about:blank","title":"Unauthorized","status":401}`)
			return true
		}
		all := hook("0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10", "shop")
		if !r.URL.Query().Has("client") {
			all += "," + hook("0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a11", "rival")
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"webhooks":[%s]}`, all)
		return true
	})
	p := s.open(t, look{url: url + "/webhooks"})
	p.expect(statusText(http.StatusUnauthorized))
	p.says("#hooks .said", "This needs a key.")
	p.accessible("webhooks without a key")
	p.shot("webhooks-no-key")
	p.do(chromedp.SendKeys("#key-input", "operator\r"))
	p.ready().until("both are shown", `document.querySelectorAll('#hooks-table tbody tr').length === 2`)
	p.says("#hooks-table", "it answered 410")
	p.accessible("webhooks of two clients")
	p.shot("webhooks-operator")
	p.fill("#hooks-client", "shop")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.until("one is shown, at its own address", `location.search === '?client=shop' && document.querySelectorAll('#hooks-table tbody tr').length === 1`)
	p.click(`#hooks-filter [type="reset"]`)
	p.until("both are shown again", `location.search === '' && document.querySelectorAll('#hooks-table tbody tr').length === 2`)
}
