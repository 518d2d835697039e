package webhooks

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

// Events go to public addresses only, however the address is written.
func TestOnlyPublicAddressesAreAllowed(t *testing.T) {
	for _, text := range []string{
		"127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "224.0.0.1",
		"255.255.255.255", "240.0.0.1", "192.0.0.192", "198.18.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1",
		"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "fec0::1",
	} {
		if err := (guard{}).checkAddress(netip.MustParseAddr(text)); !errors.Is(err, errForbidden) {
			t.Errorf("%s is allowed", text)
		}
	}
	for _, text := range []string{"1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"} {
		if err := (guard{}).checkAddress(netip.MustParseAddr(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	loopback := guard{networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	for text, allowed := range map[string]bool{"127.0.0.1": true, "::ffff:127.0.0.1": true, "::1": false, "10.0.0.1": false} {
		if err := loopback.checkAddress(netip.MustParseAddr(text)); (err == nil) != allowed {
			t.Errorf("loopback is allowed: %s: %v", text, err)
		}
	}
}

func TestWhichURLsAreAllowed(t *testing.T) {
	for url, problem := range map[string]string{
		"https://example.com/hook?a=b": "", "https://example.com:8443/": "", "https://1.1.1.1/": "",
		"http://example.com/": "https://", "ftp://example.com/": "https://", "example.com": "absolute", "": "absolute", "https://": "absolute", "https:example.com": "absolute",
		"https://user:pass@example.com/": "password", "https://example.com/#x": "fragment", "https://10.0.0.1/": "public", "https://[::1]/": "public",
		"https://169.254.169.254/latest/meta-data": "public", "https://example.com/" + strings.Repeat("x", 2000): "longer", "https://exa mple.com/": "absolute",
	} {
		err := (guard{}).checkURL(url)
		if (err == nil) != (problem == "") || err != nil && !strings.Contains(err.Error(), problem) {
			t.Errorf("%.60q: %v, want %q", url, err, problem)
		}
	}
	if err := (guard{plainHTTP: true}).checkURL("http://example.com/"); err != nil {
		t.Errorf("http is allowed: %v", err)
	}
}

// A name is checked when pgw connects, after DNS has answered. No proxy connects instead of pgw.
func TestTheAddressIsCheckedAtEachConnection(t *testing.T) {
	reached := false
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer inside.Close()
	_, port, _ := net.SplitHostPort(inside.Listener.Addr().String())
	t.Setenv("HTTP_PROXY", inside.URL)
	t.Setenv("HTTPS_PROXY", inside.URL)
	transport := guard{plainHTTP: true}.transport()
	defer transport.CloseIdleConnections()
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost:"+port+"/", nil)
	answer, err := transport.RoundTrip(r)
	if err == nil {
		answer.Body.Close()
	}
	if !errors.Is(err, errForbidden) || reached {
		t.Errorf("localhost was reached: %t, %v", reached, err)
	}
	if result, text := failure(context.Background(), err); result != resultForbidden || strings.Contains(text, "127.0.0.1") {
		t.Errorf("the client is told %s: %s", result, text)
	}
}
