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
	New newAPIKey `cmd:"" help:"Print a new key once, for the client, and the line to add to API_KEYS_FILE, which can't be turned back into it."`
}

type newAPIKey struct {
	ID      string    `name:"id" required:"" help:"Names the key in logs and limits. To rotate, make another with another id, and take the old line away when the client has changed over."`
	Senders []string  `required:"" help:"Accounts that the client may send from and look at: names, or beginnings that end in *."`
	Rate    float64   `help:"Requests a second; 100 when not given."`
	Burst   int       `help:"Requests at once; twice the rate when not given."`
	Until   time.Time `help:"When it ends (RFC 3339); never when not given."`
}

func (c newAPIKey) Run() error {
	options := []string{"senders=" + strings.Join(c.Senders, ",")}
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
	fmt.Fprintln(os.Stderr, "for the client, now and never again:", key)
	fmt.Println(line)
	return nil
}
