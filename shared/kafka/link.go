package kafka

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/IBM/sarama"
	"github.com/eapache/go-resiliency/breaker"
)

// link is one client with its connections to the brokers. It settles all messages that it was
// given, even after it is retired. So no message is ever in two links.
type link struct {
	client   sarama.Client
	producer sarama.AsyncProducer
	writes   *atomic.Int64 // all writes to all brokers; each is counted before it is made
	end      func()        // called once, when the link is retired and all its messages are settled

	mu      sync.Mutex
	open    int // messages that have entered and are not settled
	retired bool
}

func openLink(brokers []string, settings *sarama.Config) (*link, error) {
	l := &link{writes: new(atomic.Int64)}
	own := *settings
	own.Net.Proxy.Dialer = countingDialer{settings.Net.Proxy.Dialer, l.writes}
	var err error
	if l.client, err = sarama.NewClient(brokers, &own); err != nil {
		return nil, err
	}
	if l.producer, err = sarama.NewAsyncProducerFromClient(l.client); err != nil {
		l.client.Close()
		return nil, err
	}
	return l, nil
}

// forward passes on the results of the messages, until the link is closed.
func (l *link) forward(settle func(*message, error)) {
	go func() {
		for m := range l.producer.Successes() {
			settle(m.Metadata.(*message), nil)
		}
	}()
	go func() {
		for failed := range l.producer.Errors() {
			settle(failed.Msg.Metadata.(*message), failed.Err)
		}
	}()
}

// enter announces a message. It returns false when the link is retired.
func (l *link) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.retired {
		return false
	}
	l.open++
	return true
}

// leave is called once for each message that has entered.
func (l *link) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open--; l.retired && l.open == 0 {
		l.end()
	}
}

func (l *link) retire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.retired {
		if l.retired = true; l.open == 0 {
			l.end()
		}
	}
}

// close waits until the client has ended. Its messages are settled by then, so its errors do not
// matter.
func (l *link) close() {
	_ = l.producer.Close()
	_ = l.client.Close()
}

// broken reports whether an error concerns the link, and not the message. An open circuit breaker
// of sarama would refuse a partition for 10 s, even after the broker is back. A producer whose ids
// the broker has forgotten would fail again and again.
func broken(err error) bool {
	if err == nil {
		return false
	}
	for _, known := range []error{
		breaker.ErrBreakerOpen, sarama.ErrOutOfBrokers, sarama.ErrBrokerNotAvailable, sarama.ErrNotConnected,
		sarama.ErrClosedClient, sarama.ErrShuttingDown, io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed,
		sarama.ErrOutOfOrderSequenceNumber, sarama.ErrUnknownProducerID, sarama.ErrInvalidProducerEpoch, sarama.ErrProducerFenced,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	var network *net.OpError
	return errors.As(err, &network)
}

// WithoutCoordinator reports whether an error of a consumer group means that its coordinator can't
// be reached, or that there is none for the moment, or that a rebalance lasts. The group still has
// its member, which asks again.
func WithoutCoordinator(err error) bool {
	var told sarama.KError
	if errors.As(err, &told) {
		switch told {
		case sarama.ErrConsumerCoordinatorNotAvailable, sarama.ErrNotCoordinatorForConsumer, sarama.ErrOffsetsLoadInProgress,
			sarama.ErrRebalanceInProgress:
			return true
		}
	}
	return broken(err)
}

// message is one message that was given to a link. It takes the place of the message's value, so it
// knows when the client takes the value to write it. Before that, nothing of the message can have
// been written.
type message struct {
	link   *link
	places int64      // the number of the producer's places that it uses
	done   chan error // gets the result, once
	value  []byte
	state  atomic.Int32
	before int64 // the link's writes when the value was taken
}

// The states of a message.
const (
	waiting   = iota // the client has not taken the value
	taken            // the client has taken the value and may have written it
	withdrawn        // the client can no longer take the value
)

var errWithdrawn = errors.New("withdrawn before it was written")

func newMessage(l *link, places int64, value []byte) *message {
	return &message{link: l, places: places, done: make(chan error, 1), value: value}
}

// wrap returns the message for sarama.
func (m *message) wrap(sent *sarama.ProducerMessage) *sarama.ProducerMessage {
	wrapped := &sarama.ProducerMessage{
		Topic: sent.Topic, Key: sent.Key, Headers: sent.Headers, Partition: sent.Partition, Timestamp: sent.Timestamp,
		Metadata: m, Value: m,
	}
	if sent.Value == nil {
		// A message without a value must stay without one, so its Encode is never called. The
		// writes are counted from here.
		m.before = m.link.writes.Load()
		m.state.Store(taken)
		wrapped.Value = nil
	}
	return wrapped
}

// Encode implements sarama.Encoder. The client takes the value here, perhaps again for a retry.
func (m *message) Encode() ([]byte, error) {
	if m.state.Load() == waiting {
		m.before = m.link.writes.Load()
	}
	if !m.state.CompareAndSwap(waiting, taken) && m.state.Load() == withdrawn {
		return nil, errWithdrawn
	}
	return m.value, nil
}

// Length implements sarama.Encoder.
func (m *message) Length() int { return len(m.value) }

// withdraw takes a message back that the client has not begun to write. It returns false if it is
// too late.
func (m *message) withdraw() bool {
	return m.state.CompareAndSwap(waiting, withdrawn) || m.state.Load() == withdrawn
}

// unsent reports whether nothing of a message was written that the client has given up. Either its
// value was never taken, or the link has written nothing since.
func (m *message) unsent() bool { return m.withdraw() || m.link.writes.Load() == m.before }

// countingDialer counts the writes on all its connections. It does not look at the bytes, because
// TLS hides them.
type countingDialer struct {
	to     plainDialer
	writes *atomic.Int64
}

func (d countingDialer) Dial(network, addr string) (net.Conn, error) {
	conn, err := d.to.Dial(network, addr)
	if err != nil {
		return nil, err
	}
	return countingConn{conn, d.writes}, nil
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}
