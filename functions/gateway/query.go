package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"pgw/shared/function"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// apiRoutes adds routes to a mux. A route of the API declares the parameters that its query may
// have, and answers 400 to any other: a misspelled filter would give the unfiltered list. The query
// of other routes is not checked.
type apiRoutes struct{ *function.Mux }

// HandleFunc adds a route. A parameter that ends in a dot is the beginning of names: "metadata."
// allows metadata.order.
func (a apiRoutes) HandleFunc(pattern string, serve http.HandlerFunc, parameters ...string) {
	if !strings.Contains(pattern, " /api/") {
		a.Mux.HandleFunc(pattern, serve)
		return
	}
	a.Mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if wrong := checkQuery(r.URL.RawQuery, parameters); wrong != nil {
			writeWrong(w, wrong)
			return
		}
		serve(w, r)
	})
}

// checkQuery finds the parameters of a query that are not declared, are given twice or are empty.
// For those given twice, a proxy in front of pgw may have checked another than the one that counts.
// An empty one is refused because a reader can't know whether it filters.
func checkQuery(raw string, declared []string) (wrong payment.Problems) {
	if raw == "" {
		return nil
	}
	given, err := url.ParseQuery(raw)
	if err != nil {
		return payment.Problems{problemOf("query", "can't be decoded: "+err.Error())}
	}
	names := make([]string, 0, len(given))
	for name := range given {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		var problem string
		switch values := given[name]; {
		case !isDeclared(name, declared) && len(declared) == 0:
			problem = "is not a parameter of this path, which has none"
		case !isDeclared(name, declared):
			problem = "is not a parameter of this path; it has " + listed(declared)
		case len(values) > 1:
			problem = "is given more than once"
		case values[0] == "":
			problem = "is empty; leave it out"
		default:
			continue
		}
		wrong = append(wrong, problemOf(fmt.Sprintf("%.64s", name), problem))
	}
	return wrong
}

func isDeclared(name string, declared []string) bool {
	return slices.ContainsFunc(declared, func(d string) bool {
		rest, starts := strings.CutPrefix(name, d)
		return starts && (rest != "") == strings.HasSuffix(d, ".")
	})
}

// query reads the parameters of a request's query, and collects all that is wrong with them.
type query struct {
	values url.Values
	wrong  payment.Problems
}

func queryOf(r *http.Request) *query { return &query{values: r.URL.Query()} }

func (q *query) has(name string) bool { return q.values.Has(name) }

func (q *query) text(name string) string { return q.values.Get(name) }

// note adds what is wrong with a parameter. err may be nil.
func (q *query) note(name string, err error) {
	if err == nil {
		return
	}
	var wrong *payment.FieldError
	if errors.As(err, &wrong) {
		name = wrong.Field
	}
	q.wrong = append(q.wrong, payment.Problem{Field: name, Err: err})
}

// time reads a time; zero if there is none.
func (q *query) time(name string) (at time.Time) {
	text := q.text(name)
	if text == "" {
		return at
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || at.Year() < 1 {
		q.note(name, &payment.FieldError{Field: name, Problem: fmt.Sprintf(
			"%.40q is not a time of RFC 3339, such as 2026-01-31T09:30:00Z; + is written as %%2B", text)})
	}
	return at
}

// limit reads the limit of a page; 0 if there is none.
func (q *query) limit() uint32 {
	text := q.text("limit")
	if text == "" {
		return 0
	}
	limit, err := strconv.ParseUint(text, 10, 32)
	if err != nil || limit == 0 {
		q.note("limit", &payment.FieldError{Field: "limit", Problem: fmt.Sprintf("%.20q is not a positive number", text)})
	}
	return uint32(limit)
}

// uuid reads a UUID as it is; empty if there is none.
func (q *query) uuid(name string) string {
	text := q.text(name)
	if text != "" && uuid.Validate(text) != nil {
		q.note(name, &payment.FieldError{Field: name, Problem: "is not a UUID"})
	}
	return text
}

// currency reads a currency that must be there.
func (q *query) currency(name string) money.Currency {
	if !q.has(name) {
		q.note(name, &payment.FieldError{Field: name, Problem: "is missing"})
		return money.Currency{}
	}
	c, err := money.ParseCurrency(q.text(name))
	q.note(name, err)
	return c
}

// amount reads an amount in major units of a currency that was read. It must be there, and be
// positive.
func (q *query) amount(name string, c money.Currency) money.Amount {
	if !q.has(name) {
		q.note(name, &payment.FieldError{Field: name, Problem: "is missing"})
		return money.Amount{}
	}
	if c == (money.Currency{}) {
		return money.Amount{} // the currency's problem is noted
	}
	amount, err := money.ParseAmount(q.text(name), c)
	if err == nil && amount.Minor <= 0 {
		err = &payment.FieldError{Field: name, Problem: "must be positive"}
	}
	q.note(name, err)
	return amount
}

// listed writes the declared parameters for a person.
func listed(declared []string) string {
	names := make([]string, len(declared))
	for i, d := range declared {
		if names[i] = d; strings.HasSuffix(d, ".") {
			names[i] = d + "NAME"
		}
	}
	return strings.Join(names, ", ")
}
