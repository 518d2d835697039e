package replay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/renameio/v2/maybe"
)

// maxCheckpoint is the maximum size of a checkpoint's file, in bytes.
const maxCheckpoint = 1 << 20

// checkpoint is the progress of a replay: in each partition, all events before the offset in Next
// are done.
type checkpoint struct {
	From string          `json:"from"`
	To   string          `json:"to"`
	Next map[int32]int64 `json:"next"`
	// TopicID identifies the topic that was read. A topic that was deleted and created again under
	// the same name has another id. It is empty for a file, if the broker does not report it, and
	// in checkpoints of earlier versions.
	TopicID string `json:"topic_id,omitempty"`

	stuck map[int32]bool // partitions with an undelivered event
}

func loadCheckpoint(cfg Config) (checkpoint, error) {
	c := checkpoint{From: cfg.From, To: cfg.To, Next: map[int32]int64{}, stuck: map[int32]bool{}}
	if cfg.Checkpoint == "" {
		return c, nil
	}
	text, err := os.ReadFile(cfg.Checkpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	kept, err := parseCheckpoint(text)
	if err != nil {
		return c, fmt.Errorf("checkpoint %s: %w", cfg.Checkpoint, err)
	}
	if kept.From != cfg.From || kept.To != cfg.To {
		return c, fmt.Errorf("checkpoint %s belongs to a replay from %s to %s", cfg.Checkpoint, kept.From, kept.To)
	}
	c.Next, c.TopicID = kept.Next, kept.TopicID
	return c, nil
}

func parseCheckpoint(text []byte) (checkpoint, error) {
	var c checkpoint
	if len(text) > maxCheckpoint {
		return c, fmt.Errorf("is larger than %d bytes", maxCheckpoint)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, err
	}
	if c.Next == nil {
		return c, errors.New("next is missing")
	}
	for p, offset := range c.Next {
		if p < 0 || offset < 0 {
			return c, fmt.Errorf("next: partition %d, offset %d: must not be negative", p, offset)
		}
	}
	return c, nil
}

// write replaces the file atomically.
func (c checkpoint) write(path string) error {
	if path == "" || c.To == "" {
		return nil
	}
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := maybe.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}
