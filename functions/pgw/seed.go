package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/functions/risk"
	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/seeds"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/postgres"
	"pgw/shared/rpc"
)

// maxSeeded is the most rows that one call makes.
const maxSeeded = 10_000_000

type seedCommand struct {
	Apply        applySeeds       `cmd:"" help:"Add the missing rates, rules, accounts and liquidity of seeds/ to a system. May be repeated."`
	Accounts     seedAccounts     `cmd:"" help:"Print accounts with owners, currencies, limits and funds."`
	Transactions seedTransactions `cmd:"" help:"Print payments between the accounts of the same seed number."`
}

type seedFlags struct {
	Count int    `default:"1004" help:"The number of rows."`
	Seed  uint64 `default:"1" help:"The seed number."`
	// EventKeys is a text here: an empty one means unsigned.
	EventKeys string `env:"EVENT_KEYS" help:"ID:BASE64:v2 keys; events are signed by the first."`
}

func (f seedFlags) Validate() error {
	if f.Count < 1 || f.Count > maxSeeded {
		return fmt.Errorf("--count must be between 1 and %d", maxSeeded)
	}
	return nil
}

func (f seedFlags) writeEvents(w io.Writer, events []cloudevents.Event) error {
	var keys event.Keyring
	if f.EventKeys != "" {
		if err := keys.Decode(f.EventKeys); err != nil {
			return fmt.Errorf("EVENT_KEYS: %w", err)
		}
	}
	for _, e := range events {
		if f.EventKeys != "" {
			if err := keys.Sign(&e); err != nil {
				return err
			}
		}
		line, err := e.MarshalJSON()
		if err != nil {
			return err
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return err
		}
	}
	return nil
}

type seedAccounts struct {
	seedFlags
	Format string `enum:"csv,cloudevents" default:"csv" help:"csv, or cloudevents: one JSON event per line."`
}

func (c seedAccounts) Run(ctx context.Context) error {
	out := bufio.NewWriter(os.Stdout)
	accounts := seeds.MakeAccounts(c.Seed, c.Count)
	if c.Format == "csv" {
		if err := seeds.WriteAccounts(out, accounts); err != nil {
			return err
		}
		return out.Flush()
	}
	for i, a := range accounts {
		if ctx.Err() != nil {
			return errors.Join(out.Flush(), interrupted{fmt.Sprintf("after %d of %d accounts", i, len(accounts))})
		}
		events, err := seeds.AccountEvents(a, time.Now())
		if err != nil {
			return err
		}
		if err := c.writeEvents(out, events); err != nil {
			return err
		}
	}
	return out.Flush()
}

type seedTransactions struct {
	seedFlags
	AccountCount int    `name:"accounts" default:"1004" help:"The number of accounts of this seed number that take part."`
	Format       string `enum:"csv,cloudevents" default:"csv" help:"csv, or cloudevents: one JSON event per line."`
}

func (c seedTransactions) Run(ctx context.Context) error {
	if c.AccountCount < 2 || c.AccountCount > maxSeeded {
		return fmt.Errorf("--accounts must be between 2 and %d", maxSeeded)
	}
	txs, err := seeds.MakeTransactions(c.Seed, c.Count, seeds.MakeAccounts(c.Seed, c.AccountCount))
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	if c.Format == "csv" {
		if err := seeds.WriteTransactions(out, txs); err != nil {
			return err
		}
		return out.Flush()
	}
	for i, tx := range txs {
		if ctx.Err() != nil {
			return errors.Join(out.Flush(), interrupted{fmt.Sprintf("after %d of %d transactions", i, len(txs))})
		}
		e, err := tx.Event()
		if err != nil {
			return err
		}
		if err := c.writeEvents(out, []cloudevents.Event{e}); err != nil {
			return err
		}
	}
	return out.Flush()
}

// seededWithin is the time limit for a new system to open its accounts.
const seededWithin = 2 * time.Minute

// newSystem is a system that gets the seeds' rates, rules, accounts and liquidity.
type newSystem struct {
	db, fx, risk, wallet grpc.ClientConnInterface // only applyAll calls wallet
	producer             *kafka.Producer
	topic                string
	keys                 *event.Keyring
}

// applyAll adds the missing rates, rules, accounts and liquidity: rates of currencies that have none,
// rules if none were ever set, accounts that do not exist, liquidity in currencies in which the house
// has never had any. Existing ones stay as operators have set them.
// With reset, the seeds' rates and rules come into force again, and every seeded account gets its
// profile back. No balance changes, because the funds of a seeded account count once.
func (s newSystem) applyAll(ctx context.Context, reset bool) (done seeded, err error) {
	done.Topic = s.topic
	rates, rules, accounts, err := s.missing(ctx, reset)
	if err != nil {
		return done, err
	}
	if len(rates) > 0 {
		if err := seedRates(ctx, s.fx, rates); err != nil {
			return done, fmt.Errorf("rates: %w", err)
		}
		done.Rates = len(rates)
	}
	if rules {
		if err := seedRules(ctx, s.risk); err != nil {
			return done, fmt.Errorf("rules: %w", err)
		}
		done.Rules = true
	}
	at := seeds.Oldest
	if reset {
		at = time.Now()
	}
	if done.Accounts, err = s.publishAccounts(ctx, accounts, at); err != nil {
		return done, err
	}
	done.Liquidity, err = s.seedLiquidity(ctx)
	return done, err
}

// seeded is what a seed has added.
type seeded struct {
	Rates     int    `json:"rates"`
	Rules     bool   `json:"rules"`
	Liquidity int    `json:"liquidity_currencies"`
	Accounts  int    `json:"accounts"` // are on their way through the topic
	Topic     string `json:"topic"`
}

func (s seeded) String() string {
	rules := "the rules stay as they are"
	if s.Rules {
		rules = "rules are in force"
	}
	return fmt.Sprintf("%d rates are in force, %s; the house has got liquidity in %d currencies; %d accounts are on their way through %s",
		s.Rates, rules, s.Liquidity, s.Accounts, s.Topic)
}

// missing returns the seeds that the system lacks, or all of them if reset is set.
func (s newSystem) missing(ctx context.Context, reset bool) (rates []seeds.Rate, rules bool, accounts []seeds.Account, err error) {
	if rates, err = seeds.Rates(); err != nil {
		return nil, false, nil, err
	}
	if accounts, err = seeds.Accounts(); err != nil || reset {
		return rates, true, accounts, err
	}
	if rates, err = s.missingRates(ctx, rates); err != nil {
		return nil, false, nil, fmt.Errorf("rates: %w", err)
	}
	// This is not a payment, but the answer still names the rules in force.
	verdict, err := riskv1.NewRiskServiceClient(s.risk).Evaluate(ctx, &riskv1.ScoreRequest{})
	if err != nil {
		return nil, false, nil, fmt.Errorf("rules: %w", err)
	}
	var absent []seeds.Account
	for _, a := range accounts {
		// An account without funds may be the result of an incomplete publish. Its funds count
		// once, however often they are published.
		got, err := walletv1.NewWalletServiceClient(s.wallet).GetAccount(ctx, &walletv1.GetAccountRequest{AccountId: a.ID})
		if status.Code(err) == codes.NotFound || (err == nil && !funded(a, got)) {
			absent = append(absent, a)
		} else if err != nil {
			return nil, false, nil, fmt.Errorf("accounts: %w", err)
		}
	}
	return rates, verdict.RuleSet == risk.DefaultRuleSet, absent, nil
}

// funded reports whether an account has rupiah, and a balance in each of the seed's other currencies.
func funded(a seeds.Account, got *walletv1.GetAccountResponse) bool {
	missing := func(b money.Amount) bool {
		return !slices.ContainsFunc(got.Balances, func(there *commonv1.Balance) bool { return there.Currency == b.Currency.String() })
	}
	return got.BalanceIdr != 0 && !slices.ContainsFunc(a.Balances, missing)
}

// missingRates leaves out the pairs that have any rate already, even if it goes through the rupiah:
// what such a pair costs is not for seeds to change.
func (s newSystem) missingRates(ctx context.Context, rates []seeds.Rate) (absent []seeds.Rate, err error) {
	priced := map[string]map[string]bool{} // by quote currency
	for _, r := range rates {
		if priced[r.Quote] == nil {
			got, err := fxv1.NewFxServiceClient(s.fx).ListRates(ctx, &fxv1.ListRatesRequest{QuoteCurrency: r.Quote})
			if err != nil {
				return nil, err
			}
			priced[r.Quote] = map[string]bool{}
			for _, there := range got.Rates {
				priced[r.Quote][there.BaseCurrency] = true
			}
		}
		if !priced[r.Quote][r.Base] {
			absent = append(absent, r)
		}
	}
	return absent, nil
}

// applyMissing adds rates, rules or accounts if the ledger has none, and waits until the accounts
// are funded. It adds the liquidity that is missing.
func (s newSystem) applyMissing(ctx context.Context, database string) error {
	conn, err := postgres.Connect(ctx, database, nil)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	there, err := ledger.ReadSeeded(ctx, conn)
	if err != nil {
		return err
	}
	if !there.Rates {
		rates, err := seeds.Rates()
		if err == nil {
			err = seedRates(ctx, s.fx, rates)
		}
		if err != nil {
			return fmt.Errorf("rates: %w", err)
		}
	}
	if !there.Rules {
		if err := seedRules(ctx, s.risk); err != nil {
			return fmt.Errorf("rules: %w", err)
		}
	}
	liquidity, err := seeds.HouseLiquidity()
	if err != nil {
		return err
	}
	if there.Liquidity < len(liquidity) {
		if _, err := s.seedLiquidity(ctx); err != nil {
			return err
		}
	}
	if there.Fundings {
		return nil
	}
	return s.openAccounts(ctx, conn)
}

// openAccounts opens and funds the seeded accounts, and waits until they are funded.
func (s newSystem) openAccounts(ctx context.Context, conn *pgx.Conn) error {
	fmt.Println("first start: opening the accounts of seeds/ …")
	accounts, err := seeds.Accounts()
	if err != nil {
		return err
	}
	before, err := ledger.ReadCounts(ctx, conn)
	if err != nil {
		return err
	}
	if _, err := s.publishAccounts(ctx, accounts, seeds.Oldest); err != nil {
		return err
	}
	want := int64(0)
	for _, a := range accounts {
		if want += int64(len(a.Balances)); a.BalanceIDR != 0 {
			want++
		}
	}
	ctx, cancel := context.WithTimeout(ctx, seededWithin)
	defer cancel()
	return poll(ctx, func() error {
		n, err := ledger.ReadCounts(ctx, conn)
		if n.Fundings -= before.Fundings; err == nil && n.Fundings < want {
			err = fmt.Errorf("%d of %d balances are funded", n.Fundings, want)
		}
		return err
	})
}

// publishAccounts opens and funds the seeded accounts through the topic of a bank's account events.
// It returns how many accounts it has published.
func (s newSystem) publishAccounts(ctx context.Context, accounts []seeds.Account, at time.Time) (published int, err error) {
	for i, a := range accounts {
		events, err := seeds.AccountEvents(a, at)
		if err != nil {
			return i, err
		}
		for _, e := range events {
			if err := (event.Outbox{Keys: s.keys, To: s.producer}).Send(ctx, s.topic, e); err != nil {
				return i, err
			}
		}
	}
	return len(accounts), nil
}

func seedRates(ctx context.Context, fx grpc.ClientConnInterface, rates []seeds.Rate) error {
	in := &fxv1.UpdateRatesRequest{}
	for _, r := range rates {
		in.Rates = append(in.Rates, &fxv1.Rate{BaseCurrency: r.Base, QuoteCurrency: r.Quote, RateDecimal: r.Rate, Bid: r.Bid, Ask: r.Ask})
	}
	got, err := fxv1.NewFxServiceClient(fx).UpdateRates(ctx, in)
	if err == nil && !got.Success {
		err = errors.New(got.Message)
	}
	return err
}

func seedRules(ctx context.Context, conn grpc.ClientConnInterface) error {
	r, err := seeds.RiskRules()
	if err != nil {
		return err
	}
	_, err = riskv1.NewAdminClient(conn).SeedRules(ctx, &riskv1.SeedRulesRequest{
		MaxAmountIdr: &r.MaxAmountIDR, MinAmountIdr: &r.MinAmountIDR, RandomRejectPpm: &r.RandomRejectPPM,
		VelocityPerMin: r.VelocityPerMin, BlockedAccounts: r.BlockedAccounts, BlockedCountries: r.BlockedCountries,
	})
	return err
}

// seedLiquidity gives the house money to exchange in the currencies in which it has never had any. It
// returns the number of these currencies.
func (s newSystem) seedLiquidity(ctx context.Context) (given int, err error) {
	all, err := seeds.HouseLiquidity()
	if err != nil {
		return 0, err
	}
	for _, l := range all {
		got, err := dbv1.NewAdminClient(s.db).SetLiquidity(ctx, &dbv1.SetLiquidityRequest{
			Currency: l.Balance.Currency.String(), AvailableMinor: l.Balance.Minor, PositionLimitMinor: l.PositionLimit, OnlyMissing: true,
		})
		if err != nil {
			return given, fmt.Errorf("liquidity: %w", err)
		}
		if got.Changed {
			given++
		}
	}
	return given, nil
}

type applySeeds struct {
	operatorFlags
	dataFlags
	Reset   bool `xor:"how" help:"Undo operators' changes: restore the seeds' rates, rules and account profiles, also of blocked accounts."`
	Missing bool `xor:"how" help:"Add rates, rules or accounts only if the ledger of DATABASE_URL has none of them, add the missing liquidity, and wait until the accounts are funded."`
}

func (c applySeeds) Validate() error {
	if c.Missing && c.JSON {
		return errors.New("--missing has no data for --json")
	}
	return nil
}

func (c applySeeds) Run(ctx context.Context) error {
	var cfg struct {
		Database databaseConfig
		Keys     event.Keyring `envconfig:"EVENT_KEYS" required:"true"`
		RPC      rpc.Security
		Kafka    kafka.Config
	}
	at, err := c.find(nil)
	if err == nil {
		err = at.Read(&cfg)
	}
	if err != nil {
		return err
	}
	database, err := cfg.Database.ledger()
	if c.Missing && err != nil {
		return fmt.Errorf("--missing: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, seededWithin)
	defer cancel()
	conns, err := dial(at, cfg.RPC, "db", "fx", "risk", "wallet")
	if err != nil {
		return err
	}
	for _, conn := range conns {
		defer conn.Close()
	}
	producer, err := kafka.NewProducer(cfg.Kafka, "seed")
	if err != nil {
		return err
	}
	s := newSystem{
		db: conns["db"], fx: conns["fx"], risk: conns["risk"], wallet: conns["wallet"],
		producer: producer, topic: cfg.Kafka.AccountsTopic, keys: &cfg.Keys,
	}
	if c.Missing {
		return errors.Join(s.applyMissing(ctx, database), producer.Close(ctx))
	}
	done, err := s.applyAll(ctx, c.Reset)
	if err = errors.Join(err, producer.Close(ctx)); stopped(ctx, err) {
		return interrupted{"after this: " + done.String()}
	}
	if err != nil {
		return err
	}
	return c.print(done, func(to io.Writer) error {
		_, err := fmt.Fprintln(to, done)
		return err
	})
}
