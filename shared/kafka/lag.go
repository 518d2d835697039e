package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Consumption is a consumer group that consumes a topic.
type Consumption struct{ Topic, Group string }

// Progress is how far a consumer group has come in a topic.
type Progress struct {
	Taken map[int32]int64 // the offset of the next record to consume in each partition
	Ends  map[int32]int64 // the offset after the newest record
}

// Lag is the number of records that wait. Aborted records and markers of transactions count too.
func (p Progress) Lag() (n int64) {
	for partition, end := range p.Ends {
		n += max(0, end-p.Taken[partition])
	}
	return n
}

// Sum is the sum of the offsets that are consumed. Its growth is the number of consumed records.
func (p Progress) Sum() (n int64) {
	for _, offset := range p.Taken {
		n += offset
	}
	return n
}

// Standing is the state of topics and of the groups that consume them.
type Standing struct {
	Oldest map[string]map[int32]int64 // the oldest offset in each partition of each topic
	Ends   map[string]map[int32]int64 // the offset after the newest record
	Groups map[Consumption]Progress
}

// ReadStanding asks the brokers for the state of topics and of consumer groups. It uses a connection of
// its own, so that it does not disturb a producer. It ends with ctx. Topics that don't exist are
// missing from the result, and so are groups whose offsets can't be read.
func ReadStanding(ctx context.Context, cfg Config, clientID string, topics []string, groups []Consumption) (s Standing, err error) {
	options, err := cfg.readerOptions(clientID)
	if err != nil {
		return s, err
	}
	// The caller asks again: an error at once says more than a wait.
	client, err := kgo.NewClient(append(options, kgo.RequestRetries(0))...)
	if err != nil {
		return s, fmt.Errorf("connect to Kafka at %v: %w", cfg.Brokers, err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	oldest, err := admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return s, fmt.Errorf("read the oldest offsets: %w", err)
	}
	ends, err := admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return s, fmt.Errorf("read the newest offsets: %w", err)
	}
	s = Standing{Oldest: offsetsOf(oldest), Ends: offsetsOf(ends), Groups: map[Consumption]Progress{}}
	names := make([]string, len(groups))
	for i, g := range groups {
		names[i] = g.Group
	}
	committed := admin.FetchManyOffsets(ctx, names...)
	for _, g := range groups {
		got := committed[g.Group]
		nothing := errors.Is(got.Err, kerr.GroupIDNotFound) // it has never consumed anything
		if got.Err != nil && !nothing || s.Ends[g.Topic] == nil {
			continue
		}
		p := Progress{Taken: map[int32]int64{}, Ends: s.Ends[g.Topic]}
		for partition, first := range s.Oldest[g.Topic] {
			p.Taken[partition] = first // of a group that has committed nothing, or only what was deleted since
			if at, ok := got.Fetched.Lookup(g.Topic, partition); ok && at.Err == nil {
				p.Taken[partition] = max(first, at.At)
			}
		}
		s.Groups[g] = p
	}
	return s, nil
}

func offsetsOf(listed kadm.ListedOffsets) map[string]map[int32]int64 {
	all := map[string]map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) {
		if o.Err != nil || o.Partition < 0 {
			return
		}
		if all[o.Topic] == nil {
			all[o.Topic] = map[int32]int64{}
		}
		all[o.Topic][o.Partition] = o.Offset
	})
	return all
}
