package ledger

import (
	"testing"

	"pgw/shared/embedded/embeddedtest"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }
