package embedded

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/twmb/franz-go/pkg/kfake"

	"pgw/shared/kafka"
)

// KafkaConfig of a broker in this process.
type KafkaConfig struct {
	Dir       string                                              // records and offsets live here; empty keeps them in memory
	Port      int                                                 // on loopback; 0 takes any
	Topics    []kafka.Topic                                       // made when missing; one that exists is left as it is
	Retention time.Duration                                       // how often retention is applied; 0 means each minute
	Listen    func(network, address string) (net.Listener, error) // nil: net.Listen; a test may stand in between
	Log       *slog.Logger
}

// Kafka is one broker that speaks Kafka's protocol.
type Kafka struct {
	cluster *kfake.Cluster
	door    *entrance
	lock    *flock.Flock
	stop    chan struct{}
	stopped sync.WaitGroup
}

// ErrLocked means that another process uses the directory.
var ErrLocked = errors.New("is in use by another process")

// StartKafka starts the broker.
func StartKafka(cfg KafkaConfig) (*Kafka, error) {
	k := &Kafka{stop: make(chan struct{})}
	if cfg.Listen == nil {
		cfg.Listen = net.Listen
	}
	opts := []kfake.Opt{
		kfake.NumBrokers(1), kfake.ClusterID("pgw"), kfake.WithLogger(brokerLog{cfg.Log}),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) {
			l, err := cfg.Listen(network, net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.Port)))
			if err != nil {
				return nil, err
			}
			k.door = newEntrance(l)
			return k.door, nil
		}),
	}
	if cfg.Port != 0 {
		opts = append(opts, kfake.Ports(cfg.Port))
	}
	if cfg.Dir != "" {
		if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
			return nil, fmt.Errorf("kafka: %w", err)
		}
		k.lock = flock.New(filepath.Join(cfg.Dir, "lock"))
		locked, err := k.lock.TryLock()
		if err != nil {
			return nil, fmt.Errorf("kafka: %w", err)
		}
		if !locked {
			return nil, fmt.Errorf("kafka: %s %w", cfg.Dir, ErrLocked)
		}
		opts = append(opts, kfake.DataDir(filepath.Join(cfg.Dir, "log")))
	}
	var err error
	if k.cluster, err = kfake.NewCluster(opts...); err != nil {
		k.unlock()
		return nil, fmt.Errorf("kafka on port %d: %w", cfg.Port, err)
	}
	for _, t := range cfg.Topics {
		if k.cluster.TopicInfo(t.Name) != nil {
			continue
		}
		if err := k.cluster.CreateTopic(t.Name, t.Partitions, t.Config); err != nil {
			k.Close()
			return nil, fmt.Errorf("kafka: make topic %s: %w", t.Name, err)
		}
	}
	every := cfg.Retention
	if every == 0 {
		every = time.Minute
	}
	k.stopped.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-k.stop:
				return
			case <-tick.C:
				k.cluster.ApplyRetention()
				k.cluster.Compact()
			}
		}
	})
	return k, nil
}

// Addr is the broker's host and port.
func (k *Kafka) Addr() string { return k.cluster.ListenAddrs()[0] }

// Dial connects to the broker from inside its process, past the network: what kafka.Config's Dial may be.
func (k *Kafka) Dial() (net.Conn, error) { return k.door.inside.Dial() }

// Close ends the broker; with a directory, all is on disk.
func (k *Kafka) Close() error {
	close(k.stop)
	k.stopped.Wait()
	k.cluster.Close()
	return k.unlock()
}

func (k *Kafka) unlock() error {
	if k.lock == nil {
		return nil
	}
	return k.lock.Unlock()
}

// brokerLog lets the broker's warnings through.
type brokerLog struct{ log *slog.Logger }

func (l brokerLog) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.log.Error("kafka: " + fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		l.log.Warn("kafka: " + fmt.Sprintf(format, args...))
	}
}
