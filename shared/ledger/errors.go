package ledger

import (
	"errors"

	"pgw/shared/batch"
)

// The errors of calls that changed nothing.
var (
	// ErrFull means that too many calls wait. The caller should try again later.
	ErrFull = batch.ErrFull
	// ErrLocked means that another transaction holds a row that the call needs. The caller should
	// try again later.
	ErrLocked = errors.New("another transaction has locked the account or the reservation: try again later")
	// ErrNotFound means that the ledger has no entry with this key or id.
	ErrNotFound = errors.New("the ledger has no such entry")
	// ErrNoAccount means that the account of a funding is not open.
	ErrNoAccount = errors.New("the account is not open")
	// ErrOtherFunding means that a funding with this id has been counted with another account,
	// amount or note.
	ErrOtherFunding = errors.New("a funding with this id has been counted with other content: another account, amount or note")
	// ErrOtherProfile means that the account has another profile, and it is not known which of the
	// two is newer.
	ErrOtherProfile = errors.New("the account has another profile")
	// ErrOtherRules means that another rule set is in force than the one that the call expected.
	ErrOtherRules = errors.New("another rule set is in force: read the rules again")
	// ErrSchema means that this release can't work with the database's schema. Test for it with
	// errors.Is. The errors themselves explain the difference.
	ErrSchema = errors.New("the schema does not fit this release")
)

// InvalidError means that a value of a call is invalid. The call changed nothing, and the same call
// can never succeed. If one field is wrong, the error contains a payment.FieldError.
type InvalidError struct{ Err error }

func (e *InvalidError) Error() string { return e.Err.Error() }

func (e *InvalidError) Unwrap() error { return e.Err }

// schemaError explains why the schema does not fit.
type schemaError string

func (e schemaError) Error() string { return string(e) }

// Is makes errors.Is match ErrSchema.
func (e schemaError) Is(target error) bool { return target == ErrSchema }
