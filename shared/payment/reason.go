package payment

// Reason says why a payment ended as it did. The set is closed: metrics are labelled by it, clients switch
// on it, and the README lists it.
type Reason string

// Outcomes that the ledger records. A key that has one of them has it for ever.
const (
	ReasonCommitted    Reason = "committed"            // settled
	InsufficientFunds  Reason = "insufficient_funds"   // the sender has less than the amount
	UnknownSender      Reason = "unknown_sender"       // no such account
	UnknownReceiver    Reason = "unknown_receiver"     // no such account
	SenderBlocked      Reason = "sender_blocked"       // the account is BLOCKED
	ReceiverBlocked    Reason = "receiver_blocked"     // the account is BLOCKED
	DailyLimitExceeded Reason = "daily_limit_exceeded" // the sender's limit for the UTC day
	Expired            Reason = "expired"              // not decided within DecideWithin
	CommitFailed       Reason = "commit_failed"        // held, but the receiver could not be paid; rolled back
	Undeliverable      Reason = "undeliverable"        // delivery gave up; closed out from the dead-letter topic
	CallerRolledBack   Reason = "rolled_back"          // a caller of RollbackReservation asked for it
)

// A settled payment, seen again by a second attempt.
const DuplicateIdempo Reason = "duplicate_idempo"

// Verdicts of risk, behind the prefix "risk_". The ledger uses RiskSameParty and RiskVelocity itself.
const (
	RiskBadInput       Reason = "risk_bad_input"
	RiskSameParty      Reason = "risk_same_party"
	RiskBelowMin       Reason = "risk_below_min"
	RiskAboveMax       Reason = "risk_above_max"
	RiskBlockedAccount Reason = "risk_blocked_account"
	RiskVelocity       Reason = "risk_velocity"
	RiskRandomReject   Reason = "risk_random_reject"
	// RiskOther is a refusal by a rule that this version does not know: risk is newer than who asks it.
	RiskOther Reason = "risk_other"
)

// What a client is told without an outcome in the ledger.
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

// Reasons lists the closed set.
var Reasons = []Reason{
	ReasonCommitted, DuplicateIdempo, InsufficientFunds, UnknownSender, UnknownReceiver, SenderBlocked,
	ReceiverBlocked, DailyLimitExceeded, Expired, CommitFailed, Undeliverable, CallerRolledBack,
	RiskBadInput, RiskSameParty, RiskBelowMin, RiskAboveMax, RiskBlockedAccount, RiskVelocity, RiskRandomReject, RiskOther,
	BadJSON, InvalidInput, UnsupportedCurrency, IdempotencyMismatch, FXUnavailable, WalletUnavailable,
	RiskUnavailable, LedgerUnavailable, QueuePublishError, QueueTimeout, Overloaded,
}

// Status is what a client is told along with the reason.
func (r Reason) Status() Status {
	switch r {
	case ReasonCommitted:
		return Success
	case DuplicateIdempo:
		return SuccessReplay
	default:
		return Failed
	}
}

// Recorded tells whether the reason is one of the ledger's: the outcome of a key for ever, or that outcome
// told again.
func (r Reason) Recorded() bool {
	return r.Refusal() || r.RollBack() || r == ReasonCommitted || r == DuplicateIdempo || r == IdempotencyMismatch
}

// Refusal tells whether the ledger records the reason for a payment that never held money: the ledger's own
// refusals, and those of wallet and risk.
func (r Reason) Refusal() bool {
	switch r {
	case InsufficientFunds, UnknownSender, UnknownReceiver, SenderBlocked, ReceiverBlocked, DailyLimitExceeded, Expired,
		RiskBadInput, RiskSameParty, RiskBelowMin, RiskAboveMax, RiskBlockedAccount, RiskVelocity, RiskRandomReject, RiskOther:
		return true
	}
	return false
}

// RollBack tells whether a payment can end for the reason after its money was held.
func (r Reason) RollBack() bool {
	switch r {
	case Expired, CommitFailed, Undeliverable, CallerRolledBack:
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

// Known tells whether a reason is of the closed set, for reasons that come in from outside.
func (r Reason) Known() bool { return known[r] }
