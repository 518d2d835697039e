package main

import (
	"context"
	"encoding/json"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
)

// town answers operators' calls.
type town struct {
	dbv1.UnimplementedAdminServer
	fxv1.UnimplementedFxServiceServer
}

// judges are the town's risk, whose service has the same name as db's.
type judges struct {
	riskv1.UnimplementedAdminServer
}

// last keeps the last request.
type last struct {
	mu      sync.Mutex
	request any
}

func (l *last) set(request any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.request = request
}

func (l *last) get() any {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.request
}

var noon = timestamppb.New(time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC))

var ordered = &dbv1.Change{At: noon, Kind: "account", Subject: "A", Detail: `{"status": "BLOCKED"}`, By: "citra", Note: "fraud"}

func (town) OpenAccount(context.Context, *dbv1.OpenAccountRequest) (*dbv1.OpenAccountResponse, error) {
	return &dbv1.OpenAccountResponse{EventId: "e1", Applied: true}, nil
}

func (town) FundAccount(_ context.Context, in *dbv1.FundAccountRequest) (*dbv1.FundAccountResponse, error) {
	switch in.AccountId {
	case "B":
		return nil, status.Error(codes.NotFound, "there is no account B")
	case "C":
		return nil, status.Error(codes.Unavailable, "the event may be in Kafka")
	}
	return &dbv1.FundAccountResponse{EventId: "e2"}, nil
}

func (town) SetAccountStatus(context.Context, *dbv1.SetAccountStatusRequest) (*dbv1.SetAccountStatusResponse, error) {
	return &dbv1.SetAccountStatusResponse{EventId: "e3", Applied: true}, nil
}

func (town) DescribeAccount(_ context.Context, in *dbv1.DescribeAccountRequest) (*dbv1.DescribeAccountResponse, error) {
	if in.AccountId == "NEW" {
		return nil, status.Error(codes.NotFound, "there is no account NEW")
	}
	return &dbv1.DescribeAccountResponse{
		AccountId: in.AccountId, Owner: "Ayu", Currency: "USD", Status: "BLOCKED", ProfileAt: noon,
		Balances: []*commonv1.Balance{{Currency: "IDR", AvailableMinor: 7000, DailyLimitMinor: 500}, {Currency: "USD", AvailableMinor: 1050, HeldMinor: 25}},
		Entries:  []*dbv1.AccountEntry{{Currency: "USD", Entry: &dbv1.Entry{BookedAt: noon, Kind: "funding", AmountMinor: 1075, BalanceMinor: 1075, TransactionId: "t1"}}},
		Changes:  []*dbv1.Change{ordered},
	}, nil
}

func (town) ListChanges(context.Context, *dbv1.ListChangesRequest) (*dbv1.ListChangesResponse, error) {
	return &dbv1.ListChangesResponse{Changes: []*dbv1.Change{ordered}}, nil
}

func (town) SetLiquidity(context.Context, *dbv1.SetLiquidityRequest) (*dbv1.SetLiquidityResponse, error) {
	return &dbv1.SetLiquidityResponse{Changed: true}, nil
}

func (town) UpdateRates(_ context.Context, in *fxv1.UpdateRatesRequest) (*fxv1.UpdateRatesResponse, error) {
	if in.Rates[0].Bid != "" {
		return &fxv1.UpdateRatesResponse{Message: "rates[0]: bid: 17 is above the rate, 16"}, nil
	}
	return &fxv1.UpdateRatesResponse{Success: true}, nil
}

func (town) ListRates(context.Context, *fxv1.ListRatesRequest) (*fxv1.ListRatesResponse, error) {
	return &fxv1.ListRatesResponse{Rates: []*fxv1.RateInForce{{BaseCurrency: "USD", Rate: "16000", Bid: "15900", Ask: "16100", RateTime: noon, RateId: "r1"}}}, nil
}

func (judges) GetRules(context.Context, *riskv1.GetRulesRequest) (*riskv1.GetRulesResponse, error) {
	return &riskv1.GetRulesResponse{
		RuleSet: "s1", MinAmountIdr: 1000, MaxAmountIdr: 10_000_000, RandomRejectPpm: 20_000, BlockedAccounts: []string{"X", "Y"}, BlockedCountries: []string{"ZZ"},
	}, nil
}

func (judges) SeedRules(context.Context, *riskv1.SeedRulesRequest) (*riskv1.SeedRulesResponse, error) {
	return &riskv1.SeedRulesResponse{Ok: true, RuleSet: "s2"}, nil
}

// Operators' commands call the functions, with who orders it and why, and show what these answer.
func TestOperatorsCommands(t *testing.T) {
	var asked last
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		asked.set(in)
		return next(ctx, in)
	}))
	dbv1.RegisterAdminServer(server, town{})
	fxv1.RegisterFxServiceServer(server, town{})
	riskv1.RegisterAdminServer(server, judges{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	t.Cleanup(server.Stop)
	for _, tc := range []struct {
		args    string
		request string // a part of the last request, as JSON
		stdout  string
	}{
		{"account open A --owner Ayu --currency USD --daily-limit-idr 500 --by ayu --note new --id bank-1",
			`"account_id":"A","owner":"Ayu","currency":"USD","daily_limit_idr":500,"status":"ACTIVE","event_id":"bank-1","by":"ayu","note":"new"`, "account A is open (event e1)\n"},
		{"account open NEW --owner Ayu", `"account_id":"NEW","owner":"Ayu"`, "account NEW is open (event e1)\n"},
		{"account open A --owner Budi --replace", `"account_id":"A","owner":"Budi"`, "account A is open (event e1)\n"},
		{"account fund A 10.50 --currency USD --by budi", `"amount":{"minor":1050,"currency":"USD"},"event_id":"`, "counted before"},
		{"account block A --by citra --note fraud", `"account_id":"A","status":"BLOCKED","by":"citra","note":"fraud"`, "account A is blocked (event e3)\n"},
		{"account unblock A --json", `"status":"ACTIVE"`, `"event_id": "e3"`},
		{"account show A", `"limit":10`, "USD      10.50  0.25         0.00         none"},
		{"account show A --json", "", `"daily_limit": "500"`},
		{"changes --kind account --subject A", `"kind":"account","subject":"A","limit":20`, "citra  fraud"},
		{"rate set USD IDR 16000 --by ayu", `"rates":[{"base_currency":"USD","quote_currency":"IDR","rate_decimal":"16000"}],"by":"ayu"`, "the rate of USD in IDR is 16000\n"},
		{"rate list", `"quote_currency":"IDR"`, "USD/IDR  16000  15900  16100  2026-01-31T12:00:00Z"},
		{"rate list --json", "", `"rate_id": "r1"`},
		{"rules show", `"kind":"rules","subject":"s1","limit":1`, "set at 2026-01-31T12:00:00Z by citra: fraud\n"},
		{"rules show --json", "", `"random_reject_ppm": 20000`},
		{"rules set --random-reject-ppm 0 --block Z --unblock X --by dewi --note demo",
			`"blocked_accounts":["Y","Z"],"blocked_countries":["ZZ"],"min_amount_idr":1000,"random_reject_ppm":0,"max_amount_idr":10000000,"by":"dewi","note":"demo","expected_rule_set":"s1"`,
			"rule set s2 is in force\n"},
		{"liquidity USD 5 --position-limit none --by ayu", `"currency":"USD","available_minor":500,"by":"ayu"`, ""},
	} {
		asked.set(nil)
		c := pgw(t, strings.Fields(tc.args)...)
		c.Env = append(c.Env, "USER=me", "DB_ADDR="+l.Addr().String(), "FX_ADDR="+l.Addr().String(), "RISK_ADDR="+l.Addr().String())
		stdout, stderr, code := outcome(t, c)
		request, err := json.Marshal(asked.get())
		if err != nil || code != 0 || stderr != "" || !strings.Contains(stdout, tc.stdout) || !strings.Contains(string(request), tc.request) {
			t.Errorf("pgw %s: exit code %d, stdout %q, stderr %q, request %s, %v", tc.args, code, stdout, stderr, request, err)
		}
		if strings.Contains(tc.args, "--json") && !json.Valid([]byte(stdout)) {
			t.Errorf("pgw %s: %q is not JSON", tc.args, stdout)
		}
	}
	// What is wrong is named, with its limit, in one line.
	for args, want := range map[string]string{
		"account open A --owner " + strings.Repeat("x", 201):        "owner: is 201 bytes long; at most 200",
		"account open A --owner x":                                  `account: A is open already, and its owner is "Ayu": --replace gives it another profile`,
		"account open SPREAD --owner x":                             "account: SPREAD is the house's own",
		"account open A --owner x --daily-limit-idr=-1":             "--daily-limit-idr must be between 0 and",
		"account open A --owner x --by " + strings.Repeat("x", 201): "by: is 201 bytes long; at most 200",
		"account fund A 5 --currency XYZ":                           "currency: ",
		"account fund A five":                                       "amount: ",
		"account fund A 5.001 --currency USD":                       "amount: ",
		"account fund A 0":                                          "amount: 0; must be more than zero",
		"account fund A 5 --note " + strings.Repeat("x", 501):       "note: is 501 bytes long; at most 500",
		"account fund A 5 --id " + strings.Repeat("x", 300):         "id: is 300 bytes long; at most",
		"account fund B 5":                                          "pgw: there is no account B\n",
		"account fund C 5 --id bank-7":                              "pgw: the event may be in Kafka; it is not known whether this took effect: repeat the command with --id bank-7\n",
		"account fund C 5":                                          "repeat the command with --id ",
		"rate set USD XYZ 5":                                        "quote: ",
		"rate set USD IDR -5":                                       "unknown flag -5",
		"rate set USD IDR 16 --bid 17 --ask 18":                     "bid: 17 is above the rate, 16",
		"rules set":                                                 "name a rule to change",
		"liquidity USD 5 --position-limit none --note " + strings.Repeat("x", 501): "note: is 501 bytes long",
	} {
		c := pgw(t, strings.Fields(args)...)
		c.Env = append(c.Env, "DB_ADDR="+l.Addr().String(), "FX_ADDR="+l.Addr().String(), "RISK_ADDR="+l.Addr().String())
		stdout, stderr, code := outcome(t, c)
		if code == 0 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, want) {
			t.Errorf("pgw %s: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
}

// A function that can't be reached is named, with its address.
func TestAFunctionThatIsNotThereIsNamed(t *testing.T) {
	for args, want := range map[string]string{
		"account show A": "pgw: db can't be reached: ", "rate list": "pgw: fx can't be reached: ", "rules show": "pgw: risk can't be reached: ",
		"account fund A 5": "pgw: db can't be reached: dial tcp 127.0.0.1:1: connect: connection refused\n",
	} {
		c := pgw(t, strings.Fields(args)...)
		c.Env = append(c.Env, "DB_ADDR=127.0.0.1:1", "FX_ADDR=127.0.0.1:1", "RISK_ADDR=127.0.0.1:1")
		stdout, stderr, code := outcome(t, c)
		if code != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, want) || !strings.Contains(stderr, "127.0.0.1:1") {
			t.Errorf("pgw %s: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
}

// A position limit is always given, so that setting a balance does not take the limit away.
func TestLiquidityOfOperators(t *testing.T) {
	got, err := liquidityCommand{Currency: "KWD", Available: "1.5", PositionLimit: "1"}.request()
	if err != nil || got.AvailableMinor != 1500 || got.GetPositionLimitMinor() != 1000 || got.OnlyMissing || got.By == "" {
		t.Errorf("%v, %v", got, err)
	}
	got, err = liquidityCommand{Currency: "JPY", Available: "0", PositionLimit: noLimit}.request()
	if err != nil || got.PositionLimitMinor != nil {
		t.Errorf("%v, %v", got, err)
	}
	bad := []liquidityCommand{
		{Currency: "XYZ", Available: "1", PositionLimit: noLimit}, {Currency: "JPY", Available: "1.5", PositionLimit: noLimit},
		{Currency: "JPY", Available: "1", PositionLimit: "x"},
	}
	if slices.ContainsFunc(bad, func(c liquidityCommand) bool { _, err := c.request(); return err == nil }) {
		t.Errorf("one of %+v makes a request", bad)
	}
}

// Where a blocked account has no change by an operator, that is said.
func TestABlockedAccountSaysWhetherAnOperatorBlockedIt(t *testing.T) {
	const nobody = "no operator has blocked it"
	by := func(kind string) []changeView { return []changeView{{Kind: kind, By: "ayu"}} }
	for _, tc := range []struct {
		a    accountView
		want bool
	}{
		{accountView{Status: "BLOCKED"}, true},
		{accountView{Status: "BLOCKED", Changes: by("funding")}, true},
		{accountView{Status: "BLOCKED", Changes: by("account")}, false},
		{accountView{Status: "ACTIVE"}, false},
	} {
		var out strings.Builder
		if err := tc.a.text(&out); err != nil || strings.Contains(out.String(), nobody) != tc.want {
			t.Errorf("%+v: %s, %v", tc.a, &out, err)
		}
	}
}
