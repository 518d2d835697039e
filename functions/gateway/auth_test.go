package gateway

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"pgw/functions/gateway/access"
	"pgw/shared/function"
)

type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

// A denied request is answered before any of its body is read.
func TestBodiesOfDeniedRequestsAreNotRead(t *testing.T) {
	_, line, err := access.NewKey("a", "senders=*")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{AnswerIn: time.Second, MinWaiting: 1, MaxWaiting: 1, Access: access.Config{Mode: access.Required, Keys: line}}
	f, err := Function.Make(cfg, function.Dependencies{})
	if err != nil {
		t.Fatal(err)
	}
	answer := httptest.NewRecorder()
	f.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodPost, "/api/payments", unread{t}))
	if answer.Code != http.StatusUnauthorized {
		t.Errorf("%d %s", answer.Code, answer.Body)
	}
}
