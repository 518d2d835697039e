package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"pgw/functions/gateway/access"
)

type apiKeyCommand struct {
	New newAPIKey `cmd:"" help:"Print a new key for the client, and the line to add to API_KEYS_FILE. The key is printed only once, and can't be calculated from the line."`
}

type newAPIKey struct {
	ID      string    `name:"id" required:"" help:"The key's name in logs and limits. To rotate a key, make a new one with another id. Remove the old line after the client has changed to the new key."`
	Owner   string    `help:"Whose payments and idempotency keys these are; the id by default. Give all keys of one client the same owner: a client that repeats a payment with another owner's key pays again."`
	Senders []string  `required:"" help:"Accounts that the client may send from and look at: full names, or prefixes that end in *."`
	Rate    float64   `help:"Requests per second; 100 by default."`
	Burst   int       `help:"The most requests at once; twice the rate by default."`
	Until   time.Time `help:"The end of the key's validity (RFC 3339); never by default."`
}

func (c newAPIKey) Run() error {
	options := []string{"senders=" + strings.Join(c.Senders, ",")}
	if c.Owner != "" {
		options = append(options, "owner="+c.Owner)
	}
	if c.Rate != 0 {
		options = append(options, "rate="+strconv.FormatFloat(c.Rate, 'f', -1, 64))
	}
	if c.Burst != 0 {
		options = append(options, "burst="+strconv.Itoa(c.Burst))
	}
	if !c.Until.IsZero() {
		options = append(options, "until="+c.Until.Format(time.RFC3339))
	}
	key, line, err := access.NewKey(c.ID, options...)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "the client's key, which is shown only once:", key)
	fmt.Println(line)
	return nil
}
