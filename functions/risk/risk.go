// Package risk judges payments before they are published. Its rules are data (rules.go). The same
// payment always gets the same result from the same rules.
package risk

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	"pgw/shared/batch"
	"pgw/shared/function"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// Config of the function.
type Config struct {
	DatabaseURL string          `envconfig:"DATABASE_URL" required:"true" desc:"URL of the ledger's Postgres; risk only reads"`
	Schema      postgres.Schema `envconfig:"LEDGER_SCHEMA" desc:"the ledger's schema, if several ledgers share the database; empty: the usual one"`
	Standby     postgres.Standby
	Secret      string `envconfig:"RISK_SECRET" required:"true" desc:"secret key of the random draw, at least 16 bytes; it must be the same for all replicas and must never change"`
}

// minSecret is the minimum length of the secret, in bytes. A client that guessed the secret could
// choose idempotency keys that pass the random draw.
const minSecret = 16

func checkSecret(secret string) error {
	if n := len(strings.TrimSpace(secret)); n < minSecret {
		return fmt.Errorf("RISK_SECRET: is %d bytes long; must have at least %d", n, minSecret)
	}
	return nil
}

// Risk is the function.
type Risk struct {
	riskv1.UnimplementedRiskServiceServer
	riskv1.UnimplementedAdminServer

	rules  *ledger.Cached[ruleSet]
	starts *batch.Batcher[string, uint32]
	admin  dbv1.AdminClient
	secret []byte
	now    func() time.Time
}

// Function describes risk.
var Function = function.Describe(function.Function{
	Name: "risk", About: "judges payments by rules",
	Port: "19094", Calls: map[string]string{"db": "stores new rules"},
}, build)

func build(cfg Config, on function.Dependencies) (*function.Service, error) {
	if err := checkSecret(cfg.Secret); err != nil {
		return nil, err
	}
	reader, err := ledger.OpenReader(postgres.Config{
		URL: cfg.Schema.In(cfg.DatabaseURL), Name: "risk", Lookups: true, MaxConns: 3, Registerer: on.Registry,
		Outage: postgres.NewOutage(on.Log, on.Now),
	}, cfg.Standby, on.Log)
	if err != nil {
		return nil, err
	}
	r := &Risk{admin: dbv1.NewAdminClient(on.Conns["db"]), secret: []byte(cfg.Secret), now: on.Now}
	r.rules = ledger.NewCached(reader, func(ctx context.Context) (ruleSet, error) { return load(ctx, reader) }, on.Log)
	counts := batch.Config{Max: 256, Lanes: 1, Queue: 4096, Kind: "velocity", Registerer: on.Registry}
	r.starts = batch.New(counts, func(ctx context.Context, ids []string) []batch.Result[uint32] {
		return started(ctx, reader, ids, on.Now())
	})
	return &function.Service{
		GRPC: func(s grpc.ServiceRegistrar) {
			riskv1.RegisterRiskServiceServer(s, r)
			riskv1.RegisterAdminServer(s, r)
		},
		Ready:      r.rules.Ready,
		Background: r.rules.Run,
		Close: func(ctx context.Context) error {
			err := r.starts.Close(ctx)
			reader.Close()
			return err
		},
	}, nil
}

func load(ctx context.Context, from *ledger.Reader) (ruleSet, error) {
	id, text, err := from.Rules(ctx)
	if err != nil {
		return ruleSet{}, err
	}
	if text == nil {
		return newRuleSet(DefaultRuleSet, Defaults), nil
	}
	return parseRules(id, text)
}

// started returns the number of payments that each sender has started in this minute. The ledger
// counts them when it holds the funds.
func started(ctx context.Context, from *ledger.Reader, ids []string, now time.Time) []batch.Result[uint32] {
	results := make([]batch.Result[uint32], len(ids))
	counts, err := from.Started(ctx, ids, now)
	for i, id := range ids {
		results[i] = batch.Result[uint32]{Value: counts[id], Err: err}
	}
	return results
}

// Evaluate implements risk.v1.RiskService.
func (r *Risk) Evaluate(ctx context.Context, in *riskv1.ScoreRequest) (*riskv1.EvaluateResponse, error) {
	rules, err := r.rules.Get(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	reason, err := rules.judge(request{
		sender: in.SenderId, receiver: in.ReceiverId, amountIDR: in.AmountIdr, currency: in.CurrencyInput,
		txDate: in.TxDateIso, key: in.IdempotencyKey,
	}, r.secret, func() (uint32, error) { return r.starts.Do(ctx, in.SenderId) })
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &riskv1.EvaluateResponse{Allow: reason == "", Reason: reason, RuleSet: rules.id}, nil
}

// SeedRules implements risk.v1.Admin.
func (r *Risk) SeedRules(ctx context.Context, in *riskv1.SeedRulesRequest) (*riskv1.SeedRulesResponse, error) {
	// Fields that are not set keep their value from the newest rules. The cached rules may be a
	// second old, so read them again.
	if err := r.rules.Refresh(ctx); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	current, err := r.rules.Get(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	rules := merged(current.Rules, payment.Rules{
		MaxAmountIDR: int64(in.MaxAmount), VelocityPerMin: in.VelocityPerMin,
		BlockedAccounts: in.BlockedAccounts, BlockedCountries: in.BlockedCountries,
	}, in.MinAmountIdr, in.RandomRejectPpm)
	if in.MaxAmountIdr != nil {
		rules.MaxAmountIDR = *in.MaxAmountIdr
	}
	if err := rules.Validate(); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	text, err := json.Marshal(rules)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	got, err := r.admin.PutRules(ctx, &dbv1.PutRulesRequest{Rules: text, By: in.By, Note: in.Note, ExpectedRuleSet: in.ExpectedRuleSet})
	if err != nil {
		return nil, err
	}
	// This replica reads the new rules at once. If that fails, the next refresh follows within a
	// second.
	_ = r.rules.Refresh(ctx)
	return &riskv1.SeedRulesResponse{Ok: true, RuleSet: got.RuleSet}, nil
}

// GetRules implements risk.v1.Admin.
func (r *Risk) GetRules(ctx context.Context, _ *riskv1.GetRulesRequest) (*riskv1.GetRulesResponse, error) {
	// The cached rules may be a second old, and an operator may have just set others.
	if err := r.rules.Refresh(ctx); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	rules, err := r.rules.Get(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &riskv1.GetRulesResponse{
		RuleSet: rules.id, MinAmountIdr: rules.MinAmountIDR, MaxAmountIdr: rules.MaxAmountIDR, VelocityPerMin: rules.VelocityPerMin,
		RandomRejectPpm: rules.RandomRejectPPM, BlockedAccounts: rules.BlockedAccounts, BlockedCountries: rules.BlockedCountries,
	}, nil
}
