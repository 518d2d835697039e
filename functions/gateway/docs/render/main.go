// Render makes the page of the API documents in a folder: page.html, and page.csp, which is the
// Content-Security-Policy of the page. `make generate` runs it.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: render FOLDER, which holds openapi.yaml, asyncapi.yaml and examples.md")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(folder string) error {
	documents, err := readDocuments(folder)
	if err != nil {
		return err
	}
	p, err := newPage(documents)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(folder, "page.html"), p.html, 0o644),
		os.WriteFile(filepath.Join(folder, "page.csp"), []byte(p.policy), 0o644),
	)
}

// documents are the sources of the page.
type documents struct{ openAPI, asyncAPI, examples []byte }

func readDocuments(folder string) (d documents, err error) {
	for name, into := range map[string]*[]byte{
		"openapi.yaml": &d.openAPI, "asyncapi.yaml": &d.asyncAPI, "examples.md": &d.examples,
	} {
		if *into, err = os.ReadFile(filepath.Join(folder, name)); err != nil {
			return documents{}, err
		}
	}
	return d, nil
}
