package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v2"
)

// ordered is a mapping that keeps the order of the document. Readers follow that order, and a Go
// map would lose it.
type ordered[V any] []entry[V]

type entry[V any] struct {
	Name  string
	Value V
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (o *ordered[V]) UnmarshalYAML(unmarshal func(any) error) error {
	var names yaml.MapSlice
	var values map[string]V
	if err := unmarshal(&names); err != nil {
		return err
	}
	if err := unmarshal(&values); err != nil {
		return err
	}
	for _, item := range names {
		name := fmt.Sprint(item.Key)
		*o = append(*o, entry[V]{name, values[name]})
	}
	return nil
}

func (o ordered[V]) get(name string) (v V) {
	for _, e := range o {
		if e.Name == name {
			return e.Value
		}
	}
	return v
}

// The parts of the documents that the page shows.
type (
	openAPI struct {
		Info     info
		Servers  []struct{ URL, Description string }
		Tags     []struct{ Name, Description string }
		Paths    ordered[ordered[operation]]
		Webhooks ordered[ordered[operation]] // what pgw sends

		Components struct {
			SecuritySchemes ordered[securityScheme] `yaml:"securitySchemes"`
			Parameters      ordered[parameter]
			Headers         ordered[header]
			Responses       ordered[response]
			Schemas         ordered[*schema]
		}
	}
	info           struct{ Title, Summary, Version, Description string }
	securityScheme struct {
		Name, Description string
		BearerFormat      string `yaml:"bearerFormat"`
	}

	operation struct {
		Summary, Description string
		Tags                 []string
		Parameters           []parameter
		RequestBody          struct{ Content ordered[media] } `yaml:"requestBody"`
		Responses            ordered[response]
	}
	parameter struct {
		Ref                   string `yaml:"$ref"`
		Name, In, Description string
		Required              bool
		Schema                *schema
	}
	response struct {
		Ref         string `yaml:"$ref"`
		Description string
		Reasons     []string `yaml:"x-reasons"`
		Headers     ordered[header]
		Content     ordered[media]
	}
	header struct {
		Ref         string `yaml:"$ref"`
		Description string
		Schema      *schema
	}
	media struct {
		Schema   *schema
		Example  *example
		Examples ordered[struct{ Value *example }]
		Events   ordered[*schema] `yaml:"x-events"` // of a stream
	}
)

type (
	asyncAPI struct {
		Info     info
		Channels ordered[struct {
			Address, Description string
			Messages             ordered[reference]
		}]
		Components struct {
			Messages ordered[message]
			Schemas  ordered[*schema]
		}
	}
	reference struct {
		Ref string `yaml:"$ref"`
	}
	message struct {
		Title, Summary   string
		Headers, Payload *schema
		Examples         []struct{ Headers, Payload *example }
	}
)

type schema struct {
	Ref                  string `yaml:"$ref"`
	Type, Format         string
	Description, Pattern string
	Const                any
	Enum                 []string
	Meanings             map[string]string `yaml:"x-enumDescriptions"`
	Required             []string
	Properties           ordered[*schema]
	Items                *schema
	AllOf                []*schema `yaml:"allOf"`
	OneOf                []*schema `yaml:"oneOf"`
	MinLength            *int64    `yaml:"minLength"`
	MaxLength            *int64    `yaml:"maxLength"`
	Minimum, Maximum     *int64
	ExclusiveMinimum     *int64 `yaml:"exclusiveMinimum"`
	MaxItems             *int64 `yaml:"maxItems"`
}

// example is a value as indented JSON, with its fields in the order of the document.
type example string

// UnmarshalYAML implements yaml.Unmarshaler.
func (e *example) UnmarshalYAML(unmarshal func(any) error) error {
	var fields yaml.MapSlice
	var value any
	if unmarshal(&fields) == nil {
		value = fields
	} else if err := unmarshal(&value); err != nil {
		return err
	}
	var compact, indented bytes.Buffer
	if err := writeJSON(&compact, value); err != nil {
		return err
	}
	if err := json.Indent(&indented, compact.Bytes(), "", "  "); err != nil {
		return err
	}
	*e = example(indented.String())
	return nil
}

func writeJSON(b *bytes.Buffer, value any) error {
	switch v := value.(type) {
	case yaml.MapSlice:
		for i, item := range v {
			fmt.Fprintf(b, "%c%q:", "{,"[min(i, 1)], fmt.Sprint(item.Key))
			if err := writeJSON(b, item.Value); err != nil {
				return err
			}
		}
		if len(v) == 0 {
			b.WriteByte('{')
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := writeJSON(b, item); err != nil {
				return err
			}
		}
		b.WriteByte(']')
	default:
		text, err := json.Marshal(v)
		if err != nil {
			return err
		}
		b.Write(text)
	}
	return nil
}

// refName returns the last part of a reference.
func refName(ref string) string { return ref[strings.LastIndexByte(ref, '/')+1:] }
