package table_test

import (
	"slices"
	"testing"

	"pgw/functions/gateway"
	"pgw/functions/kafkasource"
	"pgw/knative"
)

// /status shows the hops of the manifests, and no others.
func TestTheFlowOfStatusIsThatOfTheManifests(t *testing.T) {
	manifests, err := kafkasource.Load(knative.Base)
	if err != nil {
		t.Fatal(err)
	}
	hops := 0
	for _, topic := range manifests.Topics() {
		hops += len(manifests.Groups(topic))
	}
	for _, h := range gateway.Flow {
		if !slices.Contains(manifests.Groups(h.Topic), h.Group) {
			t.Errorf("no source of the manifests has the topic %s and the group %s", h.Topic, h.Group)
		}
	}
	if len(gateway.Flow) != hops {
		t.Errorf("%d hops, and the manifests have %d", len(gateway.Flow), hops)
	}
}
