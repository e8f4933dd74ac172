#!/usr/bin/env bash
# One job of ten minutes on a GPU: ACDC at the paper's settings, as many runs as fit, several side by side.
#
#     benchmarks/gpu_acdc.sh DATA OUT [OPTIONS OF THE TRAINING]
#
# First the formulas are compared; if that fails, nothing is trained. OUT receives the tables of all finished runs,
# ablations_PROTOCOL/acdc.json and so on, and unfinished.csv, the last epoch of every run that was stopped. The same call
# resumes where checkpoints are kept (RUNS). In the environment: SECONDS_OF_JOB, JOBS (runs side by side), VARIANTS,
# SEEDS, DEVICE (cpu to try it), RUNS, PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?give the folder of ACDC} out=${2:?give a folder for the results}
shift 2
python=${PYTHON:-python} seconds=${SECONDS_OF_JOB:-540} runs=${RUNS:-runs/gpu_acdc} device=${DEVICE:-cuda}
mkdir -p "$out"
check=$(mktemp -d)
trap 'rm -rf "$check"' EXIT

"$python" benchmarks/layers.py --device "$device" --what modules --stages 4 --rounds 1 --batch 2 --out "$check" >/dev/null

if [ -d benchmarks/results/ablations_paper ]; then # runs that are finished already are not repeated
  cp -r benchmarks/results/ablations_paper "$out/"
fi
# shellcheck disable=SC2086  # several words each
"$python" benchmarks/ablations.py --data acdc="$data" --variants ${VARIANTS:-none gca} --seeds ${SEEDS:-10 11 12} \
  --jobs "${JOBS:-6}" --seconds "$((seconds - SECONDS))" --out "$runs" --results "$out" -- --workers 2 "$@"

for metrics in "$runs"/*/acdc/*/*/metrics.csv; do
  if [ -f "$metrics" ] && [ ! -f "$(dirname "$metrics")/results.json" ]; then
    printf '%s,%s\n' "$(dirname "${metrics#"$runs"/}")" "$(tail -n 1 "$metrics")" >>"$out/unfinished.csv"
  fi
done
