// Package browser tests the web page in a real Chromium with pgw run, as a person who tries pgw
// uses it. Every test ends with a check that the ledger adds up. The tests write pictures of the
// page to out/, for people to look at.
package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/jackc/pgx/v5"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/rpc"
	"pgw/tests/processes"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

const (
	patience = 20 * time.Second // the limit for steps that normally take milliseconds
	start    = 5 * time.Minute  // of pgw run, which takes seconds on an idle machine
	traces   = "http://traces.invalid/trace/{trace}"
)

// suite is one pgw run and one browser for all tests.
type suite struct {
	url     string
	wallet  walletv1.AdminClient
	db      dbv1.AdminClient
	conn    *pgx.Conn
	kafka   kafka.Config
	browser context.Context
	axe     string // the source of axe-core
	grafana *grafana
}

// grafana stands in for a Grafana. It serves any panel in the requested theme, and records the
// requests.
type grafana struct {
	url string // with a path, as behind a proxy
	mu  sync.Mutex
	got []*http.Request
}

func newGrafana(t *testing.T) *grafana {
	g := &grafana{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		g.got = append(g.got, r)
		g.mu.Unlock()
		ground, ink := "#ffffff", "#24292e"
		if r.URL.Query().Get("theme") == "dark" {
			ground, ink = "#181b1f", "#ccccdc"
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, `<!doctype html><html lang="en"><title>Panel</title><style>body { margin: 0; padding: 8px; background: %s; color: %s; font: 14px sans-serif }
			:focus { outline: 2px solid orange }</style><p tabindex="0">Panel %s of %s</p>`,
			ground, ink, html.EscapeString(r.URL.Query().Get("panelId")), html.EscapeString(r.URL.Path))
	}))
	t.Cleanup(server.Close)
	g.url = server.URL + "/grafana"
	return g
}

// asked returns the requests so far, and clears the list.
func (g *grafana) asked() []*http.Request {
	g.mu.Lock()
	defer g.mu.Unlock()
	got := g.got
	g.got = nil
	return got
}

func newSuite(t *testing.T) *suite {
	chromium := os.Getenv("PGW_TEST_BROWSER")
	if chromium == "" {
		t.Skip("PGW_TEST_BROWSER is not set: make test-browser sets it")
	}
	axe, err := os.ReadFile(os.Getenv("PGW_TEST_AXE"))
	if err != nil {
		t.Fatalf("PGW_TEST_AXE names axe-core's axe.min.js: %v", err)
	}
	s := &suite{axe: string(axe), grafana: newGrafana(t)}
	s.run(t)
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium refuses to run with a sandbox as root
	}
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	browser, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	if err := chromedp.Do(browser); err != nil {
		t.Fatal(err)
	}
	s.browser = browser
	return s
}

// run starts pgw run on the test's own database. At the end, pgw reconcile checks it.
func (s *suite) run(t *testing.T) {
	dir := t.TempDir()
	pgw, err := processes.Build(embeddedtest.Dir(t))
	if err != nil {
		t.Fatal(err)
	}
	out := &processes.Output{}
	database := embeddedtest.Postgres(t)
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command(pgw, args...)
		cmd.Env = append(os.Environ(), "PGW_DATA_DIR="+dir, "GRAFANA_URL="+s.grafana.url, "TRACE_URL="+traces)
		for _, name := range []string{"GATEWAY", "WORKER", "KAFKA", "WALLET", "RISK", "DB", "PAYMENTS", "WEBHOOKS", "FX"} {
			cmd.Env = append(cmd.Env, "PGW_"+name+"_PORT=0")
		}
		cmd.Stdout, cmd.Stderr = out, out
		return cmd
	}
	cmd := command("run", "--database-url", database)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := command("reconcile").Run(); err != nil {
			t.Errorf("pgw reconcile: %v: %s", err, out)
		}
		cmd.Process.Signal(syscall.SIGINT)
		if err := cmd.Wait(); err != nil {
			t.Errorf("pgw run ended with %v: %s", err, out)
		}
	})
	var at struct {
		Brokers []string `json:"kafka_brokers"`
		Gateway string   `json:"gateway_url"`
		Wallet  string   `json:"wallet_addr"`
		DB      string   `json:"db_addr"`
		Risk    string   `json:"risk_addr"`
	}
	for deadline := time.Now().Add(start); ; time.Sleep(50 * time.Millisecond) {
		if text, err := os.ReadFile(filepath.Join(dir, "run.json")); err == nil && json.Unmarshal(text, &at) == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("pgw run is not ready: %s", out)
		}
	}
	s.url = at.Gateway
	if err := (function.Settings{Lookup: function.Values{"KAFKA_BROKERS": strings.Join(at.Brokers, ",")}.Lookup}).Read(&s.kafka); err != nil {
		t.Fatal(err)
	}
	if s.conn, err = pgx.Connect(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close(context.Background()) })
	wallet, err := rpc.Dial(at.Wallet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { wallet.Close() })
	s.wallet = walletv1.NewAdminClient(wallet)
	db, err := rpc.Dial(at.DB)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s.db = dbv1.NewAdminClient(db)
	risk, err := rpc.Dial(at.Risk)
	if err != nil {
		t.Fatal(err)
	}
	defer risk.Close()
	// The rules of the seeds, without random refusals.
	none, least := uint32(0), int64(1000)
	if _, err := riskv1.NewAdminClient(risk).SeedRules(t.Context(), &riskv1.SeedRulesRequest{
		MaxAmount: 10_000_000, MinAmountIdr: &least, RandomRejectPpm: &none, BlockedAccounts: []string{"ACC013"},
	}); err != nil {
		t.Fatal(err)
	}
}

// accounts opens a sender and a receiver for one test, each with a million rupiah.
func (s *suite) accounts(t *testing.T) (sender, receiver string) {
	t.Helper()
	name := strings.ToUpper(strings.ReplaceAll(t.Name()[strings.LastIndex(t.Name(), "/")+1:], "_", "-"))
	sender, receiver = name+"-A", name+"-B"
	if _, err := s.wallet.SeedAccounts(t.Context(), &walletv1.SeedAccountsRequest{Accounts: []*walletv1.AccountSeed{
		{AccountId: sender, Owner: "Ayu", Balance: 1_000_000}, {AccountId: receiver, Owner: "Bima", Balance: 1_000_000},
	}}); err != nil {
		t.Fatal(err)
	}
	return sender, receiver
}

// give sets what an account can spend in one currency. It stays active, without a limit.
func (s *suite) give(t *testing.T, id string, minor int64, currency string) {
	t.Helper()
	if _, err := s.db.SeedAccounts(t.Context(), &dbv1.SeedAccountsRequest{Accounts: []*dbv1.Account{{
		AccountId: id, Owner: "Ayu", Currency: "IDR", BalanceIdr: 1_000_000, Status: "ACTIVE", Balances: []*commonv1.Amount{{Minor: minor, Currency: currency}},
	}}}); err != nil {
		t.Fatal(err)
	}
}

// has returns what an account can spend in one currency, in minor units.
func (s *suite) has(t *testing.T, id, currency string) (minor int64) {
	t.Helper()
	if err := s.conn.QueryRow(t.Context(), `SELECT coalesce(sum(available), 0) FROM balances WHERE account_id = $1 AND currency = $2`, id, currency).Scan(&minor); err != nil {
		t.Fatal(err)
	}
	return minor
}

func (s *suite) balance(t *testing.T, id string) (balance int64) {
	t.Helper()
	if err := s.conn.QueryRow(t.Context(), `SELECT balance_idr FROM wallet_accounts WHERE account_id = $1`, id).Scan(&balance); err != nil {
		t.Fatal(err)
	}
	return balance
}

// look is the way in which the test opens the page.
type look struct {
	url           string // another address to open; empty: the gateway's
	language      string // empty: en-US
	width, height int64  // 0: 1280 by 900
	dark          bool
	still         bool // prefers reduced motion
}

// tab is one page in its own browser profile.
type tab struct {
	*suite
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	console  []string
	expected []string // parts of the console messages that the test expects
}

// open opens the page. When the test ends, the console must have no unexpected message, and the
// ledger must add up.
func (s *suite) open(t *testing.T, l look) *tab {
	t.Helper()
	if l.url == "" {
		l.url = s.url
	}
	if l.language == "" {
		l.language = "en-US"
	}
	if l.width == 0 {
		l.width, l.height = 1280, 900
	}
	ctx, cancel := chromedp.NewContext(s.browser, chromedp.WithNewBrowserContext())
	p := &tab{suite: s, t: t, ctx: ctx}
	messages := chromedp.Console(ctx)
	go func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			p.mu.Lock()
			p.console = append(p.console, fmt.Sprintf("%s: %s (%s:%d)", m.Type, m.Text, m.URL, m.Line))
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		if t.Failed() {
			p.shot("failed-" + t.Name()[strings.LastIndex(t.Name(), "/")+1:])
		}
		cancel()
		p.checkConsole()
		sum, err := ledger.ReadSum(context.Background(), s.conn)
		if err == nil {
			err = sum.Err()
		}
		if err != nil {
			t.Error(err)
		}
	})
	agent, err := chromedp.Run(ctx, chromedp.Evaluate[string](`navigator.userAgent`))
	if err == nil {
		_, err = chromedp.Call(ctx, emulation.SetUserAgentOverride, emulation.SetUserAgentOverrideParams{UserAgent: agent, AcceptLanguage: l.language})
	}
	if err != nil {
		t.Fatal(err)
	}
	p.lighting(l)
	p.do(chromedp.EmulateViewport(l.width, l.height), chromedp.Navigate(l.url))
	return p
}

// lighting sets the user's preferences: light or dark, and reduced motion.
func (p *tab) lighting(l look) {
	p.t.Helper()
	features := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "light"}}
	if l.dark {
		features[0].Value = "dark"
	}
	if l.still {
		features = append(features, &emulation.MediaFeature{Name: "prefers-reduced-motion", Value: "reduce"})
	}
	if _, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: features}); err != nil {
		p.t.Fatal(err)
	}
}

func (p *tab) ready() *tab {
	p.t.Helper()
	p.until("the page is ready", `document.documentElement?.dataset.ready === 'true'`)
	return p
}

// expect allows the console messages that contain text.
func (p *tab) expect(text string) { p.expected = append(p.expected, text) }

func (p *tab) checkConsole() {
	p.mu.Lock()
	defer p.mu.Unlock()
said:
	for _, text := range p.console {
		for _, part := range p.expected {
			if strings.Contains(text, part) {
				continue said
			}
		}
		p.t.Errorf("the console says %s", text)
	}
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.t.Fatal(err)
	}
}

func (p *tab) click(selector string) {
	p.t.Helper()
	p.do(chromedp.Click(selector))
}

// fill replaces the value of a field.
func (p *tab) fill(selector, value string) {
	p.t.Helper()
	eval[bool](p, fmt.Sprintf(`(() => { const e = document.querySelector(%q); e.focus(); e.select(); return true; })()`, selector))
	if value == "" {
		p.do(chromedp.KeyEvent(kb.Delete))
		return
	}
	p.insert(value)
}

// insert enters a text at once, in place of the selected text. The page sends a request after a
// pause in the typing, and on a busy machine such a pause could fall within a word.
func (p *tab) insert(text string) {
	p.t.Helper()
	if _, err := chromedp.Call(p.ctx, input.InsertText, input.InsertTextParams{Text: text}); err != nil {
		p.t.Fatal(err)
	}
}

func eval[T any](p *tab, expression string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%.200s: %v", expression, err)
	}
	return value
}

func (p *tab) text(selector string) string {
	p.t.Helper()
	return eval[string](p, fmt.Sprintf(`document.querySelector(%q).innerText`, selector))
}

// until waits for a condition.
func (p *tab) until(what, condition string) {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for !eval[bool](p, "!!("+condition+")") {
		if time.Now().After(deadline) {
			p.t.Fatalf("not within %s: %s; the outcome says %q", patience, what, p.text("#outcome"))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// says waits until an element contains a text.
func (p *tab) says(selector, text string) {
	p.t.Helper()
	p.until(fmt.Sprintf("%s says %q", selector, text), fmt.Sprintf(`document.querySelector(%q)?.innerText.replaceAll('\xa0', ' ').includes(%q)`, selector, text))
}

// form fills in the payment form.
func (p *tab) form(sender, receiver, amount, currency string) {
	p.t.Helper()
	p.fill("#sender", sender)
	p.fill("#receiver", receiver)
	p.fill("#amount", amount)
	p.choose("currency", currency)
}

// choose chooses an option of a list, which may have to be read first.
func (p *tab) choose(id, option string) {
	p.t.Helper()
	p.until(fmt.Sprintf("%s offers %s", id, option), fmt.Sprintf(`[...document.getElementById(%q).options].some((o) => o.value === %q)`, id, option))
	eval[bool](p, fmt.Sprintf(`(() => {
		const list = document.getElementById(%q);
		list.value = %q;
		return ['input', 'change'].every((type) => list.dispatchEvent(new Event(type, {bubbles: true})));
	})()`, id, option))
}

// exchange fills in a payment between balances of two currencies. fixed is the currency of the amount.
func (p *tab) exchange(sender, receiver, debit, credit, amount, fixed string) {
	p.t.Helper()
	p.fill("#sender", sender)
	p.fill("#receiver", receiver)
	p.choose("debit", debit)
	p.choose("credit", credit)
	p.fill("#amount", amount)
	p.choose("currency", fixed)
}

// shot takes a picture of the whole page, for people.
func (p *tab) shot(name string) {
	p.t.Helper()
	if err := os.MkdirAll("out", 0o755); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(filepath.Join("out", name+".png"), picture, 0o644)
	}
	if err != nil {
		p.t.Error(err)
	}
}

// fits checks that nothing is wider than the window.
func (p *tab) fits() {
	p.t.Helper()
	wide := eval[[]string](p, `[...document.querySelectorAll('body *')].filter((e) => e.getClientRects().length && !e.closest('.unseen, .skip, svg, pre')
		&& e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.tagName + '.' + e.className + '#' + e.id)`)
	if width := eval[int](p, `document.documentElement.scrollWidth`); len(wide) > 0 || width > eval[int](p, `innerWidth`) {
		p.t.Errorf("%d wide, wider than the window: %v", width, wide)
	}
}

// accessible checks the page in its present state with axe-core.
func (p *tab) accessible(where string) {
	p.t.Helper()
	// The script is injected by the browser's protocol, so the page keeps its policy. Content of
	// Grafana's frames is not checked.
	eval[bool](p, p.axe+`; true`)
	found := eval[[]struct {
		ID, Impact, Help string
		Nodes            []struct {
			HTML           string
			FailureSummary string
		}
	}](p, `axe.run(document, {resultTypes: ['violations'], iframes: false}).then((r) => r.violations)`)
	for _, v := range found {
		report := p.t.Logf
		if v.Impact == "serious" || v.Impact == "critical" {
			report = p.t.Errorf
		}
		for _, n := range v.Nodes {
			report("%s: %s, %s: %s\n%s\n%s", where, v.Impact, v.ID, v.Help, n.HTML, n.FailureSummary)
		}
	}
}

// statusText is the console's message about an answer that is an error.
func statusText(code int) string {
	return fmt.Sprintf("the server responded with a status of %d (%s)", code, http.StatusText(code))
}
