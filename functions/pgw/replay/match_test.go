package replay

import (
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
)

func TestEventsOfAClientAreMatched(t *testing.T) {
	of := func(data string) Event {
		e := cloudevents.New()
		e.SetType("t")
		e.DataEncoded = []byte(data)
		return Event{Event: e, Key: "k"}
	}
	for data, want := range map[string]bool{
		`{"client":"a"}`: true, `{"client":"b"}`: false, `{}`: false, `{"client":1}`: false, `not JSON`: false, `{"client":"a","client":"b"}`: false,
	} {
		if got := (Match{Client: "a"}).matches(of(data)); got != want {
			t.Errorf("%s: %t", data, got)
		}
		if !(Match{Key: "k"}).matches(of(data)) || (Match{Key: "other", Client: "a"}).matches(of(data)) {
			t.Errorf("%s: the client is asked for where it need not be", data)
		}
	}
}
