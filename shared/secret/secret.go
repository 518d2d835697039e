// Package secret reads secrets from variables and files. It notices when some of the files change,
// so that a key is rotated without a restart.
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
	lookEvery = time.Second
	maxBytes  = 1 << 20
)

// File is what a file says, as a T. Nothing runs in the background: whoever asks looks at the file, at most once a
// second.
type File[T any] struct {
	path  string
	parse func([]byte) (T, error)
	log   *slog.Logger

	value  atomic.Pointer[T]
	looked atomic.Int64 // in nanoseconds
	mu     sync.Mutex   // one look at a time
	seen   os.FileInfo
	failed string // what was wrong at the last look, so that it is told once
}

// Open reads the file. parse is called again when it has changed; what it refuses leaves things as they were. Its
// errors must not tell the secret.
func Open[T any](path string, parse func([]byte) (T, error), log *slog.Logger) (*File[T], error) {
	f := &File[T]{path: path, parse: parse, log: log}
	f.looked.Store(time.Now().UnixNano())
	if err := f.read(); err != nil {
		return nil, err
	}
	return f, nil
}

// Get gives what the file said last.
func (f *File[T]) Get() T {
	now := time.Now().UnixNano()
	if now-f.looked.Load() >= int64(lookEvery) && f.mu.TryLock() {
		f.looked.Store(now)
		f.look()
		f.mu.Unlock()
	}
	return *f.value.Load()
}

func (f *File[T]) look() {
	problem := ""
	switch info, err := os.Stat(f.path); {
	case err != nil:
		problem = err.Error()
	case os.SameFile(info, f.seen) && info.ModTime().Equal(f.seen.ModTime()) && info.Size() == f.seen.Size():
	default:
		if err := f.read(); err != nil {
			problem = err.Error()
		} else {
			f.log.Info("read again, since it has changed", "file", f.path)
		}
	}
	if problem != "" && problem != f.failed {
		f.log.Error("a file of secrets can't be used: what it said before still holds", "file", f.path, "error", problem)
	}
	f.failed = problem
}

func (f *File[T]) read() error {
	file, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer file.Close()
	// Before it is read: what is written meanwhile is seen at the next look.
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
