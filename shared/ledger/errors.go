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
	// ErrNotFound means that the ledger has nothing of this name.
	ErrNotFound = errors.New("the ledger has nothing of this name")
	// ErrNoAccount means that an account is to be funded that is not open.
	ErrNoAccount = errors.New("the account is not open")
	// ErrOtherFunding means that a funding of this id has counted, with another account, amount or
	// note.
	ErrOtherFunding = errors.New("a funding of this id has counted, with other content: another account, amount or note")
	// ErrOtherProfile means that the account has another profile, and nothing tells which of the
	// two is newer.
	ErrOtherProfile = errors.New("the account has another profile")
	// ErrSchema means that this release can't work with the database's schema. Ask for it by
	// errors.Is: the errors themselves say in what way the schema does not fit.
	ErrSchema = errors.New("the schema does not fit this release")
)

// InvalidError means that the values of a call can't be kept. The call changed nothing, and the
// same call can never succeed. Where one field is wrong, the error has a payment.FieldError.
type InvalidError struct{ Err error }

func (e *InvalidError) Error() string { return e.Err.Error() }

func (e *InvalidError) Unwrap() error { return e.Err }

// schemaError says in what way the schema does not fit.
type schemaError string

func (e schemaError) Error() string { return string(e) }

// Is makes it an ErrSchema.
func (e schemaError) Is(target error) bool { return target == ErrSchema }
