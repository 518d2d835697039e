// Package knative carries the manifests in the binary. So kafkasource, outside a cluster, reads the
// same manifests as a cluster.
package knative

import "embed"

// Base holds base/*.yaml.
//
//go:embed base/*.yaml
var Base embed.FS
