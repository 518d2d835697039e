package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
)

// Toxiproxy closes its own silent connections when they are healed, and both ends notice that. It
// never closes these connections: nothing passes any more, not even the end of the stream, as when
// a host loses its power or a firewall forgets a connection.

const muteType = "mute"

func init() { toxics.Register(muteType, new(muteToxic)) }

// muteToxic silences the connections that a wire has when the toxic is added. Later connections
// pass.
type muteToxic struct {
	added atomic.Bool
}

// muted is the state of one connection. It stays when other toxics come and go.
type muted struct{ silent, ended bool }

// NewState implements toxics.StatefulToxic.
func (t *muteToxic) NewState() any { return &muted{silent: !t.added.Load()} }

// Pipe implements toxics.Toxic.
func (t *muteToxic) Pipe(stub *toxics.ToxicStub) {
	state := stub.State.(*muted)
	if !state.silent {
		new(toxics.NoopToxic).Pipe(stub)
		return
	}
	for {
		input := stub.Input
		if state.ended {
			input = nil
		}
		select {
		case <-stub.Interrupt:
			return
		case chunk := <-input:
			state.ended = chunk == nil // the other end does not learn of it
		}
	}
}

// muteNow silences a wire's connections for ever, in both directions. i makes the toxics' names
// unique.
func muteNow(wire *toxiproxy.Proxy, i int) error {
	for _, stream := range []string{"downstream", "upstream"} {
		t, err := wire.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"name":"%s-%s-%d","stream":%q,"type":%q,"attributes":{}}`, muteType, stream, i, stream, muteType)))
		if err != nil {
			return err
		}
		t.Toxic.(*muteToxic).added.Store(true)
	}
	return nil
}

// healWire removes all toxics except these: a silent connection stays silent, and the system heals
// without it.
func healWire(wire *toxiproxy.Proxy) {
	for _, toxic := range wire.Toxics.GetToxicArray() {
		if t, ok := toxic.(*toxics.ToxicWrapper); ok && t.Type != muteType {
			wire.Toxics.RemoveToxic(context.Background(), t.Name)
		}
	}
}
