package gateway

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"testing"

	"sigs.k8s.io/yaml"

	"pgw/functions/gateway/docs"
	"pgw/shared/payment"
)

// The API document and the code have the same reasons with the same statuses.
func TestReasonsAreThoseOfTheDocument(t *testing.T) {
	var document struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct {
				Reasons []payment.Reason `json:"x-reasons"`
			}
		}
		Components struct {
			Schemas struct {
				Reason struct {
					Enum     []payment.Reason
					Meanings map[payment.Reason]string `json:"x-enumDescriptions"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(docs.OpenAPI, &document); err != nil {
		t.Fatal(err)
	}
	all := slices.Sorted(slices.Values(payment.Reasons))
	reason := document.Components.Schemas.Reason
	if got := slices.Sorted(slices.Values(reason.Enum)); !slices.Equal(got, all) {
		t.Errorf("the document has the reasons %q, the code %q", got, all)
	}
	if got := slices.Sorted(maps.Keys(reason.Meanings)); !slices.Equal(got, all) {
		t.Errorf("the document explains %q of %q", got, all)
	}
	documented := map[payment.Reason]int{}
	for code, response := range document.Paths["/api/payments"]["post"].Responses {
		if code == "413" { // a body that is too large, which has no reason of its own
			continue
		}
		for _, r := range response.Reasons {
			if documented[r] != 0 {
				t.Errorf("%s has the status %d and %s", r, documented[r], code)
			}
			documented[r], _ = strconv.Atoi(code)
		}
	}
	for _, r := range all {
		want, ok := httpStatus[r]
		if !ok {
			want = http.StatusOK
		}
		if documented[r] != want {
			t.Errorf("%s has the status %d in the document, and %d in the code", r, documented[r], want)
		}
	}
}
