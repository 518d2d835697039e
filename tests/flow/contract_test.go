package flow

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// earlier is the interface of clients that were built before this code: their messages, field by
// field. It must never change. Later additions are not part of it.
var earlier = map[string]string{
	"common.v1.Money":                     "amount_minor=1 int64, currency=2 common.v1.Currency",
	"fx.v1.Rate":                          "base_currency=1 string, quote_currency=2 string, rate=3 double",
	"fx.v1.UpdateRatesRequest":            "rates=1 repeated fx.v1.Rate",
	"fx.v1.UpdateRatesResponse":           "success=1 bool, message=2 string",
	"fx.v1.ConvertRequest":                "from_currency=1 string, to_currency=2 string, amount=3 double",
	"fx.v1.ConvertResponse":               "amount=1 double",
	"fx.v1.RefreshRandomRatesRequest":     "",
	"fx.v1.RefreshRandomRatesResponse":    "success=1 bool, message=2 string, pushed=3 repeated fx.v1.Rate",
	"wallet.v1.GetRandomAccountsRequest":  "count=1 uint32",
	"wallet.v1.GetRandomAccountsResponse": "account_ids=1 repeated string",
	"wallet.v1.GetAccountRequest":         "account_id=1 string",
	"wallet.v1.GetAccountResponse":        "account_id=1 string, balance_idr=2 int64, currency=3 common.v1.Currency",
	"wallet.v1.GetBalanceRequest":         "account_id=1 string",
	"wallet.v1.GetBalanceResponse":        "balance_minor=1 int64, currency=2 common.v1.Currency",
	"wallet.v1.ReserveRequest":            "payment_id=1 string, account_id=2 string, amount_minor=3 int64, currency=4 common.v1.Currency",
	"wallet.v1.ReserveResponse":           "ok=1 bool, reservation_id=2 string, reason=3 string",
	"wallet.v1.CaptureRequest":            "reservation_id=1 string",
	"wallet.v1.CaptureResponse":           "ok=1 bool, reason=2 string",
	"wallet.v1.AccountSeed":               "account_id=1 string, owner=2 string, currency=3 string, balance=4 double, daily_limit=5 double, status=6 string",
	"wallet.v1.SeedAccountsRequest":       "accounts=1 repeated wallet.v1.AccountSeed",
	"wallet.v1.SeedAccountsResponse":      "upserted=1 uint32",
	"risk.v1.ScoreRequest":                "sender_id=1 string, receiver_id=2 string, amount_idr=3 int64, currency_input=4 string, tx_date_iso=5 string",
	"risk.v1.EvaluateResponse":            "allow=1 bool, reason=2 string",
	"risk.v1.SeedRulesRequest":            "max_amount=1 uint32, velocity_per_min=2 uint32, blocked_accounts=3 repeated string, blocked_countries=4 repeated string",
	"risk.v1.SeedRulesResponse":           "ok=1 bool",
	"payments.v1.CreatePaymentRequest":    "amount_minor=1 int64, currency=2 common.v1.Currency, source_account=3 string, destination_account=4 string, client_tx_id=5 string",
	"payments.v1.CreatePaymentResponse":   "payment_id=1 string, status=2 string",
	"payments.v1.LogAndSettleRequest":     "idempotency_key=1 string, sender_id=2 string, receiver_id=3 string, amount_idr=4 int64, currency=5 string, tx_date=6 string",
	"payments.v1.LogAndSettleResponse":    "status=1 string, message=2 string, reservation_id=3 string",
	"db.v1.CheckBalanceRequest":           "account_id=1 string, amount_idr=2 int64",
	"db.v1.CheckBalanceResponse":          "sufficient=1 bool, current_balance=2 int64",
	"db.v1.ReserveFundsRequest":           "idempotency_key=1 string, sender_id=2 string, receiver_id=3 string, amount_idr=4 int64, currency_input=5 string",
	"db.v1.ReserveFundsResponse":          "status=1 int32, reservation_id=2 string, current_balance=3 int64, message=4 string",
	"db.v1.CommitReservationRequest":      "reservation_id=1 string, idempotency_key=2 string",
	"db.v1.CommitReservationResponse":     "status=1 db.v1.TxStatus, message=2 string",
	"db.v1.RollbackReservationRequest":    "reservation_id=1 string, reason=2 string",
	"db.v1.RollbackReservationResponse":   "status=1 db.v1.TxStatus, message=2 string",
	"db.v1.GetRandomAccountsRequest":      "",
	"db.v1.GetRandomAccountsResponse":     "sender_id=1 string, receiver_id=2 string",
}

var earlierEnums = map[string]string{
	"common.v1.Currency": "CURRENCY_UNSPECIFIED=0 USD=1 IDR=2 SGD=3",
	"db.v1.TxStatus":     "TX_STATUS_UNSPECIFIED=0 OK=1 DUPLICATE=2 INSUFFICIENT=3 NOT_FOUND=4 BAD_STATUS=5",
}

// earlierRPCs by service: method(Request) Response, in the service's package.
var earlierRPCs = map[string]string{
	"fx.v1.FxService":             "UpdateRates(UpdateRatesRequest)UpdateRatesResponse Convert(ConvertRequest)ConvertResponse",
	"fx.v1.FxAdminService":        "RefreshRandomRates(RefreshRandomRatesRequest)RefreshRandomRatesResponse",
	"wallet.v1.WalletService":     "GetRandomAccounts(GetRandomAccountsRequest)GetRandomAccountsResponse GetAccount(GetAccountRequest)GetAccountResponse GetBalance(GetBalanceRequest)GetBalanceResponse Reserve(ReserveRequest)ReserveResponse Capture(CaptureRequest)CaptureResponse",
	"wallet.v1.Admin":             "SeedAccounts(SeedAccountsRequest)SeedAccountsResponse",
	"risk.v1.RiskService":         "Evaluate(ScoreRequest)EvaluateResponse",
	"risk.v1.Admin":               "SeedRules(SeedRulesRequest)SeedRulesResponse",
	"payments.v1.PaymentsService": "CreatePayment(CreatePaymentRequest)CreatePaymentResponse LogAndSettle(LogAndSettleRequest)LogAndSettleResponse",
	"db.v1.Db":                    "CheckBalance(CheckBalanceRequest)CheckBalanceResponse ReserveFunds(ReserveFundsRequest)ReserveFundsResponse CommitReservation(CommitReservationRequest)CommitReservationResponse RollbackReservation(RollbackReservationRequest)RollbackReservationResponse GetRandomAccounts(GetRandomAccountsRequest)GetRandomAccountsResponse",
}

// earlierMessages builds the message types of a client that knows only the interface above. It uses
// no generated code of this project.
func earlierMessages(t *testing.T) map[string]protoreflect.MessageDescriptor {
	t.Helper()
	files := map[string]*descriptorpb.FileDescriptorProto{}
	file := func(name string) (*descriptorpb.FileDescriptorProto, string) {
		i := strings.LastIndexByte(name, '.')
		pkg := name[:i]
		if files[pkg] == nil {
			files[pkg] = &descriptorpb.FileDescriptorProto{Name: proto.String(pkg), Package: proto.String(pkg), Syntax: proto.String("proto3")}
			if pkg != "common.v1" {
				files[pkg].Dependency = []string{"common.v1"}
			}
		}
		return files[pkg], name[i+1:]
	}
	for name, values := range earlierEnums {
		f, short := file(name)
		e := &descriptorpb.EnumDescriptorProto{Name: &short}
		for _, value := range strings.Fields(values) {
			label, number, _ := strings.Cut(value, "=")
			n, _ := strconv.Atoi(number)
			e.Value = append(e.Value, &descriptorpb.EnumValueDescriptorProto{Name: &label, Number: proto.Int32(int32(n))})
		}
		f.EnumType = append(f.EnumType, e)
	}
	kinds := map[string]descriptorpb.FieldDescriptorProto_Type{
		"string": descriptorpb.FieldDescriptorProto_TYPE_STRING, "int64": descriptorpb.FieldDescriptorProto_TYPE_INT64,
		"int32": descriptorpb.FieldDescriptorProto_TYPE_INT32, "uint32": descriptorpb.FieldDescriptorProto_TYPE_UINT32,
		"double": descriptorpb.FieldDescriptorProto_TYPE_DOUBLE, "bool": descriptorpb.FieldDescriptorProto_TYPE_BOOL,
	}
	line := regexp.MustCompile(`^(\w+)=(\d+) (repeated )?([\w.]+)$`)
	for name, fields := range earlier {
		f, short := file(name)
		m := &descriptorpb.DescriptorProto{Name: &short}
		for _, text := range strings.Split(fields, ", ") {
			if text == "" {
				continue
			}
			part := line.FindStringSubmatch(text)
			number, _ := strconv.Atoi(part[2])
			field := &descriptorpb.FieldDescriptorProto{Name: &part[1], Number: proto.Int32(int32(number)), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()}
			if part[3] != "" {
				field.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
			}
			if kind, ok := kinds[part[4]]; ok {
				field.Type = kind.Enum()
			} else {
				field.TypeName = proto.String("." + part[4])
				field.Type = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum()
				if _, isEnum := earlierEnums[part[4]]; isEnum {
					field.Type = descriptorpb.FieldDescriptorProto_TYPE_ENUM.Enum()
				}
			}
			m.Field = append(m.Field, field)
		}
		f.MessageType = append(f.MessageType, m)
	}
	registry := &protoregistry.Files{}
	messages := map[string]protoreflect.MessageDescriptor{}
	for _, pkg := range []string{"common.v1", "fx.v1", "wallet.v1", "risk.v1", "payments.v1", "db.v1"} {
		built, err := protodesc.NewFile(files[pkg], registry)
		if err != nil {
			t.Fatal(err)
		}
		if err := registry.RegisterFile(built); err != nil {
			t.Fatal(err)
		}
		for i := range built.Messages().Len() {
			messages[string(built.Messages().Get(i).FullName())] = built.Messages().Get(i)
		}
	}
	return messages
}

// Today's messages still have every field of the earlier ones, with the same number, type and
// cardinality.
func TestTheWireContractStands(t *testing.T) {
	for name, then := range earlierMessages(t) {
		found, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
		if err != nil {
			t.Errorf("%s is gone: %v", name, err)
			continue
		}
		now := found.Descriptor().Fields()
		for i := range then.Fields().Len() {
			want := then.Fields().Get(i)
			got := now.ByNumber(want.Number())
			if got == nil || got.Name() != want.Name() || got.Kind() != want.Kind() || got.Cardinality() != want.Cardinality() {
				t.Errorf("%s.%s=%d is now %v", name, want.Name(), want.Number(), got)
			}
		}
	}
	for name, values := range earlierEnums {
		found, err := protoregistry.GlobalTypes.FindEnumByName(protoreflect.FullName(name))
		if err != nil {
			t.Errorf("%s is gone: %v", name, err)
			continue
		}
		for _, value := range strings.Fields(values) {
			label, number, _ := strings.Cut(value, "=")
			if got := found.Descriptor().Values().ByName(protoreflect.Name(label)); got == nil || fmt.Sprint(got.Number()) != number {
				t.Errorf("%s.%s is now %v", name, value, got)
			}
		}
	}
	for name, rpcs := range earlierRPCs {
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			t.Errorf("%s is gone: %v", name, err)
			continue
		}
		for _, rpc := range strings.Fields(rpcs) {
			method, rest, _ := strings.Cut(rpc, "(")
			in, out, _ := strings.Cut(rest, ")")
			got := found.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
			if got == nil || string(got.Input().Name()) != in || string(got.Output().Name()) != out || got.IsStreamingClient() || got.IsStreamingServer() {
				t.Errorf("%s.%s is now %v", name, rpc, got)
			}
		}
	}
}

// earlierClient calls over the network with only the earlier messages.
type earlierClient struct {
	s        *system
	messages map[string]protoreflect.MessageDescriptor
	conns    map[string]*grpc.ClientConn
	called   map[string]bool
}

func newEarlierClient(s *system, t *testing.T) *earlierClient {
	c := &earlierClient{s: s, messages: earlierMessages(t), conns: map[string]*grpc.ClientConn{}, called: map[string]bool{}}
	for _, name := range []string{"fx", "wallet", "risk", "payments", "db"} {
		conn, err := grpc.NewClient(s.Addr(name), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		c.conns[name] = conn
	}
	return c
}

// call returns the answer as JSON with the contract's names.
func (c *earlierClient) call(service, method, request string) (map[string]any, error) {
	c.s.t.Helper()
	pkg := service[:strings.LastIndexByte(service, '.')]
	for _, rpc := range strings.Fields(earlierRPCs[service]) {
		name, rest, _ := strings.Cut(rpc, "(")
		in, out, _ := strings.Cut(rest, ")")
		if name != method {
			continue
		}
		c.called[service+"/"+method] = true
		req, resp := dynamicpb.NewMessage(c.messages[pkg+"."+in]), dynamicpb.NewMessage(c.messages[pkg+"."+out])
		if err := protojson.Unmarshal([]byte(request), req); err != nil {
			c.s.t.Fatal(err)
		}
		function, _, _ := strings.Cut(pkg, ".")
		if err := c.conns[function].Invoke(context.Background(), "/"+service+"/"+method, req, resp); err != nil {
			return nil, err
		}
		fields := map[string]any{}
		for i := range resp.Descriptor().Fields().Len() {
			fd := resp.Descriptor().Fields().Get(i)
			switch v := resp.Get(fd); {
			case fd.IsList():
				fields[string(fd.Name())] = v.List().Len()
			case fd.Kind() == protoreflect.EnumKind:
				fields[string(fd.Name())] = string(fd.Enum().Values().ByNumber(v.Enum()).Name())
			default:
				fields[string(fd.Name())] = v.Interface()
			}
		}
		return fields, nil
	}
	c.s.t.Fatalf("the contract has no %s/%s", service, method)
	return nil, nil
}

func TestAnEarlierClientGetsRightAnswers(t *testing.T) {
	s := start(t, options{})
	s.open(1500, "POOR")
	c := newEarlierClient(s, t)
	must := func(service, method, request string, want map[string]any) map[string]any {
		t.Helper()
		got, err := c.call(service, method, request)
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		for name, value := range want {
			if fmt.Sprint(got[name]) != fmt.Sprint(value) {
				t.Errorf("%s(%s): %s is %v, want %v (%v)", method, request, name, got[name], value, got)
			}
		}
		return got
	}
	type m = map[string]any

	must("fx.v1.FxService", "Convert", `{"from_currency":"USD","to_currency":"IDR","amount":10.5}`, m{"amount": 162750.0})
	must("fx.v1.FxService", "Convert", `{"from_currency":"IDR","to_currency":"USD","amount":155000}`, m{"amount": 10.0})
	must("fx.v1.FxService", "Convert", `{"from_currency":"USD","to_currency":"SGD","amount":100}`, m{"amount": 133.62})
	must("fx.v1.FxService", "UpdateRates", `{"rates":[{"base_currency":"EUR","quote_currency":"IDR","rate":16850.5}]}`, m{"success": true})
	must("fx.v1.FxService", "Convert", `{"from_currency":"EUR","to_currency":"IDR","amount":2}`, m{"amount": 33701.0})
	must("fx.v1.FxService", "UpdateRates", `{"rates":[{"base_currency":"EUR","quote_currency":"IDR","rate":-1}]}`, m{"success": false})
	if _, err := c.call("fx.v1.FxService", "Convert", `{"from_currency":"SEK","to_currency":"IDR","amount":2}`); status.Code(err) != codes.NotFound {
		t.Errorf("no rate: %v", err)
	}
	must("fx.v1.FxAdminService", "RefreshRandomRates", `{}`, m{"success": true, "pushed": 5})

	must("wallet.v1.WalletService", "GetAccount", `{"account_id":"POOR"}`, m{"account_id": "POOR", "balance_idr": 1500, "currency": "IDR"})
	must("wallet.v1.WalletService", "GetBalance", `{"account_id":"POOR"}`, m{"balance_minor": 1500, "currency": "IDR"})
	must("wallet.v1.WalletService", "GetRandomAccounts", `{}`, m{"account_ids": 2})
	must("wallet.v1.WalletService", "GetRandomAccounts", `{"count":3}`, m{"account_ids": 3})
	must("wallet.v1.Admin", "SeedAccounts", `{"accounts":[{"account_id":"D","owner":"D","currency":"USD","balance":500000,"daily_limit":0,"status":"ACTIVE"}]}`, m{"upserted": 1})
	must("wallet.v1.WalletService", "GetAccount", `{"account_id":"D"}`, m{"balance_idr": 500000, "currency": "USD"})
	held := must("wallet.v1.WalletService", "Reserve", `{"payment_id":"w1","account_id":"D","amount_minor":200000,"currency":"IDR"}`, m{"ok": true})
	must("wallet.v1.WalletService", "Reserve", `{"payment_id":"w1","account_id":"D","amount_minor":200000,"currency":"IDR"}`, m{"ok": true, "reservation_id": held["reservation_id"]})
	must("wallet.v1.WalletService", "Reserve", `{"payment_id":"w2","account_id":"D","amount_minor":300001,"currency":"IDR"}`, m{"ok": false, "reason": "insufficient_funds"})
	must("wallet.v1.WalletService", "Capture", fmt.Sprintf(`{"reservation_id":%q}`, held["reservation_id"]), m{"ok": true})
	must("wallet.v1.WalletService", "Capture", fmt.Sprintf(`{"reservation_id":%q}`, held["reservation_id"]), m{"ok": true})
	must("wallet.v1.WalletService", "GetBalance", `{"account_id":"D"}`, m{"balance_minor": 300000})
	must("wallet.v1.WalletService", "GetBalance", `{"account_id":"SETTLEMENT"}`, m{"balance_minor": 200000})

	score := `{"sender_id":%q,"receiver_id":%q,"amount_idr":%d,"currency_input":"USD","tx_date_iso":"2026-01-31T09:30:00Z"}`
	must("risk.v1.RiskService", "Evaluate", fmt.Sprintf(score, "A", "B", 5000), m{"allow": true, "reason": ""})
	must("risk.v1.RiskService", "Evaluate", fmt.Sprintf(score, "A", "A", 5000), m{"allow": false, "reason": "same_party"})
	must("risk.v1.RiskService", "Evaluate", fmt.Sprintf(score, "", "B", 5000), m{"allow": false, "reason": "bad_input"})
	must("risk.v1.RiskService", "Evaluate", fmt.Sprintf(score, "A", "B", 1), m{"allow": false, "reason": "below_min"})
	must("risk.v1.Admin", "SeedRules", `{"max_amount":6000,"blocked_accounts":["D"]}`, m{"ok": true})
	must("risk.v1.RiskService", "Evaluate", fmt.Sprintf(score, "A", "B", 6001), m{"allow": false, "reason": "above_max"})
	must("risk.v1.RiskService", "Evaluate", fmt.Sprintf(score, "D", "B", 5000), m{"allow": false, "reason": "blocked_account"})

	settle := `{"idempotency_key":%q,"sender_id":"A","receiver_id":"B","amount_idr":%d,"currency":"USD","tx_date":"2026-01-31T09:30:00Z"}`
	first := must("payments.v1.PaymentsService", "LogAndSettle", fmt.Sprintf(settle, "g1", 155000), m{"status": "SUCCESS", "message": "committed"})
	must("payments.v1.PaymentsService", "LogAndSettle", fmt.Sprintf(settle, "g1", 155000), m{"status": "SUCCESS_REPLAY", "message": "duplicate_idempo", "reservation_id": first["reservation_id"]})
	must("payments.v1.PaymentsService", "LogAndSettle", fmt.Sprintf(settle, "g1", 155001), m{"status": "FAILED", "message": "idempotency_mismatch"})
	created := must("payments.v1.PaymentsService", "CreatePayment", `{"amount_minor":1000,"currency":"SGD","source_account":"A","destination_account":"B","client_tx_id":"c1"}`, m{"status": "SUCCESS"})
	must("payments.v1.PaymentsService", "CreatePayment", `{"amount_minor":1000,"currency":"SGD","source_account":"A","destination_account":"B","client_tx_id":"c1"}`, m{"status": "SUCCESS_REPLAY", "payment_id": created["payment_id"]})

	must("db.v1.Db", "CheckBalance", `{"account_id":"POOR","amount_idr":1500}`, m{"sufficient": true, "current_balance": 1500})
	must("db.v1.Db", "CheckBalance", `{"account_id":"POOR","amount_idr":1501}`, m{"sufficient": false})
	reserve := `{"idempotency_key":%q,"sender_id":%q,"receiver_id":"B","amount_idr":%d,"currency_input":"IDR"}`
	one := must("db.v1.Db", "ReserveFunds", fmt.Sprintf(reserve, "d1", "POOR", 1000), m{"status": 1, "current_balance": 500})
	must("db.v1.Db", "ReserveFunds", fmt.Sprintf(reserve, "d1", "POOR", 1000), m{"status": 2, "reservation_id": one["reservation_id"]})
	must("db.v1.Db", "ReserveFunds", fmt.Sprintf(reserve, "d2", "POOR", 1000), m{"status": 3})
	must("db.v1.Db", "ReserveFunds", fmt.Sprintf(reserve, "d3", "NOBODY", 1000), m{"status": 4})
	must("db.v1.Db", "ReserveFunds", fmt.Sprintf(reserve, "d1", "POOR", 999), m{"status": 5, "message": "idempotency_mismatch"})
	commit := fmt.Sprintf(`{"reservation_id":%q,"idempotency_key":"d1"}`, one["reservation_id"])
	must("db.v1.Db", "CommitReservation", commit, m{"status": "OK"})
	must("db.v1.Db", "CommitReservation", commit, m{"status": "DUPLICATE"})
	must("db.v1.Db", "CommitReservation", `{"reservation_id":"00000000-0000-7000-8000-000000000000","idempotency_key":"d1"}`, m{"status": "NOT_FOUND"})
	must("db.v1.Db", "RollbackReservation", fmt.Sprintf(`{"reservation_id":%q,"reason":"late"}`, one["reservation_id"]), m{"status": "BAD_STATUS"})
	two := must("db.v1.Db", "ReserveFunds", fmt.Sprintf(reserve, "d4", "POOR", 500), m{"status": 1})
	must("db.v1.Db", "RollbackReservation", fmt.Sprintf(`{"reservation_id":%q,"reason":"the customer left"}`, two["reservation_id"]), m{"status": "OK"})
	must("db.v1.Db", "RollbackReservation", fmt.Sprintf(`{"reservation_id":%q,"reason":"the customer left"}`, two["reservation_id"]), m{"status": "DUPLICATE"})
	must("db.v1.Db", "CommitReservation", fmt.Sprintf(`{"reservation_id":%q}`, two["reservation_id"]), m{"status": "BAD_STATUS"})
	if got := must("db.v1.Db", "GetRandomAccounts", `{}`, nil); got["sender_id"] == "" || got["sender_id"] == got["receiver_id"] {
		t.Errorf("random accounts: %v", got)
	}

	for service, rpcs := range earlierRPCs {
		for _, rpc := range strings.Fields(rpcs) {
			name, _, _ := strings.Cut(rpc, "(")
			if !c.called[service+"/"+name] {
				t.Errorf("%s/%s was not tried", service, name)
			}
		}
	}
}

func TestHealthAndReflection(t *testing.T) {
	s := start(t, options{})
	for name, conn := range newEarlierClient(s, t).conns {
		got, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil || got.Status != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil || !strings.Contains(answer.String(), name+".v1.") {
			t.Errorf("%s: %v, %v", name, answer, err)
		}
		stream.CloseSend()
	}
}
