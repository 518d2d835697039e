package rpc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"pgw/shared/secret"
)

// Security configures how functions identify their callers. Between functions they use a shared
// token or a client certificate. Admin RPCs need an operator's token. Functions know only its hash,
// so they cannot make such calls themselves. When fx, wallet and risk are called with an operator's
// token, they pass it on to db.
type Security struct {
	Mode       string `envconfig:"RPC_AUTH" default:"off" desc:"required: calls need a token or a client certificate; off: both are sent, but not required"`
	Tokens     string `envconfig:"RPC_TOKENS" desc:"tokens between functions, separated by commas; the first is sent, each one is accepted"`
	TokensFile string `envconfig:"RPC_TOKENS_FILE" desc:"the same in a file, read again when it changes"`
	Admins     string `envconfig:"RPC_ADMIN_HASHES" desc:"SHA-256, in hex, of the tokens that admin RPCs accept, separated by commas"`
	AdminsFile string `envconfig:"RPC_ADMIN_HASHES_FILE" desc:"the same in a file, read again when it changes"`
	AdminToken string `envconfig:"RPC_ADMIN_TOKEN" desc:"an operator's own token, for commands that make admin calls"`
	CertFile   string `envconfig:"RPC_TLS_CERT_FILE" desc:"PEM of this process's certificate, as server and as client; read again when it changes"`
	KeyFile    string `envconfig:"RPC_TLS_KEY_FILE" desc:"PEM of its key"`
	CAFile     string `envconfig:"RPC_TLS_CA_FILE" desc:"PEM of the authorities that sign the functions' certificates"`
	Reflection bool   `envconfig:"GRPC_REFLECTION" default:"true" desc:"list the RPCs to callers"`
}

const (
	minToken = 32
	// separators are the characters between the entries of a list.
	separators = ", \t\r\n"
)

// Callers is a Security with its secrets read.
type Callers struct {
	required   bool
	Reflection bool
	tokens     func() []string
	admins     func() [][sha256.Size]byte
	own        func() string          // returns the token that this process sends; nil: it sends none
	identity   *secret.File[identity] // nil: no TLS
}

type identity struct {
	certificate tls.Certificate
	authorities *x509.CertPool
}

// Open reads the secrets. Its errors name the variable that is wrong.
func (s Security) Open(log *slog.Logger) (*Callers, error) {
	c := &Callers{Reflection: s.Reflection}
	var err error
	if c.tokens, err = listOf("RPC_TOKENS", s.Tokens, s.TokensFile, readToken, log); err != nil {
		return nil, err
	}
	if c.admins, err = listOf("RPC_ADMIN_HASHES", s.Admins, s.AdminsFile, readHash, log); err != nil {
		return nil, err
	}
	switch {
	case s.AdminToken != "":
		if strings.ContainsAny(s.AdminToken, separators) {
			return nil, errors.New("RPC_ADMIN_TOKEN: must be one token without spaces or commas")
		}
		c.own = func() string { return s.AdminToken }
	case len(c.tokens()) > 0: // there is always one later too, because a file without entries is refused
		c.own = func() string { return c.tokens()[0] }
	}
	if s.CertFile != "" || s.KeyFile != "" || s.CAFile != "" {
		if s.CertFile == "" || s.KeyFile == "" || s.CAFile == "" {
			return nil, errors.New("RPC_TLS_CERT_FILE, RPC_TLS_KEY_FILE and RPC_TLS_CA_FILE must go together")
		}
		c.identity, err = secret.Open(s.CertFile, s.readIdentity, log)
		if err != nil {
			return nil, fmt.Errorf("RPC_TLS_CERT_FILE: %w", err)
		}
	}
	switch s.Mode {
	case "off", "":
	case "required":
		c.required = true
		if len(c.tokens()) == 0 && c.identity == nil {
			return nil, errors.New("RPC_AUTH is required, but nobody could call: set RPC_TOKENS, RPC_TOKENS_FILE or RPC_TLS_CERT_FILE")
		}
	default:
		return nil, fmt.Errorf("RPC_AUTH: is %q; must be off or required", s.Mode)
	}
	return c, nil
}

// listOf reads a list of secrets from a variable or a file.
func listOf[T any](name, text, path string, read func(string) (T, error), log *slog.Logger) (func() []T, error) {
	parse := func(text []byte) (all []T, err error) {
		for i, word := range bytes.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(separators, r) }) {
			one, err := read(string(word))
			if err != nil {
				return nil, fmt.Errorf("entry %d: %w", i+1, err)
			}
			all = append(all, one)
		}
		if len(all) == 0 {
			return nil, errors.New("there is nothing in it")
		}
		return all, nil
	}
	get, err := secret.Variable(name, text, path, parse, log)
	if get == nil {
		get = func() []T { return nil }
	}
	return get, err
}

func readToken(text string) (string, error) {
	if len(text) < minToken {
		return "", fmt.Errorf("is shorter than %d characters", minToken)
	}
	return text, nil
}

func readHash(text string) (hash [sha256.Size]byte, err error) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(hash) {
		return hash, errors.New("is not a SHA-256 in hex")
	}
	return [sha256.Size]byte(raw), nil
}

func (s Security) readIdentity(cert []byte) (identity, error) {
	pair, err := secret.KeyPair(cert, "RPC_TLS_KEY_FILE", s.KeyFile)
	if err != nil {
		return identity{}, err
	}
	authorities, err := os.ReadFile(s.CAFile)
	if err != nil {
		return identity{}, fmt.Errorf("RPC_TLS_CA_FILE: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authorities) {
		return identity{}, fmt.Errorf("RPC_TLS_CA_FILE: %s holds no PEM certificate", s.CAFile)
	}
	return identity{pair, pool}, nil
}

// ServerTLS returns the TLS configuration for the function's port; nil without certificates. One
// port serves gRPC, which needs a client certificate, and HTTP, which does not: a probe has no
// certificate, and an event is signed.
func (c *Callers) ServerTLS() *tls.Config {
	if c == nil || c.identity == nil {
		return nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		id := c.identity.Get()
		return &tls.Config{
			MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
			Certificates: []tls.Certificate{id.certificate}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: id.authorities,
		}, nil
	}}
}

func (c *Callers) clientTLS(server, protocol string) *tls.Config {
	id := c.identity.Get()
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: server, NextProtos: []string{protocol},
		Certificates: []tls.Certificate{id.certificate}, RootCAs: id.authorities,
	}
}

// Transport lets an HTTP client reach other functions at https URLs. It uses HTTP/1.1, because
// HTTP/2 may be reserved for gRPC.
func (c *Callers) Transport(t *http.Transport) *http.Transport {
	if c == nil || c.identity == nil {
		return t
	}
	t.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		return (&tls.Dialer{Config: c.clientTLS(host, "http/1.1")}).DialContext(ctx, network, addr)
	}
	return t
}

// currentTLS uses the current certificates in each handshake.
type currentTLS struct {
	credentials.TransportCredentials
	callers *Callers
}

func (t currentTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(t.callers.clientTLS("", "h2")).ClientHandshake(ctx, authority, conn)
}

func (t currentTLS) Clone() credentials.TransportCredentials {
	return currentTLS{t.TransportCredentials.Clone(), t.callers}
}

// callToken is the token that a call sends. It is the token of the operator who ordered the call,
// or else the process's own.
type callToken struct{ callers *Callers }

func (s callToken) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, _ := ctx.Value(adminKey{}).(string)
	if token == "" && s.callers.own != nil {
		token = s.callers.own()
	}
	if token == "" {
		return nil, nil
	}
	return map[string]string{"authorization": bearer + token}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. On Knative the proxies begin
// and end TLS, and functions use h2c with them.
func (callToken) RequireTransportSecurity() bool { return false }

const bearer = "Bearer "

type adminKey struct{}

// AsOperator makes the calls with the returned context those of the operator with this token. An empty
// token changes nothing.
func AsOperator(ctx context.Context, token string) context.Context {
	return context.WithValue(ctx, adminKey{}, token)
}

// openTo is the prefix of the RPCs that anyone may call.
const openTo = "/grpc.health.v1.Health/"

// isAdmin reports whether an RPC is for operators. UpdateRates is one, although the contract has it
// in FxService.
func isAdmin(method string) bool {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return strings.HasSuffix(service, ".Admin") || strings.HasSuffix(service, "AdminService") || method == "/fx.v1.FxService/UpdateRates"
}

// MaxOrdinary is the largest message, in bytes, of an RPC that is not for operators. In practice
// such messages have at most a few thousand bytes.
const MaxOrdinary = 64 << 10

// Large reports whether an RPC's message may have up to MaxMessage bytes. RPCs for operators may.
func Large(method string) bool { return isAdmin(method) }

// admitted marks the context of a call that Admit has accepted.
type admitted struct{}

// Admit accepts or refuses a call by its metadata and its connection. The returned context carries
// an operator's token. Admit runs when a call's header has arrived. The interceptors run it for
// calls that it has not checked yet. Errors are Unauthenticated and PermissionDenied.
func (c *Callers) Admit(ctx context.Context, method string) (context.Context, error) {
	if c == nil || !c.required || strings.HasPrefix(method, openTo) || ctx.Value(admitted{}) != nil {
		return ctx, nil
	}
	var tlsState *tls.ConnectionState
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			tlsState = &info.State
		}
	}
	return c.check(ctx, method, metadata.ValueFromIncomingContext(ctx, "authorization"), tlsState)
}

// AdmitHTTP is Admit for a call that arrives through an HTTP server.
func (c *Callers) AdmitHTTP(r *http.Request) (context.Context, error) {
	if c == nil || !c.required || strings.HasPrefix(r.URL.Path, openTo) {
		return r.Context(), nil
	}
	return c.check(r.Context(), r.URL.Path, r.Header.Values("Authorization"), r.TLS)
}

func (c *Callers) check(ctx context.Context, method string, authorization []string, by *tls.ConnectionState) (context.Context, error) {
	token := ""
	if len(authorization) == 1 {
		token, _ = strings.CutPrefix(authorization[0], bearer)
	}
	known, admin := 0, 0
	for _, t := range c.tokens() {
		known |= subtle.ConstantTimeCompare([]byte(t), []byte(token))
	}
	sum := sha256.Sum256([]byte(token))
	for _, hash := range c.admins() {
		admin |= subtle.ConstantTimeCompare(hash[:], sum[:])
	}
	if by != nil && len(by.VerifiedChains) > 0 {
		known = 1
	}
	switch {
	case admin == 1:
		ctx = context.WithValue(ctx, adminKey{}, token)
	case known == 0:
		return nil, status.Error(codes.Unauthenticated, "this RPC needs a token in authorization, or a client's certificate")
	case isAdmin(method):
		return nil, status.Error(codes.PermissionDenied, "this RPC needs an operator's token (RPC_ADMIN_TOKEN)")
	}
	return context.WithValue(ctx, admitted{}, true), nil
}

// Unary is Admit as an interceptor.
func (c *Callers) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, err := c.Admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// Stream is Admit as an interceptor.
func (c *Callers) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if _, err := c.Admit(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, stream)
}
