package main

import (
	"bytes"
	"os"
	"testing"
)

// The stored page is the one that the current documents give.
func TestThePageIsCurrent(t *testing.T) {
	documents, err := readDocuments("..")
	if err != nil {
		t.Fatal(err)
	}
	want, err := newPage(documents)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"../page.html": want.html, "../page.csp": []byte(want.policy)} {
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not current, error %v: run make generate", name, err)
		}
	}
}
