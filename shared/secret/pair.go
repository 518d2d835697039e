package secret

import (
	"crypto/tls"
	"fmt"
	"os"
)

// KeyPair returns a certificate together with its key, which is in the file at path. name is the variable
// of that path, for the errors. It is for parsing a File with a certificate: the two files change together,
// so both are read when the certificate's changes. While only one of them has been replaced they do not
// fit, and KeyPair fails, so the File keeps the pair before.
func KeyPair(cert []byte, name, path string) (tls.Certificate, error) {
	key, err := os.ReadFile(path)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s: %w", name, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("with %s %s: %w", name, path, err)
	}
	return pair, nil
}
