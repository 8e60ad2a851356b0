#!/usr/bin/env bash
# Fine-tunes on a TPU slice, or on several that work together, of Google Cloud's TPU VMs, through a queued resource.
#   launch/tpu_vm.sh create    asks for the slices, and waits until they are there
#   launch/tpu_vm.sh install   puts this checkout and its dependencies on every host
#   launch/tpu_vm.sh train     trains; again, it goes on from the last checkpoint
#   launch/tpu_vm.sh stop      tells the run to save and to end
#   launch/tpu_vm.sh delete    gives the slices back
set -euo pipefail
cd "$(dirname "$0")/.."

NAME=idefics                   # of the queued resource; slices are NAME-0, NAME-1, ...
ZONE=us-west4-a
TYPE=v5litepod-256             # v5p types count cores, two to a chip: v5p-128 has 64 chips
RUNTIME=v2-alpha-tpuv5-lite    # v5p: v2-alpha-tpuv5; v6e: v2-alpha-tpuv6e
SLICES=1
CAPACITY=(--spot)              # or (--reserved), or () for on-demand
TRAIN=(
  --recipe idefics-instruct --model gs://BUCKET/idefics-9b
  --data.train gs://BUCKET/chats.jsonl --data.eval gs://BUCKET/held-out.jsonl
  --out gs://BUCKET/runs/chats --export gs://BUCKET/idefics-9b-chats
  --mesh.data "$SLICES" --process.coordinator auto
)

everywhere() {  # runs a command on every host of every slice, and fails if one of them does
  local pids=() failed=0
  for ((slice = 0; slice < SLICES; slice++)); do
    gcloud compute tpus tpu-vm ssh "$NAME-$slice" --zone="$ZONE" --worker=all --command="$1" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return "$failed"
}

case "${1:-}" in
  create)
    if ((SLICES == 1)); then nodes=(--node-id="$NAME-0"); else nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
    gcloud compute tpus queued-resources create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
      --runtime-version="$RUNTIME" "${nodes[@]}" "${CAPACITY[@]}"
    until state=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format="value(state.state)") &&
      [[ $state == ACTIVE ]]; do
      [[ $state != FAILED ]] || { echo "The queued resource $NAME failed." >&2; exit 1; }
      sleep 30
    done
    ;;
  install)
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz -o "$archive" HEAD
    for ((slice = 0; slice < SLICES; slice++)); do
      gcloud compute tpus tpu-vm scp "$archive" "$NAME-$slice:idefics-jax.tar.gz" --zone="$ZONE" --worker=all
    done
    # uv brings a Python of its own: that of the TPU's image may be too old.
    everywhere 'mkdir -p idefics-jax && tar -xzf idefics-jax.tar.gz -C idefics-jax && cd idefics-jax &&
      pip3 install -q --user uv && python3 -m uv venv -q --clear --python 3.12 &&
      python3 -m uv pip install -q -e ".[tpu,train,gcs]"'
    ;;
  train)
    everywhere "cd idefics-jax && .venv/bin/python -m train $(printf '%q ' "${TRAIN[@]}")"
    ;;
  stop)
    everywhere 'pkill -TERM -f "^.venv/bin/python -m train"'
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
    ;;
  *)
    sed -n '2,7s/^# *//p' "$0" >&2
    exit 2
    ;;
esac
