package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
)

// Toxiproxy's own silent connections are closed when they are healed, which tells both ends. These never are: nothing passes
// any more, not even that the other end has gone, as when a host loses its power or a firewall forgets a connection.

const muteType = "mute"

func init() { toxics.Register(muteType, new(muteToxic)) }

// muteToxic silences the connections that a wire has when the toxic is added. Those that come later pass.
type muteToxic struct {
	added atomic.Bool
}

// muted is one connection's state, which stays when other toxics come and go.
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
			state.ended = chunk == nil // which nobody hears of
		}
	}
}

// muteNow silences a wire's connections for ever, both ways. i makes the toxics' names unique.
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

// healWire takes away all toxics but those: what is silent for ever stays so, and the system heals without it.
func healWire(wire *toxiproxy.Proxy) {
	for _, toxic := range wire.Toxics.GetToxicArray() {
		if t, ok := toxic.(*toxics.ToxicWrapper); ok && t.Type != muteType {
			wire.Toxics.RemoveToxic(context.Background(), t.Name)
		}
	}
}
