package processes

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"pgw/functions/pgw/allinone"
	"pgw/shared/kafka"
)

// Build makes the pgw command in a directory, once for each directory, and returns its path.
func Build(dir string) (string, error) {
	building.Lock()
	defer building.Unlock()
	path := filepath.Join(dir, "pgw")
	if built[path] {
		return path, nil
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "pgw/functions/pgw") // as `make build` does
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	built[path] = true
	return path, nil
}

var (
	building sync.Mutex
	built    = map[string]bool{} // by path
)

// Output collects the output of processes. It can be read while they write.
type Output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// String returns the output so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// Topics returns the topics that the manifests read and write, with this number of partitions each.
func Topics(partitions int32) ([]kafka.Topic, error) {
	manifests, err := allinone.Manifests()
	if err != nil {
		return nil, err
	}
	var topics []kafka.Topic
	for _, name := range manifests.Topics() {
		topics = append(topics, kafka.Topic{Name: name, Partitions: partitions})
	}
	return topics, nil
}

// Delivered returns an error while some published records are not delivered yet. It is nil when the
// sources have consumed all.
func Delivered(cfg kafka.Config, groupPrefix string) error {
	published, err := ReadPublished(cfg)
	if err != nil {
		return err
	}
	return published.Delivered(cfg, groupPrefix)
}

// Published are the ends of the topics that have consumers, at a time.
type Published []consumed

// consumed is a topic with its consumers, and its end.
type consumed struct {
	topic  string
	groups []string // without the prefix
	spans  []kafka.Span
}

// ReadPublished reads the ends of the topics that the manifests' sources read.
func ReadPublished(cfg kafka.Config) (published Published, err error) {
	manifests, err := allinone.Manifests()
	if err != nil {
		return nil, err
	}
	for _, name := range manifests.Topics() {
		of := consumed{topic: cfg.Renamed()[name], groups: manifests.Groups(name)}
		if len(of.groups) == 0 {
			continue
		}
		reader, err := kafka.OpenReader(cfg, "test", kafka.Range{Topic: of.topic})
		if err != nil {
			return nil, err
		}
		of.spans = reader.Spans()
		reader.Close()
		published = append(published, of)
	}
	return published, nil
}

// Delivered returns an error while records that were published by then are not delivered yet.
func (p Published) Delivered(cfg kafka.Config, groupPrefix string) error {
	for _, of := range p {
		for _, group := range of.groups {
			taken, err := kafka.Committed(cfg, groupPrefix+group, of.topic)
			if err != nil {
				return err
			}
			for _, s := range of.spans {
				if taken[s.Partition] < s.To {
					return fmt.Errorf("%s has consumed %d of %d records of %s, partition %d",
						groupPrefix+group, taken[s.Partition], s.To, of.topic, s.Partition)
				}
			}
		}
	}
	return nil
}
