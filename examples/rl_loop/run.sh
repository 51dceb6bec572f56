#!/usr/bin/env bash
# Trains a small policy by GRPO, with a real vLLM server that follows it through a chain. See README.md.
#
#     bash examples/rl_loop/run.sh WORK [OPTIONS of loop.py]
set -euo pipefail
work=$(realpath -m "$1")
shift
here=$(realpath "$(dirname "$0")")
mkdir -p "$work"
bash "$here/server_venv.sh" "$work/server" &
server=$!
if [ ! -e "$work/trainer/done" ]; then
  python3 -m venv "$work/trainer"
  "$work/trainer/bin/python" -m pip --disable-pip-version-check -q install -r "$here/requirements.txt" "$here/../..[report]"
  touch "$work/trainer/done"
fi
wait $server
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1 CKPTDIFF_CACHE_DIR="${CKPTDIFF_CACHE_DIR:-$work/kernels}"
exec "$work/trainer/bin/python" "$here/loop.py" "$work" --server-python "$work/server/bin/python" "$@"
