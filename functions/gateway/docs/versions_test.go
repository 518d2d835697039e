package docs

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const promisedFile = "promised.txt"

// closed are the schemas whose values are all that there are: clients decide about money by them.
var closed = []string{"Status", "Reason"}

type schema struct {
	Ref        string `json:"$ref"`
	Type       any
	Format     string
	Enum       []string
	Required   []string
	Properties map[string]schema
	AllOf      []schema
}

type parameter struct {
	Ref      string `json:"$ref"`
	Name, In string
	Required bool
}

// promises returns what the document promises to clients, and what it needs of their requests, a
// line for each.
func promises(t *testing.T, document []byte) (promised, needed []string) {
	t.Helper()
	var d struct {
		Paths map[string]map[string]struct {
			Parameters []parameter
			Responses  map[string]struct {
				Ref     string `json:"$ref"`
				Content map[string]struct{ Schema schema }
			}
		}
		Components struct {
			Parameters map[string]parameter
			Responses  map[string]struct {
				Content map[string]struct{ Schema schema }
			}
			Schemas map[string]schema
		}
	}
	if err := yaml.Unmarshal(document, &d); err != nil {
		t.Fatal(err)
	}
	promise := func(format string, args ...any) { promised = append(promised, fmt.Sprintf(format, args...)) }
	last := func(ref string) string { return ref[strings.LastIndexByte(ref, '/')+1:] }
	for path, operations := range d.Paths {
		for method, operation := range operations {
			name := strings.ToUpper(method) + " " + path
			promise("%s", name)
			for _, p := range operation.Parameters {
				if p.Ref != "" {
					p = d.Components.Parameters[last(p.Ref)]
				}
				promise("%s: parameter %s in %s", name, p.Name, p.In)
				if p.Required {
					needed = append(needed, fmt.Sprintf("%s: needs %s", name, p.Name))
				}
			}
			for code, response := range operation.Responses {
				content := response.Content
				if response.Ref != "" {
					content = d.Components.Responses[last(response.Ref)].Content
				}
				promise("%s: answers %s", name, code)
				for media, body := range content {
					promise("%s: answers %s with %s %s", name, code, media, last(body.Schema.Ref))
				}
			}
		}
	}
	for name, s := range d.Components.Schemas {
		request := strings.HasSuffix(name, "Request")
		for _, value := range s.Enum {
			promise("%s: value %s", name, value)
		}
		for field, of := range s.Properties {
			for len(of.AllOf) > 0 {
				of = of.AllOf[0]
			}
			// What matters of a text or number is its type, and of an object which one it is.
			if target := d.Components.Schemas[last(of.Ref)]; len(target.Properties) == 0 && target.Type != nil {
				of = schema{Type: target.Type, Format: target.Format, Enum: of.Enum}
			}
			promise("%s.%s: %s", name, field, strings.TrimSpace(fmt.Sprint(kindOf(of.Type), " ", of.Format, last(of.Ref))))
			for _, value := range of.Enum {
				promise("%s.%s: value %s", name, field, value)
			}
		}
		for _, field := range s.Required {
			if request {
				needed = append(needed, fmt.Sprintf("%s: needs %s", name, field))
			} else {
				promise("%s.%s: is always there", name, field)
			}
		}
	}
	slices.Sort(promised)
	slices.Sort(needed)
	return promised, needed
}

func kindOf(kind any) string {
	if kind == nil {
		return ""
	}
	return fmt.Sprint(kind)
}

// owner returns the operation or schema that a line is about.
func owner(line string) string {
	name, _, _ := strings.Cut(line, ": ")
	if !strings.Contains(name, " ") {
		name, _, _ = strings.Cut(name, ".")
	}
	return name
}

func TestNothingPromisedIsTakenBack(t *testing.T) {
	promised, needed := promises(t, OpenAPI)
	if os.Getenv("PROMISE") != "" {
		text := strings.Join(slices.Sorted(slices.Values(append(promised, needed...))), "\n") + "\n"
		if err := os.WriteFile(promisedFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(promisedFile)
	if err != nil {
		t.Fatal(err)
	}
	before := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, problem := range broken(before, promised, needed) {
		t.Error(problem)
	}
}

// broken returns what breaks clients that rely on the lines before.
func broken(before, promised, needed []string) (problems []string) {
	known := map[string]bool{}
	for _, line := range before {
		known[owner(line)] = true
		if !strings.Contains(line, ": needs ") && !slices.Contains(promised, line) {
			problems = append(problems, "is taken back: "+line)
		}
	}
	for _, line := range needed {
		if known[owner(line)] && !slices.Contains(before, line) {
			problems = append(problems, "is needed now: "+line)
		}
	}
	for _, line := range promised {
		if slices.Contains(closed, owner(line)) && strings.Contains(line, ": value ") && !slices.Contains(before, line) {
			problems = append(problems, "is new in a closed set: "+line)
		}
	}
	return problems
}

// The comparison finds what it is for.
func TestBrokenPromisesAreFound(t *testing.T) {
	before, needs := promises(t, OpenAPI)
	before = append(before, needs...)
	for _, tc := range []struct{ from, to, want string }{
		{"  /api/currencies:\n", "  /api/monies:\n", "is taken back: GET /api/currencies"},
		{"- name: status\n", "- name: state\n", "is taken back: GET /api/payments: parameter status in query"},
		{"        - risk_other\n        - commit_failed\n", "        - commit_failed\n", "is taken back: Reason: value risk_other"},
		{"        - risk_other\n        - commit_failed\n", "        - risk_odd\n        - commit_failed\n", "is new in a closed set: Reason: value risk_odd"},
		{"currency, amount, tx_date]", "currency, amount, tx_date, metadata]", "is needed now: PaymentRequest: needs metadata"},
		{"required: [payments, search_limit]", "required: [payments]", "is taken back: PaymentList.search_limit: is always there"},
		{"        amount_idr:\n          type: integer", "        amount_idr:\n          type: string", "is taken back: Payment.amount_idr: integer int64"},
		{"        - /docs#problem-conflict\n", "        - /docs#problem-conflict\n        - /docs#problem-new\n", ""},
		{"        amount_idr:\n", "        added:\n          type: string\n        amount_idr:\n", ""},
	} {
		if !strings.Contains(string(OpenAPI), tc.from) {
			t.Errorf("the document has no %q", tc.from)
		}
		promised, needed := promises(t, []byte(strings.ReplaceAll(string(OpenAPI), tc.from, tc.to)))
		if got := strings.Join(broken(before, promised, needed), "\n"); !strings.Contains(got, tc.want) || tc.want == "" && got != "" {
			t.Errorf("%q for %q: %s; want %s", tc.to, tc.from, got, tc.want)
		}
	}
}
