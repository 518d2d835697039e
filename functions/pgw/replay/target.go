package replay

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"pgw/functions/kafkasource"
	"pgw/shared/kafka"
)

// The same as KafkaSource with pgw's manifests: the first retry after 0.6 s, and 10 s for each
// attempt.
const (
	retryDelay = 300 * time.Millisecond
	tryWithin  = 10 * time.Second

	publishWithin = 30 * time.Second // for a topic; the client retries by itself
)

func openTarget(cfg Config, resumed bool) (target, error) {
	switch {
	case cfg.To == "":
		return dryRun{cfg.Tell}, nil
	case strings.HasPrefix(cfg.To, "http://"), strings.HasPrefix(cfg.To, "https://"):
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxIdleConnsPerHost = cfg.InFlight
		sender, err := kafkasource.NewSender(cfg.To, transport, cfg.Retries, retryDelay, tryWithin)
		return urlTarget{sender}, err
	case strings.HasPrefix(cfg.To, topicPrefix):
		producer, err := kafka.NewProducer(cfg.Kafka, "replay")
		if err != nil {
			return nil, err
		}
		return topicTarget{producer, strings.TrimPrefix(cfg.To, topicPrefix)}, nil
	default:
		return openFile(cfg, resumed)
	}
}

// dryRun sends nothing.
type dryRun struct{ tell func(Event) }

func (d dryRun) put(_ context.Context, e Event) (string, bool, error) {
	if d.tell != nil {
		d.tell(e)
	}
	return "would_go", false, nil
}

func (dryRun) flush() error                { return nil }
func (dryRun) close(context.Context) error { return nil }

// urlTarget posts events to a function.
type urlTarget struct{ sender kafkasource.Sender }

func (t urlTarget) put(ctx context.Context, e Event) (string, bool, error) {
	code, err := t.sender.Send(ctx, e.Event)
	outcome := "no_answer"
	if code != 0 {
		outcome = strconv.Itoa(code)
	}
	return outcome, kafkasource.Refused(err), err
}

func (urlTarget) flush() error                { return nil }
func (urlTarget) close(context.Context) error { return nil }

// topicTarget publishes events to a topic.
type topicTarget struct {
	producer *kafka.Producer
	topic    string
}

func (t topicTarget) put(ctx context.Context, e Event) (string, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, publishWithin)
	defer cancel()
	if err := t.producer.Publish(ctx, t.topic, e.Key, e.Event); err != nil {
		return "error", errors.Is(err, kafka.ErrTooLarge), err
	}
	return "delivered", false, nil
}

func (topicTarget) flush() error                      { return nil }
func (t topicTarget) close(ctx context.Context) error { return t.producer.Close(ctx) }

// fileTarget writes one JSON event per line.
type fileTarget struct {
	mu     sync.Mutex
	out    *bufio.Writer
	zipped *gzip.Writer // nil: not compressed
	file   *os.File     // nil: standard output
}

func openFile(cfg Config, resumed bool) (*fileTarget, error) {
	if cfg.To == "-" {
		return &fileTarget{out: bufio.NewWriter(cfg.Stdout)}, nil
	}
	mode := os.O_CREATE | os.O_WRONLY | os.O_EXCL
	if resumed {
		mode = os.O_WRONLY | os.O_APPEND
	}
	f, err := os.OpenFile(cfg.To, mode, 0o600) // only for the owner, because it has account ids
	if err != nil {
		return nil, err
	}
	t := &fileTarget{file: f}
	var into io.Writer = f
	if strings.HasSuffix(cfg.To, ".gz") {
		t.zipped = gzip.NewWriter(f) // in a resumed file this is another gzip member; readers accept several
		into = t.zipped
	}
	t.out = bufio.NewWriter(into)
	return t, nil
}

func (t *fileTarget) put(_ context.Context, e Event) (string, bool, error) {
	line, err := e.MarshalJSON()
	if err != nil {
		return "error", true, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.out.Write(append(line, '\n')); err != nil {
		return "error", false, fmt.Errorf("write: %w", err)
	}
	return "written", false, nil
}

// flush writes all events to the file, so that the checkpoint is never ahead of the file.
func (t *fileTarget) flush() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.out.Flush()
	if t.zipped != nil {
		err = errors.Join(err, t.zipped.Flush())
	}
	if t.file != nil {
		err = errors.Join(err, t.file.Sync())
	}
	return err
}

func (t *fileTarget) close(context.Context) error {
	err := t.out.Flush()
	if t.zipped != nil {
		err = errors.Join(err, t.zipped.Close())
	}
	if t.file != nil {
		err = errors.Join(err, t.file.Sync(), t.file.Close())
	}
	return err
}
