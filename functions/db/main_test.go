package db

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"pgw/shared/embedded/embeddedtest"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

func discardMetrics() *metrics { return newMetrics(prometheus.NewRegistry()) }
