// Package seeds holds the data of a new system, and generates more. The same seed number gives the
// same data on every machine.
package seeds

import (
	"bytes"
	_ "embed"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/event"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// The embedded seed files.
var (
	//go:embed accounts.csv
	accountsCSV []byte
	//go:embed rates.csv
	ratesCSV []byte
	//go:embed liquidity.csv
	liquidityCSV []byte
	//go:embed rules.json
	rulesJSON []byte
)

// Source is the source of the events that open and fund seeded accounts.
const Source = "/pgw/seeds"

// Oldest is a time for the events that open seeded accounts. With it they change no existing
// account, because every profile is newer.
var Oldest = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// Account is one row of accounts.csv.
type Account struct {
	ID            string
	Owner         string
	Currency      string // the owner's own currency
	BalanceIDR    int64
	DailyLimitIDR int64 // 0: no limit
	Status        payment.AccountStatus
	Balances      []money.Amount // in other currencies
}

// A file of accounts may lack the last column.
var accountsHeader = []string{"account_id", "owner", "currency", "balance_idr", "daily_limit_idr", "status", "balances"}

// Rate is one row of rates.csv: what one major unit of Base costs in Quote. Bid and Ask are empty if
// the rate has no spread.
type Rate struct{ Base, Quote, Rate, Bid, Ask string }

// A file of rates may lack the last two columns.
var ratesHeader = []string{"base", "quote", "rate", "bid", "ask"}

// Liquidity is one row of liquidity.csv: what the house has to exchange in one currency.
type Liquidity struct {
	Balance money.Amount
	// PositionLimit is how much more exchanges may take than they bring, in minor units; nil: no limit.
	PositionLimit *int64
}

var liquidityHeader = []string{"currency", "balance", "position_limit"}

// Transaction is one payment to make.
type Transaction struct {
	payment.Payment
	At time.Time
}

var transactionsHeader = []string{"idempotency_key", "sender_id", "receiver_id", "currency", "amount", "tx_date"}

// Accounts reads accounts.csv.
func Accounts() ([]Account, error) { return ReadAccounts(bytes.NewReader(accountsCSV)) }

// ReadAccounts reads accounts in the form of accounts.csv.
func ReadAccounts(r io.Reader) ([]Account, error) {
	rows, err := readCSV(r, accountsHeader, 1)
	if err != nil {
		return nil, fmt.Errorf("accounts: %w", err)
	}
	accounts := make([]Account, len(rows))
	for i, row := range rows {
		a := Account{ID: row[0], Owner: row[1], Currency: row[2], Status: payment.AccountStatus(row[5])}
		if a.BalanceIDR, err = strconv.ParseInt(row[3], 10, 64); err != nil {
			return nil, fmt.Errorf("accounts: row %d: balance_idr: %w", i+2, err)
		}
		if a.DailyLimitIDR, err = strconv.ParseInt(row[4], 10, 64); err != nil {
			return nil, fmt.Errorf("accounts: row %d: daily_limit_idr: %w", i+2, err)
		}
		if a.Balances, err = parseBalances(row[6]); err != nil {
			return nil, fmt.Errorf("accounts: row %d: balances: %w", i+2, err)
		}
		accounts[i] = a
	}
	return accounts, nil
}

// parseBalances reads balances such as "SGD=50.00 USD=1000.00".
func parseBalances(text string) (balances []money.Amount, err error) {
	seen := map[money.Currency]bool{money.IDR: true} // rupiah have their own column
	for _, one := range strings.Fields(text) {
		code, amount, ok := strings.Cut(one, "=")
		if !ok {
			return nil, fmt.Errorf("%.40q: must be CURRENCY=AMOUNT", one)
		}
		currency, err := money.ParseCurrency(code)
		if err != nil {
			return nil, err
		}
		balance, err := money.ParseAmount(amount, currency)
		if err != nil {
			return nil, err
		}
		if seen[currency] || balance.Minor <= 0 {
			return nil, fmt.Errorf("%.40q: must be a positive amount of another currency", one)
		}
		seen[currency] = true
		balances = append(balances, balance)
	}
	return balances, nil
}

func formatBalances(balances []money.Amount) string {
	texts := make([]string, len(balances))
	for i, b := range balances {
		texts[i] = b.Currency.String() + "=" + b.String()
	}
	return strings.Join(texts, " ")
}

// Rates reads rates.csv.
func Rates() ([]Rate, error) { return ReadRates(ratesCSV) }

// ReadRates reads rates in the form of rates.csv. The columns bid and ask may be missing.
func ReadRates(text []byte) ([]Rate, error) {
	rows, err := readCSV(bytes.NewReader(text), ratesHeader, 2)
	if err != nil {
		return nil, fmt.Errorf("rates: %w", err)
	}
	rates := make([]Rate, len(rows))
	for i, row := range rows {
		rates[i] = Rate{Base: row[0], Quote: row[1], Rate: row[2], Bid: row[3], Ask: row[4]}
	}
	return rates, nil
}

// HouseLiquidity reads liquidity.csv.
func HouseLiquidity() ([]Liquidity, error) {
	rows, err := readCSV(bytes.NewReader(liquidityCSV), liquidityHeader, 0)
	if err != nil {
		return nil, fmt.Errorf("liquidity: %w", err)
	}
	all := make([]Liquidity, len(rows))
	for i, row := range rows {
		currency, err := money.ParseCurrency(row[0])
		if err != nil {
			return nil, fmt.Errorf("liquidity: row %d: %w", i+2, err)
		}
		if all[i].Balance, err = money.ParseAmount(row[1], currency); err != nil {
			return nil, fmt.Errorf("liquidity: row %d: balance: %w", i+2, err)
		}
		if row[2] == "" {
			continue
		}
		limit, err := money.ParseAmount(row[2], currency)
		if err != nil {
			return nil, fmt.Errorf("liquidity: row %d: position_limit: %w", i+2, err)
		}
		all[i].PositionLimit = &limit.Minor
	}
	return all, nil
}

// RiskRules reads rules.json: the input of risk's SeedRules.
func RiskRules() (payment.Rules, error) {
	d := json.NewDecoder(bytes.NewReader(rulesJSON))
	d.DisallowUnknownFields()
	var r payment.Rules
	if err := d.Decode(&r); err != nil {
		return r, fmt.Errorf("rules: %w", err)
	}
	return r, r.Validate()
}

// readCSV reads the rows of a file with this header. All of the last optional columns may be missing;
// then they are empty.
func readCSV(r io.Reader, header []string, optional int) ([][]string, error) {
	rows, err := csv.NewReader(r).ReadAll()
	if err != nil {
		return nil, err
	}
	short := header[:len(header)-optional]
	if len(rows) == 0 || !slices.Equal(rows[0], header) && !slices.Equal(rows[0], short) {
		return nil, fmt.Errorf("the first row must be %s", strings.Join(header, ","))
	}
	missing := make([]string, len(header)-len(rows[0]))
	for i, row := range rows {
		rows[i] = append(row, missing...)
	}
	return rows[1:], nil
}

// WriteAccounts writes accounts as CSV.
func WriteAccounts(w io.Writer, accounts []Account) error {
	c := csv.NewWriter(w)
	c.Write(accountsHeader)
	for _, a := range accounts {
		c.Write([]string{a.ID, a.Owner, a.Currency, strconv.FormatInt(a.BalanceIDR, 10), strconv.FormatInt(a.DailyLimitIDR, 10), string(a.Status),
			formatBalances(a.Balances)})
	}
	c.Flush()
	return c.Error()
}

// WriteTransactions writes transactions as CSV.
func WriteTransactions(w io.Writer, txs []Transaction) error {
	c := csv.NewWriter(w)
	c.Write(transactionsHeader)
	for _, t := range txs {
		c.Write([]string{t.Key, t.Sender, t.Receiver, t.Currency.String(), t.Sent().String(), t.TxDate})
	}
	c.Flush()
	return c.Error()
}

// AccountEvents returns the events that open and fund an account. Their ids come from the account,
// so publishing them again changes nothing.
func AccountEvents(a Account, now time.Time) ([]cloudevents.Event, error) {
	opened, err := event.New(event.TypeAccountOpened, "open-"+a.ID, Source, a.ID, event.AccountOpened{
		AccountID: a.ID, Owner: a.Owner, Currency: a.Currency, DailyLimitIDR: a.DailyLimitIDR, Status: a.Status,
	}, now)
	if err != nil {
		return nil, err
	}
	events := []cloudevents.Event{opened}
	if a.BalanceIDR != 0 {
		funded, err := event.New(event.TypeAccountFunded, "fund-"+a.ID, Source, a.ID, event.AccountFunded{
			AccountID: a.ID, AmountIDR: a.BalanceIDR, Note: "first funds",
		}, now)
		if err != nil {
			return nil, err
		}
		events = append(events, funded)
	}
	for _, b := range a.Balances {
		// The id of no other account's funding begins like this.
		funded, err := event.New(event.TypeAccountFundedV2, "fund:"+b.Currency.String()+":"+a.ID, Source, a.ID, event.AccountFundedV2{
			AccountID: a.ID, Currency: b.Currency, Minor: b.Minor, Note: "first funds",
		}, now)
		if err != nil {
			return nil, err
		}
		events = append(events, funded)
	}
	return events, nil
}

// Event returns the event that requests the transaction's payment.
func (t Transaction) Event() (cloudevents.Event, error) {
	return event.Requested(Source, t.Payment, "", t.At)
}

// named are the accounts that examples and tests use.
var named = []Account{
	{ID: "ACC001", Owner: "Ayu Lestari", Currency: "USD", BalanceIDR: 1_000_000_000_000, Status: payment.Active,
		Balances: []money.Amount{major(100_000, "USD"), major(25_000, "SGD"), major(2_000_000, "JPY")}},
	{ID: "ACC002", Owner: "Bima Santoso", Currency: "IDR", BalanceIDR: 1_000_000_000, Status: payment.Active,
		Balances: []money.Amount{major(1_000, "USD"), major(1_000, "SGD")}},
	{ID: "ACC003", Owner: "Citra Wijaya", Currency: "SGD", BalanceIDR: 1_500, DailyLimitIDR: 50_000_000, Status: payment.Active, // nearly no rupiah
		Balances: []money.Amount{major(50, "SGD")}},
	{ID: "ACC004", Owner: "Dewi Halim", Currency: "IDR", BalanceIDR: 250_000_000, DailyLimitIDR: 50_000_000, Status: payment.Blocked},
}

var (
	givenNames  = strings.Fields("Adi Agus Andi Anita Arief Ayu Bayu Budi Cahya Chandra Citra Dedi Devi Dian Eka Fajar Farah Gita Hadi Hana Hendra Indah Intan Joko Kartika Lina Maya Mei Nadia Nina Nur Putri Raka Rani Ratna Reza Rina Sari Siti Wei")
	familyNames = strings.Fields("Chen Gunawan Halim Hartono Hidayat Irawan Kusuma Lee Lestari Lim Nasution Nugroho Pranata Pratama Purnomo Rahman Saputra Setiawan Siregar Suharto Susanto Tan Tanuwijaya Wibowo Widodo Wijaya Wong Yulianto")
	currencies  = []string{"IDR", "IDR", "IDR", "USD", "SGD", "EUR", "JPY", "MYR", "AUD", "KWD"}
	limits      = []int64{0, 25_000_000, 50_000_000, 100_000_000, 500_000_000}
)

// major returns an amount of whole major units.
func major(units int64, code string) money.Amount {
	currency, err := money.ParseCurrency(code)
	if err != nil {
		panic(err) // the codes stand in this file
	}
	for range currency.Digits() {
		units *= 10
	}
	return money.Amount{Minor: units, Currency: currency}
}

// makeBalances makes balances in the owner's currency and some in another one. They spread over three
// orders of magnitude, as rupiah do.
func makeBalances(rng *rand.Rand, home string) (balances []money.Amount) {
	codes := []string{home}
	if other := pick(rng, currencies); other != home && rng.IntN(3) == 0 {
		codes = append(codes, other)
	}
	slices.Sort(codes)
	for _, code := range codes {
		units := int64(10 * math.Exp(rng.Float64()*math.Log(1000)))
		if code == "JPY" {
			units *= 100
		}
		if code != money.IDR.String() {
			balances = append(balances, major(units, code))
		}
	}
	return balances
}

// MakeAccounts makes n accounts, at most 10 million. The first four are always the same.
func MakeAccounts(seed uint64, n int) []Account {
	// The balances in other currencies have numbers of their own, so the rest stays as earlier releases
	// made it.
	rng, others := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 3))
	accounts := make([]Account, 0, n)
	accounts = append(accounts, named[:min(n, len(named))]...)
	for i := len(accounts) + 1; i <= n; i++ {
		a := Account{
			ID:       fmt.Sprintf("ACC%03d", i),
			Owner:    pick(rng, givenNames) + " " + pick(rng, familyNames),
			Currency: pick(rng, currencies), DailyLimitIDR: pick(rng, limits), Status: payment.Active,
			// Balances spread over three orders of magnitude, as real balances do: 1 to 1,000
			// million rupiah.
			BalanceIDR: int64(math.Exp(rng.Float64()*math.Log(1000))*1000) * 1000,
		}
		if rng.IntN(50) == 0 {
			a.Status = payment.Blocked
		}
		a.Balances = makeBalances(others, a.Currency)
		accounts = append(accounts, a)
	}
	return accounts
}

// epoch is the time of the first generated transaction. It is fixed, so that two runs give the same
// data.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// MakeTransactions makes n payments between the active accounts of the list. It fails with fewer
// than two.
func MakeTransactions(seed uint64, n int, accounts []Account) ([]Transaction, error) {
	rates, err := rupiahRates()
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, a := range accounts {
		if a.Status == payment.Active {
			ids = append(ids, a.ID)
		}
	}
	if len(ids) < 2 {
		return nil, fmt.Errorf("%d active accounts; at least 2", len(ids))
	}
	rng := rand.New(rand.NewPCG(seed, 2))
	txs := make([]Transaction, n)
	for i := range txs {
		from := rng.IntN(len(ids))
		to := (from + 1 + rng.IntN(len(ids)-1)) % len(ids)
		rate := pick(rng, rates)
		// Each is worth 2,000 to 2,000,000 rupiah, in any currency.
		target := money.Amount{Minor: int64(2000 * math.Exp(rng.Float64()*math.Log(1000))), Currency: money.IDR}
		inverse, err := money.Cross(one, rate.rate)
		if err != nil {
			return nil, err
		}
		amount, err := money.Convert(target, inverse, rate.currency)
		if err != nil {
			return nil, err
		}
		amount.Minor = max(amount.Minor, 1)
		priced, err := money.Convert(amount, rate.rate, money.IDR)
		if err != nil {
			return nil, err
		}
		key, at := fmt.Sprintf("seed-%d-%07d", seed, i+1), epoch.Add(time.Duration(i)*time.Second)
		txs[i] = Transaction{payment.Payment{
			Key: key, Sender: ids[from], Receiver: ids[to], Currency: amount.Currency, Minor: amount.Minor,
			AmountIDR: priced.Minor, Rate: rate.rate, TxDate: at.Format(time.RFC3339), AttemptID: key,
		}, at}
	}
	return txs, nil
}

var one, _ = money.ParseRate("1")

type rupiahRate struct {
	currency money.Currency
	rate     money.Rate
}

func rupiahRates() ([]rupiahRate, error) {
	rows, err := Rates()
	if err != nil {
		return nil, err
	}
	rates := []rupiahRate{{money.IDR, one}}
	for _, row := range rows {
		if row.Quote != money.IDR.String() {
			continue
		}
		currency, err := money.ParseCurrency(row.Base)
		if err != nil {
			return nil, err
		}
		rate, err := money.ParseRate(row.Rate)
		if err != nil {
			return nil, err
		}
		rates = append(rates, rupiahRate{currency, rate})
	}
	return rates, nil
}

func pick[T any](rng *rand.Rand, from []T) T { return from[rng.IntN(len(from))] }
