// Package secret reads secrets from variables and files. It notices changes of some of the files,
// so a key can be rotated without a restart.
package secret

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	checkEvery = time.Second
	maxBytes   = 1 << 20
)

// File is the parsed content of a file. There is no background process: Get checks the file for
// changes at most once a second.
type File[T any] struct {
	path  string
	parse func([]byte) (T, error)
	log   *slog.Logger

	value   atomic.Pointer[T]
	checked atomic.Int64 // the time of the last check, in nanoseconds since 1970
	mu      sync.Mutex   // held during a check
	seen    os.FileInfo
	failed  string // the problem at the last check, so that it is logged once
}

// Open reads the file and parses it. parse is called again when the file changes. If parse then
// fails, the old value stays. The errors of parse must not contain the secret.
func Open[T any](path string, parse func([]byte) (T, error), log *slog.Logger) (*File[T], error) {
	f := &File[T]{path: path, parse: parse, log: log}
	f.checked.Store(time.Now().UnixNano())
	if err := f.read(); err != nil {
		return nil, err
	}
	return f, nil
}

// Get returns the newest value that could be parsed.
func (f *File[T]) Get() T {
	now := time.Now().UnixNano()
	if now-f.checked.Load() >= int64(checkEvery) && f.mu.TryLock() {
		f.checked.Store(now)
		f.check()
		f.mu.Unlock()
	}
	return *f.value.Load()
}

func (f *File[T]) check() {
	problem := ""
	switch info, err := os.Stat(f.path); {
	case err != nil:
		problem = err.Error()
	case os.SameFile(info, f.seen) && info.ModTime().Equal(f.seen.ModTime()) && info.Size() == f.seen.Size():
	default:
		if err := f.read(); err != nil {
			problem = err.Error()
		} else {
			f.log.Info("the file has changed and was read again", "file", f.path)
		}
	}
	if problem != "" && problem != f.failed {
		f.log.Error("a file of secrets can't be used: its previous content stays in use", "file", f.path, "error", problem)
	}
	f.failed = problem
}

func (f *File[T]) read() error {
	file, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer file.Close()
	// Stat comes before the read, so the next check notices a change during the read.
	info, err := file.Stat()
	if err != nil {
		return err
	}
	text, err := readAll(file)
	if err != nil {
		return err
	}
	value, err := f.parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	f.value.Store(&value)
	f.seen = info
	return nil
}

func readAll(file *os.File) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(file, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file.Name(), err)
	}
	if len(text) > maxBytes {
		return nil, fmt.Errorf("%s: is larger than %d bytes", file.Name(), maxBytes)
	}
	return text, nil
}
