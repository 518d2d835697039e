# The scripts in this folder read this file. shellcheck shell=bash
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source=versions.env
source "$here/versions.env"

KIND_CLUSTER=${KIND_CLUSTER:-pgw}
IMAGE=${IMAGE:-dev.local/pgw:demo}

say() { printf '== %s\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }

need() { # command, how to get it
  command -v "$1" >/dev/null || die "$1 is missing: $2"
}
need_kubectl() {
  need kubectl "see kubernetes.io/docs/tasks/tools"
  kubectl version >/dev/null 2>&1 || die "no cluster answers: make kind-up makes one, or set KUBECONFIG"
}
need_docker() {
  need docker "kind runs its nodes in it"
  docker info >/dev/null 2>&1 || die "docker does not answer: start it, or set DOCKER_HOST"
}
need_kind() { need kind "go install sigs.k8s.io/kind@$KIND_VERSION"; }

# await SECONDS WHAT COMMAND...: says what it waits for, and repeats the command until it succeeds. After SECONDS it
# gives up and prints the command's last output.
await() {
  local limit=$1 what=$2 begun=$SECONDS out
  shift 2
  say "waiting for $what (at most $limit s)"
  until out=$("$@" 2>&1); do
    ((SECONDS - begun < limit)) || die "$what: not within $limit s: $out"
    sleep 1
  done
}
