package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// fact is something about a payment that its client is told by webhook.
type fact struct {
	Type    string
	Payment string // its key
	Refund  string // the refund's key, if it is about one
}

func (f fact) String() string { return strings.TrimSpace(f.Type + " " + f.Payment + " " + f.Refund) }

// message is a webhook that the shop has taken.
type message struct {
	fact
	ID     string // webhook-id
	Amount string // what was given back, if it is about a refund
}

// manner is how the shop treats requests.
type manner string

// The manners.
const (
	takes manner = "takes"
	fails manner = "fails" // answers 503
	hangs manner = "hangs" // does not answer
	cuts  manner = "cuts"  // closes the connection
)

// shop is the endpoint of a client. It verifies each webhook as the specification says.
type shop struct {
	url string
	srv *http.Server

	mu      sync.Mutex
	library *standardwebhooks.Webhook
	manner  manner
	changed chan struct{} // closed when the manner changes
	taken   []message
	turned  int // requests that were not taken, because of the manner
	wrong   []string
}

func openShop(host string) (*shop, error) {
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		return nil, err
	}
	s := &shop{url: "http://" + l.Addr().String() + "/told", manner: takes, changed: make(chan struct{})}
	s.srv = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go s.srv.Serve(l) // until close
	return s, nil
}

func (s *shop) close() { s.srv.Close() }

// register makes the shop an endpoint of pgw, and returns its id.
func (s *shop) register(ctx context.Context, gateway string) (id string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, gateway+"/api/webhooks", strings.NewReader(fmt.Sprintf(`{"url":%q}`, s.url)))
	if err != nil {
		return "", err
	}
	var made struct{ ID, Secret string }
	if err := ask(req, http.StatusCreated, &made); err != nil {
		return "", err
	}
	library, err := standardwebhooks.NewWebhook(made.Secret)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.library = library
	return made.ID, err
}

// ask makes a request whose answer is JSON.
func ask(req *http.Request, want int, into any) error {
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%s %s: %s %s", req.Method, req.URL.Path, resp.Status, text)
	}
	return errors.Join(err, json.Unmarshal(text, into))
}

// behave changes how the shop treats requests.
func (s *shop) behave(m manner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.manner = m
	close(s.changed)
	s.changed = make(chan struct{})
}

// ServeHTTP implements http.Handler.
func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		return // pgw was killed while it sent this
	}
	s.mu.Lock()
	changed := s.changed
	m := s.manner
	if m != takes {
		s.turned++
	}
	s.mu.Unlock()
	switch m {
	case fails:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case hangs:
		select {
		case <-changed:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case cuts:
		panic(http.ErrAbortHandler)
	}
	if err := s.take(r.Header, text); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// take verifies and keeps a webhook.
func (s *shop) take(header http.Header, text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.library == nil {
		return errors.New("not registered yet")
	}
	var body struct {
		Type string
		Data struct {
			Key    string `json:"idempotency_key"`
			Refund struct {
				Key    string `json:"idempotency_key"`
				Amount string
			}
		}
	}
	err := s.library.Verify(text, header)
	if err == nil {
		err = json.Unmarshal(text, &body)
	}
	if err != nil {
		s.wrong = append(s.wrong, fmt.Sprintf("webhook %s: %v: %.200s", header.Get("webhook-id"), err, text))
		return err
	}
	s.taken = append(s.taken, message{
		fact: fact{body.Type, body.Data.Key, body.Data.Refund.Key}, ID: header.Get("webhook-id"), Amount: body.Data.Refund.Amount,
	})
	return nil
}

// told returns what the shop was told, and what was wrong about it.
func (s *shop) told() (taken []message, turned int, wrong []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(taken, s.taken...), s.turned, append(wrong, s.wrong...)
}
