package browser

import "testing"

// A reader of the API's page finds a request, copies its example and sends it to this gateway. The
// page is accessible, and its policy lets nothing else run.
func TestDocs(t *testing.T) {
	s := newSuite(t)
	p := s.open(t, look{url: s.url + "/docs"})
	p.until("the script has run", `document.querySelector('nav input[type=search]')`)

	p.fill("nav input[type=search]", "min_amount")
	shown := `[...document.querySelectorAll('nav li')].filter((e) => !e.hidden && e.querySelector('a[href^="#"]')).map((e) => e.innerText.trim())`
	p.until("the search has found the list", shown+`.join() === 'List payments'`)

	section := `section[data-method="GET"][data-path="/api/payments"]`
	p.click(section + " .try summary")
	p.until("the form is open", `document.querySelector('`+section+` .try').open`)
	for name, value := range map[string]string{"limit": "1", "metadata": "metadata.order=none"} {
		eval[bool](p, `(() => { const row = [...document.querySelectorAll('`+section+` .try label')].find((l) => l.textContent.trim() === '`+name+
			`'); row.querySelector('input').value = '`+value+`'; return true; })()`)
	}
	p.click(section + " .try button:not(.copy)")
	p.says(section+" .try pre[role=status]", "200 OK")
	p.says(section+" .try pre[role=status]", "limit=1&metadata.order=none")
	p.says(section+" .try pre[role=status]", "\"payments\": []")

	pays := `section[data-method="POST"][data-path="/api/payments"]`
	p.click(pays + " .try summary")
	if body := eval[string](p, `document.querySelector('`+pays+` textarea').value`); body == "" {
		t.Error("the form to pay has no example")
	}
	eval[bool](p, `(() => { document.querySelector('`+pays+` textarea').value = '{}'; return true; })()`)
	p.expect(statusText(400))
	p.click(pays + " .try button:not(.copy)")
	p.says(pays+" .try pre[role=status]", "idempotency_key: is missing")

	// The page is long: the picture and the check are of the contents and of what was used.
	eval[bool](p, `[...document.querySelectorAll('main > *')].map((e) => { e.hidden = !e.querySelector('.try[open]'); }).length > 0`)
	p.shot("docs")
	p.accessible("the API's page")
}
