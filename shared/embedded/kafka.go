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

// KafkaConfig is the configuration of a broker in this process.
type KafkaConfig struct {
	Dir       string                                              // the folder of records and offsets; empty keeps them in memory
	Port      int                                                 // on loopback; 0 means any free port
	Topics    []kafka.Topic                                       // made when missing; an existing one is left as it is
	Retention time.Duration                                       // the time between two runs of retention; 0 means one minute
	Listen    func(network, address string) (net.Listener, error) // nil means net.Listen; a test may use its own
	Log       *slog.Logger
}

// Kafka is one broker in this process. It uses Kafka's protocol.
type Kafka struct {
	cluster  *kfake.Cluster
	entrance *entrance
	lock     *flock.Flock
	stop     chan struct{}
	stopped  sync.WaitGroup
}

// ErrLocked means that another process uses the folder.
var ErrLocked = errors.New("is in use by another process")

// StartKafka starts the broker. It returns ErrLocked when another process uses its folder.
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
			k.entrance = newEntrance(l)
			return k.entrance, nil
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

// Addr returns the broker's host and port.
func (k *Kafka) Addr() string { return k.cluster.ListenAddrs()[0] }

// Dial connects to the broker from inside its process, without the network. It can be the Dial of a
// kafka.Config.
func (k *Kafka) Dial() (net.Conn, error) { return k.entrance.inside.Dial() }

// Close ends the broker. If it has a folder, everything is then on disk.
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

// brokerLog passes on the broker's warnings and errors.
type brokerLog struct{ log *slog.Logger }

func (l brokerLog) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.log.Error("kafka: " + fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		l.log.Warn("kafka: " + fmt.Sprintf(format, args...))
	}
}
