package embeddedtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// Authority signs certificates for tests.
type Authority struct {
	Certificate *x509.Certificate

	tb  testing.TB
	key *ecdsa.PrivateKey
}

// NewAuthority makes an authority that signs its own certificate. A server tells clients the names of the
// authorities that it trusts, and they present only certificates of these names.
func NewAuthority(tb testing.TB, name string) *Authority {
	tb.Helper()
	a := &Authority{tb: tb}
	a.Certificate, a.key = a.sign(name)
	return a
}

// PEM is the authority's own certificate, for those who trust it.
func (a *Authority) PEM() []byte { return inPEM("CERTIFICATE", a.Certificate.Raw) }

// Issue returns the PEM of a new certificate and of its key. It is valid for a server on loopback,
// and for a client.
func (a *Authority) Issue(name string) (certificate, key []byte) {
	a.tb.Helper()
	signed, private := a.sign(name)
	der, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		a.tb.Fatal(err)
	}
	return inPEM("CERTIFICATE", signed.Raw), inPEM("EC PRIVATE KEY", der)
}

// sign makes a key, and a certificate of it. The first certificate is the authority's own.
func (a *Authority) sign(name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	parent, signer := a.Certificate, a.key
	if parent == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.tb.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		a.tb.Fatal(err)
	}
	return certificate, key
}

func inPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
