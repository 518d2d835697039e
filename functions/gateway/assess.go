package gateway

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// verdict is the combined result of fx, wallet and risk. The zero verdict approves the payment.
type verdict struct {
	reason  payment.Reason
	message string
	kind    verdictKind
}

// verdictKind says what the gateway does before it sends the refusal to the client.
type verdictKind int

const (
	// notAsked: a function could not be reached. Nothing is known about the payment.
	notAsked verdictKind = iota
	// unpriced: fx has no price for the payment. The payment is not recorded.
	unpriced
	// refused: wallet or risk refuses the payment, or its quote does not fit. The ledger records the refusal first.
	refused
)

// assess prices the payment and checks it with wallet and risk. It reads the accounts while it asks
// fx and risk. If several of them refuse, the refusal of fx counts first, then wallet's, then
// risk's.
func (g *Gateway) assess(ctx context.Context, p payment.Payment, took *stages) (payment.Payment, verdict) {
	begun := time.Now()
	accounts := make(chan parties, 1)
	go func(sender, receiver string) { accounts <- g.readAccounts(ctx, sender, receiver, false) }(p.Sender, p.Receiver)

	p, no := g.price(ctx, p)
	g.stage(took, "fx", time.Since(begun))
	if no.reason != "" {
		return p, no
	}
	asked := time.Now()
	ruleSet, riskNo := g.judge(ctx, p)
	riskTook := time.Since(asked)
	p.RuleSet = ruleSet

	read := <-accounts
	g.stage(took, "wallet", read.took)
	if reason, _, _ := read.refuses(p); reason != "" && read.behind() {
		// A standby may not have the money that has just come. Only the primary refuses.
		read = g.readAccounts(ctx, p.Sender, p.Receiver, true)
	}
	no = g.checkAccounts(ctx, read, p)
	g.stage(took, "risk", riskTook)
	if no.reason == "" {
		no = riskNo
	}
	return p, no
}

type parties struct {
	sender, receiver       *walletv1.GetAccountResponse
	senderErr, receiverErr error
	took                   time.Duration
}

// behind reports whether a standby has answered.
func (p parties) behind() bool { return p.sender.GetBehind() || p.receiver.GetBehind() }

func (g *Gateway) readAccounts(ctx context.Context, sender, receiver string, current bool) parties {
	begun := time.Now()
	p, read := g.readTogether(ctx, sender, receiver, current)
	if !read {
		p = g.readSingly(ctx, sender, receiver, current)
	}
	p.took = time.Since(begun)
	return p
}

// readTogether reads both accounts by one call. read is false if wallet is of a release that can't do that.
func (g *Gateway) readTogether(ctx context.Context, sender, receiver string, current bool) (p parties, read bool) {
	if g.lacking.Known() {
		return p, false
	}
	got, err := g.wallet.GetAccounts(ctx, &walletv1.GetAccountsRequest{AccountIds: []string{sender, receiver}, Current: current})
	switch {
	case g.lacking.Note(err):
		return p, false
	case err == nil && len(got.Accounts) != 2:
		err = fmt.Errorf("wallet returned %d accounts, not 2", len(got.Accounts))
	}
	if err != nil {
		return parties{senderErr: err, receiverErr: err}, true
	}
	known := func(a *walletv1.GetAccountResponse) error {
		if a.GetAccountId() == "" {
			return status.Error(codes.NotFound, "there is no such account")
		}
		return nil
	}
	p.sender, p.receiver = got.Accounts[0], got.Accounts[1]
	p.senderErr, p.receiverErr = known(p.sender), known(p.receiver)
	return p, true
}

func (g *Gateway) readSingly(ctx context.Context, sender, receiver string, current bool) (p parties) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.receiver, p.receiverErr = g.wallet.GetAccount(ctx, &walletv1.GetAccountRequest{AccountId: receiver, Current: current})
	}()
	p.sender, p.senderErr = g.wallet.GetAccount(ctx, &walletv1.GetAccountRequest{AccountId: sender, Current: current})
	<-done
	return p
}

func (g *Gateway) checkAccounts(ctx context.Context, read parties, p payment.Payment) verdict {
	reason, message, err := read.refuses(p)
	switch {
	case err != nil:
		return g.unreachable(ctx, g.metrics.wallet, payment.WalletUnavailable, err)
	case reason != "":
		g.metrics.wallet.WithLabelValues(string(reason)).Inc()
		return verdict{reason, message, refused}
	}
	g.metrics.wallet.WithLabelValues("ok").Inc()
	return verdict{}
}

// refuses returns why the accounts can't make a payment; "" if they can. An error means that they could not
// be read.
func (read parties) refuses(p payment.Payment) (_ payment.Reason, message string, _ error) {
	for _, side := range []struct {
		err     error
		account *walletv1.GetAccountResponse
		unknown payment.Reason
		blocked payment.Reason
	}{
		{read.senderErr, read.sender, payment.UnknownSender, payment.SenderBlocked},
		{read.receiverErr, read.receiver, payment.UnknownReceiver, payment.ReceiverBlocked},
	} {
		switch {
		case status.Code(side.err) == codes.NotFound:
			return side.unknown, "there is no such account", nil
		case side.err != nil:
			return "", "", side.err
		case payment.AccountStatus(side.account.Status) == payment.Blocked:
			return side.blocked, "the account is blocked", nil
		}
	}
	debit := p.Debit()
	switch has, known := balanceIn(read.sender, debit.Currency); {
	case !known:
		// The ledger judges the balance all the same.
	case has.AvailableMinor < debit.Minor:
		return payment.InsufficientFunds, fmt.Sprintf("the payment is %s %s; the sender has less", debit.Currency, debit), nil
	case has.DailyLimitMinor > 0 && has.SpentTodayMinor+debit.Minor > has.DailyLimitMinor:
		limit := money.Amount{Minor: has.DailyLimitMinor, Currency: debit.Currency}
		return payment.DailyLimitExceeded, fmt.Sprintf("the sender's limit is %s %s a day", debit.Currency, limit), nil
	}
	return "", "", nil
}

// balanceIn returns what an account has in a currency. It is not known if wallet is of a release that
// has only balances in rupiah.
func balanceIn(a *walletv1.GetAccountResponse, c money.Currency) (_ *commonv1.Balance, known bool) {
	if c == money.IDR {
		return &commonv1.Balance{
			AvailableMinor: a.BalanceIdr, DailyLimitMinor: a.DailyLimitIdr, SpentTodayMinor: a.SpentTodayIdr,
		}, true
	}
	for _, b := range a.Balances {
		if b.Currency == c.String() {
			return b, true
		}
	}
	return &commonv1.Balance{}, len(a.Balances) > 0
}

// riskMessages say to a person what a refusal of risk means.
var riskMessages = map[payment.Reason]string{
	payment.RiskBelowMin:       "the amount is below the least that the risk rules allow",
	payment.RiskAboveMax:       "the amount is above the greatest that the risk rules allow",
	payment.RiskBlockedAccount: "the risk rules block an account of this payment",
	payment.RiskSameParty:      "sender and receiver are the same account",
	payment.RiskVelocity:       "the sender has made as many payments in this minute as the risk rules allow; pay later with a new key",
	payment.RiskRandomReject: "refused at random: the risk rule random_reject_ppm refuses a few payments in a million, and 0 switches it off; " +
		"pay again with a new key",
}

// judge asks risk. It also returns the id of the rule set that risk applied.
func (g *Gateway) judge(ctx context.Context, p payment.Payment) (ruleSet string, _ verdict) {
	got, err := g.risk.Evaluate(ctx, &riskv1.ScoreRequest{
		SenderId: p.Sender, ReceiverId: p.Receiver, AmountIdr: p.AmountIDR, CurrencyInput: p.Currency.String(),
		TxDateIso: p.TxDate, IdempotencyKey: p.Key,
	})
	if err != nil {
		return "", g.unreachable(ctx, g.metrics.risk, payment.RiskUnavailable, err)
	}
	if got.Allow {
		g.metrics.risk.WithLabelValues("allow").Inc()
		return got.RuleSet, verdict{}
	}
	reason := payment.Reason("risk_" + got.Reason)
	message := cmp.Or(riskMessages[reason], "refused by the risk rules")
	if !reason.Refusal() {
		// A newer version of risk may have a rule that this gateway does not know. Its refusal
		// still counts.
		reason, message = payment.RiskOther, fmt.Sprintf("refused by the risk rule %.50q", got.Reason)
	}
	g.metrics.risk.WithLabelValues(strings.TrimPrefix(string(reason), "risk_")).Inc()
	return got.RuleSet, verdict{reason, message, refused}
}

// unreachable reports that a function could not be asked, and counts the failed call in calls. It
// says nothing about the payment: the client may try again.
func (g *Gateway) unreachable(ctx context.Context, calls *prometheus.CounterVec, reason payment.Reason, err error) verdict {
	if left(ctx) {
		return verdict{reason: reason}
	}
	calls.WithLabelValues("error").Inc()
	if status.Code(err) == codes.ResourceExhausted {
		return verdict{reason: payment.Overloaded, message: "too many payments are under way"}
	}
	g.noteSenseless(ctx, err, reason)
	return verdict{reason: reason, message: notSentOn}
}

// noteSenseless logs an answer that can't be used. A failed call is already logged by the watched
// connection.
func (g *Gateway) noteSenseless(ctx context.Context, err error, reason payment.Reason) {
	if _, failed := status.FromError(err); !failed {
		g.senseless.Note(ctx, err, "reason", string(reason))
	}
}

// notSentOn is the message for a request that was not published. It is true whatever the other
// attempts with the key do.
const notSentOn = "this request was not sent on; an earlier one with the same key may still settle; " +
	"try again with the same key: it settles at most once"

// refuse records a refusal by wallet or risk before the client gets it. It returns the outcome that
// the ledger has: the refusal, or the outcome of an earlier request with the key. An outcome
// without a status means that the money is held and the payment is not decided.
func (g *Gateway) refuse(ctx context.Context, p payment.Payment, reason payment.Reason) (payment.Outcome, error) {
	got, err := g.db.Refuse(ctx, &dbv1.CloseRequest{Payment: rpc.FromPayment(p), Reason: string(reason)})
	if err != nil {
		return payment.Outcome{}, fmt.Errorf("record a refusal: %w", err)
	}
	recorded, err := rpc.ToOutcome(got)
	if err != nil {
		return payment.Outcome{}, fmt.Errorf("record a refusal: %w", err)
	}
	return replayed(recorded), nil
}

// replayed is the answer to a later attempt of a payment that the ledger knows.
func replayed(o payment.Outcome) payment.Outcome {
	switch {
	case o.State == payment.Committed:
		return payment.Standing(payment.Committed, payment.ReasonCommitted, o.Ref, true)
	case o.State == payment.Pending && o.Reason == payment.Authorized:
		return payment.Standing(payment.Pending, payment.Authorized, o.Ref, true)
	}
	return o.Answer()
}

// lookUp asks the ledger for the outcome of a request that has no price now. known reports whether
// the ledger has its key. An outcome without a status means that the money is held and the payment
// is not decided; the returned payment then has the ledger's price.
func (g *Gateway) lookUp(ctx context.Context, p payment.Payment) (_ payment.Payment, out payment.Outcome, known bool, err error) {
	rec, err := g.find(ctx, &dbv1.FindRequest{IdempotencyKey: p.Key, Client: p.Client})
	if status.Code(err) == codes.NotFound {
		return p, out, false, nil
	}
	if err != nil {
		return p, out, false, fmt.Errorf("look up a payment: %w", err)
	}
	if _, decides := payment.Deciding([]payment.Record{rec}, payment.Record.Identity, p.Identity()); !decides {
		return p, out, false, nil // it is another client's
	}
	if rec.Claimed != p.Fingerprint() {
		return p, payment.Decline(payment.IdempotencyMismatch), true, nil
	}
	return priceOf(p, rec.Payment), replayed(rec.Outcome), true, nil
}
