package function

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	callsv1 "pgw/proto/gen/calls/v1"
	dbv1 "pgw/proto/gen/db/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/rpc"
)

func callers(t *testing.T, s rpc.Security) *rpc.Callers {
	t.Helper()
	c, err := s.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// services are a fake of risk, whose admin RPC calls db's.
type services struct {
	service
	riskv1.UnimplementedAdminServer
	db dbv1.AdminClient
}

func (s services) SeedRules(ctx context.Context, _ *riskv1.SeedRulesRequest) (*riskv1.SeedRulesResponse, error) {
	_, err := s.db.PutRules(ctx, &dbv1.PutRulesRequest{})
	return &riskv1.SeedRulesResponse{Ok: err == nil}, err
}

type ledger struct{ dbv1.UnimplementedAdminServer }

func (ledger) PutRules(context.Context, *dbv1.PutRulesRequest) (*dbv1.PutRulesResponse, error) {
	return &dbv1.PutRulesResponse{}, nil
}

func serveAll(t *testing.T, over Transport, c *rpc.Callers, register func(grpc.ServiceRegistrar)) (addr string) {
	t.Helper()
	f := &Port{Name: "test", Log: slog.New(slog.DiscardHandler), Registry: NewRegistry(), Callers: c, Transport: over, Service: Service{GRPC: register}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx, l, 10*time.Second) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, c *rpc.Callers, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := c.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

const (
	oneToken      = "one-token-of-32-characters-or-more"
	otherToken    = "another-token-of-32-characters-more"
	operatorToken = "the-operator's-token-of-32-characters"
)

func hashOf(token string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(token))) }

// Checks which RPCs an unknown caller, a function and an operator may call. A function's admin call
// to another function uses the operator's token, and never its own.
func TestWhoMayCallWhat(t *testing.T) { overEach(t, whoMayCallWhat) }

func whoMayCallWhat(t *testing.T, over Transport) {
	within := callers(t, rpc.Security{Mode: "required", Tokens: oneToken, Admins: hashOf(operatorToken)})
	ledgerAt := serveAll(t, over, within, func(r grpc.ServiceRegistrar) { dbv1.RegisterAdminServer(r, ledger{}) })
	riskAt := serveAll(t, over, within, func(r grpc.ServiceRegistrar) {
		s := services{service: service{evaluate: allow}, db: dbv1.NewAdminClient(dial(t, within, ledgerAt))}
		riskv1.RegisterRiskServiceServer(r, s)
		riskv1.RegisterAdminServer(r, s)
	})
	for who, tc := range map[string]struct {
		callers        *rpc.Callers
		evaluate, seed codes.Code
	}{
		"a stranger":                  {callers(t, rpc.Security{}), codes.Unauthenticated, codes.Unauthenticated},
		"who has another token":       {callers(t, rpc.Security{Tokens: otherToken}), codes.Unauthenticated, codes.Unauthenticated},
		"who has more of it":          {callers(t, rpc.Security{Tokens: oneToken + "x"}), codes.Unauthenticated, codes.Unauthenticated},
		"who has the operator's hash": {callers(t, rpc.Security{Tokens: hashOf(operatorToken)}), codes.Unauthenticated, codes.Unauthenticated},
		"a function":                  {within, codes.OK, codes.PermissionDenied},
		"an operator":                 {callers(t, rpc.Security{AdminToken: operatorToken}), codes.OK, codes.OK},
	} {
		conn := dial(t, tc.callers, riskAt)
		if _, err := riskv1.NewRiskServiceClient(conn).Evaluate(t.Context(), &riskv1.ScoreRequest{}); status.Code(err) != tc.evaluate {
			t.Errorf("%s evaluates: %v; want %s", who, err, tc.evaluate)
		}
		if _, err := riskv1.NewAdminClient(conn).SeedRules(t.Context(), &riskv1.SeedRulesRequest{}); status.Code(err) != tc.seed {
			t.Errorf("%s sets rules: %v; want %s", who, err, tc.seed)
		}
		if _, err := dbv1.NewAdminClient(dial(t, tc.callers, ledgerAt)).PutRules(t.Context(), &dbv1.PutRulesRequest{}); status.Code(err) != tc.seed {
			t.Errorf("%s puts rules without risk: %v; want %s", who, err, tc.seed)
		}
		if got, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || got.Status != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("%s calls the health check: %v", who, err)
		}
	}
	// Two tokens are refused, even if one of them is valid.
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+otherToken)
	if _, err := riskv1.NewRiskServiceClient(dial(t, within, riskAt)).Evaluate(ctx, &riskv1.ScoreRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("two tokens: %v", err)
	}
	// Reflection is off unless it is set, and then it needs a token.
	ask := func(c *rpc.Callers, addr string) error {
		stream, err := reflectionpb.NewServerReflectionClient(dial(t, c, addr)).ServerReflectionInfo(t.Context())
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	if err := ask(within, riskAt); status.Code(err) != codes.Unimplemented {
		t.Errorf("reflection while it is off: %v", err)
	}
	reflecting := serveAll(t, over, callers(t, rpc.Security{Mode: "required", Tokens: oneToken, Reflection: true}), func(r grpc.ServiceRegistrar) { dbv1.RegisterAdminServer(r, ledger{}) })
	if err := ask(callers(t, rpc.Security{}), reflecting); status.Code(err) != codes.Unauthenticated {
		t.Errorf("reflection without a token: %v", err)
	}
}

// A token is rotated without a failing call: the new one is first accepted, then sent, and then the
// old one is removed.
func TestTokensRotate(t *testing.T) { overEach(t, tokensRotate) }

func tokensRotate(t *testing.T, over Transport) {
	path := filepath.Join(t.TempDir(), "tokens")
	put := func(tokens ...string) {
		if err := os.WriteFile(path, []byte(strings.Join(tokens, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(oneToken)
	at := serveAll(t, over, callers(t, rpc.Security{Mode: "required", TokensFile: path}), func(r grpc.ServiceRegistrar) {
		riskv1.RegisterRiskServiceServer(r, service{evaluate: allow})
	})
	call := func(token string) codes.Code {
		_, err := riskv1.NewRiskServiceClient(dial(t, callers(t, rpc.Security{Tokens: token}), at)).Evaluate(t.Context(), &riskv1.ScoreRequest{})
		return status.Code(err)
	}
	becomes := func(token string, want codes.Code) {
		t.Helper()
		for deadline := time.Now().Add(wait); call(token) != want; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not %s", token, want)
			}
		}
	}
	becomes(oneToken, codes.OK)
	becomes(otherToken, codes.Unauthenticated)
	put(otherToken, oneToken)
	becomes(otherToken, codes.OK)
	becomes(oneToken, codes.OK)
	put(otherToken)
	becomes(oneToken, codes.Unauthenticated)
	becomes(otherToken, codes.OK)
}

// give writes a process's certificate, its key and the trusted authorities to a directory.
func give(t *testing.T, dir, name string, by *embeddedtest.Authority, trusted ...*embeddedtest.Authority) rpc.Security {
	t.Helper()
	cert, key := by.Issue(name)
	var signers []byte
	for _, signer := range append(trusted, by) {
		signers = append(signers, signer.PEM()...)
	}
	s := rpc.Security{Mode: "required", CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), CAFile: filepath.Join(dir, "ca.crt")}
	for path, text := range map[string][]byte{s.CAFile: signers, s.KeyFile: key, s.CertFile: cert} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// With certificates, gRPC requires the client's and HTTP does not. Connections without TLS are
// refused. Certificates can be changed while the function runs.
func TestCertificates(t *testing.T) { overEach(t, certificates) }

func certificates(t *testing.T, over Transport) {
	ours, theirs := embeddedtest.NewAuthority(t, "authority"), embeddedtest.NewAuthority(t, "authority") // one name, two keys
	dir := t.TempDir()
	server := callers(t, give(t, dir, "risk", ours))
	at := serveAll(t, over, server, func(r grpc.ServiceRegistrar) { riskv1.RegisterRiskServiceServer(r, service{evaluate: allow}) })
	call := func(c *rpc.Callers) codes.Code {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		_, err := riskv1.NewRiskServiceClient(dial(t, c, at)).Evaluate(ctx, &riskv1.ScoreRequest{})
		return status.Code(err)
	}
	ofOurs, ofTheirs := callers(t, give(t, t.TempDir(), "gateway", ours)), callers(t, give(t, t.TempDir(), "gateway", theirs, ours))
	if got := call(ofOurs); got != codes.OK {
		t.Errorf("with a certificate: %s", got)
	}
	if got := call(ofTheirs); got != codes.Unavailable {
		t.Errorf("with a certificate of an unknown authority: %s", got)
	}
	if got := call(callers(t, rpc.Security{Tokens: oneToken})); got != codes.Unavailable {
		t.Errorf("without TLS: %s", got)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ours.Certificate)
	for _, protocol := range []string{"h2", "http/1.1"} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, NextProtos: []string{protocol}}, ForceAttemptHTTP2: protocol == "h2"}}
		want := http.StatusOK
		if over == GRPCOnly && protocol == "h2" {
			want = http.StatusUnsupportedMediaType
		}
		resp, err := client.Get("https://" + at + "/healthz")
		if err != nil || resp.StatusCode != want || (resp.ProtoMajor == 2) != (protocol == "h2") {
			t.Errorf("a probe by %s: %v %v", protocol, resp, err)
		}
		req, err := http.NewRequest(http.MethodPost, "https://"+at+"/risk.v1.RiskService/Evaluate", strings.NewReader("\x00\x00\x00\x00\x00"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/grpc")
		if resp, err = client.Do(req); err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		// HTTP/1 has no gRPC.
		if got := cmp.Or(resp.Trailer.Get("Grpc-Status"), resp.Header.Get("Grpc-Status")); len(text) != 0 && protocol == "h2" || protocol == "h2" && got != fmt.Sprint(int(codes.Unauthenticated)) || protocol != "h2" && resp.StatusCode/100 != 4 {
			t.Errorf("gRPC without a certificate by %s: %s %v %q", protocol, resp.Status, resp.Trailer, text)
		}
	}
	if resp, err := (&http.Client{Transport: ofOurs.Transport(&http.Transport{})}).Get("https://" + at + "/healthz"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("another function, by HTTP: %v %v", resp, err)
	}
	// The authority is changed. The server uses and trusts the new one without a restart.
	give(t, dir, "risk", theirs)
	for deadline := time.Now().Add(wait); call(ofTheirs) != codes.OK; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the new certificates are not used")
		}
	}
	if got := call(ofOurs); got != codes.Unavailable {
		t.Errorf("with a certificate of the old authority: %s", got)
	}
}

// A missing or contradictory setting is refused at the start. The error names the setting, and does
// not contain the secret.
func TestSecurityThatIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		security rpc.Security
		want     string
	}{
		"required, and no way":  {rpc.Security{Mode: "required"}, "nobody could call"},
		"only admins":           {rpc.Security{Mode: "required", Admins: hashOf(operatorToken)}, "nobody could call"},
		"another mode":          {rpc.Security{Mode: "on"}, `"on"`},
		"a short token":         {rpc.Security{Tokens: "hunter2"}, "32"},
		"one of two is short":   {rpc.Security{Tokens: oneToken + ",hunter2"}, "entry 2"},
		"a token as a hash":     {rpc.Security{Admins: "hunter2"}, "SHA-256"},
		"file and variable":     {rpc.Security{Tokens: oneToken, TokensFile: "/dev/null"}, "one of them"},
		"an empty file":         {rpc.Security{TokensFile: "/dev/null"}, "nothing in it"},
		"a file that is absent": {rpc.Security{TokensFile: "/nowhere"}, "RPC_TOKENS_FILE"},
		"blank tokens":          {rpc.Security{Tokens: " "}, "RPC_TOKENS: there is nothing in it"},
		"blank lines of tokens": {rpc.Security{Tokens: "\n,\n"}, "RPC_TOKENS: there is nothing in it"},
		"blank hashes":          {rpc.Security{Admins: " "}, "RPC_ADMIN_HASHES: there is nothing in it"},
		"a blank admin token":   {rpc.Security{AdminToken: " "}, "RPC_ADMIN_TOKEN"},
		"an admin token's line": {rpc.Security{AdminToken: operatorToken + "\n"}, "RPC_ADMIN_TOKEN"},
		"a certificate alone":   {rpc.Security{CertFile: "/dev/null"}, "go together"},
		"files that are none":   {rpc.Security{CertFile: "/dev/null", KeyFile: "/dev/null", CAFile: "/dev/null"}, "RPC_TLS_CERT_FILE"},
	} {
		_, err := tc.security.Open(slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The error names a variable that can't be read. It does not repeat the value, which may be a
// secret.
func TestBadConfigurationTellsNoSecret(t *testing.T) {
	for name, value := range map[string]string{"KEYS": "hunter2", "COUNT": "hunter2", "WAIT": "12"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, value)
			var cfg struct {
				Keys  event.Keyring `envconfig:"KEYS"`
				Count int           `envconfig:"COUNT"`
				Wait  time.Duration `envconfig:"WAIT"`
			}
			err := ReadEnvironment(&cfg)
			if err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "hunter2") {
				t.Error(err)
			}
		})
	}
}

// A call that travels with others is checked, counted and, if it panics, answered as one that came alone.
func TestCallsTogetherAreServedAsCallsAlone(t *testing.T) {
	overEach(t, func(t *testing.T, over Transport) {
		f := &Port{Transport: over, Callers: callers(t, rpc.Security{Mode: "required", Tokens: oneToken})}
		addr, stop := serve(t, f, service{evaluate: func(ctx context.Context, in *riskv1.ScoreRequest) (*riskv1.EvaluateResponse, error) {
			if in.SenderId == "panic" {
				panic("oh")
			}
			return allow(ctx, in)
		}})
		in := &callsv1.MakeRequest{Method: evaluate}
		for _, sender := range []string{"A", "panic"} {
			request, err := proto.Marshal(&riskv1.ScoreRequest{SenderId: sender})
			if err != nil {
				t.Fatal(err)
			}
			in.Calls = append(in.Calls, &callsv1.Call{Request: request})
		}
		call := func(as rpc.Security) (map[uint32]codes.Code, error) {
			stream, err := callsv1.NewCallsServiceClient(dial(t, callers(t, as), addr)).Make(t.Context(), in)
			answers := map[uint32]codes.Code{}
			for err == nil {
				var out *callsv1.MakeResponse
				if out, err = stream.Recv(); err == nil {
					for _, a := range out.Answers {
						answers[a.Call] = codes.Code(a.Code)
					}
				}
			}
			return answers, err
		}
		if got, err := call(rpc.Security{}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("a stranger: %v, %v", got, err)
		}
		got, err := call(rpc.Security{Tokens: oneToken})
		if want := map[uint32]codes.Code{0: codes.OK, 1: codes.Internal}; !errors.Is(err, io.EOF) || !maps.Equal(got, want) {
			t.Errorf("a function: %v, %v; want %v", got, err, want)
		}
		text, err := testutil.CollectAndFormat(f.served().grpc, expfmt.TypeTextPlain, "grpc_server_handled_total")
		for _, code := range []string{"OK", "Internal"} {
			if want := `grpc_code="` + code + `",grpc_method="Evaluate",grpc_service="risk.v1.RiskService",grpc_type="unary"} 1`; err != nil || !strings.Contains(string(text), want) {
				t.Errorf("%v; %s is not in %s", err, want, text)
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
