//go:build !linux

package postgres

import "syscall"

// setUserTimeout does nothing: other systems have no such option, and keepalive has to do.
func setUserTimeout(string, string, syscall.RawConn) error { return nil }
