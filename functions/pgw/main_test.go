package main

import (
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/alecthomas/kong"
)

// A function is started without the grammar. What the grammar says of functions, in the help, is about the same ones.
func TestFunctionsAreCommands(t *testing.T) {
	parser, err := kong.New(&commands{}, grammar...)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, command := range parser.Model.Leaves(false) {
		if command.Target.Type() == reflect.TypeFor[functionCommand]() {
			told = append(told, command.Name)
		}
	}
	slices.Sort(told)
	if known := slices.Sorted(maps.Keys(functions)); !slices.Equal(told, known) {
		t.Errorf("commands %v; functions %v", told, known)
	}
}
