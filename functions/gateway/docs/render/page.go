package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v2"
)

var (
	//go:embed page.html.tmpl
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string
)

// page is the documents as HTML, with a Content-Security-Policy that allows only the page's own
// style and script, and requests to the gateway that serves it.
type page struct {
	html   []byte
	policy string
}

func newPage(d documents) (page, error) {
	var v view
	if err := yaml.Unmarshal(d.openAPI, &v.HTTP); err != nil {
		return page{}, fmt.Errorf("openapi.yaml: %w", err)
	}
	if err := yaml.Unmarshal(d.asyncAPI, &v.Events); err != nil {
		return page{}, fmt.Errorf("asyncapi.yaml: %w", err)
	}
	v.Style, v.Script, v.Examples = template.CSS(pageCSS), template.JS(pageJS), readExamples(string(d.examples))
	t, err := template.New("page").Funcs(template.FuncMap{"text": text, "kind": kind, "limits": limits, "refName": refName}).Parse(pageHTML)
	if err != nil {
		return page{}, err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, v); err != nil {
		return page{}, err
	}
	return page{out.Bytes(), "default-src 'none'; style-src " + hashOf(pageCSS) + "; script-src " + hashOf(pageJS) +
		"; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}, nil
}

// hashOf returns the source expression of a Content-Security-Policy that allows exactly this text.
func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// view has the data of the template.
type view struct {
	HTTP     openAPI
	Events   asyncAPI
	Examples []codeExample
	Style    template.CSS
	Script   template.JS
}

// route is an operation with its method and path, or the name of what pgw sends to webhooks.
type route struct {
	Method, Path string
	operation
}

// Routes returns the routes of a tag, in the document's order.
func (v view) Routes(tag string) (routes []route) {
	for _, path := range slices.Concat(v.HTTP.Paths, v.HTTP.Webhooks) {
		for _, op := range path.Value {
			if op.Value.Tags[0] == tag {
				routes = append(routes, route{strings.ToUpper(op.Name), path.Name, op.Value})
			}
		}
	}
	return routes
}

// ID returns the route's anchor.
func (r route) ID() string {
	return strings.ToLower(r.Method) + regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(r.Path), "-")
}

// Response returns a response, or the one that it refers to.
func (v view) Response(r response) response {
	if r.Ref != "" {
		return v.HTTP.Components.Responses.get(refName(r.Ref))
	}
	return r
}

// Parameter returns a parameter, or the one that it refers to.
func (v view) Parameter(p parameter) parameter {
	if p.Ref != "" {
		return v.HTTP.Components.Parameters.get(refName(p.Ref))
	}
	return p
}

// explained is a kind of problems.
type explained struct{ Anchor, Name, Meaning string }

// Problems returns the kinds of problems, in the document's order.
func (v view) Problems() (all []explained) {
	types := v.HTTP.Components.Schemas.get("ProblemType")
	for _, address := range types.Enum {
		_, anchor, _ := strings.Cut(address, "#")
		all = append(all, explained{anchor, strings.TrimPrefix(anchor, "problem-"), types.Meanings[address]})
	}
	return all
}

// Header returns a header, or the one that it refers to.
func (v view) Header(h header) header {
	if h.Ref != "" {
		return v.HTTP.Components.Headers.get(refName(h.Ref))
	}
	return h
}

// Message returns the message that a channel refers to.
func (v view) Message(r reference) message { return v.Events.Components.Messages.get(refName(r.Ref)) }

// field is a property with its name.
type field struct {
	Name     string
	Required bool
	Schema   *schema
}

// fields returns an object's fields, with those of its parts and of the schemas that it refers to.
// A field that is described twice is returned once.
func (s *schema) fields(of ordered[*schema]) (fields []field) {
	if s == nil {
		return nil
	}
	if s.Ref != "" {
		return of.get(refName(s.Ref)).fields(of)
	}
	add := func(name string, more *schema) {
		i := slices.IndexFunc(fields, func(f field) bool { return f.Name == name })
		if i < 0 {
			fields = append(fields, field{Name: name, Schema: more})
			return
		}
		merged := *more
		merged.Description = cmp.Or(more.Description, fields[i].Schema.Description)
		fields[i].Schema = &merged
	}
	required := s.Required
	for _, part := range s.AllOf {
		for _, f := range part.fields(of) {
			if add(f.Name, f.Schema); f.Required {
				required = append(required[:len(required):len(required)], f.Name)
			}
		}
	}
	for _, p := range s.Properties {
		add(p.Name, p.Value)
	}
	for i, f := range fields {
		fields[i].Required = slices.Contains(required, f.Name)
	}
	return fields
}

// follow returns the target of a reference: a schema, or one property of a schema.
func follow(ref string, of ordered[*schema]) *schema {
	owner, name, ok := strings.Cut(strings.TrimPrefix(ref, "#/components/schemas/"), "/properties/")
	if ok {
		return of.get(owner).Properties.get(name)
	}
	return of.get(owner)
}

// Fields returns the fields of a schema of the HTTP API. A field that refers to another schema has
// a short description of it.
func (v view) Fields(s *schema) []field {
	schemas := v.HTTP.Components.Schemas
	fields := s.fields(schemas)
	for i, f := range fields {
		if strings.Contains(f.Schema.Ref, "/properties/") {
			fields[i].Schema = follow(f.Schema.Ref, schemas)
		} else if target := follow(f.Schema.Ref, schemas); target != nil && len(target.Properties) == 0 {
			inShort := *target
			inShort.Ref, inShort.Enum, inShort.Meanings, inShort.Pattern = f.Schema.Ref, nil, nil, ""
			inShort.Description = cmp.Or(f.Schema.Description, target.Description)
			fields[i].Schema = &inShort
		}
	}
	return fields
}

// EventFields returns the fields of a schema of the events. References are replaced by their
// targets. The fields of an object within are named with a dot.
func (v view) EventFields(s *schema) (all []field) {
	schemas := v.Events.Components.Schemas
	target := func(s *schema) *schema {
		for s.Ref != "" {
			s = follow(s.Ref, schemas)
		}
		return s
	}
	for _, f := range s.fields(schemas) {
		f.Schema = target(f.Schema)
		all = append(all, f)
		within := f.Schema
		if within.Items != nil {
			within = target(within.Items)
		}
		if len(within.Properties) == 0 {
			continue
		}
		for _, part := range v.EventFields(within) {
			part.Name = f.Name + "." + part.Name
			all = append(all, part)
		}
	}
	return all
}

// kind describes the type of a value.
func kind(s *schema) string {
	switch {
	case s == nil:
		return ""
	case s.Ref != "":
		return refName(s.Ref)
	case s.Const != nil:
		return fmt.Sprintf("%q", fmt.Sprint(s.Const))
	case len(s.OneOf) > 0 && s.Type == "":
		var kinds []string
		for _, one := range s.OneOf {
			kinds = append(kinds, kind(one))
		}
		return strings.Join(kinds, " or ")
	case len(s.AllOf) > 0:
		return kind(s.AllOf[0])
	case s.Items != nil:
		return "array of " + kind(s.Items)
	case s.Type == "" && len(s.Enum) > 0:
		return "string"
	case s.Format != "" && s.Format != "int64":
		return s.Format
	}
	return s.Type
}

// limits describes the limits of a value.
func limits(s *schema) string {
	if s == nil {
		return ""
	}
	var all []string
	between := func(least, most *int64, unit string) {
		switch {
		case least != nil && most != nil:
			all = append(all, fmt.Sprintf("%d to %d%s", *least, *most, unit))
		case least != nil:
			all = append(all, fmt.Sprintf("at least %d%s", *least, unit))
		case most != nil:
			all = append(all, fmt.Sprintf("at most %d%s", *most, unit))
		}
	}
	between(s.MinLength, s.MaxLength, " characters")
	between(s.Minimum, s.Maximum, "")
	between(nil, s.MaxItems, " items")
	if s.ExclusiveMinimum != nil {
		all = append(all, fmt.Sprintf("more than %d", *s.ExclusiveMinimum))
	}
	return strings.Join(all, ", ")
}

var (
	blankLine = regexp.MustCompile(`\n\s*\n`)
	codeSpan  = regexp.MustCompile("`([^`]+)`")
)

// text converts a description to HTML. The documents use only paragraphs and code spans of
// Markdown.
func text(markdown string) template.HTML {
	var b strings.Builder
	for _, paragraph := range blankLine.Split(strings.TrimSpace(markdown), -1) {
		if paragraph != "" {
			b.WriteString("<p>" + codeSpan.ReplaceAllString(template.HTMLEscapeString(paragraph), "<code>$1</code>") + "</p>")
		}
	}
	return template.HTML(b.String())
}

// codeExample is one section of examples.md: its heading, its text and its code blocks.
type codeExample struct {
	Title, Text string
	Blocks      []string
}

var fence = regexp.MustCompile("(?ms)^```\\w*\\n(.*?)^```\\n")

func readExamples(markdown string) (examples []codeExample) {
	for _, part := range strings.Split(markdown, "\n## ")[1:] {
		title, rest, _ := strings.Cut(part, "\n")
		e := codeExample{Title: title, Text: fence.ReplaceAllString(rest, "")}
		for _, block := range fence.FindAllStringSubmatch(rest, -1) {
			e.Blocks = append(e.Blocks, block[1])
		}
		examples = append(examples, e)
	}
	return examples
}
