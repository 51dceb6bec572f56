"""Run a heavy test only if a file that it imports has changed since it passed on this machine: heavy.py CACHE NAME COMMAND...

What a run imported is noted by each of its processes (imports/sitecustomize.py). After a pass CACHE/NAME.json holds the
SHA-256 of these files, of the files in ALWAYS, and the versions of all packages. With CI_FULL=1, or on a machine that has
no such record, the command runs.
"""

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALWAYS = ("pyproject.toml", ".ci/run", ".ci/heavy.py", "examples/reproduce_paper/requirements.txt")


def digests(files):
    """SHA-256 by path; None for a file that is gone."""
    return {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() if (ROOT / name).is_file() else None for name in files}


def versions():
    """What is installed, but for the package itself, whose files are compared."""
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {"Python": sys.version, **{name: found[name] for name in sorted(found) if name != "ckptdiff"}}


def main():
    cache, name, *command = sys.argv[1:]
    record = Path(cache) / f"{name}.json"
    if record.exists() and not os.environ.get("CI_FULL"):
        passed = json.loads(record.read_text())
        changed = [path for path, digest in digests(passed["files"]).items() if digest != passed["files"][path]]
        if not changed and passed["versions"] == versions():
            print(f"{name}: NOT RUN: passed on this machine with the same {len(passed['files'])} files and packages; CI_FULL=1 runs it")
            return 0
        print(f"{name}: runs, since these changed: {', '.join(changed[:5]) or 'packages'}")
    with tempfile.TemporaryDirectory() as notes:
        path = [str(ROOT / ".ci" / "imports"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "CI_ROOT": str(ROOT), "CI_NOTES": notes, "PYTHONPATH": os.pathsep.join(path)}
        code = subprocess.run(command, env=environment).returncode
        imported = {line for note in Path(notes).iterdir() for line in note.read_text().splitlines()}
    if code == 0:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"files": digests(sorted(imported | set(ALWAYS))), "versions": versions()}, indent=1))
    return code


sys.exit(main())
