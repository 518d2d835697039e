package gateway

import (
	"bytes"
	"context"
	"fmt"
	"strings"
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
	kind    verdictKind
}

// verdictKind says what has to happen before the client hears a no.
type verdictKind int

const (
	// notAsked: a function could not be asked. Nothing is known about the payment.
	notAsked verdictKind = iota
	// unpriced: fx has no price for it. It is no payment, and is not recorded.
	unpriced
	// refused: wallet or risk refuse the payment. The ledger records it first.
	refused
)

// quote prices the payment and asks for a fast no. Wallet is read while fx and risk are asked; of several
// refusals fx's comes first, then wallet's, then risk's.
func (g *Gateway) quote(ctx context.Context, r *payment.Payment, took *stages) verdict {
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

func (g *Gateway) price(ctx context.Context, r *payment.Payment) verdict {
	got, err := g.fx.Convert(ctx, &fxv1.ConvertRequest{
		FromCurrency: r.Currency.String(), ToCurrency: money.IDR.String(), AmountMinor: &r.Minor,
	})
	switch code := status.Code(err); {
	case code == codes.NotFound:
		g.metrics.fx.WithLabelValues("no_rate").Inc()
		return verdict{payment.UnsupportedCurrency, "currency: there is no rate for " + r.Currency.String(), unpriced}
	case code == codes.InvalidArgument:
		g.metrics.fx.WithLabelValues("invalid").Inc()
		return verdict{payment.InvalidInput, "amount: " + status.Convert(err).Message(), unpriced}
	case err != nil:
		return g.unreachable(ctx, g.metrics.fx, payment.FXUnavailable, err)
	}
	r.AmountIDR, r.RateID, r.RateTime = got.AmountMinor, got.RateId, rpc.Time(got.RateTime)
	if r.Rate, err = money.ParseRate(got.Rate); err != nil {
		return g.unreachable(ctx, g.metrics.fx, payment.FXUnavailable, fmt.Errorf("fx answered with a bad rate: %w", err))
	}
	g.senseless.Note(ctx, nil)
	g.metrics.fx.WithLabelValues("ok").Inc()
	if r.AmountIDR <= 0 {
		return verdict{payment.InvalidInput, "amount: is worth less than one rupiah", unpriced}
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

func (g *Gateway) checkAccounts(ctx context.Context, p parties, r payment.Payment) verdict {
	no := func(reason payment.Reason, message string) verdict {
		g.metrics.wallet.WithLabelValues(string(reason)).Inc()
		return verdict{reason, message, refused}
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

func (g *Gateway) judge(ctx context.Context, r *payment.Payment) verdict {
	got, err := g.risk.Evaluate(ctx, &riskv1.ScoreRequest{
		SenderId: r.Sender, ReceiverId: r.Receiver, AmountIdr: r.AmountIDR, CurrencyInput: r.Currency.String(),
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
	message := "refused by the risk rules"
	if !reason.Refusal() {
		// A risk that is newer than this gateway has a rule that this one does not know. Its no is a no.
		reason, message = payment.RiskOther, fmt.Sprintf("refused by the risk rule %.50q", got.Reason)
	}
	g.metrics.risk.WithLabelValues(strings.TrimPrefix(string(reason), "risk_")).Inc()
	return verdict{reason, message, refused}
}

// unreachable says that a function could not be asked, and counts it among the calls of that function. That is
// no verdict about the payment: the client may try again.
func (g *Gateway) unreachable(ctx context.Context, calls *prometheus.CounterVec, reason payment.Reason, err error) verdict {
	if left(ctx) {
		return verdict{reason: reason}
	}
	calls.WithLabelValues("error").Inc()
	if status.Code(err) == codes.ResourceExhausted {
		return verdict{reason: payment.Overloaded, message: "too many payments are under way"}
	}
	// That a call failed is told where calls are watched.
	if _, failed := status.FromError(err); !failed {
		g.senseless.Note(ctx, err, "reason", string(reason))
	}
	return verdict{reason: reason, message: notSentOn}
}

// notSentOn is true whatever other attempts with the key do.
const notSentOn = "this request was not sent on; an earlier one with the same key may still settle; " +
	"try again with the same key: it settles at most once"

// refuse records a refusal by wallet or risk before the client hears it. The outcome is what stands in the ledger
// then: the refusal, or what an earlier request with the key came to. An outcome without a status means that the
// money is held and nothing decided.
func (g *Gateway) refuse(ctx context.Context, r payment.Payment, reason payment.Reason) (payment.Outcome, error) {
	got, err := g.db.RefusePayment(ctx, &dbv1.RefusePaymentRequest{
		Reason: string(reason),
		Payment: &dbv1.ReserveFundsRequest{
			IdempotencyKey: r.Key, SenderId: r.Sender, ReceiverId: r.Receiver, AmountIdr: r.AmountIDR,
			CurrencyInput: r.Currency.String(), AmountMinor: r.Minor,
			Rate: r.Rate.String(), RateId: r.RateID, RateTime: rpc.Timestamp(r.RateTime), RuleSet: r.RuleSet, TxDate: r.TxDate,
			AcceptedAt: rpc.Timestamp(r.AcceptedAt), Deadline: rpc.Timestamp(r.Deadline), AttemptId: r.AttemptID,
		},
	})
	if err != nil {
		return payment.Outcome{}, fmt.Errorf("record a refusal: %w", err)
	}
	return standing(got.ReservationStatus, got.ReservationId, got.Reason), nil
}

// standing is the outcome that a second attempt hears of a payment that the ledger knows.
func standing(reservationStatus, ref, reason string) payment.Outcome {
	switch payment.ReservationStatus(reservationStatus) {
	case payment.Committed:
		return payment.Outcome{Status: payment.SuccessReplay, Reason: payment.DuplicateIdempo, Ref: ref}
	case payment.RolledBack:
		return payment.Decline(payment.Reason(reason))
	default:
		return payment.Outcome{}
	}
}

// lookUp asks the ledger what became of a request that has no price now. known tells whether the ledger has its key.
// An outcome without a status means that the money is held and nothing decided: the request is returned with the
// ledger's price.
func (g *Gateway) lookUp(ctx context.Context, r payment.Payment) (_ payment.Payment, out payment.Outcome, known bool, err error) {
	got, err := g.db.GetPayment(ctx, &dbv1.GetPaymentRequest{IdempotencyKey: r.Key})
	if status.Code(err) == codes.NotFound {
		return r, out, false, nil
	}
	if err != nil {
		return r, out, false, fmt.Errorf("look up a payment: %w", err)
	}
	fingerprint := r.Fingerprint()
	if !bytes.Equal(got.Fingerprint, fingerprint[:]) {
		return r, payment.Decline(payment.IdempotencyMismatch), true, nil
	}
	r.AmountIDR = got.AmountIdr
	return r, standing(got.ReservationStatus, got.ReservationId, got.Reason), true, nil
}
