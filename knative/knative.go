// Package knative carries the manifests in the binary, so that the stand-in for KafkaSource reads the same
// ones that a cluster does.
package knative

import "embed"

// Base holds base/*.yaml.
//
//go:embed base/*.yaml
var Base embed.FS
