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

// Security is how functions know who calls. Between functions a shared token does, or a client's certificate. Admin
// RPCs need an operator's token: functions know its hash alone, and so can't make such calls of their own accord.
// fx, wallet and risk hand the token that they were called with on to db.
type Security struct {
	Mode       string `envconfig:"RPC_AUTH" default:"off" desc:"required: calls need a token or a client's certificate; off: they are shown, and not asked for"`
	Tokens     string `envconfig:"RPC_TOKENS" desc:"tokens between functions, separated by commas: the first is shown, each is taken"`
	TokensFile string `envconfig:"RPC_TOKENS_FILE" desc:"the same in a file, read again when it changes"`
	Admins     string `envconfig:"RPC_ADMIN_HASHES" desc:"SHA-256, in hex, of the tokens that admin RPCs take, separated by commas"`
	AdminsFile string `envconfig:"RPC_ADMIN_HASHES_FILE" desc:"the same in a file, read again when it changes"`
	AdminToken string `envconfig:"RPC_ADMIN_TOKEN" desc:"an operator's own token, for commands that make admin calls"`
	CertFile   string `envconfig:"RPC_TLS_CERT_FILE" desc:"PEM of the certificate that this process shows as server and as client; read again when it changes"`
	KeyFile    string `envconfig:"RPC_TLS_KEY_FILE" desc:"PEM of its key"`
	CAFile     string `envconfig:"RPC_TLS_CA_FILE" desc:"PEM of who signs the certificates of all of them"`
	Reflection bool   `envconfig:"GRPC_REFLECTION" default:"true" desc:"tell callers which RPCs there are"`
}

const (
	minToken = 32
	// separators stand between the entries of a list.
	separators = ", \t\r\n"
)

// Callers is an open Security.
type Callers struct {
	required   bool
	Reflection bool
	tokens     func() []string
	admins     func() [][sha256.Size]byte
	own        func() string          // what is shown; nil: nothing
	identity   *secret.File[identity] // nil: no TLS
}

type identity struct {
	certificate tls.Certificate
	authorities *x509.CertPool
}

// Open reads the configuration.
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
			return nil, errors.New("RPC_ADMIN_TOKEN: is one token, without spaces")
		}
		c.own = func() string { return s.AdminToken }
	case len(c.tokens()) > 0: // and then there is always one: a file that has none is not read again
		c.own = func() string { return c.tokens()[0] }
	}
	if s.CertFile != "" || s.KeyFile != "" || s.CAFile != "" {
		if s.CertFile == "" || s.KeyFile == "" || s.CAFile == "" {
			return nil, errors.New("RPC_TLS_CERT_FILE, RPC_TLS_KEY_FILE and RPC_TLS_CA_FILE go together")
		}
		// A certificate is changed together with its key.
		c.identity, err = secret.Open(s.CertFile, func(cert []byte) (identity, error) { return s.readIdentity(cert) }, log)
		if err != nil {
			return nil, fmt.Errorf("RPC_TLS_CERT_FILE: %w", err)
		}
	}
	switch s.Mode {
	case "off", "":
	case "required":
		c.required = true
		if len(c.tokens()) == 0 && c.identity == nil {
			return nil, errors.New("RPC_AUTH is required, and nobody could call: set RPC_TOKENS, RPC_TOKENS_FILE or RPC_TLS_CERT_FILE")
		}
	default:
		return nil, fmt.Errorf("RPC_AUTH: %q; off or required", s.Mode)
	}
	return c, nil
}

// listOf reads a list of secrets from a variable or a file.
func listOf[T any](name, text, path string, read func(string) (T, error), log *slog.Logger) (func() []T, error) {
	parse := func(text []byte) (all []T, err error) {
		for i, word := range bytes.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(separators, r) }) {
			one, err := read(string(word))
			if err != nil {
				return nil, fmt.Errorf("the entry %d: %w", i+1, err)
			}
			all = append(all, one)
		}
		return all, nil
	}
	if path == "" {
		fixed, err := parse([]byte(text))
		if err == nil && text != "" && len(fixed) == 0 {
			err = errors.New("there is nothing in it")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return func() []T { return fixed }, nil
	}
	if text != "" {
		return nil, fmt.Errorf("%s and %s_FILE: one of them", name, name)
	}
	file, err := secret.Open(path, func(text []byte) ([]T, error) {
		all, err := parse(text)
		if err == nil && len(all) == 0 {
			err = errors.New("there is nothing in it")
		}
		return all, err
	}, log)
	if err != nil {
		return nil, fmt.Errorf("%s_FILE: %w", name, err)
	}
	return file.Get, nil
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
		return hash, errors.New("is no SHA-256 in hex")
	}
	return [sha256.Size]byte(raw), nil
}

func (s Security) readIdentity(cert []byte) (identity, error) {
	key, err := os.ReadFile(s.KeyFile)
	if err != nil {
		return identity{}, fmt.Errorf("RPC_TLS_KEY_FILE: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return identity{}, fmt.Errorf("RPC_TLS_CERT_FILE, RPC_TLS_KEY_FILE: %w", err)
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

// ServerTLS is for the function's port; nil without certificates. One port serves gRPC, which wants the client's
// certificate, and HTTP, which does not: a probe has none, and an event is signed.
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

// Transport lets a client of other functions' HTTP reach those at https URLs. It speaks HTTP/1.1: HTTP/2 may be for
// gRPC alone.
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

// currentTLS shakes hands with the certificates of the moment.
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

// shown is the token of each call: the operator's that this call is made for, or the process's own.
type shown struct{ callers *Callers }

func (s shown) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, _ := ctx.Value(adminKey{}).(string)
	if token == "" && s.callers.own != nil {
		token = s.callers.own()
	}
	if token == "" {
		return nil, nil
	}
	return map[string]string{"authorization": bearer + token}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. On Knative TLS begins and ends at its proxies: the
// functions speak h2c to them.
func (shown) RequireTransportSecurity() bool { return false }

const bearer = "Bearer "

type adminKey struct{}

// openTo are the RPCs that anyone may call.
const openTo = "/grpc.health.v1.Health/"

// isAdmin tells that an RPC is an operator's. UpdateRates is one too, though the contract has it in FxService.
func isAdmin(method string) bool {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return strings.HasSuffix(service, ".Admin") || strings.HasSuffix(service, "AdminService") || method == "/fx.v1.FxService/UpdateRates"
}

// MaxOrdinary bounds a message of an RPC that is not an operator's, in bytes: the largest have a few thousand.
const MaxOrdinary = 64 << 10

// Large tells that an RPC is an operator's, whose message may have up to MaxMessage bytes.
func Large(method string) bool { return isAdmin(method) }

// admitted marks a context whose call has been let in.
type admitted struct{}

// Admit lets a call in by its metadata and its connection. The context that it gives carries an operator's token. It is asked
// when a call's header is there, and again by the interceptors, where nothing has asked it before.
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

// AdmitHTTP is Admit for a call that comes by an HTTP server.
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
