package kafka

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// pretendBrokers are brokers by their addresses. Each answers a byte with a byte, unless it is frozen,
// or can't be reached.
type pretendBrokers map[string]*pretendBroker

type pretendBroker struct {
	frozen      atomic.Bool
	unreachable bool
	refusing    bool
	dialed      int
}

func (all pretendBrokers) Dial(network, addr string) (net.Conn, error) {
	b := all[addr]
	b.dialed++
	if b.refusing {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	if b.unreachable {
		time.Sleep(3 * time.Second)
		return nil, &net.OpError{Op: "dial", Net: network, Err: timeout{}}
	}
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		var p [1]byte
		for {
			if _, err := far.Read(p[:]); err != nil {
				return
			}
			if b.frozen.Load() {
				continue
			}
			if _, err := far.Write(p[:]); err != nil {
				return
			}
		}
	}()
	return near, nil
}

type timeout struct{}

func (timeout) Error() string   { return "timeout" }
func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }

// ask sends a request on a new connection, and returns it with the answer's error.
func ask(t *testing.T, a *silentAvoider, addr string) (net.Conn, error) {
	t.Helper()
	conn, err := a.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	return conn, askOn(conn)
}

func askOn(conn net.Conn) error {
	p := [1]byte{1}
	if _, err := conn.Write(p[:]); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	_, err := conn.Read(p[:])
	return err
}

func TestASilentBrokerIsAvoidedWhileOthersAnswer(t *testing.T) {
	for name, fail := range map[string]func(*pretendBroker, bool){
		"frozen":      func(b *pretendBroker, on bool) { b.frozen.Store(on) },
		"unreachable": func(b *pretendBroker, on bool) { b.unreachable = on },
	} {
		t.Run(name, func(t *testing.T) {
			twoBrokers(t, func(t *testing.T, brokers pretendBrokers, avoider *silentAvoider) {
				other := answered(t, avoider, "b")
				fail(brokers["a"], true)

				// It is not avoided before another broker has answered since.
				for range 2 {
					conn, err := ask(t, avoider, "a")
					if !timedOut(err) {
						t.Fatalf("the first answer of a silent broker: %v", err)
					}
					if conn != nil {
						if err := askOn(conn); timedOut(err) || err == nil {
							t.Errorf("a second request on its connection: %v", err)
						}
					}
				}
				if err := askOn(other); err != nil {
					t.Fatal(err)
				}
				dialed, begun := brokers["a"].dialed, time.Now()
				if _, err := ask(t, avoider, "a"); !errors.Is(err, errSilent) || !broken(err) {
					t.Errorf("connected to a silent broker: %v", err)
				}
				if waited := time.Since(begun); waited != 0 || brokers["a"].dialed != dialed {
					t.Errorf("it took %s and %d attempts to avoid it", waited, brokers["a"].dialed-dialed)
				}

				// It is asked again later, and is avoided again while it is silent.
				time.Sleep(avoidFor)
				if _, err := ask(t, avoider, "a"); !timedOut(err) {
					t.Errorf("asked again after %s: %v", avoidFor, err)
				}
				if err := askOn(other); err != nil {
					t.Fatal(err)
				}
				if _, err := ask(t, avoider, "a"); !errors.Is(err, errSilent) {
					t.Errorf("connected to a broker that is silent again: %v", err)
				}

				fail(brokers["a"], false)
				time.Sleep(avoidFor)
				for range 2 {
					if _, err := ask(t, avoider, "a"); err != nil {
						t.Errorf("a broker that answers again: %v", err)
					}
				}
				if avoider.avoiding.Load() {
					t.Error("brokers that answer are avoided")
				}
			})
		})
	}
}

// twoBrokers runs a test with an avoider of the brokers a and b, in a bubble of time.
func twoBrokers(t *testing.T, run func(*testing.T, pretendBrokers, *silentAvoider)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		brokers := pretendBrokers{"a": {}, "b": {}}
		run(t, brokers, &silentAvoider{to: brokers})
	})
}

// answered is ask for a broker that has to answer.
func answered(t *testing.T, a *silentAvoider, addr string) net.Conn {
	t.Helper()
	conn, err := ask(t, a, addr)
	if err != nil {
		t.Fatalf("%s: %v", addr, err)
	}
	return conn
}

// fallSilent freezes a broker, asks it on a new connection, and lets it go on.
func fallSilent(t *testing.T, a *silentAvoider, brokers pretendBrokers, addr string) {
	t.Helper()
	brokers[addr].frozen.Store(true)
	if _, err := ask(t, a, addr); !timedOut(err) {
		t.Fatalf("the first answer of a frozen broker: %v", err)
	}
	brokers[addr].frozen.Store(false)
}

// The answer to a join may take long. Its broker is not silent.
func TestABrokerThatHasAnsweredMayTakeItsTime(t *testing.T) {
	twoBrokers(t, func(t *testing.T, brokers pretendBrokers, avoider *silentAvoider) {
		conn := answered(t, avoider, "a")
		brokers["a"].frozen.Store(true)
		if err := askOn(conn); !timedOut(err) {
			t.Fatalf("the answer of a frozen broker: %v", err)
		}
		brokers["a"].frozen.Store(false)
		if err := askOn(conn); err != nil {
			t.Errorf("the connection after a late answer: %v", err)
		}
		answered(t, avoider, "b")
		answered(t, avoider, "a")
	})
}

// A connection that still works shows that its broker is not silent.
func TestAnAnswerOnAnEarlierConnectionEndsASilence(t *testing.T) {
	twoBrokers(t, func(t *testing.T, brokers pretendBrokers, avoider *silentAvoider) {
		earlier := answered(t, avoider, "a")
		fallSilent(t, avoider, brokers, "a")
		answered(t, avoider, "b")
		if err := askOn(earlier); err != nil {
			t.Fatal(err)
		}
		answered(t, avoider, "a")
	})
}

// The other broker is gone, so the one that was silent is asked again at once.
func TestASilentBrokerIsAskedWhenTheOthersAreGone(t *testing.T) {
	twoBrokers(t, func(t *testing.T, brokers pretendBrokers, avoider *silentAvoider) {
		fallSilent(t, avoider, brokers, "a")
		answered(t, avoider, "b")
		if _, err := ask(t, avoider, "a"); !errors.Is(err, errSilent) {
			t.Errorf("connected to a silent broker: %v", err)
		}
		brokers["b"].refusing = true
		if _, err := ask(t, avoider, "b"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
		answered(t, avoider, "a")
	})
}

// A broker that never comes back, because it has another address now, is forgotten.
func TestASilenceIsForgotten(t *testing.T) {
	twoBrokers(t, func(t *testing.T, brokers pretendBrokers, avoider *silentAvoider) {
		fallSilent(t, avoider, brokers, "a")
		time.Sleep(avoidFor)
		answered(t, avoider, "b")
		if avoider.avoiding.Load() || len(avoider.silent) > 0 {
			t.Errorf("%v is avoided after %s", avoider.silent, avoidFor)
		}
	})
}
