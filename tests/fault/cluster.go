package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/template"
	"time"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5"

	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/tests/processes"
)

// cluster is pgw without a single machine that everything rests on: three databases under Patroni and
// etcd, three brokers, and two replicas of each function behind a load balancer. One machine is broken at
// a time, and the next one when everything is whole again.
type cluster struct {
	*world
	stores, brokers []*machine
	replicas        []*machine // of functions, in the order of their start
	systems         []*processes.System
	watch           *http.Client
}

const (
	functionPort = "8080"
	brokersIn    = 3
	replicasOf   = 2
	// wholeWithin is the time limit until everything is whole again after a fault. A machine that comes back
	// may have to copy the primary's data.
	wholeWithin = 3 * time.Minute
	// strandedAfter is the time after which a standby that does not stream is copied anew.
	strandedAfter = time.Minute
	startWithin   = 5 * time.Minute
	disksSize     = 6 << 30
)

//go:embed cluster/patroni.yaml
var patroniText string

//go:embed cluster/kafka.properties
var kafkaText string

//go:embed cluster/haproxy.cfg
var haproxyText string

// node is what the configuration of a machine is made of.
type node struct {
	*machine
	of  []*machine // all of its kind
	Bin string     // of PostgreSQL
}

// Peers are the addresses of all machines of the kind, with a port.
func (n node) Peers(port int) string {
	var all []string
	for _, m := range n.of {
		all = append(all, fmt.Sprintf("%s:%d", m.Addr, port))
	}
	return strings.Join(all, ",")
}

// Voters are the same as Kafka's controllers name them.
func (n node) Voters(port int) string {
	var all []string
	for _, m := range n.of {
		all = append(all, fmt.Sprintf("%d@%s:%d", m.Number, m.Addr, port))
	}
	return strings.Join(all, ",")
}

// write makes a file from a template.
func write(path, text string, data any) error {
	t, err := template.New(filepath.Base(path)).Parse(text)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(t.Execute(f, data), f.Close())
}

func (c *cluster) start(ctx, keep context.Context) error {
	c.watch = &http.Client{Timeout: time.Second}
	// The machines' disks are in memory. What is killed, and not cut from its power, loses nothing.
	if err := errors.Join(newSwitch(), mount(c.dir, disksSize)); err != nil {
		return err
	}
	for i := range brokersIn {
		store, err := newMachine(c.dir, c.o.Out, "postgres", i+1, 11+i)
		if err != nil {
			return err
		}
		broker, err := newMachine(c.dir, c.o.Out, "kafka", i+1, 21+i)
		if err != nil {
			return err
		}
		c.stores, c.brokers = append(c.stores, store), append(c.brokers, broker)
	}
	if err := errors.Join(c.startStores(keep), c.startBrokers(keep)); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	if err := eventually(bounded, func() error { return c.makeLedger(bounded) }); err != nil {
		return fmt.Errorf("the ledger: %w", err)
	}
	topics, err := processes.Topics(8)
	if err != nil {
		return err
	}
	for i := range topics {
		topics[i].Replication, topics[i].Config = brokersIn, map[string]string{kafka.MinInSync: "2"}
	}
	if err := eventually(bounded, func() error { return kafka.EnsureTopics(c.kafka, topics) }); err != nil {
		return fmt.Errorf("topics: %w", err)
	}
	if err := c.startFunctions(keep); err != nil {
		return err
	}
	if err := seed(bounded, c.systems[0]); err != nil {
		return err
	}
	return eventually(bounded, func() error { return c.whole(bounded) })
}

// startStores starts etcd and Patroni, which starts Postgres, on each of three machines.
func (c *cluster) startStores(keep context.Context) error {
	as, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(as.Uid)
	gid, _ := strconv.Atoi(as.Gid)
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bins) == 0 {
		return errors.New("there is no PostgreSQL of Debian")
	}
	var members []string
	for _, m := range c.stores {
		members = append(members, fmt.Sprintf("%s=http://%s:2380", m.Name, m.Addr))
	}
	for _, m := range c.stores {
		config, bin := filepath.Join(m.Dir, "patroni.yaml"), filepath.Join(m.Dir, "bin")
		if err := errors.Join(write(config, patroniText, node{m, c.stores, bin}), clockedPostgres(m, bins[len(bins)-1], bin), os.Chown(m.Dir, uid, gid)); err != nil {
			return err
		}
		run := []string{"setpriv", "--reuid", as.Uid, "--regid", as.Gid, "--clear-groups", "--"}
		c.keep(keep, m.Name+" etcd", func() (<-chan struct{}, error) {
			return m.start(keep, append(slices.Clone(run), "etcd", "--name", m.Name, "--data-dir", filepath.Join(m.Dir, "etcd"), "--log-level", "error",
				// Without it, a member that comes back after it was unplugged ends the term of a leader that all others follow.
				"--pre-vote",
				// A new leader is elected within Patroni's retry_timeout of 1 s.
				"--heartbeat-interval", "50", "--election-timeout", "500", "--enable-v2",
				"--listen-peer-urls", "http://"+m.Addr+":2380", "--initial-advertise-peer-urls", "http://"+m.Addr+":2380",
				"--listen-client-urls", "http://"+m.Addr+":2379", "--advertise-client-urls", "http://"+m.Addr+":2379",
				"--initial-cluster", strings.Join(members, ","))...)
		})
		c.keep(keep, m.Name, func() (<-chan struct{}, error) {
			return m.start(keep, append(slices.Clone(run), "env", "HOME="+m.Dir, "patroni", config)...)
		})
	}
	return nil
}

// clockedPostgres makes a folder of PostgreSQL's programs in which the server sees the machine's clock.
// Patroni itself can't: Python's sleeps fail with libfaketime.
func clockedPostgres(m *machine, from, bin string) error {
	programs, err := filepath.Glob(filepath.Join(from, "*"))
	if err != nil {
		return err
	}
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	for _, program := range programs {
		name := filepath.Join(bin, filepath.Base(program))
		if filepath.Base(program) != "postgres" {
			err = os.Symlink(program, name)
		} else {
			err = os.WriteFile(name, []byte("#!/bin/sh\nexec env "+m.clocked()+" "+program+` "$@"`+"\n"), 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// database is the URL that names all three machines.
func (c *cluster) database() string {
	return "postgres://pgw@" + node{of: c.stores}.Peers(5432) + "/pgw?sslmode=disable&target_session_attrs=primary"
}

func (c *cluster) makeLedger(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, strings.Replace(c.database(), "/pgw?", "/postgres?", 1))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var made bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'pgw')`).Scan(&made); err != nil {
		return err
	}
	if !made {
		if _, err := conn.Exec(ctx, `CREATE DATABASE pgw`); err != nil {
			return err
		}
	}
	return ledger.Migrate(ctx, c.database())
}

func (c *cluster) startBrokers(keep context.Context) error {
	jars := os.Getenv("PGW_TEST_KAFKA_CLASSPATH")
	if jars == "" {
		return errors.New("run this with make chaos-ha: it needs Kafka's programs")
	}
	java := func(program string, args ...string) []string {
		return append([]string{"java", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", jars, program}, args...)
	}
	c.kafka = kafka.Config{
		Brokers: strings.Split(node{of: c.brokers}.Peers(9092), ","), RequestTopic: "payments.request", ResultTopic: "payments.result",
		DeadLetterTopic: "payments.deadletter", ParkedTopic: "payments.parked", AccountsTopic: "ledger.accounts",
	}
	for _, m := range c.brokers {
		config := filepath.Join(m.Dir, "kafka.properties")
		if err := write(config, kafkaText, node{machine: m, of: c.brokers}); err != nil {
			return err
		}
		format := java("kafka.tools.StorageTool", "format", "--ignore-formatted", "--cluster-id", "AAAAAAAAAAAAAAAAAAAAAA", "--config", config)
		formatted := sync.OnceValue(func() error { return command(format[0], format[1:]...) })
		c.keep(keep, m.Name, func() (<-chan struct{}, error) {
			if err := formatted(); err != nil {
				return nil, err
			}
			return m.start(keep, java("kafka.Kafka", config)...)
		})
	}
	return nil
}

// startFunctions starts the load balancer, and two of each function behind it.
func (c *cluster) startFunctions(keep context.Context) error {
	type front struct {
		Name, Front string
		Replicas    []string
	}
	var fronts []front
	for _, name := range processes.Functions {
		port, err := processes.FreePort()
		if err != nil {
			return err
		}
		fronts = append(fronts, front{Name: name, Front: net.JoinHostPort(gateAddr, strconv.Itoa(port))})
	}
	places := map[string]*machine{}
	for i, name := range processes.All {
		for n := range replicasOf {
			m, err := newMachine(c.dir, c.o.Out, name, n+1, 31+replicasOf*i+n)
			if err != nil {
				return err
			}
			c.replicas, places[m.Name] = append(c.replicas, m), m
			if i < len(fronts) {
				fronts[i].Replicas = append(fronts[i].Replicas, net.JoinHostPort(m.Addr, functionPort))
			}
		}
	}
	config := filepath.Join(c.dir, "haproxy.cfg")
	if err := write(config, haproxyText, fronts); err != nil {
		return err
	}
	c.keep(keep, "haproxy", func() (<-chan struct{}, error) {
		cmd := exec.Command("haproxy", "-q", "-db", "-f", config)
		cmd.Stdout, cmd.Stderr = c.logs, c.logs
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		gone := make(chan struct{})
		go func() { cmd.Wait(); close(gone) }()
		return gone, nil
	})
	for n := range replicasOf {
		sys, err := processes.New(processes.Config{
			Binary: c.o.Binary, Database: c.database(), Kafka: c.kafka, EventKeys: eventKeys, Log: c.logs,
			Env: append([]string{"WEBHOOK_ALLOW_NETWORKS=" + wholeNet}, settings...),
			Place: func(name string) (string, []string) {
				m := places[fmt.Sprintf("%s-%d", name, n+1)]
				return net.JoinHostPort(m.Addr, functionPort), m.on()
			},
		})
		if err != nil {
			return err
		}
		for _, f := range fronts {
			sys.SetFront(f.Name, f.Front)
		}
		c.systems = append(c.systems, sys)
		for _, name := range processes.All {
			m := places[fmt.Sprintf("%s-%d", name, n+1)]
			c.keep(keep, m.Name, func() (<-chan struct{}, error) {
				m.await(keep)
				return sys.Launch(name)
			})
		}
	}
	return nil
}

func (c *cluster) gateway() string   { return c.systems[0].Front("gateway") }
func (c *cluster) skipped() []string { return nil }

// whole returns an error while one machine more can't be lost.
func (c *cluster) whole(ctx context.Context) error {
	for _, m := range c.replicas {
		if err := c.get(ctx, "http://"+net.JoinHostPort(m.Addr, functionPort)+"/readyz"); err != nil {
			return err
		}
	}
	conn, err := pgx.Connect(ctx, c.database())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var streaming, synchronous int
	err = conn.QueryRow(ctx, `SELECT count(*) FILTER (WHERE state = 'streaming'), count(*) FILTER (WHERE state = 'streaming' AND sync_state = 'sync')
		FROM pg_stat_replication WHERE application_name LIKE 'postgres-%'`).Scan(&streaming, &synchronous)
	if err != nil || streaming < len(c.stores)-1 || synchronous < 1 {
		return errors.Join(err, fmt.Errorf("%d standbys stream, %d of them are synchronous", streaming, synchronous))
	}
	for _, m := range c.brokers {
		if err := c.wholeTo(m); err != nil {
			return err
		}
	}
	return nil
}

// wholeTo returns an error while a broker knows of a partition that is not on all brokers. One that was
// unplugged may be the last to know.
func (c *cluster) wholeTo(m *machine) error {
	settings, err := c.kafka.Settings("fault")
	if err != nil {
		return err
	}
	client, err := sarama.NewClient([]string{net.JoinHostPort(m.Addr, "9092")}, settings)
	if err != nil {
		return err
	}
	defer client.Close()
	topics, err := client.Topics()
	if err != nil {
		return err
	}
	for _, topic := range topics {
		partitions, err := client.Partitions(topic)
		if err != nil {
			return err
		}
		for _, p := range partitions {
			if in, err := client.InSyncReplicas(topic, p); err != nil || len(in) < brokersIn {
				return errors.Join(err, fmt.Errorf("%s, partition %d: only %v have everything", topic, p, in))
			}
		}
	}
	return nil
}

func (c *cluster) get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.watch.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

// store returns a machine of the databases by its part: primary or sync.
func (c *cluster) store(ctx context.Context, part string) (*machine, error) {
	for _, m := range c.stores {
		if c.get(ctx, "http://"+m.Addr+":8008/"+part) == nil {
			return m, nil
		}
	}
	return nil, fmt.Errorf("no machine is the %s one", part)
}

// breakThings makes one fault after the other, each when everything is whole. So the same seed gives the
// same faults, but not the same times.
func (c *cluster) breakThings(ctx context.Context, begun time.Time) (made []fault, wrong []string) {
	fmt.Printf("seed %d: faults for %s, %.0f payments a second are sent\n", c.o.Seed, c.o.Duration, c.o.Rate)
	for draw := dealer(c.o.Seed); ctx.Err() == nil && time.Since(begun) < c.o.Duration && (c.o.Faults == 0 || len(made) < c.o.Faults); {
		f := draw()
		if err := c.awaitWhole(ctx); err != nil {
			return made, append(wrong, fmt.Sprintf("not everything was whole again within %s: %v", wholeWithin, err))
		}
		if n := len(made); n > 0 {
			made[n-1].Whole = time.Since(made[n-1].since)
		}
		sleep(ctx, time.Second)
		if err := c.inflict(ctx, begun, &f); err != nil {
			c.log.Warn("a fault could not be made", "fault", f.String(), "error", err)
			continue
		}
		made = append(made, f)
	}
	return made, wrong
}

// awaitWhole waits until one more machine may be lost. Standbys that do not find their way back are copied anew.
func (c *cluster) awaitWhole(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, wholeWithin)
	defer cancel()
	patient, cancelPatient := context.WithTimeout(bounded, strandedAfter)
	defer cancelPatient()
	err := eventually(patient, func() error { return c.whole(patient) })
	if err == nil {
		return nil
	}
	if err := c.copyStranded(bounded); err != nil {
		c.log.Warn("stranded standbys could not be copied", "error", err)
	}
	return eventually(bounded, func() error { return c.whole(bounded) })
}

// copyStranded does for the standbys that do not stream what a person has to do then (patronictl reinit). One
// of them is a standby that Patroni had begun to promote when the frozen primary came back and took its lock
// again: Patroni relies on a watchdog, which these machines lack. The standby has a timeline of its own.
func (c *cluster) copyStranded(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, c.database())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var streaming []string
	var primary string
	err = conn.QueryRow(ctx, `SELECT coalesce(array_agg(application_name) FILTER (WHERE state = 'streaming'), '{}'), host(inet_server_addr())
		FROM pg_stat_replication`).Scan(&streaming, &primary)
	if err != nil {
		return err
	}
	for _, m := range c.stores {
		if m.Addr == primary || slices.Contains(streaming, m.Name) {
			continue
		}
		c.log.Warn("a standby does not stream, and is copied anew", "machine", m.Name)
		c.mu.Lock()
		c.copied[m.Name]++
		c.mu.Unlock()
		resp, err := c.watch.Post("http://"+m.Addr+":8008/reinitialize", "application/json", strings.NewReader(`{"force": true}`))
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", m.Name, resp.Status)
		}
	}
	return nil
}
