package manifests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	sourcesconfig "knative.dev/eventing/pkg/apis/sources/config"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	"knative.dev/pkg/apis"
	servingconfig "knative.dev/serving/pkg/apis/config"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	kjson "sigs.k8s.io/json"
	kindv1alpha4 "sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	sigsyaml "sigs.k8s.io/yaml"
)

// defaulted is an object for which Knative's webhooks set defaults and validate.
type defaulted interface {
	SetDefaults(context.Context)
	Validate(context.Context) *apis.FieldError
}

// typed returns an empty value of an object's Go type. It is nil for the objects of
// againstEventing.
func typed(o object) (into any, known bool) {
	switch o.apiVersion + " " + o.kind {
	case "serving.knative.dev/v1 Service":
		return &servingv1.Service{}, true
	case "sources.knative.dev/v1 PingSource":
		return &sourcesv1.PingSource{}, true
	case "sources.knative.dev/v1 KafkaSource", "eventing.knative.dev/v1alpha1 KafkaSink":
		return nil, true
	case "v1 Namespace":
		return &corev1.Namespace{}, true
	case "v1 ServiceAccount":
		return &corev1.ServiceAccount{}, true
	case "v1 Service":
		return &corev1.Service{}, true
	case "batch/v1 Job":
		return &batchv1.Job{}, true
	case "apps/v1 Deployment":
		return &appsv1.Deployment{}, true
	case "apps/v1 StatefulSet":
		return &appsv1.StatefulSet{}, true
	case "networking.k8s.io/v1 NetworkPolicy":
		return &networkingv1.NetworkPolicy{}, true
	}
	return nil, false
}

// againstTypes reads an object strictly, and then sets defaults and validates as Knative's webhooks
// do.
func againstTypes(o object) []string {
	into, known := typed(o)
	if !known {
		return []string{fmt.Sprintf("nobody here knows a %s of %q", o.kind, o.apiVersion)}
	}
	if into == nil {
		return nil
	}
	asJSON, err := sigsyaml.YAMLToJSONStrict(o.text)
	if err != nil {
		return []string{err.Error()}
	}
	strict, err := kjson.UnmarshalStrict(asJSON, into) // the case must match too
	if err = errors.Join(append(strict, err)...); err != nil {
		return []string{err.Error()}
	}
	d, ok := into.(defaulted)
	if !ok {
		return nil
	}
	features, err := servingconfig.NewFeaturesConfigFromMap(map[string]string{servingconfig.FeaturePodSpecFieldRef: "enabled"})
	if err != nil {
		return []string{err.Error()}
	}
	ctx := servingconfig.ToContext(context.Background(), servingconfig.FromContextOrDefaults(
		servingconfig.ToContext(context.Background(), &servingconfig.Config{Features: features})))
	ctx = sourcesconfig.ToContext(ctx, sourcesconfig.FromContextOrDefaults(ctx))
	ctx = apis.WithinCreate(ctx)
	d.SetDefaults(ctx)
	var found []string
	for problem := range strings.SplitSeq(d.Validate(ctx).Filter(apis.ErrorLevel).Error(), "\n") {
		if problem != "" {
			found = append(found, problem)
		}
	}
	return found
}

func TestKindsClusterConfig(t *testing.T) {
	f, err := os.Open(root + "/kind/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var cluster kindv1alpha4.Cluster
	strict := yaml.NewDecoder(f)
	strict.KnownFields(true)
	if err := strict.Decode(&cluster); err != nil {
		t.Fatal(err)
	}
	install, err := os.ReadFile(root + "/kind/install")
	if err != nil {
		t.Fatal(err)
	}
	port := cluster.Nodes[0].ExtraPortMappings[0]
	if port.ListenAddress != "127.0.0.1" || !strings.Contains(string(install), fmt.Sprintf(`"nodePort":%d`, port.ContainerPort)) {
		t.Errorf("port %+v: on loopback, and the one that kind/install gives Kourier", port)
	}
}
