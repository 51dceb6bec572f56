"""Dry runs on a header-true checkpoint of a trillion parameters: seconds and memory of what is told from headers and tables alone.

    python benchmarks/trillion.py FOLDER [--tensors 90427] [--shards 163] [--weight 3072x7200] [--runs 1] [--json FILE]

makes, if they are not there, FOLDER/base and FOLDER/target: checkpoints with DeepSeek-V3's names, whose headers and index are as they
would be, and whose files are sparse (``truncate``): of the true size, all zeros, on a few MB of disk. FOLDER/patch is a patch folder of
that pair: header, table, index and payloads are legal, and each block of each weight has a payload of one changed unit. Its digests are
those of zeros, and of zeros with that unit, so that ``apply --only`` of one tensor, which this script runs, decodes, checks and gives it.
Two things are made up, as nobody reads 2 TB here: the SHA-256 of the weight files are those of their names, and the target's sparse files
lack the changed units.

Then ``make --dry-run``, ``info`` and ``apply --dry-run`` run as whole processes; prints CPU seconds, wall seconds and peak memory as a
Markdown table and as JSON, beside the limits that they must keep: 60 s and 1 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from many_tensors import names
from peers_measure import run

from ckptdiff import kernels
from ckptdiff.codecs import CODECS
from ckptdiff.format.digests import BLOCK, identity, tensor_digest, xxh128
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.entry import Entry, Totals
from ckptdiff.format.index import INDEX_NAME, Index, OtherFile, ShardRef
from ckptdiff.format.metadata import Metadata
from ckptdiff.format.patch_file import PatchParts, write_patch_file
from ckptdiff.format.safetensors import predicted_header
from ckptdiff.format.sealed import FileRef
from ckptdiff.format.table import Table

SCALE = ("F32", (24, 57))
INDEX = "model.safetensors.index.json"
LIMITS = 60.0, 1000.0
"""Seconds of wall time, and MB of peak memory."""
Row = tuple[str, str, tuple[int, ...], int]
"""Name, dtype, shape and bytes of a tensor."""


def rows_of(count: int, shards: int, weight: tuple[int, ...]) -> dict[str, list[Row]]:
    """The tensors of each shard: weights in bf16, each followed by its scales."""
    every = list[Row]()
    for name in names(count):
        dtype, shape = ("BF16", weight) if name.endswith("weight") else SCALE
        every.append((name, dtype, shape, DTYPES[dtype].nbytes(shape) or 0))
    cuts = [k * count // shards for k in range(shards + 1)]
    return {f"model-{k + 1:05d}-of-{shards:05d}.safetensors": every[cuts[k] : cuts[k + 1]] for k in range(shards)}


def write_sparse(folder: Path, rows: dict[str, list[Row]]) -> None:
    """A checkpoint of true headers and holes."""
    folder.mkdir(parents=True)
    for path, tensors in rows.items():
        raw = predicted_header(tensors)
        with open(folder / path, "wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            file.truncate(8 + len(raw) + sum(nbytes for *_, nbytes in tensors))
    weight_map = {name: path for path, tensors in rows.items() for name, *_ in tensors}
    total = sum(nbytes for tensors in rows.values() for *_, nbytes in tensors)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))


class Kind:
    """What tensors of one dtype and shape have in common: digests of zeros and of changed zeros, and payload blocks."""

    def __init__(self, dtype: str, nbytes: int, changes: bool) -> None:
        leaves = [self._block(dtype, size, changes) for size in (BLOCK, nbytes % BLOCK) if size]
        every = [leaves[0]] * (nbytes // BLOCK) + leaves[1:] if nbytes >= BLOCK else leaves[-1:]
        self.base = tensor_digest(old for old, _, _ in every)
        self.target = tensor_digest(new for _, new, _ in every)
        self.blocks = [coded for *_, coded in every]
        self.payload = b"".join(self.blocks)

    @staticmethod
    def _block(dtype: str, size: int, changes: bool) -> tuple[bytes, bytes, bytes]:
        """Leaf of a block of zeros, leaf of the same with one unit changed, and the coded change."""
        old, new = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        new[2 * (size // 4)] = changes
        (found,) = kernels.changes.compared(old, new, DTYPES[dtype]).changes.blocks
        return xxh128(old), xxh128(new), CODECS["sparse"].pack(old, found, DTYPES[dtype])

    def entry(self, row: Row) -> Entry:
        name, dtype, shape, _ = row
        if not self.payload:
            return Entry(name, dtype, shape, "same", dtype, digest=self.base, base_digest=self.base)
        facts: dict[str, Any] = {"digest": self.target, "base_digest": self.base, "payload_digest": xxhash.xxh3_64_digest(self.payload)}
        sizes = tuple(map(len, self.blocks))
        return Entry(name, dtype, shape, "delta", dtype, (), "sparse", len(self.blocks), sizes, **facts)


def write_patch(folder: Path, base: Path, rows: dict[str, list[Row]]) -> None:
    """The patch folder."""
    kinds = {row[1:]: Kind(row[1], row[3], row[1] == "BF16") for tensors in rows.values() for row in tensors}
    scope = "model"
    sides = [
        identity((scope, row[0], row[1], row[2], getattr(kinds[row[1:]], side)) for tensors in rows.values() for row in tensors)
        for side in ("base", "target")
    ]
    shards, totals = list[ShardRef](), Totals()
    for path, tensors in rows.items():
        table = Table.of([kinds[row[1:]].entry(row) for row in tensors])
        facts: dict[str, Any] = {"base_identity": sides[0], "target_identity": sides[1], "totals": table.totals}
        facts |= {"target_path": path, "target_size": (base / path).stat().st_size, "target_sha256": made_up(path)}
        metadata = Metadata(base_scope=scope, base_files=None, target_scope=scope, **facts)
        out = folder / "patch" / path
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out, "wb") as file:
            payload = (kinds[row[1:]].payload for row in tensors)
            written = write_patch_file(file, metadata, PatchParts(table, predicted_header(tensors), None, payload))
        shards.append(ShardRef(target=path, size=written.size, sha256=written.sha256, digest=written.digest))
        totals = totals + table.totals
    data = (base / INDEX).read_bytes()
    index = Index(
        base_identity=sides[0],
        base_files=tuple(FileRef(path=path, size=(base / path).stat().st_size, sha256=made_up(path)) for path in rows),
        target_identity=sides[1],
        shards=tuple(shards),
        files=(OtherFile(path=INDEX, size=len(data), sha256=hashlib.sha256(data).hexdigest(), kind="same"),),
        removed=(),
        totals=totals,
    )
    (folder / INDEX_NAME).write_bytes(index.to_bytes())


def made_up(path: str) -> str:
    """What stands for the SHA-256 of a weight file."""
    return hashlib.sha256(path.encode()).hexdigest()


def measured(folder: Path, runs: int, one: str) -> list[dict[str, Any]]:
    """The figures of each command: the least CPU and wall seconds, the highest peak."""
    program = str(Path(sys.executable).with_name("ckptdiff"))  # as installed: with -m it could be that of the current folder
    base, target, patch, out = (str(folder / name) for name in ("base", "target", "patch", "not-written"))
    commands = {
        "make --dry-run": ["make", base, target, "-o", out, "--dry-run", "--json"],
        "info": ["info", patch, "--json"],
        "apply --dry-run": ["apply", base, patch, "-o", out, "--dry-run", "--json"],
    }
    rows = list[dict[str, Any]]()
    for command, words in commands.items():
        found = [run([program, *words], 600.0) for _ in range(runs)]
        figures = [row for row, _ in found]
        cpu, wall = (min(row[what] for row in figures) for what in ("cpu", "wall"))
        rows.append({"command": command, "cpu": cpu, "wall": wall, "rss": max(row["rss"] for row in figures)})
        print(f"{command}: {shown(found[0][1])}", file=sys.stderr)
    (folder / "one.safetensors").unlink(missing_ok=True)
    run([program, "apply", base, patch, "-o", str(folder / "one.safetensors"), "--only", one], 600.0)
    return rows


def shown(told: dict[str, Any]) -> str:
    """What a command printed, without its lists of files and tensors."""
    return json.dumps({key: value for key, value in told.items() if not (isinstance(value, list) and len(value) > 2)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tensors", type=int, default=90_427)
    parser.add_argument("--shards", type=int, default=163)
    parser.add_argument("--weight", default="3072x7200")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = rows_of(arguments.tensors, arguments.shards, tuple(map(int, arguments.weight.split("x"))))
    for side in ("base", "target"):
        if not (arguments.folder / side).exists():
            write_sparse(arguments.folder / side, rows)
    if not (arguments.folder / "patch" / INDEX_NAME).exists():
        write_patch(arguments.folder / "patch", arguments.folder / "base", rows)
    every = [row for tensors in rows.values() for row in tensors]
    figures = measured(arguments.folder, arguments.runs, every[0][0])
    elements = sum(int(np.prod(shape)) for _, dtype, shape, _ in every if dtype == "BF16")
    print(f"{elements:,} parameters, {len(every):,} tensors, {sum(row[3] for row in every) / 1e12:.2f} TB in {len(rows)} shards\n")
    print("| command | CPU, s | wall, s | peak MB | within 60 s and 1 GB |\n|---|---|---|---|---|")
    for row in figures:
        kept = row["wall"] <= LIMITS[0] and row["rss"] <= LIMITS[1]
        print(f"| {row['command']} | {row['cpu']:.1f} | {row['wall']:.1f} | {row['rss']:.0f} | {'yes' if kept else 'NO'} |")
    print(json.dumps(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
