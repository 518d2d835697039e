package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"pgw/shared/payment"
)

// Limits of a payment's JSON in addition to its size. Unknown fields are accepted, but their number
// and depth are limited.
const (
	maxFields = 64
	maxDepth  = 8
)

// fieldNames are the JSON names of the fields of payment.Order.
var fieldNames = func() (names []string) {
	for field := range reflect.TypeFor[payment.Order]().Fields() {
		names = append(names, field.Tag.Get("json"))
	}
	return names
}()

// checkShape refuses JSON that json.Unmarshal accepts. For a field that is given twice,
// json.Unmarshal takes the last value, but a proxy in front of pgw may have checked the first. raw
// must be valid JSON.
func checkShape(raw []byte) error {
	depth, fields := 0, 0
	seen := make([]bool, len(fieldNames))
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '{', '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("the body is nested deeper than %d levels", maxDepth)
			}
		case '}', ']':
			depth--
		case '"':
			end := stringEnd(raw, i)
			if depth == 1 && isName(raw, end) {
				if fields++; fields > maxFields {
					return fmt.Errorf("the body has more than %d fields", maxFields)
				}
				if at := fieldOf(raw[i:end]); at >= 0 {
					if seen[at] {
						return fmt.Errorf("%s: is given more than once", fieldNames[at])
					}
					seen[at] = true
				}
			}
			i = end - 1
		}
	}
	return nil
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

// fieldOf returns the index of the field that json.Unmarshal assigns a quoted name's value to, or
// -1. Like json.Unmarshal, it ignores the case.
func fieldOf(quoted []byte) int {
	name := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(name, '\\') >= 0 {
		var plain string
		if json.Unmarshal(quoted, &plain) != nil {
			return -1
		}
		name = []byte(plain)
	}
	return slices.IndexFunc(fieldNames, func(field string) bool { return strings.EqualFold(string(name), field) })
}
