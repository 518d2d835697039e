package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pgw/tests/processes"
)

// replicated are the functions of a replica: those that take payments and deliver them.
var replicated = []string{"worker", "gateway", processes.StandIn}

// replica starts one more process of each replicated function. Its source delivers to its own worker
// and gateway, and shares the partitions with the sources of the others.
func (s *separate) replica() (*processes.System, error) {
	cfg := s.cfg
	cfg.Fronts = map[string]string{}
	for _, name := range processes.All {
		if !slices.Contains(replicated, name) {
			cfg.Fronts[name] = s.Addr(name)
		}
	}
	r, err := processes.New(cfg)
	if err != nil {
		return nil, err
	}
	for _, name := range replicated {
		if _, err := r.Start(s.m.ctx, name); err != nil {
			return nil, errors.Join(err, r.StopAll())
		}
	}
	return r, nil
}

// withReplicas measures n replicas in all, on topics with this number of partitions.
func (g *growth) withReplicas(scenario string, n int, partitions int32, measure func(s *separate, more []*processes.System) error) (err error) {
	if err := g.m.rest(); err != nil {
		return err
	}
	s, err := g.m.separate(scenario, partitions)
	if err != nil {
		return err
	}
	var more []*processes.System
	defer func() {
		for _, r := range more { // measure may have replaced them
			err = errors.Join(err, r.StopAll())
		}
		err = errors.Join(err, s.stop())
	}()
	for range n - 1 {
		r, err := s.replica()
		if err != nil {
			return err
		}
		more = append(more, r)
	}
	if _, err := s.load(spec{g.Payments, 64}); err != nil {
		return err
	}
	return errors.Join(measure(s, more), g.m.sum(s.Database))
}

// flows measures the whole flow with several gateways, workers and sources, on few and on many
// partitions. Its clients use all gateways in turn.
func (g *growth) flows() error {
	for _, of := range []struct {
		replicas   int
		partitions int32
	}{{1, 8}, {2, 8}, {4, 8}, {1, 64}, {4, 64}} {
		err := g.withReplicas("flows", of.replicas, of.partitions, func(s *separate, more []*processes.System) error {
			urls := []string{s.Gateway}
			for _, r := range more {
				urls = append(urls, "http://"+r.Addr("gateway"))
			}
			return g.several(fmt.Sprintf("gateways, workers and sources, %d partitions", of.partitions), of.replicas, func() (loaded, error) {
				perSecond, err := g.m.payAt(g.Payments, urls...)
				return loaded{perSecond: perSecond}, err
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	// replacedAt is the rate of payments while replicas are replaced.
	replacedAt = 100
	// lateAfter is what no client should wait for.
	lateAfter = 5 * time.Second
)

// replaced measures what the replacement of one of two replicas costs those who pay meanwhile, beside
// the same payments without it. As a cluster does, the new replica is ready before the old one is stopped,
// and clients leave the old gateway first.
func (g *growth) replaced() error {
	return g.withReplicas("replaced", 2, 8, func(s *separate, more []*processes.System) error {
		var urls atomic.Pointer[[]string]
		var serial atomic.Int64
		use := func(r *processes.System) { urls.Store(&[]string{s.Gateway, "http://" + r.Addr("gateway")}) }
		use(more[0])
		gateway := func() string {
			all := *urls.Load()
			return all[int(serial.Add(1))%len(all)]
		}
		if err := g.paced(s, "nothing is replaced", gateway); err != nil {
			return err
		}
		var replacing sync.WaitGroup
		var failed error
		replacing.Go(func() { failed = g.replace(s, more, use) })
		err := g.paced(s, "one of two of each is replaced", gateway)
		replacing.Wait()
		return errors.Join(err, failed)
	})
}

// replace replaces the only one of more while payments are under way.
func (g *growth) replace(s *separate, more []*processes.System, use func(*processes.System)) error {
	if err := sleep(g.m.ctx, g.Replace/4); err != nil {
		return err
	}
	next, err := s.replica()
	if err != nil {
		return err
	}
	use(next)
	old := more[0]
	more[0] = next
	var errs []error
	for _, name := range []string{processes.StandIn, "worker", "gateway"} {
		errs = append(errs, sleep(g.m.ctx, g.Replace/12), old.Stop(name))
	}
	return errors.Join(errs...)
}

func (g *growth) paced(s *separate, of string, gateway func() string) error {
	latencies, failed, err := s.openLoopAt(gateway, replacedAt, g.Replace)
	if err != nil {
		return err
	}
	late := 0
	for _, bar := range latencies.Distribution() {
		if bar.From >= lateAfter.Microseconds() {
			late += int(bar.Count)
		}
	}
	g.steps = append(g.steps, step{
		Of: of, N: int(latencies.TotalCount()), PerSecond: replacedAt, P50: round(millis(latencies, 50)), P99: round(millis(latencies, 99)),
		Longest: round(millis(latencies, 100)), Late: late, Failed: failed,
	})
	fmt.Fprintf(os.Stderr, "%s: %+v\n", of, g.steps[len(g.steps)-1])
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
