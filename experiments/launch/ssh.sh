#!/usr/bin/env bash
# Plain hosts with GPUs that reach each other by ssh, one process a host.
#   HOSTS="node0 node1" FOLDER=/shared/vjepa_jax experiments/launch/ssh.sh --config C --workdir /shared/RUN
# Everything after the script's name goes to `vjepa train`. FOLDER is the repository, with its .venv, on every host.
# If one host ends, all do; starts again after exit code 75. DRY_RUN=1 prints the commands.
set -uo pipefail
: "${HOSTS:?names of the hosts, the first one coordinates}" "${FOLDER:?the repository on each host}"
read -ra hosts <<<"$HOSTS"
port=${PORT:-12321}

command_of() { # INDEX ARGUMENTS...
  local index=$1
  shift
  printf 'cd %q && exec .venv/bin/vjepa train --distributed %q' "$FOLDER" "${hosts[0]}:$port,$index,${#hosts[@]}"
  printf ' %q' "$@"
}

if [[ -n "${DRY_RUN:-}" ]]; then
  for i in "${!hosts[@]}"; do
    echo "ssh -tt ${hosts[i]} $(command_of "$i" "$@")"
  done
  exit 0
fi

code=75
while [[ $code -eq 75 ]]; do
  pids=()
  for i in "${!hosts[@]}"; do
    # a terminal on the other side (-tt), so that the end of ssh ends the process there
    ssh -tt "${hosts[i]}" "$(command_of "$i" "$@")" </dev/null &
    pids+=($!)
  done
  trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
  code=0
  for pid in "${pids[@]}"; do
    wait "$pid" || code=$?
  done
done
exit "$code"
