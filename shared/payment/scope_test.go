package payment

import "testing"

func TestTheClaimThatDecides(t *testing.T) {
	one, two := Fingerprint{1}, Fingerprint{2}
	for name, tc := range map[string]struct {
		claims  []Identity
		request Identity
		want    int // of the claims; -1: none
	}{
		"none":                                   {nil, Identity{"a", one}, -1},
		"its own":                                {[]Identity{{"a", one}}, Identity{"a", one}, 0},
		"its own, with other content":            {[]Identity{{"", one}, {"a", two}}, Identity{"a", one}, 1},
		"another client's":                       {[]Identity{{"b", one}}, Identity{"a", one}, -1},
		"taken before there were clients":        {[]Identity{{"b", one}, {"", one}}, Identity{"a", one}, 1},
		"another one, before there were clients": {[]Identity{{"", two}}, Identity{"a", one}, -1},
		"without a client":                       {[]Identity{{"a", one}, {"", one}}, Identity{"", one}, 1},
		"repeated without its client":            {[]Identity{{"a", two}, {"b", one}}, Identity{"", one}, 1},
		"without a client, another one":          {[]Identity{{"a", two}}, Identity{"", one}, -1},
	} {
		got, found := Deciding(tc.claims, func(c Identity) Identity { return c }, tc.request)
		if found != (tc.want >= 0) || found && got != tc.claims[tc.want] {
			t.Errorf("%s: %+v, %t", name, got, found)
		}
	}
}
