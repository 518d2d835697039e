// Package manifests checks the manifests of knative/ and kind/ against the types of Knative and
// Kubernetes, and against the code. A typo, or a port, topic, sink or variable that does not match,
// fails here and not in a cluster.
package manifests

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const root = "../.."

// render builds a kustomization as kubectl does.
func render(t *testing.T, dir string) []byte {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), root+"/"+dir)
	if err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
	text, err := built.AsYaml()
	if err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
	return text
}

// object is one manifest, as text for strict reading and as a tree for access by path.
type object struct {
	text                   []byte
	tree                   map[string]any
	apiVersion, kind, name string
}

func (o object) String() string { return o.kind + " " + o.name }

// get returns the value at a path of field names and indexes. It is nil if the path does not exist.
func (o object) get(path ...any) any { return lookUp(o.tree, path...) }

func lookUp(at any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := at.(map[string]any)
			at = m[step]
		case int:
			l, _ := at.([]any)
			if step >= len(l) {
				return nil
			}
			at = l[step]
		}
	}
	return at
}

func text(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func objects(rendered []byte) (all []object, err error) {
	for doc := range bytes.SplitSeq(rendered, []byte("\n---\n")) {
		o := object{text: doc}
		if err := yaml.Unmarshal(doc, &o.tree); err != nil {
			return nil, err
		}
		if o.tree == nil {
			continue
		}
		o.apiVersion, o.kind, o.name = text(o.get("apiVersion")), text(o.get("kind")), text(o.get("metadata", "name"))
		all = append(all, o)
	}
	return all, nil
}

func overlays(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(root + "/knative/overlays")
	if err != nil {
		t.Fatal(err)
	}
	dirs := []string{"knative/base"}
	for _, e := range entries {
		dirs = append(dirs, "knative/overlays/"+e.Name())
	}
	return dirs
}

func TestManifestsAreValidAndAgreeWithTheCode(t *testing.T) {
	for _, dir := range overlays(t) {
		for _, problem := range problems(render(t, dir)) {
			t.Errorf("%s: %s", dir, problem)
		}
	}
}

// problems runs every check on one rendered set.
func problems(rendered []byte) []string {
	all, err := objects(rendered)
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for _, o := range all {
		for _, problem := range againstTypes(o) {
			found = append(found, fmt.Sprintf("%s: %s", o, problem))
		}
	}
	return append(append(found, againstEventing(all)...), againstCode(all)...)
}

// Kafka and Postgres have the same version on kind, on Compose and in the tests.
func TestVersionsOfStoresAreOne(t *testing.T) {
	versions, err := os.ReadFile(root + "/kind/versions.env")
	if err != nil {
		t.Fatal(err)
	}
	all, err := objects(render(t, "knative/overlays/kind"))
	if err != nil {
		t.Fatal(err)
	}
	stores := 0
	for _, o := range all {
		if o.kind != "StatefulSet" {
			continue
		}
		stores++
		image := text(o.get("spec", "template", "spec", "containers", 0, "image"))
		if !strings.Contains(string(versions), "_IMAGE="+image+"\n") {
			t.Errorf("%s runs %s, which kind/versions.env does not have", o, image)
		}
	}
	if stores != 2 {
		t.Errorf("%d stores, want Kafka and Postgres", stores)
	}
	for line := range strings.Lines(string(versions)) {
		name, image, _ := strings.Cut(strings.TrimSpace(line), "_IMAGE=")
		if name != "KAFKA" && name != "POSTGRES" {
			continue
		}
		if !strings.Contains(readCompose(t, "compose.yaml"), "    image: "+image+"\n") {
			t.Errorf("compose.yaml does not run %s", image)
		}
		if version, ok := strings.CutPrefix(image, "apache/kafka:"); ok {
			pom, err := os.ReadFile(root + "/tests/kafka/pom.xml")
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(pom), "<kafka.version>"+version+"<") {
				t.Errorf("tests/kafka/pom.xml has another Kafka than %s", version)
			}
		}
	}
}
