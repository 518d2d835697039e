package postgres

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// However the bytes of the warning arrive, what comes after it is not read. Other bytes pass.
func TestTheWarningIsFoundInAnyParts(t *testing.T) {
	text := append(append(bytes.Repeat([]byte("row RSyncRepWaitForLSN "), 40), notReplicated...), "success"...)
	for name, r := range map[string]io.Reader{
		"at once": bytes.NewReader(text), "by bytes": iotest.OneByteReader(bytes.NewReader(text)), "halved": iotest.HalfReader(bytes.NewReader(text)),
	} {
		got, err := io.ReadAll(&replicated{Reader: r})
		if !errors.Is(err, errNotReplicated) || bytes.Contains(got, []byte("success")) {
			t.Errorf("%s: read %q, %v", name, got, err)
		}
	}
	other := bytes.ReplaceAll(text, notReplicated, []byte("\x00RSyncRepWaitForLSX\x00\x00"))
	for name, r := range map[string]io.Reader{
		"at once": bytes.NewReader(other), "by bytes": iotest.OneByteReader(bytes.NewReader(other)), "halved": iotest.HalfReader(bytes.NewReader(other)),
	} {
		if got, err := io.ReadAll(&replicated{Reader: r}); err != nil || !bytes.Equal(got, other) {
			t.Errorf("%s: %d of %d bytes, %v", name, len(got), len(other), err)
		}
	}
}
