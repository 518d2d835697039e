package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/dunglas/httpsfv"

	"pgw/shared/payment"
)

// Limits of a payment's JSON in addition to its size. Unknown fields are accepted, but their number
// and depth are limited.
const (
	maxFields = 64
	maxDepth  = 8
)

// fieldNames are the JSON names of the fields of payment.Order.
var fieldNames = namesOf[payment.Order]()

// namesOf returns the JSON names of a struct's fields.
func namesOf[T any]() (names []string) {
	for field := range reflect.TypeFor[T]().Fields() {
		names = append(names, field.Tag.Get("json"))
	}
	return names
}

// quoteFields are those of fieldNames that a firm quote has.
var quoteFields = []string{"sender_id", "receiver_id", "currency", "amount", "debit_currency", "credit_currency"}

// checkShape refuses JSON that json.Unmarshal accepts. For a field that is given twice,
// json.Unmarshal takes the last value, but a proxy in front of pgw may have checked the first. raw
// must be valid JSON, and all are the names of the fields that it is read into. checkShape returns the
// names of the fields that are not known ones, each once.
func checkShape(raw []byte, all, known []string) (unknown []string, err error) {
	depth, fields := 0, 0
	seen := make([]bool, len(all))
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '{', '[':
			if depth++; depth > maxDepth {
				return nil, fmt.Errorf("the body is nested deeper than %d levels", maxDepth)
			}
		case '}', ']':
			depth--
		case '"':
			end := stringEnd(raw, i)
			if depth == 1 && isName(raw, end) {
				if fields++; fields > maxFields {
					return nil, fmt.Errorf("the body has more than %d fields", maxFields)
				}
				name := nameOf(raw[i:end])
				at := fieldOf(name, all)
				if at >= 0 && seen[at] {
					return nil, &payment.FieldError{Field: all[at], Problem: "is given more than once"}
				} else if at >= 0 {
					seen[at] = true
				}
				if (at < 0 || !slices.Contains(known, all[at])) && !slices.Contains(unknown, string(name)) {
					unknown = append(unknown, string(name))
				}
			}
			i = end - 1
		}
	}
	return unknown, nil
}

// stringEnd returns the index after the string whose opening quote is at index at.
func stringEnd(raw []byte, at int) int {
	for i := at + 1; i < len(raw); i++ {
		switch raw[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(raw)
}

// isName reports whether the string that ends at end is a field name. In valid JSON only a name is
// followed by a colon.
func isName(raw []byte, end int) bool {
	for ; end < len(raw); end++ {
		switch raw[end] {
		case ' ', '\t', '\r', '\n':
		default:
			return raw[end] == ':'
		}
	}
	return false
}

// nameOf returns the name in a quoted name of valid JSON.
func nameOf(quoted []byte) []byte {
	name := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(name, '\\') >= 0 {
		var plain string
		if json.Unmarshal(quoted, &plain) == nil {
			name = []byte(plain)
		}
	}
	return name
}

// fieldOf returns the index of the field that json.Unmarshal assigns a name's value to, or -1. Like
// json.Unmarshal, it ignores the case.
func fieldOf(name []byte, all []string) int {
	return slices.IndexFunc(all, func(field string) bool { return strings.EqualFold(string(name), field) })
}

// wrongTypes finds all fields of a struct that have a value of another type than theirs in the JSON.
// json.Unmarshal reports only the first.
func wrongTypes[T any](raw []byte) (wrong payment.Problems) {
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil {
		return nil
	}
	for field := range reflect.TypeFor[T]().Fields() {
		for name, value := range fields {
			if !strings.EqualFold(name, field.Tag.Get("json")) {
				continue
			}
			var other *json.UnmarshalTypeError
			if err := json.Unmarshal(value, reflect.New(field.Type).Interface()); errors.As(err, &other) {
				wrong = append(wrong, problemOf(field.Tag.Get("json"), fmt.Sprintf("must be a %s, not a %s", other.Type, other.Value)))
			}
		}
	}
	return wrong
}

func problemOf(field, problem string) payment.Problem {
	return payment.Problem{Field: field, Err: &payment.FieldError{Field: field, Problem: problem}}
}

// unknownFieldsHeader has the names of the fields of a request's body that pgw does not know and
// ignores.
const unknownFieldsHeader = "Pgw-Unknown-Fields"

// The most names in unknownFieldsHeader, and the most bytes of each.
const (
	maxUnknownNames = 20
	maxUnknownName  = 64
)

// unknownFields writes names as a list of RFC 9651. A client may have sent any names.
func unknownFields(names []string) string {
	var all httpsfv.List
	for _, name := range names[:min(len(names), maxUnknownNames)] {
		name = strings.ToValidUTF8(name[:min(len(name), maxUnknownName)], "")
		var item any = name
		if strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c > '~' }) {
			item = httpsfv.DisplayString(name)
		}
		all = append(all, httpsfv.NewItem(item))
	}
	text, err := httpsfv.Marshal(all)
	if err != nil {
		return "" // not possible: each name is a text that its type can have
	}
	return text
}

// The preference of a client for unknown fields (RFC 7240).
const (
	strict  = "handling=strict"
	lenient = "handling=lenient"
)

// handling returns strict or lenient, the first that the client prefers; empty if it prefers none.
func handling(h http.Header) string {
	given := h.Values("Prefer")
	if len(given) == 0 {
		return ""
	}
	for _, preference := range strings.Split(strings.Join(given, ","), ",") {
		preference, _, _ = strings.Cut(preference, ";")
		name, value, _ := strings.Cut(preference, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "handling") {
			continue
		}
		for _, known := range []string{strict, lenient} {
			if strings.EqualFold("handling="+strings.Trim(strings.TrimSpace(value), `"`), known) {
				return known
			}
		}
	}
	return ""
}
