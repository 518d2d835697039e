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

// Bounds of a payment's JSON beside its size. Unknown fields are let through, but only so many, and not of any shape.
const (
	maxFields = 64
	maxDepth  = 8
)

// fieldNames are those of payment.Order.
var fieldNames = func() (names []string) {
	for field := range reflect.TypeFor[payment.Order]().Fields() {
		names = append(names, field.Tag.Get("json"))
	}
	return names
}()

// checkShape looks at what json.Unmarshal lets pass. Of a field that is given twice it takes the last: whoever looks
// at the request before pgw may have judged the first. raw is valid JSON.
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

// stringEnd gives the place after the string that begins at a quote.
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

// isName tells that what ends here is a name: in valid JSON only names stand before a colon.
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

// fieldOf gives the field that json.Unmarshal puts a quoted name's value into: it does not mind the case.
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
