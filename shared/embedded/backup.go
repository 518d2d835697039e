package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// BackupUse says what a backup becomes when StartPostgres starts it.
type BackupUse string

// What a backup becomes.
const (
	// Alone is a server like the one that was backed up.
	Alone BackupUse = ""
	// AsStandby is a server that follows the one that was backed up, and answers reads.
	AsStandby BackupUse = "standby.signal"
	// ToRestore is a server that recovers to a point in time. The settings restore_command and
	// recovery_target_… say from where and up to when.
	ToRestore BackupUse = "recovery.signal"
)

// Backup makes a base backup of the running server in a folder, from which StartPostgres starts a server of
// its own. It needs pg_basebackup beside the server's binaries.
func (p *Postgres) Backup(ctx context.Context, dir string, use BackupUse) error {
	dir, err := instanceDir(dir, p.of.as)
	if err != nil {
		return fmt.Errorf("back up to %s: %w", dir, err)
	}
	to := server{bin: p.of.bin, dir: dir, as: p.of.as}
	if _, err := os.Stat(to.data()); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("back up to %s: there is a server already", dir)
	}
	args := []string{"--dbname", p.url, "--pgdata", to.data(), "--wal-method", "stream", "--checkpoint", "fast", "--no-sync"}
	if use == AsStandby {
		args = append(args, "--write-recovery-conf")
	}
	if real, err := filepath.EvalSymlinks(filepath.Join(to.bin, "postgres")); err == nil {
		to.bin = filepath.Dir(real)
	}
	if out, err := to.command(ctx, "pg_basebackup", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("back up to %s: %w: %s", dir, err, lastLines(string(out)))
	}
	password, err := os.ReadFile(p.of.passwordFile())
	if err == nil {
		err = to.write(to.passwordFile(), string(password))
	}
	if err == nil && use != Alone {
		err = to.write(filepath.Join(to.data(), string(use)), "")
	}
	if err != nil {
		return fmt.Errorf("back up to %s: %w", dir, err)
	}
	return nil
}
