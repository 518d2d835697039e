package rpc

import (
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// askAgain is how long a server that lacks an RPC is not asked for it. It may be upgraded meanwhile.
const askAgain = time.Minute

// Lacking remembers that a server lacks an RPC, as one of an earlier release does. It is safe for
// concurrent use.
type Lacking struct {
	until atomic.Int64 // nanoseconds since 1970
}

// Note reports whether the error of a call says that the server lacks the RPC, and remembers it then.
func (l *Lacking) Note(err error) bool {
	lacks := status.Code(err) == codes.Unimplemented
	if lacks {
		l.until.Store(time.Now().Add(askAgain).UnixNano())
	}
	return lacks
}

// Known reports whether the server lacked the RPC less than a minute ago.
func (l *Lacking) Known() bool { return time.Now().UnixNano() < l.until.Load() }
