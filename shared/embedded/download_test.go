package embedded

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// repository is a Maven repository that answers every request with serve. The cache of downloads is
// empty.
func repository(t *testing.T, serve http.HandlerFunc) PostgresConfig {
	t.Helper()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	srv := httptest.NewServer(serve)
	t.Cleanup(srv.Close)
	return PostgresConfig{Repository: srv.URL}
}

// A repository that serves another archive than the expected one is not believed, whatever checksum
// it serves with it.
func TestADownloadOfOtherContentIsRefused(t *testing.T) {
	cfg := repository(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".jar") {
			w.Write([]byte("something else"))
		} else {
			w.Write([]byte("96fa8f226d3801741e807533552bc4b177ac4544d834073b6a5298934d34b40b"))
		}
	})
	var shown bytes.Buffer
	cfg.Progress = &shown
	_, err := download(t.Context(), nil, cfg)
	if !errors.Is(err, ErrNoPostgres) || !strings.Contains(err.Error(), "it is refused") {
		t.Errorf("%v", err)
	}
	if !strings.Contains(shown.String(), "Downloading embedded-postgres-binaries-") || !strings.Contains(shown.String(), strings.TrimPrefix(cfg.Repository, "http://")) {
		t.Errorf("shown: %q", shown.String())
	}
	if http.DefaultClient.Transport != nil {
		t.Error("the default client still has the transport of the download")
	}
}

func TestADownloadEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	hold := make(chan struct{})
	cfg := repository(t, func(http.ResponseWriter, *http.Request) { cancel(); <-hold })
	defer close(hold)
	if _, err := download(ctx, nil, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
