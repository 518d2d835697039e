package gateway

import (
	"iter"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"pgw/functions/gateway/docs"
	"pgw/shared/function"
	"pgw/shared/payment"
)

// The API document and the code have the same reasons with the same statuses.
func TestReasonsAreThoseOfTheDocument(t *testing.T) {
	var document struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct {
				Ref     string           `json:"$ref"`
				Reasons []payment.Reason `json:"x-reasons"`
			}
		}
		Components struct {
			Responses map[string]struct {
				Reasons []payment.Reason `json:"x-reasons"`
			}
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
	for path, operations := range document.Paths {
		for code, response := range operations["post"].Responses {
			if code == "413" { // a body that is too large, which has no reason of its own
				continue
			}
			reasons := response.Reasons
			if response.Ref != "" {
				reasons = document.Components.Responses[response.Ref[strings.LastIndexByte(response.Ref, '/')+1:]].Reasons
			}
			number, _ := strconv.Atoi(code)
			for _, r := range reasons {
				if before := documented[r]; before != 0 && before != number {
					t.Errorf("%s: %s has the status %s, and %d elsewhere", path, r, code, before)
				}
				documented[r] = number
			}
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

// Each type of problem is in the document and on its page, and each status of a problem document has
// a type.
func TestProblemsAreThoseOfTheDocument(t *testing.T) {
	var document struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct {
				Ref     string `json:"$ref"`
				Content map[string]any
			}
		}
		Components struct {
			Responses map[string]struct{ Content map[string]any }
			Schemas   struct {
				ProblemType struct {
					Enum     []string
					Meanings map[string]string `json:"x-enumDescriptions"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(docs.OpenAPI, &document); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, types := range []iter.Seq[problemType]{maps.Values(typesByTitle), maps.Values(typesByCode)} {
		for kind := range types {
			all = append(all, kind.address())
		}
	}
	slices.Sort(all)
	types := document.Components.Schemas.ProblemType
	if got := slices.Sorted(slices.Values(types.Enum)); !slices.Equal(got, all) {
		t.Errorf("the document has the types %q, the code %q", got, all)
	}
	if got := slices.Sorted(maps.Keys(types.Meanings)); !slices.Equal(got, all) {
		t.Errorf("the document explains %q of %q", got, all)
	}
	page := httptest.NewRecorder()
	f, err := Function.Make(Config{AnswerIn: time.Second, MinWaiting: 1, MaxWaiting: 1}, function.Dependencies{})
	if err != nil {
		t.Fatal(err)
	}
	f.Handler().ServeHTTP(page, httptest.NewRequest(http.MethodGet, "http://localhost/docs", nil))
	for _, address := range all {
		if path, anchor, _ := strings.Cut(address, "#"); path != "/docs" || !strings.Contains(page.Body.String(), `id="`+anchor+`"`) {
			t.Errorf("%s leads nowhere", address)
		}
	}
	for path, operations := range document.Paths {
		for method, operation := range operations {
			for code, response := range operation.Responses {
				content := response.Content
				if response.Ref != "" {
					content = document.Components.Responses[response.Ref[strings.LastIndexByte(response.Ref, '/')+1:]].Content
				}
				number, _ := strconv.Atoi(code)
				if content["application/problem+json"] != nil && typesByCode[number] == "" {
					t.Errorf("%s %s: the status %d has no type of problem", method, path, number)
				}
			}
		}
	}
}
