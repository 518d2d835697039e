package secret

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, path string, log *bytes.Buffer) *File[string] {
	t.Helper()
	f, err := Open(path, func(text []byte) (string, error) {
		if bytes.HasPrefix(text, []byte("bad")) {
			return "", errors.New("is bad")
		}
		return string(text), nil
	}, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// again makes the next Get check the file.
func (f *File[T]) again() T {
	f.checked.Store(0)
	return f.Get()
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAChangeIsNoticed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	write(t, path, "one")
	var log bytes.Buffer
	f := open(t, path, &log)
	if got := f.again(); got != "one" {
		t.Errorf("got %q", got)
	}
	write(t, path, "two and more")
	if got := f.again(); got != "two and more" {
		t.Errorf("got %q", got)
	}
	// Kubernetes points a link to another file.
	other := filepath.Join(t.TempDir(), "other")
	write(t, other, "TWO AND MORE")
	if err := errors.Join(os.Symlink(other, path+".new"), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	if got := f.again(); got != "TWO AND MORE" {
		t.Errorf("got %q", got)
	}
	// The file is not checked on every call.
	f.checked.Store(time.Now().Add(time.Hour).UnixNano())
	write(t, other, "three")
	if got := f.Get(); got != "TWO AND MORE" {
		t.Errorf("got %q", got)
	}
}

// A mistake in a file, or a missing file, does not change which callers are admitted. It is logged
// once, without the content.
func TestAFileThatCannotBeReadChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	write(t, path, "good")
	var log bytes.Buffer
	f := open(t, path, &log)
	for _, spoil := range []func(){
		func() { write(t, path, "bad: hunter2") },
		func() { write(t, path, strings.Repeat("x", maxBytes+1)) },
		func() { os.Remove(path) },
	} {
		spoil()
		log.Reset()
		for range 3 {
			if got := f.again(); got != "good" {
				t.Errorf("got %.20q", got)
			}
		}
		if logged := log.String(); strings.Count(logged, "level=ERROR") != 1 || strings.Contains(logged, "hunter2") {
			t.Errorf("logged: %s", logged)
		}
	}
	write(t, path, "good again")
	if got := f.again(); got != "good again" {
		t.Errorf("got %q", got)
	}
	if _, err := Open(path+".not", func([]byte) (int, error) { return 0, nil }, slog.Default()); err == nil {
		t.Error("a file that is not there is opened")
	}
}
