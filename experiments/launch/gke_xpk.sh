#!/usr/bin/env bash
# TPU slices under GKE, through xpk (github.com/AI-Hypercomputer/xpk); Kubernetes starts a workload again after a failure.
#   CLUSTER=NAME IMAGE=REGISTRY/vjepa:TAG TPU_TYPE=v5p-256 SLICES=2 experiments/launch/gke_xpk.sh WORKLOAD \
#     --config C --workdir RUN --config.mesh.fsdp=16 --config.mesh.replica=-1
# The mesh is that for 16 chips and more: weights in shards over 16 of them, copies over the rest (replica = chips of all
# slices / 16; why: experiments/benchmarks/aot_tpu_202611.md).
# Everything after the workload's name goes to `vjepa train`. IMAGE is made from the Dockerfile beside this script.
# DRY_RUN=1 prints the command.
set -euo pipefail
: "${CLUSTER:?name of the cluster}" "${IMAGE:?image of vjepa_jax}" "${TPU_TYPE:?such as v5p-256}"
workload=${1:?name of the workload}
shift

if [[ "$*" != *--config.mesh.* ]]; then
  echo "note: on 16 chips and more, --config.mesh.fsdp=16 --config.mesh.replica=-1, unless the config has a mesh" >&2
fi
command=(
  xpk workload create --cluster "$CLUSTER" --workload "$workload" --docker-image "$IMAGE"
  --tpu-type "$TPU_TYPE" --num-slices "${SLICES:-1}" --max-restarts "${RESTARTS:-50}"
  --command "vjepa train --distributed$(printf ' %q' "$@")"
)
if [[ -n "${DRY_RUN:-}" ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  "${command[@]}"
fi
