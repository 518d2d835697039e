package function_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"pgw/shared/function"
)

// With ADMIN_PORT, the operator's port needs nothing of the function's door, and metrics are only
// there. The probes are on both ports.
func TestTheOperatorsPort(t *testing.T) {
	listen := func() net.Listener {
		t.Helper()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	main, admin := listen(), listen()
	closed := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/healthz" {
				next.ServeHTTP(w, r)
				return
			}
			http.Error(w, "closed", http.StatusUnauthorized)
		})
	}
	port := &function.Port{
		Name: "test", Log: slog.New(slog.DiscardHandler), Registry: function.NewRegistry(), Admin: admin,
		Service: function.Service{Guard: closed, Ready: func(context.Context) error { return nil }},
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- port.Serve(ctx, main, time.Second) }()
	get := func(l net.Listener, path string) int {
		t.Helper()
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	for path, want := range map[string][2]int{
		"/metrics": {401, 200}, "/readyz": {401, 200}, "/healthz": {200, 200}, "/api": {401, 404},
	} {
		if got := [2]int{get(main, path), get(admin, path)}; got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", admin.Addr().String()); err == nil {
		t.Error("the operator's port is still open")
	}
}

// Without the guard, metrics are still not on the function's port.
func TestMetricsLeaveTheFunctionsPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, admin := range []net.Listener{nil, l} {
		port := &function.Port{Name: "test", Log: slog.New(slog.DiscardHandler), Registry: function.NewRegistry(), Admin: admin}
		w := httptest.NewRecorder()
		port.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if (w.Code == http.StatusOK) != (admin == nil) {
			t.Errorf("admin %t: %d", admin != nil, w.Code)
		}
	}
}
