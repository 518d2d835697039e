package function

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
)

// Profiles sample one of mutexFraction lock contentions, and every wait of at least blockRate
// nanoseconds. That hardly slows down the measured program.
const (
	mutexFraction = 100
	blockRate     = 100_000
)

// Profile records a profile of the process until stop is called. stop writes NAME.cpu, NAME.allocs,
// NAME.mutex and NAME.block to the directory, for go tool pprof. Without a directory, Profile does
// nothing.
func Profile(dir, name string) (stop func() error, err error) {
	if dir == "" {
		return func() error { return nil }, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("PROFILE_DIR: %w", err)
	}
	cpu, err := os.Create(filepath.Join(dir, name+".cpu"))
	if err != nil {
		return nil, fmt.Errorf("PROFILE_DIR: %w", err)
	}
	runtime.SetMutexProfileFraction(mutexFraction)
	runtime.SetBlockProfileRate(blockRate)
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, errors.Join(err, cpu.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		errs := []error{cpu.Close()}
		for _, kind := range []string{"allocs", "mutex", "block"} {
			errs = append(errs, writeProfile(filepath.Join(dir, name+"."+kind), kind))
		}
		return errors.Join(errs...)
	}, nil
}

func writeProfile(path, kind string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(pprof.Lookup(kind).WriteTo(f, 0), f.Close())
}
