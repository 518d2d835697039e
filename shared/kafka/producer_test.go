package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pgw/shared/kafka"
)

// patience is the limit for a step of a test, also on a busy machine.
const patience = 2 * time.Minute

// wire is a proxy between a broker and its clients.
type wire struct {
	arrived chan net.Conn
	closed  chan struct{}
	once    sync.Once
	muted   atomic.Bool // the broker's answers are lost

	mu       sync.Mutex
	addr     net.Addr
	listener net.Listener // nil: the broker is away
	conns    map[net.Conn]bool
}

// broker starts a broker behind a wire.
func broker(t testing.TB, opts ...kfake.Opt) (*kfake.Cluster, *wire, kafka.Config) {
	t.Helper()
	cluster, wires, cfg := brokers(t, 1, opts...)
	return cluster, wires[0], cfg
}

// brokers starts brokers, each behind a wire.
func brokers(t testing.TB, n int, opts ...kfake.Opt) (*kfake.Cluster, []*wire, kafka.Config) {
	t.Helper()
	var wires []*wire
	listen := func(network, _ string) (net.Listener, error) {
		listener, err := net.Listen(network, "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		w := &wire{arrived: make(chan net.Conn), closed: make(chan struct{}), conns: map[net.Conn]bool{}, addr: listener.Addr()}
		w.open(listener)
		wires = append(wires, w)
		return w, nil
	}
	cluster, err := kfake.NewCluster(append(opts, kfake.NumBrokers(n), kfake.SeedTopics(4, "t"), kfake.ListenFn(listen))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster, wires, kafka.Config{Brokers: cluster.ListenAddrs()}
}

func (w *wire) open(listener net.Listener) {
	w.mu.Lock()
	w.listener = listener
	w.mu.Unlock()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			here := w.listener == listener
			w.conns[conn] = here
			w.mu.Unlock()
			if !here {
				conn.Close()
				continue
			}
			select {
			case w.arrived <- wired{conn, w}:
			case <-w.closed:
				conn.Close()
			}
		}
	}()
}

// away takes the broker off the network: connections break, and new ones are refused.
func (w *wire) away() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listener != nil {
		w.listener.Close()
		w.listener = nil
	}
	for conn := range w.conns {
		conn.Close()
		delete(w.conns, conn)
	}
}

func (w *wire) back(t testing.TB) {
	t.Helper()
	listener, err := net.Listen("tcp", w.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	w.open(listener)
}

func (w *wire) Accept() (net.Conn, error) {
	select {
	case conn := <-w.arrived:
		return conn, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	w.away()
	return nil
}

func (w *wire) Addr() net.Addr { return w.addr }

type wired struct {
	net.Conn
	wire *wire
}

func (c wired) Write(p []byte) (int, error) {
	if c.wire.muted.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// within makes one publish with a time limit, as a caller does.
func within(t testing.TB, d time.Duration, p *kafka.Producer, key string) error {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return p.Send(ctx, &sarama.ProducerMessage{Topic: "t", Key: sarama.StringEncoder(key), Value: sarama.StringEncoder("v-" + key)})
}

// until publishes until the result is the wanted one.
func until(t testing.TB, p *kafka.Producer, key string, wanted func(error) bool) {
	t.Helper()
	var err error
	for begun := time.Now(); time.Since(begun) < patience; {
		if err = within(t, time.Second, p, key); wanted(err) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("the wanted result never came: %v", err)
}

func succeeded(err error) bool { return err == nil }
func notSent(err error) bool   { return errors.Is(err, kafka.ErrNotSent) }

// stored counts the records of each key in the topic.
func stored(t testing.TB, cfg kafka.Config) map[string]int {
	t.Helper()
	n := map[string]int{}
	err := kafka.Read(t.Context(), cfg, "test", kafka.Range{Topic: "t"}, func(m *sarama.ConsumerMessage) error {
		n[string(m.Key)]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func ended(t testing.TB, p *kafka.Producer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
}

// The broker has the event, but its acknowledgement is lost. The producer must not report
// ErrNotSent.
func TestALostAcknowledgementIsNotNotSent(t *testing.T) {
	cluster, w, cfg := broker(t)
	p := producer(t, cfg)
	defer ended(t, p)
	if err := within(t, patience, p, "before"); err != nil {
		t.Fatal(err)
	}
	records := func() (n int64) {
		for _, p := range cluster.PartitionInfos("t") {
			n += p.HighWatermark
		}
		return n
	}
	// send returns when the broker has the event, before the producer can know that.
	result := make(chan error)
	send := func(ctx context.Context, key string) {
		t.Helper()
		w.muted.Store(true)
		n := records()
		go func() {
			result <- p.Send(ctx, &sarama.ProducerMessage{Topic: "t", Key: sarama.StringEncoder(key), Value: sarama.StringEncoder("v")})
		}()
		for begun := time.Now(); records() == n; time.Sleep(time.Millisecond) {
			if time.Since(begun) > patience {
				t.Fatalf("the broker never got %q", key)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	send(ctx, "awaited")
	cancel()
	if err := <-result; err == nil || notSent(err) || !errors.Is(err, context.Canceled) {
		t.Errorf("an acknowledgement that is awaited: %v", err)
	}
	w.away()
	w.muted.Store(false)
	w.back(t)
	until(t, p, "between", succeeded)

	// The connection breaks. The client asks again, or never reaches the broker again.
	send(t.Context(), "broken")
	w.away()
	w.muted.Store(false)
	w.back(t)
	if err := <-result; err != nil {
		t.Errorf("after the broker's return: %v", err)
	}
	send(t.Context(), "broken for good")
	w.away()
	if err := <-result; err == nil || notSent(err) {
		t.Errorf("a connection that broke before the acknowledgement: %v", err)
	}
	w.muted.Store(false)
	w.back(t)
	until(t, p, "after", succeeded)
	there := stored(t, cfg)
	for _, key := range []string{"awaited", "broken", "broken for good"} {
		if n := there[key]; n != 1 {
			t.Errorf("%q is in the topic %d times, want once", key, n)
		}
	}
}

// A broker that is away when the publish begins has received nothing, whether or not it was there
// before.
func TestABrokerThatIsAwayGotNothing(t *testing.T) {
	_, w, cfg := broker(t)
	fresh := producer(t, cfg)
	defer ended(t, fresh)
	known := producer(t, cfg)
	defer ended(t, known)
	if err := within(t, patience, known, "before"); err != nil {
		t.Fatal(err)
	}
	w.away()
	if err := within(t, patience, fresh, "fresh"); !notSent(err) {
		t.Errorf("never connected: %v", err)
	}
	if err := within(t, time.Nanosecond, fresh, "fresh"); !notSent(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no time: %v", err)
	}
	// The first message may go into a connection whose other end is gone. Nobody can distinguish
	// that from a slow one.
	until(t, known, "known", notSent)
	if err := within(t, patience, known, "known"); !notSent(err) {
		t.Errorf("connected before: %v", err)
	}
	w.back(t)
	if n := stored(t, cfg); n["fresh"] != 0 {
		t.Errorf("a message that was not sent is in the topic: %v", n)
	}
}

// A message that cannot be sent at all returns ErrNotSent and the cause.
func TestWhatIsNeverSent(t *testing.T) {
	cluster, _, cfg := broker(t)
	seen := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Count: -1, Observe: true})
	p := producer(t, cfg)
	e := made(t, "k")
	large := e.Clone()
	if err := large.SetData("application/octet-stream", make([]byte, kafka.MaxMessageBytes)); err != nil {
		t.Fatal(err)
	}
	err := p.Publish(t.Context(), "t", "k", large)
	size := 0
	if err != nil {
		fmt.Sscanf(err.Error()[strings.LastIndex(err.Error(), ": ")+2:], "%d bytes, and at most 1048576", &size)
	}
	if !notSent(err) || !errors.Is(err, kafka.ErrTooLarge) || size <= kafka.MaxMessageBytes {
		t.Errorf("too large: %v", err)
	}
	if err := p.Send(t.Context(), &sarama.ProducerMessage{Topic: "t", Value: unencodable{}}); !notSent(err) || !errors.Is(err, errUnencodable) {
		t.Errorf("can't be encoded: %v", err)
	}
	if err := p.Publish(t.Context(), "elsewhere", "k", e); !notSent(err) || !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		t.Errorf("no such topic: %v", err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Publish(over, "t", "k", e); !notSent(err) {
		t.Errorf("with a context that has ended: %v", err)
	}
	ended(t, p)
	if err := p.Publish(t.Context(), "t", "k", e); !notSent(err) || !errors.Is(err, kafka.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if n := seen.Hits(); n != 0 {
		t.Errorf("%d requests to produce were sent", n)
	}
}

var errUnencodable = errors.New("can't be encoded")

type unencodable struct{}

func (unencodable) Encode() ([]byte, error) { return nil, errUnencodable }
func (unencodable) Length() int             { return 1 }

// The client waits for something else when the caller gives up. The message is withdrawn, and never
// arrives.
func TestAMessageIsTakenBack(t *testing.T) {
	cluster, _, cfg := broker(t)
	p := producer(t, cfg)
	if err := p.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The topic does not exist while the caller waits.
	asked := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "late", Count: -1, Observe: true})
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		result <- p.Send(ctx, &sarama.ProducerMessage{Topic: "late", Key: sarama.StringEncoder("back"), Value: sarama.StringEncoder("v")})
	}()
	if err := asked.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-result; !notSent(err) || !errors.Is(err, context.Canceled) {
		t.Errorf("Send returned %v", err)
	}
	if err := cluster.CreateTopic("late", 1, nil); err != nil {
		t.Fatal(err)
	}
	ended(t, p)
	p = producer(t, cfg)
	defer ended(t, p)
	if err := p.Send(t.Context(), &sarama.ProducerMessage{Topic: "late", Key: sarama.StringEncoder("later"), Value: sarama.StringEncoder("v")}); err != nil {
		t.Fatal(err)
	}
	if info := cluster.PartitionInfo("late", 0); info.HighWatermark != 1 {
		t.Errorf("the topic holds %d records, want the later one", info.HighWatermark)
	}
}

// A new leader is elected. The old leader refuses more often than the client tried before, and then
// there is no leader.
func TestALeaderElectionIsOutlasted(t *testing.T) {
	cluster, _, cfg := broker(t)
	p := producer(t, cfg)
	defer ended(t, p)
	if err := within(t, patience, p, "before"); err != nil {
		t.Fatal(err)
	}
	refused := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition, Count: 8})
	if err := within(t, patience, p, "refused"); err != nil {
		t.Errorf("after %d refusals: %v", refused.Hits(), err)
	}
	if n := refused.Hits(); n != 8 {
		t.Errorf("refused %d times, want 8", n)
	}
	cluster.Fault(
		kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition},
		kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "t", Err: kerr.LeaderNotAvailable, Count: 5},
	)
	if err := within(t, patience, p, "leaderless"); err != nil {
		t.Errorf("without a leader for a while: %v", err)
	}
	if n := stored(t, cfg); n["refused"] != 1 || n["leaderless"] != 1 {
		t.Errorf("the topic holds %v", n)
	}
}

// The leader is gone for good. Until another one is elected, the other brokers still name it.
func TestTheEndOfALeaderIsOutlasted(t *testing.T) {
	cluster, wires, cfg := brokers(t, 3)
	lead := func(node int32) {
		for p := range int32(4) {
			if err := cluster.MoveTopicPartition("t", p, node); err != nil {
				t.Fatal(err)
			}
		}
	}
	lead(1)
	p := producer(t, cfg)
	defer ended(t, p)
	if err := within(t, patience, p, "before"); err != nil {
		t.Fatal(err)
	}
	asked := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "t", Count: -1, Observe: true})
	wires[1].away()
	result := make(chan error)
	for i := range 3 {
		go func() { result <- within(t, patience, p, fmt.Sprint("k", i)) }()
	}
	if err := asked.Wait(t.Context(), 6); err != nil { // as often as earlier versions tried
		t.Fatal(err)
	}
	lead(2)
	for range 3 {
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
	if n := stored(t, kafka.Config{Brokers: []string{cfg.Brokers[0], cfg.Brokers[2]}}); n["k0"] != 1 || n["k1"] != 1 || n["k2"] != 1 {
		t.Errorf("the topic holds %v", n)
	}
}

// A broker that returns is used at once, and not only when a circuit breaker closes. Waiting
// callers connect together.
func TestABrokerThatReturnsIsUsed(t *testing.T) {
	_, w, cfg := broker(t)
	p := producer(t, cfg)
	defer ended(t, p)
	if err := within(t, patience, p, "before"); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		w.away()
		var publishing sync.WaitGroup
		var publishes atomic.Int64
		gone, stop := context.WithCancel(t.Context())
		for i := range 20 {
			publishing.Go(func() {
				for n := 0; gone.Err() == nil; n++ {
					within(t, time.Second, p, fmt.Sprintf("away-%d-%d-%d", round, i, n))
					publishes.Add(1)
				}
			})
		}
		for begun := time.Now(); publishes.Load() < 200 && time.Since(begun) < patience; {
			time.Sleep(10 * time.Millisecond)
		}
		stop()
		publishing.Wait()
		w.back(t)
		begun := time.Now()
		until(t, p, fmt.Sprint("back-", round), func(err error) bool {
			if err != nil && strings.Contains(err.Error(), "circuit breaker") {
				t.Errorf("%s after its return: %v", time.Since(begun), err)
			}
			return err == nil
		})
		t.Logf("used %s after its return", time.Since(begun))
	}
}

// A broker that becomes silent keeps its connections open. They are given up, and no caller waits
// for ever.
func TestASilentBrokerIsGivenUp(t *testing.T) {
	_, w, cfg := broker(t)
	p := producer(t, cfg)
	defer ended(t, p)
	if err := within(t, patience, p, "before"); err != nil {
		t.Fatal(err)
	}
	w.muted.Store(true)
	result := make(chan error, 2)
	go func() { result <- within(t, patience, p, "silent") }()
	go func() {
		fresh := producer(t, cfg)
		defer ended(t, fresh)
		result <- within(t, patience, fresh, "fresh")
	}()
	if err := within(t, 100*time.Millisecond, p, "short"); err == nil {
		t.Error("a silent broker has acknowledged")
	}
	if err := <-result; err == nil { // the fresh producer does not wait for a connection that never comes
		t.Error("the producer connected to a silent broker")
	}
	w.muted.Store(false)
	if err := <-result; err != nil {
		t.Errorf("a broker that answers again, on new connections: %v", err)
	}
	if n := stored(t, cfg)["silent"]; n != 1 {
		t.Errorf("the topic holds it %d times, want once", n)
	}
}

// With any faults of the broker and any impatience of the callers: a message that was reported as
// sent is in the topic once, one that was reported as not sent is not there, and every caller gets
// a result.
func TestWhatPublishersAreToldIsTrue(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	cluster, w, cfg := broker(t)
	p := producer(t, cfg)
	var mu sync.Mutex
	outcomes := map[string]error{}
	var publishing sync.WaitGroup
	stop := make(chan struct{})
	for i := range 16 {
		own := rand.New(rand.NewPCG(seed, uint64(i+2)))
		publishing.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("%d-%d", i, n)
				err := within(t, time.Duration(own.ExpFloat64()*float64(300*time.Millisecond)), p, key)
				mu.Lock()
				outcomes[key] = err
				mu.Unlock()
			}
		})
	}
	for range 12 {
		time.Sleep(time.Duration(random.Int64N(int64(300 * time.Millisecond))))
		switch random.IntN(4) {
		case 0:
			w.away()
			time.Sleep(time.Duration(random.Int64N(int64(time.Second))))
			w.back(t)
		case 1:
			w.muted.Store(true)
			time.Sleep(time.Duration(random.Int64N(int64(300 * time.Millisecond))))
			w.away()
			w.muted.Store(false)
			w.back(t)
		case 2:
			cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition, Count: random.IntN(20)})
		case 3:
			cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "t", Err: kerr.LeaderNotAvailable, Count: random.IntN(20)})
		}
	}
	close(stop)
	publishing.Wait()
	ended(t, p)
	there := stored(t, cfg)
	var sent, unsent, unknown int
	for key, err := range outcomes {
		switch n := there[key]; {
		case err == nil:
			if sent++; n != 1 {
				t.Errorf("%s was reported as sent, and is in the topic %d times", key, n)
			}
		case notSent(err):
			if unsent++; n != 0 {
				t.Errorf("%s is in the topic %d times, and its error was: %v", key, n, err)
			}
		default:
			if unknown++; n > 1 {
				t.Errorf("%s is in the topic %d times", key, n)
			}
		}
	}
	t.Logf("%d sent, %d not sent, %d unknown", sent, unsent, unknown)
	if sent == 0 || unsent == 0 {
		t.Errorf("%d were sent and %d not: the test needs both", sent, unsent)
	}
}

// Close finishes what is in flight first. A message that waits for a connection does not hold it
// up.
func TestCloseDrains(t *testing.T) {
	cluster, w, cfg := broker(t)
	p := producer(t, cfg)
	if err := within(t, patience, p, "before"); err != nil {
		t.Fatal(err)
	}
	seen := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Count: -1, Observe: true})
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition, Count: 6})
	result := make(chan error)
	go func() { result <- within(t, patience, p, "under way") }()
	if err := seen.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Close(over); !errors.Is(err, context.Canceled) {
		t.Errorf("Close with a context that has ended: %v", err)
	}
	ended(t, p)
	if err := <-result; err != nil {
		t.Errorf("under way: %v", err)
	}

	w.away()
	p = producer(t, cfg)
	go func() { result <- within(t, patience, p, "waits") }()
	go func() { result <- within(t, patience, p, "waits") }()
	ended(t, p)
	for range 2 {
		if err := <-result; !notSent(err) {
			t.Errorf("waits for a connection: %v", err)
		}
	}
}
