package kafkasource

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kfake"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/kafka"
)

// node is the listener of a broker whose process can be frozen: the kernel still takes connections
// and bytes, and nobody reads them.
type node struct {
	net.Listener
	frozen sync.RWMutex
}

func (n *node) Accept() (net.Conn, error) {
	conn, err := n.Listener.Accept()
	return frozenConn{conn, n}, err
}

type frozenConn struct {
	net.Conn
	node *node
}

func (c frozenConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.node.frozen.RLock()
	defer c.node.frozen.RUnlock()
	return n, err
}

func (c frozenConn) Write(p []byte) (int, error) {
	c.node.frozen.RLock()
	defer c.node.frozen.RUnlock()
	return c.Conn.Write(p)
}

// One of three brokers is frozen. It coordinates the group and leads a third of the partitions. The
// others take over at once, and every partition is read while it is still frozen.
func TestAFrozenBroker(t *testing.T) {
	t.Parallel()
	const partitions = 6
	var nodes []*node
	cluster, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.SeedTopics(partitions, "in"), kfake.SeedTopics(1, "dead"),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) {
			listener, err := net.Listen(network, "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			nodes = append(nodes, &node{Listener: listener})
			return nodes[len(nodes)-1], nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	for p := range int32(partitions) {
		if err := cluster.MoveTopicPartition("in", p, p%3); err != nil {
			t.Fatal(err)
		}
	}

	var read [partitions]atomic.Int64
	r := &rig{t: t, kafka: embeddedtest.Broker{Config: kafka.Config{Brokers: cluster.ListenAddrs()}}}
	r.serve(func(_ http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		p, err := strconv.Atoi(string(body))
		if err != nil {
			t.Errorf("%q: %v", body, err)
			return
		}
		read[p].Add(1)
	})
	stop := r.start(manifest(), nil)
	settings := r.kafka.Client(t)
	settings.Producer.Partitioner = sarama.NewManualPartitioner
	settings.Net.ReadTimeout = silentWithin
	send := func() {
		t.Helper()
		producer, err := sarama.NewSyncProducer(r.kafka.Brokers, settings)
		if err != nil {
			t.Fatal(err)
		}
		defer producer.Close()
		for p := range int32(partitions) {
			if _, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: "in", Partition: p, Value: sarama.StringEncoder(strconv.Itoa(int(p)))}); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := func(n int64, within time.Duration) error {
		for until := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
			missing := ""
			for p := range read {
				if read[p].Load() < n {
					missing += fmt.Sprintf(" %d", p)
				}
			}
			switch {
			case missing == "":
				return nil
			case time.Now().After(until):
				return fmt.Errorf("not read within %s: partitions%s", within, missing)
			}
		}
	}
	send()
	if err := all(1, patience); err != nil {
		t.Fatal(err)
	}

	lost := cluster.CoordinatorFor("group")
	nodes[lost].frozen.Lock()
	thaw := sync.OnceFunc(nodes[lost].frozen.Unlock)
	defer thaw()
	begun := time.Now()
	for p := range int32(partitions) {
		if p%3 == lost {
			if err := cluster.MoveTopicPartition("in", p, (lost+1)%3); err != nil {
				t.Fatal(err)
			}
		}
	}
	for cluster.CoordinatorFor("group") == lost {
		cluster.RehashCoordinators()
	}
	r.kafka.Brokers = []string{cluster.ListenAddrs()[(lost+1)%3]}
	// The records of each second are read in turn, also when the member's place in the group is
	// judged anew: a session lasts 10 s.
	for n := int64(2); time.Since(begun) < 15*time.Second; n++ {
		send()
		if err := all(n, 30*time.Second); err != nil {
			t.Fatal(err)
		}
		if n == 2 {
			t.Logf("all partitions are read again after %s", time.Since(begun).Round(100*time.Millisecond))
		}
		time.Sleep(time.Second)
	}
	thaw()
	stop()
}
