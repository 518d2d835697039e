package kafkasource

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/sosodev/duration"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// The kinds that are read. Other kinds in the files are only for the cluster.
const (
	kindKafkaSource = "KafkaSource"
	kindKafkaSink   = "KafkaSink"
	kindPingSource  = "PingSource"
	kindService     = "Service"
)

var apiVersions = map[string]string{
	kindKafkaSource: "sources.knative.dev/v1",
	kindPingSource:  "sources.knative.dev/v1",
	kindKafkaSink:   "eventing.knative.dev/v1alpha1",
	kindService:     "serving.knative.dev/v1",
}

// Manifests are the manifests that Load has read.
type Manifests struct {
	sources []kafkaSource
	sinks   map[string]kafkaSink
	pings   []pingSource
}

// Topics returns the names of all topics that the manifests read or write.
func (m Manifests) Topics() []string {
	var topics []string
	for _, s := range m.sources {
		topics = append(topics, s.Spec.Topics...)
	}
	for _, s := range m.sinks {
		topics = append(topics, s.Spec.Topic)
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

// Groups returns the consumer groups that read a topic.
func (m Manifests) Groups(topic string) []string {
	var groups []string
	for _, s := range m.sources {
		if slices.Contains(s.Spec.Topics, topic) {
			groups = append(groups, s.Spec.ConsumerGroup)
		}
	}
	return groups
}

// Attempts returns how many times a source tried to deliver an event to a service whose last status
// was code, or 0 for no response. Dead letters do not contain this number; it follows from the
// source's policy. It is 0 if the service has no source.
func (m Manifests) Attempts(service string, code int) int {
	for _, s := range m.sources {
		if s.Spec.Sink.Ref == nil || s.Spec.Sink.Ref.Name != service {
			continue
		}
		if code != 0 && (&failure{code: code}).final() {
			return 1
		}
		return 1 + *s.Spec.Delivery.Retry
	}
	return 0
}

type typeMeta struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   metadata `json:"metadata"`
}

type metadata struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func (m metadata) namespace() string {
	if m.Namespace == "" {
		return "default"
	}
	return m.Namespace
}

type kafkaSource struct {
	typeMeta
	Spec struct {
		BootstrapServers []string    `json:"bootstrapServers"`
		Net              *netAccess  `json:"net,omitempty"` // how the cluster connects; this package uses Config instead
		Topics           []string    `json:"topics"`
		ConsumerGroup    string      `json:"consumerGroup"`
		Consumers        *int        `json:"consumers,omitempty"`
		InitialOffset    string      `json:"initialOffset,omitempty"`
		Ordering         string      `json:"ordering,omitempty"`
		Sink             destination `json:"sink"`
		Delivery         *delivery   `json:"delivery,omitempty"`
	} `json:"spec"`
}

type kafkaSink struct {
	typeMeta
	Spec struct {
		BootstrapServers  []string  `json:"bootstrapServers"`
		Topic             string    `json:"topic"`
		ContentMode       string    `json:"contentMode,omitempty"`
		NumPartitions     *int32    `json:"numPartitions,omitempty"`
		ReplicationFactor *int16    `json:"replicationFactor,omitempty"`
		Auth              *sinkAuth `json:"auth,omitempty"` // like net of a KafkaSource
	} `json:"spec"`
}

// netAccess and sinkAuth are parsed only to refuse a misspelt field in them.
type netAccess struct {
	TLS struct {
		Enable bool    `json:"enable"`
		Cert   *secret `json:"cert,omitempty"`
		Key    *secret `json:"key,omitempty"`
		CACert *secret `json:"caCert,omitempty"`
	} `json:"tls"`
	SASL struct {
		Enable   bool    `json:"enable"`
		User     *secret `json:"user,omitempty"`
		Password *secret `json:"password,omitempty"`
		Type     *secret `json:"type,omitempty"`
	} `json:"sasl"`
}

type secret struct {
	SecretKeyRef struct {
		Name     string `json:"name"`
		Key      string `json:"key"`
		Optional bool   `json:"optional,omitempty"`
	} `json:"secretKeyRef"`
}

type sinkAuth struct {
	Secret struct {
		Ref struct {
			Name string `json:"name"`
		} `json:"ref"`
	} `json:"secret"`
}

type pingSource struct {
	typeMeta
	Spec struct {
		Schedule    string      `json:"schedule"`
		Timezone    string      `json:"timezone,omitempty"`
		ContentType string      `json:"contentType,omitempty"`
		Data        string      `json:"data,omitempty"`
		DataBase64  []byte      `json:"dataBase64,omitempty"`
		Sink        destination `json:"sink"`
		Delivery    *delivery   `json:"delivery,omitempty"`
	} `json:"spec"`
}

type destination struct {
	Ref *reference `json:"ref,omitempty"`
	URI string     `json:"uri,omitempty"`
}

type reference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	Namespace  string `json:"namespace,omitempty"`
}

type delivery struct {
	Retry          *int         `json:"retry,omitempty"`
	BackoffPolicy  string       `json:"backoffPolicy,omitempty"`
	BackoffDelay   string       `json:"backoffDelay,omitempty"`
	Timeout        string       `json:"timeout,omitempty"`
	DeadLetterSink *destination `json:"deadLetterSink,omitempty"`
}

// Load reads every KafkaSource, KafkaSink and PingSource of the YAML files. An unknown field is an
// error, because otherwise a misspelt field would be ignored silently.
func Load(fsys fs.FS) (Manifests, error) {
	m := Manifests{sinks: map[string]kafkaSink{}}
	err := fs.WalkDir(fsys, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || (!strings.HasSuffix(path, ".yaml") && !strings.HasSuffix(path, ".yml")) {
			return err
		}
		text, err := fs.ReadFile(fsys, path)
		if err != nil {
			return err
		}
		if err := m.read(text); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return m, fmt.Errorf("manifests: %w", err)
	}
	if len(m.sources) == 0 {
		return m, errors.New("manifests: there is no KafkaSource")
	}
	return m, m.validate()
}

func (m *Manifests) read(file []byte) error {
	for _, doc := range splitDocuments(file) {
		var meta typeMeta
		if err := yaml.Unmarshal(doc, &meta); err != nil {
			return err
		}
		strictly := func(into any) error {
			if err := unmarshalStrict(doc, into); err != nil {
				return fmt.Errorf("%s %s: %w", meta.Kind, meta.Metadata.Name, err)
			}
			if want := apiVersions[meta.Kind]; meta.APIVersion != want {
				return fmt.Errorf("%s %s: apiVersion: is %q; must be %q", meta.Kind, meta.Metadata.Name, meta.APIVersion, want)
			}
			if meta.Metadata.Name == "" {
				return fmt.Errorf("%s: metadata.name is missing", meta.Kind)
			}
			return nil
		}
		switch meta.Kind {
		case kindKafkaSource:
			var s kafkaSource
			if err := strictly(&s); err != nil {
				return err
			}
			m.sources = append(m.sources, s)
		case kindKafkaSink:
			var s kafkaSink
			if err := strictly(&s); err != nil {
				return err
			}
			m.sinks[s.Metadata.Name] = s
		case kindPingSource:
			var s pingSource
			if err := strictly(&s); err != nil {
				return err
			}
			m.pings = append(m.pings, s)
		}
	}
	return nil
}

// unmarshalStrict refuses unknown fields, duplicate fields and fields in another case, as a cluster
// does.
func unmarshalStrict(doc []byte, into any) error {
	asJSON, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return err
	}
	strict, err := kjson.UnmarshalStrict(asJSON, into)
	return errors.Join(append(strict, err)...)
}

// splitDocuments cuts a file at its "---" lines.
func splitDocuments(file []byte) [][]byte {
	var docs [][]byte
	for doc := range bytes.SplitSeq(append([]byte("\n"), file...), []byte("\n---")) {
		if len(bytes.TrimSpace(doc)) > 0 {
			docs = append(docs, doc)
		}
	}
	return docs
}

func (m Manifests) validate() error {
	var errs []error
	seen := map[string]bool{}
	for _, s := range m.sources {
		if err := m.validateSource(s); err != nil {
			errs = append(errs, fmt.Errorf("KafkaSource %s: %w", s.Metadata.Name, err))
		}
		if seen[s.Metadata.Name] {
			errs = append(errs, fmt.Errorf("KafkaSource %s: is defined twice", s.Metadata.Name))
		}
		seen[s.Metadata.Name] = true
	}
	for name, s := range m.sinks {
		if s.Spec.Topic == "" {
			errs = append(errs, fmt.Errorf("KafkaSink %s: spec.topic is missing", name))
		}
		if !slices.Contains([]string{"", "binary", "structured"}, s.Spec.ContentMode) {
			errs = append(errs, fmt.Errorf("KafkaSink %s: spec.contentMode: is %q; must be binary or structured", name, s.Spec.ContentMode))
		}
	}
	for _, p := range m.pings {
		if err := m.validatePing(p); err != nil {
			errs = append(errs, fmt.Errorf("PingSource %s: %w", p.Metadata.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (m Manifests) validateSource(s kafkaSource) error {
	oneOf := func(field, value string, allowed ...string) error {
		if !slices.Contains(allowed, value) {
			return fmt.Errorf("spec.%s: is %q; must be one of %s", field, value, strings.Join(allowed, ", "))
		}
		return nil
	}
	var errs []error
	if len(s.Spec.Topics) == 0 {
		errs = append(errs, errors.New("spec.topics is missing"))
	}
	if s.Spec.ConsumerGroup == "" {
		errs = append(errs, errors.New("spec.consumerGroup is missing: with a random group, each change would start again at the initial offset"))
	}
	if c := s.Spec.Consumers; c != nil && (*c < 1 || *c > 100) {
		errs = append(errs, fmt.Errorf("spec.consumers: is %d; must be between 1 and 100", *c))
	}
	errs = append(errs,
		oneOf("initialOffset", s.Spec.InitialOffset, "earliest", "latest"),
		oneOf("ordering", s.Spec.Ordering, "ordered", "unordered"),
		m.validateDestination("spec.sink", s.Spec.Sink, false))
	if s.Spec.Delivery == nil {
		return errors.Join(append(errs, errors.New("spec.delivery is missing"))...)
	}
	if s.Spec.Delivery.DeadLetterSink == nil {
		errs = append(errs, errors.New("spec.delivery.deadLetterSink is missing: undeliverable events would be dropped"))
	}
	return errors.Join(append(errs, m.validateDelivery(*s.Spec.Delivery))...)
}

func (m Manifests) validateDelivery(d delivery) error {
	var errs []error
	if d.Retry == nil || *d.Retry < 0 || *d.Retry > 20 {
		errs = append(errs, errors.New("spec.delivery.retry: must be set to a number between 0 and 20"))
	}
	if !slices.Contains([]string{"exponential", "linear"}, d.BackoffPolicy) {
		errs = append(errs, fmt.Errorf("spec.delivery.backoffPolicy: is %q; must be exponential or linear", d.BackoffPolicy))
	}
	if _, err := parseDuration(d.BackoffDelay); err != nil {
		errs = append(errs, fmt.Errorf("spec.delivery.backoffDelay: %w", err))
	}
	if _, err := parseDuration(d.Timeout); err != nil {
		errs = append(errs, fmt.Errorf("spec.delivery.timeout: %w", err))
	}
	if d.DeadLetterSink != nil {
		errs = append(errs, m.validateDestination("spec.delivery.deadLetterSink", *d.DeadLetterSink, true))
	}
	return errors.Join(errs...)
}

// parseDuration parses a positive ISO 8601 duration such as PT0.3S.
func parseDuration(text string) (time.Duration, error) {
	d, err := duration.Parse(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not an ISO 8601 duration, such as PT0.3S", text)
	}
	if v := d.ToTimeDuration(); v > 0 {
		return v, nil
	}
	return 0, fmt.Errorf("%q is not positive", text)
}

func (m Manifests) validateDestination(field string, d destination, kafkaSinkAllowed bool) error {
	if d.Ref == nil {
		u, err := url.Parse(d.URI)
		if err != nil || !u.IsAbs() {
			return fmt.Errorf("%s: needs a ref, or an absolute uri", field)
		}
		return nil
	}
	if d.Ref.Name == "" {
		return fmt.Errorf("%s.ref.name is missing", field)
	}
	if want := apiVersions[d.Ref.Kind]; d.Ref.APIVersion != want {
		return fmt.Errorf("%s.ref: %s %s is not supported", field, d.Ref.APIVersion, d.Ref.Kind)
	}
	switch d.Ref.Kind {
	case kindService:
		return nil
	case kindKafkaSink:
		if !kafkaSinkAllowed {
			return fmt.Errorf("%s.ref: a KafkaSink can only be a dead-letter sink", field)
		}
		if _, ok := m.sinks[d.Ref.Name]; !ok {
			return fmt.Errorf("%s.ref: there is no KafkaSink %s", field, d.Ref.Name)
		}
		return nil
	default:
		return fmt.Errorf("%s.ref.kind: %q is not supported", field, d.Ref.Kind)
	}
}

func (m Manifests) validatePing(p pingSource) error {
	_, scheduleErr := p.schedule()
	var deliveryErr error
	if p.Spec.Delivery != nil {
		deliveryErr = m.validateDelivery(*p.Spec.Delivery)
	}
	var dataErr error
	if p.Spec.Data != "" && len(p.Spec.DataBase64) > 0 {
		dataErr = errors.New("spec: data and dataBase64 cannot both be set")
	}
	return errors.Join(scheduleErr, deliveryErr, dataErr, m.validateDestination("spec.sink", p.Spec.Sink, false))
}

func (p pingSource) schedule() (cron.Schedule, error) {
	line := p.Spec.Schedule
	if p.Spec.Timezone != "" {
		line = "CRON_TZ=" + p.Spec.Timezone + " " + line
	}
	s, err := cron.ParseStandard(line)
	if err != nil {
		return nil, fmt.Errorf("spec.schedule: %w", err)
	}
	return s, nil
}
