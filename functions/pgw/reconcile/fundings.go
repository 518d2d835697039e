package reconcile

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"

	"pgw/functions/kafkasource"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/payment"
)

// seededNote is the note of every transfer that an operator's SeedAccounts books.
const seededNote = "seeded"

// funding stands for what a transfer and its event have in common.
type funding struct {
	Account, Amount, Note uint64
}

func fundingOf(account, currency string, minor int64, note string) funding {
	return funding{maphash.String(seed, account), maphash.String(seed, currency+" "+number(minor)), maphash.String(seed, note)}
}

// difference names what differs; "" means nothing.
func (f funding) difference(from funding) string {
	var names []string
	for _, part := range []struct {
		name string
		same bool
	}{{"account", f.Account == from.Account}, {"amount or currency", f.Amount == from.Amount}, {"note", f.Note == from.Note}} {
		if !part.same {
			names = append(names, part.name)
		}
	}
	return strings.Join(names, ", ")
}

// transfer is a row of transfers. Created is in microseconds.
type transfer struct {
	Funding funding
	Created int64
}

// funded is a funding event. Sure means that the ledger knows it under no other id.
type funded struct {
	Funding funding
	Place   place
	Young   bool
	Sure    bool
}

// unbooked is a funding event without a transfer in the ledger.
type unbooked struct {
	id, account string
	place       place
}

// readTransfers reads the fundings that are compared with events. A transfer that sets a balance is an
// operator's call of SeedAccounts, which leaves no event. Its id, time and note are checked against each
// other, and it is counted.
func (r *reconciliation) readTransfers(ctx context.Context) error {
	return ledger.EachTransfer(ctx, r.tx, r.since, func(t ledger.Transfer) error {
		r.examined[Funded]++
		if rest, seeded := strings.CutPrefix(t.ID, ledger.SeedPrefix); seeded {
			r.report.Seeded++
			if !plausible(t, rest) {
				r.breach(Breach{Check: Funded, Account: t.AccountID, Problem: fmt.Sprintf(
					"transfer %s of %d %s is not one that SeedAccounts books: its id, time, currency and note do not fit", t.ID, t.Minor, t.Currency)})
			}
			return nil
		}
		record, err := pack(transfer{fundingOf(t.AccountID, t.Currency, t.Minor, t.Note), micros(t.Created)}, t.ID, t.AccountID)
		if err != nil {
			return err
		}
		return r.transfers.add(t.ID, record)
	})
}

// plausible reports whether SeedAccounts may have made the transfer. rest is its id without the prefix:
// an id with the time of the call, and the currency unless it is rupiah.
func plausible(t ledger.Transfer, rest string) bool {
	text, currency, named := strings.Cut(rest, ":")
	id, err := uuid.Parse(text)
	if err != nil || id.Version() != 7 || t.Note != seededNote {
		return false
	}
	if !named {
		currency = "IDR"
	}
	seconds, nanos := id.Time().UnixTime()
	return t.Currency == currency && t.Created.Sub(time.Unix(seconds, nanos)).Abs() < time.Hour
}

func (r *reconciliation) readFundings(ctx context.Context) error {
	var err error
	r.fundingsCovered, err = r.read(ctx, r.cfg.Kafka.AccountsTopic, func(m *sarama.ConsumerMessage) error {
		e := kafkasource.ReadRecord(ctx, "reconcile", m)
		if e.Type() == event.TypeAccountOpened {
			return nil
		}
		if e.Type() != event.TypeAccountFunded && e.Type() != event.TypeAccountFundedV2 || r.cfg.Keys.Verify(e) != nil {
			r.report.Foreign++
			return nil
		}
		in, err := event.ReadFunding(e)
		if err != nil {
			r.report.Foreign++
			return nil
		}
		ids := ledger.Origin{Source: e.Source(), ID: e.ID()}.TransferIDs()
		for _, id := range ids {
			record, err := pack(funded{fundingOf(in.AccountID, in.Currency.String(), in.Minor, in.Note), placeOf(m), m.Timestamp.After(r.judged), len(ids) == 1},
				id, in.AccountID)
			if err == nil {
				err = r.funded.add(id, record)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// compareFundings compares the fundings with their events, bucket by bucket.
func (r *reconciliation) compareFundings(ctx context.Context) error {
	for bucket := range buckets {
		if err := r.compareFundingsOf(bucket); err != nil {
			return err
		}
	}
	return r.reportUnbooked(ctx)
}

func (r *reconciliation) compareFundingsOf(bucket int) error {
	type booked struct {
		transfer
		account string
		evented bool
		differs string // from the last event of this id
		place   place
	}
	all := map[string]*booked{}
	err := r.transfers.each(bucket, func(record []byte) error {
		var t booked
		var id string
		if err := unpack(record, &t.transfer, &id, &t.account); err != nil {
			return err
		}
		all[id] = &t
		return nil
	})
	if err != nil {
		return err
	}
	err = r.funded.each(bucket, func(record []byte) error {
		var f funded
		var id, account string
		if err := unpack(record, &f, &id, &account); err != nil {
			return err
		}
		t := all[id]
		if t == nil {
			if f.Sure && !f.Young && len(r.unbooked) < maxUndecided {
				r.unbooked = append(r.unbooked, unbooked{id, account, f.Place})
			}
			return nil
		}
		// Another event of the same id with other content was refused.
		if differs := t.Funding.difference(f.Funding); !t.evented || differs == "" {
			t.evented, t.differs, t.place = true, differs, f.Place
		}
		return nil
	})
	if err != nil {
		return err
	}
	for id, t := range all {
		switch {
		case t.differs != "":
			r.breach(Breach{Check: Funded, Account: t.account, Problem: fmt.Sprintf("transfer %s differs from its signed event (%s) in %s",
				id, t.place.in(r.cfg.Kafka.AccountsTopic), t.differs)})
		case !t.evented && (r.fundingsCovered.IsZero() || t.Created > r.fundingsCovered.Add(2*payment.DecideWithin).UnixMicro()):
			r.breach(Breach{Check: Funded, Account: t.account, Problem: "transfer " + id + " has no signed event"})
		}
	}
	return nil
}

// reportUnbooked reports the funding events that the ledger has not booked, except those that were
// refused: they are dead letters.
func (r *reconciliation) reportUnbooked(ctx context.Context) error {
	if len(r.unbooked) == 0 {
		return nil
	}
	if !r.since.IsZero() {
		// An event may come again long after it was booked.
		older := map[string]bool{}
		for some := range slices.Chunk(r.unbooked, lookups) {
			var ids []string
			for _, u := range some {
				ids = append(ids, u.id)
			}
			found, err := ledger.ReadTransfers(ctx, r.tx, ids)
			if err != nil {
				return err
			}
			for _, id := range found {
				older[id] = true
			}
		}
		r.unbooked = slices.DeleteFunc(r.unbooked, func(u unbooked) bool { return older[u.id] })
	}
	refused := map[string]bool{}
	for _, u := range r.unbooked {
		refused[u.id] = false
	}
	err := r.readLetters(ctx, func(m *sarama.ConsumerMessage) {
		e := kafkasource.ReadRecord(ctx, "reconcile", m)
		for _, id := range (ledger.Origin{Source: e.Source(), ID: e.ID()}).TransferIDs() {
			if _, wanted := refused[id]; wanted {
				refused[id] = true
			}
		}
	})
	if err != nil {
		return err
	}
	for _, u := range r.unbooked {
		if !refused[u.id] {
			r.breach(Breach{Check: Funded, Account: u.account, Problem: fmt.Sprintf("the funding event %s (%s) is not booked, and is not a dead letter",
				u.id, kafka.Place{Topic: r.cfg.Kafka.AccountsTopic, Partition: u.place.Partition, Offset: u.place.Offset})})
		}
	}
	return nil
}
