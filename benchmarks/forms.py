"""What each form of the ``context`` codec takes: payload bytes of all changed tensors, for the tables of ``spec/rationale.md``.

    python benchmarks/forms.py NAME=BASE,TARGET [...]

BASE and TARGET are safetensors files with the same tensors. Columns: the adaptive form for every block; the static form for
every block; what ``make`` takes; and each of the last two without rows and columns. Every block is decoded and compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest.mock import patch

from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.codecs import apply_change, context
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout
from ckptdiff.kernels.changes import changes_of
from ckptdiff.patching.encode_group import row_width

NEVER = 2.0
FORMS = {
    "adaptive": (NEVER, 0, True),
    "static": (0.0, 0, True),
    "as made": (context.STATIC_SHARE, context.BOTH_BELOW, True),
    "static, no rows": (0.0, 0, False),
    "as made, no rows": (context.STATIC_SHARE, context.BOTH_BELOW, False),
}
"""Above which share of changes the static form is taken, below how many units (or a third as many changes) both are tried,
and whether rows are known.
"""


def payload(base: Tensor, target: Tensor, rows: bool) -> int:
    """Bytes of a tensor's coded blocks; 0 if it did not change."""
    dtype, total = DTYPES[target.dtype], 0
    width = row_width(target) if rows else 0
    for start in range(0, target.nbytes, BLOCK):
        old, new = base.read(start, start + BLOCK, "base"), target.read(start, start + BLOCK, "target")
        place = BlockLayout(width, start // dtype.carrier % width) if width else WITHOUT_ROWS
        coded = context.pack(old, changes_of(old, new, dtype), dtype, place)
        if apply_change(context.unpack(memoryview(coded), old, len(old), dtype), old, dtype)[0].tobytes() != new.tobytes():
            raise AssertionError(f"{target.name}: a block does not come back")
        total += len(coded)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="NAME=BASE,TARGET")
    print(f"| pair | {' | '.join(FORMS)} |\n|---{'|---' * len(FORMS)}|")
    for pair in parser.parse_args().pairs:
        name, _, both = pair.partition("=")
        base, target = map(Path, both.split(","))
        cells = []
        with open_checkpoint(base) as old, open_checkpoint(target) as new:
            (before,), (after,) = old.scopes.values(), new.scopes.values()
            for dense, few, rows in FORMS.values():
                with patch.object(context, "STATIC_SHARE", dense), patch.object(context, "BOTH_BELOW", few):
                    cells.append(f"{sum(payload(before[key], tensor, rows) for key, tensor in after.items()):,}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
