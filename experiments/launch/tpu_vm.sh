#!/usr/bin/env bash
# A Cloud TPU slice: the same command on all of its hosts.
#   TPU=NAME ZONE=us-central2-b experiments/launch/tpu_vm.sh --config C --workdir gs-mounted/RUN \
#     --config.mesh.fsdp=16 --config.mesh.replica=-1
# The mesh is that for 16 chips and more: weights in shards over 16 of them, copies over the rest (replica = chips / 16;
# why: experiments/benchmarks/aot_tpu_202611.md).
# Everything after the script's name goes to `vjepa train`. The repository is copied to every host and installed there.
# Starts again after exit code 75 (stopped by a signal, or a process was lost). DRY_RUN=1 prints the commands.
set -euo pipefail
: "${TPU:?name of the TPU}" "${ZONE:?its zone}"
if [[ "$*" != *--config.mesh.* ]]; then
  echo "note: on 16 chips and more, --config.mesh.fsdp=16 --config.mesh.replica=-1, unless the config has a mesh" >&2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
name=$(basename "$root")

run() {
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on_all_hosts=(gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command)
run gcloud compute tpus tpu-vm scp --recurse "$root" "$TPU:" --zone "$ZONE" --worker=all
run "${on_all_hosts[@]}" "cd $name && python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu]'"

train="cd $name && .venv/bin/vjepa train --distributed$(printf ' %q' "$@")"
code=75
while [[ $code -eq 75 ]]; do
  code=0
  run "${on_all_hosts[@]}" "$train" || code=$?
done
exit "$code"
