package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/functions/gateway/access"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/kafka"
)

// ask sends a request about dead letters, with a key if it is not empty.
func (s *system) ask(t *testing.T, key, method, path, body string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(method, "http://localhost/api/dead-letters"+path, strings.NewReader(body))
	if key != "" {
		r.Header.Set(access.KeyHeader, key)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// park writes parked records of events that worker has refused.
func (s *system) park(t *testing.T, ids ...string) {
	t.Helper()
	producer, err := kafka.NewProducer(s.kafka.Config, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close(context.Background())
	for _, id := range ids {
		e := anyEvent(id)
		e.SetType(event.TypeKafkaRecord)
		e.SetSource("/kafkasources/payments#" + s.kafka.RequestTopic)
		e.SetExtension(event.ExtErrorDestination, "http://worker/")
		e.SetExtension(event.ExtErrorCode, "400")
		if err := producer.Publish(t.Context(), s.kafka.ParkedTopic, "?", e); err != nil {
			t.Fatal(err)
		}
	}
}

type letterPage struct {
	Letters []letterJSON
	Next    string `json:"next_before"`
}

func (s *system) letters(t *testing.T, key, query string) (page letterPage) {
	t.Helper()
	code, text := s.ask(t, key, http.MethodGet, query, "")
	if err := json.Unmarshal([]byte(text), &page); err != nil || code != http.StatusOK {
		t.Fatalf("%d %s, %v", code, text, err)
	}
	return page
}

// records is a db that keeps the actions on letters.
func records() (db func(in, out any) (bool, error), done *[]*dbv1.DeadLetterAction) {
	done = &[]*dbv1.DeadLetterAction{}
	return func(in, out any) (bool, error) {
		switch in := in.(type) {
		case *dbv1.ListDeadLetterActionsRequest:
			for _, a := range *done {
				if a.Topic == in.Topic {
					out.(*dbv1.ListDeadLetterActionsResponse).Actions = append(out.(*dbv1.ListDeadLetterActionsResponse).Actions, a)
				}
			}
		case *dbv1.RecordDeadLetterActionRequest:
			*done = append(*done, in.Action)
		case *dbv1.FindRequest:
			return true, status.Error(codes.NotFound, "no payment")
		default:
			return false, nil
		}
		return true, nil
	}, done
}

// An operator lists letters, redrives one and closes one. Each is recorded with who and why.
func TestOperatorsActOnLetters(t *testing.T) {
	key, line, err := access.NewKey("ayu", "senders=*")
	if err != nil {
		t.Fatal(err)
	}
	s := newSystem(t, func(cfg *Config) { cfg.Access = access.Config{Mode: access.Required, Keys: line} })
	var done *[]*dbv1.DeadLetterAction
	s.db.answer, done = records()
	s.park(t, "a", "b", "c")
	var all []letterJSON
	for query := "?limit=2"; ; {
		page := s.letters(t, key, query)
		all = append(all, page.Letters...)
		if page.Next == "" {
			break
		}
		query = "?limit=2&before=" + page.Next
	}
	if len(all) != 3 || all[0].EventID != "c" || all[2].EventID != "a" || all[0].State != "parked" || all[0].Function != "worker" || all[0].Code != 400 {
		t.Fatalf("%+v", all)
	}
	for _, tc := range []struct {
		path, body string
		code       int
		says       string
	}{
		{"/" + all[0].ID + "/redrive", `{}`, 400, "note: is missing"},
		{"/" + all[0].ID + "/redrive", `{"note":7}`, 400, "note: must be a string"},
		{"/" + all[0].ID + "/redrive", `no`, 400, "is not a JSON object"},
		{"/" + all[0].ID + "/redrive", fmt.Sprintf(`{"note":"%0501d"}`, 0), 400, "at most 500 bytes"},
		{"/" + all[0].ID + "/redrive?sign=true", `{"note":"x"}`, 400, "sign"},
		{"/nobody/redrive", `{"note":"x"}`, 404, "nobody"},
		{"/c/redrive", `{"note":"x"}`, 404, "There is no"}, // an event's id is not a letter's
		{"/" + all[0].ID + "/redrive", `{"note":" worker is back "}`, 200, `"state":"redriven"`},
		{"/" + all[0].ID + "/redrive", `{"note":"again"}`, 409, "REDRIVEN by ayu"},
		{"/" + all[1].ID + "/discard", `{"note":"a test"}`, 200, `"state":"discarded"`},
		{"/" + all[1].ID + "/redrive", `{"note":"again"}`, 409, "DISCARDED by ayu"},
	} {
		if code, text := s.ask(t, key, http.MethodPost, tc.path, tc.body); code != tc.code || !strings.Contains(text, tc.says) {
			t.Errorf("%s %s: %d %s", tc.path, tc.body, code, text)
		}
	}
	if len(s.published) != 1 || s.published[0].ID() != "c" || s.published[0].Extensions()[event.ExtErrorCode] != nil {
		t.Errorf("published: %v", s.published)
	}
	if a := *done; len(a) != 2 || a[0].Operator != "ayu" || a[0].Note != "worker is back" || a[1].Action != "DISCARDED" {
		t.Errorf("recorded: %v", a)
	}
	if page := s.letters(t, key, "?state=parked"); len(page.Letters) != 1 || page.Letters[0].EventID != "a" {
		t.Errorf("still parked: %+v", page)
	}
	if page := s.letters(t, key, "?state=redriven"); len(page.Letters) != 1 || page.Letters[0].Actions[0].By != "ayu" {
		t.Errorf("redriven: %+v", page)
	}
	for query, says := range map[string]string{
		"?state=open": "must be one of", "?before=x": "is not a next_before", "?limit=0": "limit", "?key=a": "is not a parameter",
	} {
		if code, text := s.ask(t, key, http.MethodGet, query, ""); code != http.StatusBadRequest || !strings.Contains(text, says) {
			t.Errorf("%s: %d %s", query, code, text)
		}
	}
}

func TestLettersAreForOperators(t *testing.T) {
	key, line, err := access.NewKey("shop", "senders=SHOP")
	if err != nil {
		t.Fatal(err)
	}
	s := newSystem(t, func(cfg *Config) { cfg.Access = access.Config{Mode: access.Required, Keys: line} })
	for key, want := range map[string]int{"": http.StatusUnauthorized, key: http.StatusForbidden} {
		for _, path := range []string{"", "/a/redrive", "/a/discard"} {
			method := http.MethodPost
			if path == "" {
				method = http.MethodGet
			}
			if code, text := s.ask(t, key, method, path, `{"note":"x"}`); code != want {
				t.Errorf("%q: %s: %d %s", key, path, code, text)
			}
		}
	}
	if len(s.published) > 0 {
		t.Errorf("published: %v", s.published)
	}
}

// Where db wants an operator's token and the gateway has none, the letters are not offered, and db
// does not count as away.
func TestLettersWithoutAToken(t *testing.T) {
	s := newSystem(t, nil)
	s.db.answer = func(in, _ any) (bool, error) {
		_, isAdmin := in.(*dbv1.ListDeadLetterActionsRequest)
		return isAdmin, status.Error(codes.PermissionDenied, "this RPC needs an operator's token")
	}
	if code, text := s.ask(t, "", http.MethodGet, "", ""); code != http.StatusNotImplemented || !strings.Contains(text, "DEAD_LETTER_TOKEN") {
		t.Errorf("%d %s", code, text)
	}
	if _, report, _ := s.get(t); report.dependency("db").State != stateUp {
		t.Errorf("%+v", report.dependency("db"))
	}
}

func TestLettersWithoutKafka(t *testing.T) {
	s := newSystem(t, func(cfg *Config) { cfg.Kafka.Brokers = []string{"127.0.0.1:1"} })
	if code, text := s.ask(t, "", http.MethodGet, "", ""); code != http.StatusBadGateway && code != http.StatusServiceUnavailable {
		t.Errorf("%d %s", code, text)
	}
}
