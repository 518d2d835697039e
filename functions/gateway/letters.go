package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/shared/deadletter"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// Dead letters, for operators: a list, and what they do with one. pgw deadletter does more: it reads
// whole events, acts on many letters at once and signs events anew.

const (
	// maxRemembered is the most letters that the gateway remembers, for lists and for /status.
	maxRemembered = 20_000
	usualLetters  = 20
	mostLetters   = 100
	// listWithin and actWithin are the time limits of a list and of an action. The first list after a
	// start reads all letters. If it takes too long, the next one continues there.
	listWithin = 10 * time.Second
	actWithin  = 20 * time.Second
	maxOrder   = 4 << 10
)

func newLetters(cfg Config, on function.Dependencies) *deadletter.Box {
	now := on.Now
	if now == nil {
		now = time.Now
	}
	return &deadletter.Box{
		Kafka: cfg.Kafka, Groups: []string{cfg.GroupPrefix + Flow[letters].Group}, DB: on.Conns["db"], Keys: &cfg.Keys,
		Memory: deadletter.NewMemory(maxRemembered, now),
	}
}

type letterJSON struct {
	ID        string            `json:"id"`
	State     deadletter.State  `json:"state"`
	At        time.Time         `json:"at"`
	EventID   string            `json:"event_id"`
	EventTime time.Time         `json:"event_time,omitzero"`
	Type      string            `json:"type"`
	Subject   string            `json:"subject,omitempty"`
	Key       string            `json:"key"`
	Function  string            `json:"function"`
	Reason    deadletter.Reason `json:"reason"`
	Code      int               `json:"code"`  // 0: there was no response
	Error     string            `json:"error"` // the text of the response
	Failures  int               `json:"failures"`
	Outcome   string            `json:"outcome,omitempty"`
	kafka.Place
	Actions []actionJSON `json:"actions"`
}

type actionJSON struct {
	Action ledger.Action `json:"action"`
	By     string        `json:"by"`
	Note   string        `json:"note"`
	At     time.Time     `json:"at"`
}

func letterOf(l deadletter.Letter) letterJSON {
	out := letterJSON{
		ID: l.ID, State: l.State, At: l.At, EventID: l.Event.ID(), EventTime: l.Event.Time(), Type: l.Event.Type(), Subject: l.Event.Subject(), Key: l.Key,
		Function: l.Function, Reason: l.Reason, Code: l.Code, Error: l.Message, Failures: l.Failures, Outcome: l.Outcome, Place: l.Place,
		Actions: make([]actionJSON, len(l.Actions)),
	}
	for i, a := range l.Actions {
		out.Actions[i] = actionJSON{a.Action, a.Operator, a.Note, a.At}
	}
	return out
}

// letterStates are the states by which a list can be filtered.
var letterStates = []deadletter.State{deadletter.Waiting, deadletter.Parked, deadletter.Redriven, deadletter.Discarded, deadletter.ClosedOut}

// listLetters returns dead letters, the newest first.
func (g *Gateway) listLetters(w http.ResponseWriter, r *http.Request) {
	if !operates(w, r) {
		return
	}
	q := queryOf(r)
	f := deadletter.Filter{State: deadletter.State(q.text("state")), Limit: int(min(cmp.Or(q.limit(), usualLetters), mostLetters))}
	if q.has("state") && !slices.Contains(letterStates, f.State) {
		q.note("state", &payment.FieldError{Field: "state", Problem: fmt.Sprintf("is %.20q; must be one of %v", f.State, letterStates)})
	}
	if q.has("before") {
		before, err := deadletter.ParsePosition(q.text("before"))
		if f.Before = before; err != nil {
			q.note("before", &payment.FieldError{Field: "before", Problem: "is not a next_before of this list"})
		}
	}
	if len(q.wrong) > 0 {
		writeWrong(w, q.wrong)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), listWithin)
	defer cancel()
	found, more, err := g.letters.Read(rpc.AsOperator(ctx, g.cfg.LetterToken), f)
	if err != nil {
		g.writeLetterProblem(w, r, err)
		return
	}
	out := struct {
		Letters    []letterJSON `json:"letters"`
		NextBefore string       `json:"next_before,omitempty"`
	}{Letters: make([]letterJSON, 0, len(found))}
	for _, l := range slices.Backward(found) {
		out.Letters = append(out.Letters, letterOf(l))
	}
	if more {
		out.NextBefore = found[0].Position().String()
	}
	writeJSON(w, http.StatusOK, out)
}

// operates reports whether the request is an operator's. If not, it answers.
func operates(w http.ResponseWriter, r *http.Request) bool {
	if p := principal(r); p != nil && !p.OwnsAll() {
		writeProblem(w, http.StatusForbidden, "Not for this key", "Dead letters are for operators: only a client that may send from all accounts can see them.")
		return false
	}
	return true
}

func (g *Gateway) redriveLetter(w http.ResponseWriter, r *http.Request) {
	g.act(w, r, deadletter.Redriven, func(ctx context.Context, l deadletter.Letter, o deadletter.Order) error {
		return g.letters.Redrive(ctx, g.publish, l, o)
	})
}

func (g *Gateway) discardLetter(w http.ResponseWriter, r *http.Request) {
	g.act(w, r, deadletter.Discarded, g.letters.Discard)
}

// act does an operator's action on one letter. It continues if the client leaves: half an action
// would leave a letter whose state is not clear.
func (g *Gateway) act(w http.ResponseWriter, r *http.Request, becomes deadletter.State,
	do func(context.Context, deadletter.Letter, deadletter.Order) error,
) {
	if !operates(w, r) || !readable(w, r) {
		return
	}
	note, wrong := readNote(w, r)
	if len(wrong) > 0 {
		writeWrong(w, wrong)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actWithin)
	defer cancel()
	ctx = rpc.AsOperator(ctx, g.cfg.LetterToken)
	by := cmp.Or(clientOf(ctx), "unknown") // the gateway does not know its clients without AUTH
	l, err := g.letter(ctx, r.PathValue("id"))
	if err == nil && (l.State == deadletter.Redriven || l.State == deadletter.Discarded) {
		last := l.Actions[len(l.Actions)-1]
		err = fmt.Errorf("letter %s: %w: %s by %s at %s", l.ID, deadletter.ErrActed, last.Action, last.Operator, last.At.UTC().Format(time.RFC3339))
	}
	if err == nil {
		err = do(ctx, l, deadletter.Order{Operator: by, Note: note})
	}
	if err != nil {
		g.writeLetterProblem(w, r, err)
		return
	}
	g.log.InfoContext(r.Context(), "an operator has acted on a dead letter", "letter", l.ID, "state", becomes, "by", by)
	writeJSON(w, http.StatusOK, struct {
		ID    string           `json:"id"`
		State deadletter.State `json:"state"`
	}{l.ID, becomes})
}

// letter returns the letter of an id. Names of letters are also the ids of their events, which anyone
// may choose who can write events. They are no names here.
func (g *Gateway) letter(ctx context.Context, id string) (deadletter.Letter, error) {
	found, _, err := g.letters.Read(ctx, deadletter.Filter{Names: []string{id}})
	if err != nil {
		return deadletter.Letter{}, err
	}
	for _, l := range found {
		if l.ID == id {
			return l, nil
		}
	}
	return deadletter.Letter{}, fmt.Errorf("%w %s", deadletter.ErrNoLetter, id)
}

// readNote reads why an operator acts.
func readNote(w http.ResponseWriter, r *http.Request) (note string, wrong payment.Problems) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxOrder))
	if err != nil {
		return "", payment.Problems{problemOf("body", fmt.Sprintf("can't be read, or has more than %d bytes", maxOrder))}
	}
	var given map[string]json.RawMessage
	if err := json.Unmarshal(raw, &given); err != nil {
		return "", payment.Problems{problemOf("body", `is not a JSON object, such as {"note": "why"}`)}
	}
	if json.Unmarshal(given["note"], &note) != nil && given["note"] != nil {
		wrong = append(wrong, problemOf("note", "must be a string"))
	} else if note = strings.TrimSpace(note); note == "" {
		wrong = append(wrong, problemOf("note", "is missing: say why, because it is recorded"))
	} else if len(note) > payment.MaxNote {
		wrong = append(wrong, problemOf("note", fmt.Sprintf("must have at most %d bytes", payment.MaxNote)))
	}
	delete(given, "note")
	var unknown []string
	for name := range given {
		unknown = append(unknown, name)
	}
	slices.Sort(unknown)
	return note, append(wrong, refuseUnknown(w, r, unknown)...)
}

// writeLetterProblem answers why letters can't be listed, or nothing can be done with one.
func (g *Gateway) writeLetterProblem(w http.ResponseWriter, r *http.Request, err error) {
	const useCommand = "; pgw deadletter can do more"
	switch {
	case left(r.Context()):
		w.WriteHeader(clientLeft)
	case errors.Is(err, deadletter.ErrNoLetter):
		writeProblem(w, http.StatusNotFound, "There is no such dead letter", err.Error())
	case errors.Is(err, deadletter.ErrActed):
		writeProblem(w, http.StatusConflict, "Somebody has acted on this letter", err.Error())
	case errors.Is(err, deadletter.ErrUnsigned), errors.Is(err, deadletter.ErrCut), errors.Is(err, deadletter.ErrPlain), errors.Is(err, deadletter.ErrNoFront):
		writeProblem(w, http.StatusConflict, "This letter can't be sent again", err.Error()+useCommand)
	case isCode(err, codes.PermissionDenied, codes.Unauthenticated):
		writeProblem(w, http.StatusNotImplemented, "This gateway does not offer dead letters",
			"db accepts them only with an operator's token, and DEAD_LETTER_TOKEN of the gateway is not one. pgw deadletter has them.")
	case errors.Is(err, context.DeadlineExceeded), isCode(err, codes.DeadlineExceeded):
		tryAgain(w)
		writeProblem(w, http.StatusServiceUnavailable, "The letters are still being read", "There are many. Try again, or use pgw deadletter.")
	default:
		g.log.WarnContext(r.Context(), "dead letters could not be read, or not be acted on", "error", err)
		g.writeUnreachable(r.Context(), w, err, "Dead letters can't be read now", fmt.Sprintf("%.300s", err))
	}
}

// isCode reports whether an error that wraps a call's has one of the codes.
func isCode(err error, codes ...codes.Code) bool {
	var of interface{ GRPCStatus() *status.Status }
	return errors.As(err, &of) && slices.Contains(codes, of.GRPCStatus().Code())
}
