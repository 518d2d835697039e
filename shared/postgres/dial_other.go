//go:build !linux

package postgres

import "syscall"

// setUserTimeout does nothing. Other systems have no such option, so only keepalive notices a dead
// connection.
func setUserTimeout(string, string, syscall.RawConn) error { return nil }
