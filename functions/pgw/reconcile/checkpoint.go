package reconcile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/google/renameio/v2/maybe"
)

// maxCheckpoint is the maximum size of a checkpoint's file, in bytes.
const maxCheckpoint = 1 << 20

// checkpoint is where the next run resumes: payments and fundings before Since agree with their events.
type checkpoint struct {
	Since  time.Time           `json:"since"`
	Topics map[string]progress `json:"topics"`
}

// progress is where a topic is resumed. In each partition, all records before the offset in Next are
// older than Since.
type progress struct {
	ID   string          `json:"topic_id,omitempty"` // empty: the broker does not report it
	Next map[int32]int64 `json:"next"`
}

// loadCheckpoint returns the zero checkpoint if there is no file.
func loadCheckpoint(path string) (c checkpoint, err error) {
	if path == "" {
		return c, nil
	}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, nil
	case err == nil && len(text) > maxCheckpoint:
		err = fmt.Errorf("is larger than %d bytes", maxCheckpoint)
	case err == nil:
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		return c, fmt.Errorf("checkpoint %s: %w", path, err)
	}
	return c, nil
}

// write replaces the file atomically.
func (c checkpoint) write(path string) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := maybe.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}
