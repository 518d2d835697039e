package kafkasource

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
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

// node is the listener of a broker whose process can be frozen or killed. When it is frozen, the
// kernel still takes connections and bytes, and nobody reads them.
type node struct {
	net.Listener
	frozen sync.RWMutex

	mu    sync.Mutex
	conns []net.Conn
}

func (n *node) Accept() (net.Conn, error) {
	conn, err := n.Listener.Accept()
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = append(n.conns, conn)
	return frozenConn{conn, n}, nil
}

func (n *node) kill() {
	n.Listener.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, conn := range n.conns {
		conn.Close()
	}
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

// nodes are three brokers with the topic in, and a source that reads it. Each leads a third of its
// partitions.
type nodes struct {
	*rig
	cluster  *kfake.Cluster
	nodes    []*node
	settings *sarama.Config
	read     [nodePartitions]atomic.Int64 // the records that were delivered, by partition
}

const nodePartitions = 6

// threeNodes starts the brokers and the source, and returns when each partition is read.
func threeNodes(t *testing.T) (n *nodes, stop func()) {
	t.Helper()
	n = &nodes{}
	var err error
	n.cluster, err = kfake.NewCluster(kfake.NumBrokers(3), kfake.SeedTopics(nodePartitions, "in"), kfake.SeedTopics(1, "dead"),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) {
			listener, err := net.Listen(network, "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			n.nodes = append(n.nodes, &node{Listener: listener})
			return n.nodes[len(n.nodes)-1], nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.cluster.Close)
	for p := range int32(nodePartitions) {
		if err := n.cluster.MoveTopicPartition("in", p, p%3); err != nil {
			t.Fatal(err)
		}
	}
	n.rig = &rig{t: t, kafka: embeddedtest.Broker{Config: kafka.Config{Brokers: n.cluster.ListenAddrs()}}}
	n.serve(func(_ http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		p, err := strconv.Atoi(string(body))
		if err != nil {
			t.Errorf("%q: %v", body, err)
			return
		}
		n.read[p].Add(1)
	})
	stop = n.start(manifest(), nil)
	n.settings = n.kafka.Client(t)
	n.settings.Producer.Partitioner = sarama.NewManualPartitioner
	n.settings.Net.ReadTimeout = silentWithin
	n.send()
	n.each(1)
	return n, stop
}

// send sends a record to each partition.
func (n *nodes) send() {
	n.t.Helper()
	producer, err := sarama.NewSyncProducer(n.kafka.Brokers, n.settings)
	if err != nil {
		n.t.Fatal(err)
	}
	defer producer.Close()
	for p := range int32(nodePartitions) {
		if _, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: "in", Partition: p, Value: sarama.StringEncoder(strconv.Itoa(int(p)))}); err != nil {
			n.t.Fatal(err)
		}
	}
}

// each waits until so many records of each partition were delivered.
func (n *nodes) each(records int64) {
	n.t.Helper()
	for until := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		missing := ""
		for p := range n.read {
			if n.read[p].Load() < records {
				missing += fmt.Sprintf(" %d", p)
			}
		}
		switch {
		case missing == "":
			return
		case time.Now().After(until):
			n.t.Fatalf("not read within %s: partitions%s", patience, missing)
		}
	}
}

// lose makes the coordinator of the group fail, and gives what it had to the next broker.
func (n *nodes) lose(fail func(*node)) {
	n.t.Helper()
	lost := n.cluster.CoordinatorFor("group")
	fail(n.nodes[lost])
	for p := range int32(nodePartitions) {
		if p%3 == lost {
			if err := n.cluster.MoveTopicPartition("in", p, (lost+1)%3); err != nil {
				n.t.Fatal(err)
			}
		}
	}
	for n.cluster.CoordinatorFor("group") == lost {
		n.cluster.RehashCoordinators()
	}
	n.kafka.Brokers = []string{n.cluster.ListenAddrs()[(lost+1)%3]}
}

// members are the ids of the group's members.
func (n *nodes) members() []string {
	n.t.Helper()
	admin, err := sarama.NewClusterAdmin(n.kafka.Brokers, n.settings)
	if err != nil {
		n.t.Fatal(err)
	}
	defer admin.Close()
	groups, err := admin.DescribeConsumerGroups([]string{"group"})
	if err != nil {
		n.t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(groups[0].Members))
}

// One of three brokers is frozen. It coordinates the group and leads a third of the partitions. The
// others take over at once, and every partition is read while it is still frozen.
func TestAFrozenBroker(t *testing.T) {
	t.Parallel()
	n, stop := threeNodes(t)
	var frozen *node
	n.lose(func(lost *node) { frozen = lost; lost.frozen.Lock() })
	thaw := sync.OnceFunc(func() { frozen.frozen.Unlock() })
	defer thaw()
	// The records of each second are read in turn, also when the member's place in the group is
	// judged anew: a session lasts 10 s.
	begun, records := time.Now(), int64(2)
	for ; time.Since(begun) < 15*time.Second; records++ {
		n.send()
		n.each(records)
		if records == 2 {
			t.Logf("all partitions are read again after %s", time.Since(begun).Round(100*time.Millisecond))
		}
		time.Sleep(time.Second)
	}
	thaw()
	n.send()
	n.each(records)
	stop()
}

// The broker that coordinates the group is killed, and it takes a while until another one does. The
// member joins again as the same member. As another one it would wait until its old session has
// expired, and read nothing meanwhile.
func TestTheCoordinatorIsKilled(t *testing.T) {
	t.Parallel()
	n, stop := threeNodes(t)
	before := n.members()
	n.lose(func(lost *node) { lost.kill(); time.Sleep(6 * time.Second) })
	n.send()
	n.each(2)
	if after := n.members(); len(before) != 1 || !slices.Equal(before, after) {
		t.Errorf("the group's members were %v, and are %v", before, after)
	}
	stop()
}
