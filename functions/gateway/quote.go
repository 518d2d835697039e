package gateway

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// verdict is what fx, wallet and risk say together. The zero verdict is yes.
type verdict struct {
	reason  payment.Reason
	message string
	// aboutNew tells that the no is advice about a new payment, which a known one must not hear.
	aboutNew bool
}

// quote prices the payment and asks for a fast no. Wallet is read while fx and risk are asked; of several
// refusals fx's comes first, then wallet's, then risk's.
func (g *Gateway) quote(ctx context.Context, r *payment.Request, took *stages) verdict {
	begun := time.Now()
	accounts := make(chan parties, 1)
	go func() { accounts <- g.readAccounts(ctx, r.Sender, r.Receiver) }()

	no := g.price(ctx, r)
	g.stage(took, "fx", time.Since(begun))
	var riskNo verdict
	var riskTook time.Duration
	if no.reason == "" {
		asked := time.Now()
		riskNo = g.judge(ctx, r)
		riskTook = time.Since(asked)
	}
	if no.reason == "" {
		read := <-accounts
		g.stage(took, "wallet", read.took)
		no = g.checkAccounts(ctx, read, *r)
	}
	if riskTook > 0 {
		g.stage(took, "risk", riskTook)
	}
	if no.reason == "" {
		no = riskNo
	}
	return no
}

func (g *Gateway) price(ctx context.Context, r *payment.Request) verdict {
	got, err := g.fx.Convert(ctx, &fxv1.ConvertRequest{
		FromCurrency: r.Sent.Currency.String(), ToCurrency: money.IDR.String(), AmountMinor: &r.Sent.Minor,
	})
	switch code := status.Code(err); {
	case code == codes.NotFound:
		g.metrics.fx.WithLabelValues("no_rate").Inc()
		return verdict{payment.UnsupportedCurrency, "currency: there is no rate for " + r.Sent.Currency.String(), true}
	case code == codes.InvalidArgument:
		g.metrics.fx.WithLabelValues("invalid").Inc()
		return verdict{payment.InvalidInput, "amount: " + status.Convert(err).Message(), true}
	case err != nil:
		return g.unreachable(ctx, g.metrics.fx, payment.FXUnavailable, err)
	}
	r.AmountIDR, r.RateID, r.RateTime = got.AmountMinor, got.RateId, rpc.Time(got.RateTime)
	if r.Rate, err = money.ParseRate(got.Rate); err != nil {
		return g.unreachable(ctx, g.metrics.fx, payment.FXUnavailable, fmt.Errorf("fx answered with a bad rate: %w", err))
	}
	g.metrics.fx.WithLabelValues("ok").Inc()
	if r.AmountIDR <= 0 {
		return verdict{payment.InvalidInput, "amount: is worth less than one rupiah", true}
	}
	return verdict{}
}

type parties struct {
	sender, receiver       *walletv1.GetAccountResponse
	senderErr, receiverErr error
	took                   time.Duration
}

func (g *Gateway) readAccounts(ctx context.Context, sender, receiver string) parties {
	begun := time.Now()
	var p parties
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.receiver, p.receiverErr = g.wallet.GetAccount(ctx, &walletv1.GetAccountRequest{AccountId: receiver})
	}()
	p.sender, p.senderErr = g.wallet.GetAccount(ctx, &walletv1.GetAccountRequest{AccountId: sender})
	<-done
	p.took = time.Since(begun)
	return p
}

func (g *Gateway) checkAccounts(ctx context.Context, p parties, r payment.Request) verdict {
	no := func(reason payment.Reason, message string) verdict {
		g.metrics.wallet.WithLabelValues(string(reason)).Inc()
		return verdict{reason, message, true}
	}
	for _, side := range []struct {
		err     error
		account *walletv1.GetAccountResponse
		unknown payment.Reason
		blocked payment.Reason
	}{
		{p.senderErr, p.sender, payment.UnknownSender, payment.SenderBlocked},
		{p.receiverErr, p.receiver, payment.UnknownReceiver, payment.ReceiverBlocked},
	} {
		switch {
		case status.Code(side.err) == codes.NotFound:
			return no(side.unknown, "there is no such account")
		case side.err != nil:
			return g.unreachable(ctx, g.metrics.wallet, payment.WalletUnavailable, side.err)
		case side.account.Status == "BLOCKED":
			return no(side.blocked, "the account is blocked")
		}
	}
	if p.sender.BalanceIdr < r.AmountIDR {
		return no(payment.InsufficientFunds, fmt.Sprintf("the payment is IDR %d; the sender has less", r.AmountIDR))
	}
	if limit := p.sender.DailyLimitIdr; limit > 0 && p.sender.SpentTodayIdr+r.AmountIDR > limit {
		return no(payment.DailyLimitExceeded, fmt.Sprintf("the sender's limit is IDR %d a day", limit))
	}
	g.metrics.wallet.WithLabelValues("ok").Inc()
	return verdict{}
}

func (g *Gateway) judge(ctx context.Context, r *payment.Request) verdict {
	got, err := g.risk.Evaluate(ctx, &riskv1.ScoreRequest{
		SenderId: r.Sender, ReceiverId: r.Receiver, AmountIdr: r.AmountIDR, CurrencyInput: r.Sent.Currency.String(),
		TxDateIso: r.TxDate, IdempotencyKey: r.Key,
	})
	if err != nil {
		return g.unreachable(ctx, g.metrics.risk, payment.RiskUnavailable, err)
	}
	r.RuleSet = got.RuleSet
	if got.Allow {
		g.metrics.risk.WithLabelValues("allow").Inc()
		return verdict{}
	}
	reason := payment.Reason("risk_" + got.Reason)
	if !reason.Known() {
		return g.unreachable(ctx, g.metrics.risk, payment.RiskUnavailable, fmt.Errorf("risk answered with an unknown reason %.50q", got.Reason))
	}
	g.metrics.risk.WithLabelValues(got.Reason).Inc()
	return verdict{reason, "refused by the risk rules", true}
}

// unreachable says that a function could not be asked, and counts it among the calls of that function. That is no verdict
// about the payment: nothing was sent, and the client may try again.
func (g *Gateway) unreachable(ctx context.Context, calls *prometheus.CounterVec, reason payment.Reason, err error) verdict {
	if left(ctx) {
		return verdict{reason: reason}
	}
	calls.WithLabelValues("error").Inc()
	if status.Code(err) == codes.ResourceExhausted {
		return verdict{reason: payment.Overloaded, message: "too many payments are under way"}
	}
	g.log.WarnContext(ctx, "a function could not be asked", "reason", string(reason), "error", err)
	return verdict{reason: reason, message: "nothing was sent; try again with the same key"}
}

// lookUp asks the ledger what became of a request. known tells whether the ledger has its key. An outcome
// without a status means that the money is held and nothing decided: r then has the ledger's price.
func (g *Gateway) lookUp(ctx context.Context, r *payment.Request) (out payment.Outcome, known bool, err error) {
	got, err := g.db.GetPayment(ctx, &dbv1.GetPaymentRequest{IdempotencyKey: r.Key})
	if status.Code(err) == codes.NotFound {
		return out, false, nil
	}
	if err != nil {
		return out, false, fmt.Errorf("look up a payment: %w", err)
	}
	fingerprint := r.Fingerprint()
	if !bytes.Equal(got.Fingerprint, fingerprint[:]) {
		return payment.Decline(payment.IdempotencyMismatch), true, nil
	}
	switch payment.ReservationStatus(got.ReservationStatus) {
	case payment.Committed:
		return payment.Outcome{Status: payment.SuccessReplay, Reason: payment.DuplicateIdempo, Ref: got.ReservationId}, true, nil
	case payment.RolledBack:
		return payment.Decline(payment.Reason(got.Reason)), true, nil
	default:
		r.AmountIDR = got.AmountIdr
		return out, true, nil
	}
}
