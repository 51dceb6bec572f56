"""Runs inside one of the trees that ``guard.py`` compares, with that tree's ckptdiff; prints one JSON object.

facts                           where the package lies, and the versions of all that is installed
pairs FOLDER COUNT              write random pairs (of tests/support/random_pairs.py; no ckptdiff)
make CASES, apply CASES         for each case of a JSON file, in one process; why each failed, or null
memory BASE TARGET CODEC CALLS  ``diff``, ``from_bytes`` and ``apply_`` of NumPy arrays, warm: medians of some calls
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

THREADS = 2
NUMPY = {"BF16": "bfloat16", "F32": "float32"}


def facts() -> dict[str, Any]:
    import importlib.metadata as metadata

    import ckptdiff

    versions = {found.metadata["Name"].lower(): found.version for found in metadata.distributions()}
    return {"package": ckptdiff.__file__, "versions": {k: v for k, v in sorted(versions.items()) if k != "ckptdiff"}}


def pairs(folder: str, count: str) -> dict[str, Any]:
    """Pair k is made from seed (17, k): the same bytes every time with one version of NumPy."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import numpy as np

    from tests.support.random_pairs import random_pair

    found = []
    for k in range(int(count)):
        place = Path(folder, f"random-{k:02}")
        place.mkdir(parents=True)
        found.append([place.name, *map(str, random_pair(np.random.default_rng([17, k]), place))])
    return {"pairs": found}


def for_each(cases: list[dict[str, Any]], verb: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    errors: dict[str, str | None] = {}
    for case in cases:
        try:
            verb(case)
            errors[case["key"]] = None
        except Exception as error:  # whatever it is, the other cases go on and this one is told
            errors[case["key"]] = f"{type(error).__name__}: {error}"[:300]
    return {"errors": errors}


def make(path: str) -> dict[str, Any]:
    import ckptdiff

    return for_each(
        json.loads(Path(path).read_text()), lambda case: ckptdiff.make(case["base"], case["target"], case["patch"], codec=case["codec"])
    )


def apply(path: str) -> dict[str, Any]:
    import ckptdiff

    return for_each(json.loads(Path(path).read_text()), lambda case: ckptdiff.apply(case["base"], case["patch"], case["out"]))


def tensors(path: str) -> dict[str, Any]:
    """The tensors of a made pair's file, in memory."""
    import ml_dtypes
    import numpy as np

    with open(path, "rb") as file:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        entries.pop("__metadata__", None)
        found = {}
        for name, entry in entries.items():
            dtype = np.dtype(ml_dtypes.bfloat16 if entry["dtype"] == "BF16" else NUMPY[entry["dtype"]])
            found[name] = np.fromfile(file, np.uint8, math.prod(entry["shape"]) * dtype.itemsize).view(dtype).reshape(entry["shape"])
    return found


def timed(samples: dict[str, dict[str, list[float]]], name: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call, whose seconds join the samples."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call(*arguments)
    row = samples.setdefault(name, {"wall": [], "cpu": []})
    row["cpu"].append(time.process_time() - cpu)
    row["wall"].append(time.perf_counter() - wall)
    return result


def memory(base_path: str, target_path: str, codec: str, calls: str) -> dict[str, Any]:
    import numpy as np

    import ckptdiff

    base, target = tensors(base_path), tensors(target_path)
    state = {name: array.copy() for name, array in base.items()}
    samples: dict[str, dict[str, list[float]]] = {}
    exact, digests = True, set()
    for call in range(int(calls) + 1):
        for name, array in base.items():
            np.copyto(state[name], array)
        data = timed(samples, "diff", lambda: ckptdiff.diff(base, target, codec=codec, threads=THREADS).to_bytes())
        patch = timed(samples, "from_bytes", ckptdiff.Patch.from_bytes, data)
        timed(samples, "apply_", partial(patch.apply_, state, threads=THREADS))
        exact &= all(np.array_equal(state[name].view(np.uint8), array.view(np.uint8)) for name, array in target.items())
        digests.add(hashlib.sha256(data).hexdigest())
        if call == 0:
            samples.clear()  # it warmed up
    rows = {name: {key: statistics.median(values) for key, values in row.items()} for name, row in samples.items()}
    return {"rows": rows, "exact": exact, "bytes": len(data), "sha256": " ".join(sorted(digests))}


if __name__ == "__main__":
    sys.path.pop(0)  # benchmarks/, whose modules have common names
    verbs: dict[str, Callable[..., dict[str, Any]]] = {"facts": facts, "pairs": pairs, "make": make, "apply": apply, "memory": memory}
    print(json.dumps(verbs[sys.argv[1]](*sys.argv[2:])))
