package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// profileCommand writes profiles to tests/load/out/profiles: a folder for each scenario, a file for
// each process and kind.
type profileCommand struct {
	Only     []string      `help:"These scenarios; all when not given."`
	Payments int           `default:"30000" help:"In each scenario."`
	Open     time.Duration `default:"10s" help:"How long an open loop lasts."`
}

func (c profileCommand) Run(ctx context.Context) error {
	m, err := newMachine(ctx)
	if err != nil {
		return err
	}
	defer m.close()
	if m.profiles, err = filepath.Abs(filepath.Join(outDir, "profiles")); err != nil {
		return err
	}
	const rate = 1000 // payments a second in an open loop
	inOne := func(name string, run func(*system) error) func() error {
		return func() error {
			s, err := m.oneProcess(name)
			if err != nil {
				return err
			}
			return errors.Join(run(s), s.stop())
		}
	}
	apart := func(name string, run func(*system) error) func() error {
		return func() error {
			s, err := m.separate(name, fewPartitions)
			if err != nil {
				return err
			}
			return errors.Join(run(s.system), s.stop())
		}
	}
	flow := func(s *system) error { _, err := s.load(spec{c.Payments, 64}); return err }
	lone := func(s *system) error { _, err := s.load(spec{c.Payments / 20, 1}); return err }
	open := func(s *system) error { _, _, err := s.openLoop(rate, c.Open); return err }
	pays := func(name string, choose way) func() error {
		return func() error {
			l, err := m.ledger(name, accounts)
			if err != nil {
				return err
			}
			_, err = l.pay(3*c.Payments, choose, rupiah)
			return errors.Join(err, l.close())
		}
	}
	all := []part{
		{"flow-one-process", inOne("flow-one-process", flow)},
		{"settle-rpc", inOne("settle-rpc", func(s *system) error { _, err := s.settle(c.Payments); return err })},
		{"ledger-batch", pays("ledger-batch", evenly)},
		{"hot-receiver", pays("hot-receiver", toOne)},
		{"hot-sender", pays("hot-sender", fromOne)},
		{"lone", inOne("lone", lone)},
		{"open-loop-one-process", inOne("open-loop-one-process", open)},
		{"flow-processes", apart("flow-processes", flow)},
		{"open-loop-processes", apart("open-loop-processes", open)},
	}
	for i, p := range all {
		all[i].measure = func() error {
			err := p.measure()
			if err == nil {
				fmt.Println("kept:", filepath.Join(outDir, "profiles", p.name))
			}
			return err
		}
	}
	return measure(all, c.Only)
}
