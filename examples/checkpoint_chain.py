"""Keep every checkpoint of a training run as a chain of patches, and get any of them back.

    python examples/checkpoint_chain.py store CHAIN CHECKPOINT [CHECKPOINT ...]
    python examples/checkpoint_chain.py restore CHAIN STEP OUT

``store`` keeps the first checkpoint's path as the base and writes one patch from each checkpoint to the next, verified
against its target, after which the later checkpoints may be deleted. ``restore`` rebuilds the checkpoint of a step
(0 is the base) in one pass, without the steps between on disk.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import ckptdiff


def store(chain: Path, checkpoints: list[Path]) -> None:
    """Write ``chain``/step-00001 and so on, and ``chain``/base.txt."""
    chain.mkdir(parents=True)
    (chain / "base.txt").write_text(str(checkpoints[0].resolve()))
    for step, (before, after) in enumerate(itertools.pairwise(checkpoints), 1):
        patch = chain / f"step-{step:05}"
        made = ckptdiff.make(before, after, patch)
        found = ckptdiff.verify(patch, base=before, target=after)
        if not found.ok:
            raise SystemExit(f"{patch}: {found.problems[0].message}")
        print(f"{patch}: {made.totals.changed:,} elements changed, {made.patch_size:,} bytes, {made.ratio:.1f} times smaller")


def restore(chain: Path, step: int, out: Path) -> None:
    """Rebuild the checkpoint of ``step`` at ``out``."""
    patches = sorted(chain.glob("step-*"))[:step]
    if step < 1 or len(patches) < step:
        raise SystemExit(f"{chain}: expected a step from 1 to {len(patches)}, found {step}")
    done = ckptdiff.apply((chain / "base.txt").read_text(), patches, out)
    print(f"{done.out}: {done.tensors} tensors, {done.size:,} bytes")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["store", folder, *checkpoints] if checkpoints:
            store(Path(folder), [Path(path) for path in checkpoints])
        case ["restore", folder, step, out] if step.isdigit():
            restore(Path(folder), int(step), Path(out))
        case _:
            raise SystemExit(__doc__)
