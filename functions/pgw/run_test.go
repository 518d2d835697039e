package main

import (
	"os"
	"path/filepath"
	"testing"
)

// A secret that the first start makes is stored, readable only by its owner, and used again. A
// given secret is used unchanged.
func TestSecretsAreMadeOnceAndKept(t *testing.T) {
	c := runCommand{DataDir: t.TempDir()}
	for name, secret := range map[string]func() (string, error){
		"risk-secret": c.riskSecret,
		"event-keys": func() (string, error) {
			if _, err := c.eventKeys(); err != nil {
				return "", err
			}
			text, err := os.ReadFile(filepath.Join(c.DataDir, "event-keys"))
			return string(text), err
		},
	} {
		made, err := secret()
		if err != nil || len(made) < 32 {
			t.Fatalf("%s: %d bytes, %v", name, len(made), err)
		}
		info, err := os.Stat(filepath.Join(c.DataDir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
		if again, err := secret(); err != nil || again != made {
			t.Errorf("%s differs at the second start: %v", name, err)
		}
	}
	c.RiskSecret = "given by the operator"
	if got, err := c.riskSecret(); err != nil || got != c.RiskSecret {
		t.Errorf("%q, %v", got, err)
	}
}

// The lines of payments are at level info. Who asks for them gets them, unless another level is set.
func TestTheLevelOfTheLog(t *testing.T) {
	for want, c := range map[string]runCommand{"warn": {}, "info": {LogPayments: true}, "error": {LogPayments: true, LogLevel: "error"}} {
		if got := c.logLevel(); got != want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
