package payment

import "strings"

// Reason says why a payment ended as it did. The set is closed: it is a label of metrics, clients
// switch on it, and functions/gateway/README.md lists it.
type Reason string

// Outcomes that the ledger records. A key keeps its outcome forever.
const (
	ReasonCommitted    Reason = "committed"            // settled
	InsufficientFunds  Reason = "insufficient_funds"   // the sender's balance is below the amount
	UnknownSender      Reason = "unknown_sender"       // no such account
	UnknownReceiver    Reason = "unknown_receiver"     // no such account
	SenderBlocked      Reason = "sender_blocked"       // the account is BLOCKED
	ReceiverBlocked    Reason = "receiver_blocked"     // the account is BLOCKED
	DailyLimitExceeded Reason = "daily_limit_exceeded" // the sender's limit for the UTC day
	Expired            Reason = "expired"              // not decided within DecideWithin
	CommitFailed       Reason = "commit_failed"        // held, but the receiver could not be paid, so it was rolled back
	Undeliverable      Reason = "undeliverable"        // delivery was given up; closed out from the dead-letter topic
	CallerRolledBack   Reason = "rolled_back"          // a caller of RollbackReservation rolled it back

	FXLiquidityExhausted Reason = "fx_liquidity_exhausted" // the house can't exchange this much now
	QuoteExpired         Reason = "quote_expired"          // the firm quote was valid until then
	QuoteUsed            Reason = "quote_used"             // another payment has used the quote
	QuoteMismatch        Reason = "quote_mismatch"         // there is no such quote for this payment

	Canceled             Reason = "canceled"              // the client canceled it before it was settled
	Voided               Reason = "voided"                // the client gave the authorized money back
	AuthorizationExpired Reason = "authorization_expired" // nobody captured the authorized money in time
)

// Authorized is the reason of a success that has moved nothing yet: the money is held for a capture.
// It is the standing of the key until the hold ends.
const Authorized Reason = "authorized"

// Refusals of operations, besides those of payments: a refund, a capture, a void or a cancellation.
const (
	RefundExceedsPayment Reason = "refund_exceeds_payment" // more than is left of the payment
	RefundTooSmall       Reason = "refund_too_small"       // so little that the other currency's share is nothing
	PaymentNotSettled    Reason = "payment_not_settled"    // there is nothing to give back, or it is a refund itself
	PaymentSettled       Reason = "payment_settled"        // too late for a void
	PaymentNotAuthorized Reason = "payment_not_authorized" // it holds no money for a capture, or does not any more
	CaptureExceedsHold   Reason = "capture_exceeds_hold"   // more than is held
	CaptureTooSmall      Reason = "capture_too_small"      // so little that the other currency's share is nothing
)

// DuplicateIdempo is the reason for a second attempt of a settled payment.
const DuplicateIdempo Reason = "duplicate_idempo"

// Refusals by risk, with the prefix "risk_". The ledger itself uses RiskSameParty and RiskVelocity.
const (
	RiskBadInput       Reason = "risk_bad_input"
	RiskSameParty      Reason = "risk_same_party"
	RiskBelowMin       Reason = "risk_below_min"
	RiskAboveMax       Reason = "risk_above_max"
	RiskBlockedAccount Reason = "risk_blocked_account"
	RiskVelocity       Reason = "risk_velocity"
	RiskRandomReject   Reason = "risk_random_reject"
	// RiskOther is a refusal by a rule that this version does not know, because risk is newer than
	// its caller.
	RiskOther Reason = "risk_other"
)

// Answers to a client without an outcome in the ledger.
const (
	BadJSON             Reason = "bad_json"             // the body is not one JSON object
	InvalidInput        Reason = "invalid_input"        // a field is missing, malformed or out of range
	UnsupportedCurrency Reason = "unsupported_currency" // not ISO 4217, or without a rate
	IdempotencyMismatch Reason = "idempotency_mismatch" // the key belongs to another request
	FXUnavailable       Reason = "fx_unavailable"
	WalletUnavailable   Reason = "wallet_unavailable"
	RiskUnavailable     Reason = "risk_unavailable"
	LedgerUnavailable   Reason = "ledger_unavailable"
	QueuePublishError   Reason = "queue_publish_error"
	QueueTimeout        Reason = "queue_timeout" // not decided yet; GET the payment after its deadline
	Overloaded          Reason = "overloaded"    // try again after Retry-After
)

// Reasons lists all reasons.
var Reasons = []Reason{
	ReasonCommitted, DuplicateIdempo, InsufficientFunds, UnknownSender, UnknownReceiver, SenderBlocked,
	ReceiverBlocked, DailyLimitExceeded, Expired, CommitFailed, Undeliverable, CallerRolledBack,
	FXLiquidityExhausted, QuoteExpired, QuoteUsed, QuoteMismatch, Canceled, Voided, AuthorizationExpired, Authorized,
	RefundExceedsPayment, RefundTooSmall, PaymentNotSettled, PaymentSettled, PaymentNotAuthorized, CaptureExceedsHold, CaptureTooSmall,
	RiskBadInput, RiskSameParty, RiskBelowMin, RiskAboveMax, RiskBlockedAccount, RiskVelocity, RiskRandomReject, RiskOther,
	BadJSON, InvalidInput, UnsupportedCurrency, IdempotencyMismatch, FXUnavailable, WalletUnavailable,
	RiskUnavailable, LedgerUnavailable, QueuePublishError, QueueTimeout, Overloaded,
}

// Status returns the status that belongs to the reason.
func (r Reason) Status() Status {
	switch r {
	case ReasonCommitted, Authorized:
		return Success
	case DuplicateIdempo:
		return SuccessReplay
	default:
		return Failed
	}
}

// Recorded reports whether the answer comes from the ledger: the outcome that a key has forever, a
// replay of that outcome, or a mismatch with it.
func (r Reason) Recorded() bool {
	return r.Refusal() || r.RollBack() || r == ReasonCommitted || r == Authorized || r == DuplicateIdempo || r == IdempotencyMismatch
}

// Refusal reports whether the ledger records the reason for a payment or an operation that never held
// money. These are the refusals of the ledger, of wallet and of risk.
func (r Reason) Refusal() bool {
	switch r {
	case InsufficientFunds, UnknownSender, UnknownReceiver, SenderBlocked, ReceiverBlocked, DailyLimitExceeded, Expired,
		FXLiquidityExhausted, QuoteExpired, QuoteUsed, QuoteMismatch,
		RefundExceedsPayment, RefundTooSmall, PaymentNotSettled, PaymentSettled, PaymentNotAuthorized, CaptureExceedsHold, CaptureTooSmall,
		RiskBadInput, RiskSameParty, RiskBelowMin, RiskAboveMax, RiskBlockedAccount, RiskVelocity, RiskRandomReject, RiskOther:
		return true
	}
	return false
}

// OfRisk reports whether the reason is a refusal by risk's rules. Operations are not scored.
func (r Reason) OfRisk() bool { return strings.HasPrefix(string(r), "risk_") }

// RollBack reports whether a payment can end with the reason after its money was held.
func (r Reason) RollBack() bool {
	switch r {
	case Expired, CommitFailed, Undeliverable, CallerRolledBack, Canceled, Voided, AuthorizationExpired:
		return true
	}
	return false
}

var known = func() map[Reason]bool {
	m := make(map[Reason]bool, len(Reasons))
	for _, r := range Reasons {
		m[r] = true
	}
	return m
}()

// Known reports whether a reason from outside is one of Reasons.
func (r Reason) Known() bool { return known[r] }
