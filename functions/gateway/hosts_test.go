package gateway

import "testing"

func TestAllowedHosts(t *testing.T) {
	h, err := readHosts([]string{"pay.example.com", " *.Shop.example.com", ""})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{
		"localhost": true, "localhost:18080": true, "LOCALHOST": true, "localhost.": true, "pgw.localhost:1": true, "127.0.0.1": true, "127.0.0.1:18080": true,
		"[::1]": true, "[::1]:18080": true, "10.0.0.7:8080": true, "": true, "pay.example.com": true, "Pay.Example.com:443": true, "a.shop.example.com": true,
		"evil.example.com": false, "evil.example.com:18080": false, "localhost.evil.example.com": false, "127.0.0.1.evil.example.com": false, "1.evil": false,
		"example.com": false, "xpay.example.com": false, "shop.example.com": false, "evilshop.example.com": false, "notlocalhost": false, ":80": false, "evil:1:2": false,
	} {
		if got := h.allowed(host); got != want {
			t.Errorf("%q: %t", host, got)
		}
	}
	if h, err := readHosts([]string{"*"}); err != nil || !h.allowed("anything.example.com") {
		t.Errorf("*: %v", err)
	}
	for _, bad := range []string{"*.", "a*b", "https://pay.example.com", "pay.example.com:443", "*.*"} {
		if _, err := readHosts([]string{bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
