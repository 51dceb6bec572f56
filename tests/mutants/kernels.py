"""The kernels of the decoders as a target, run as plain Python: the coded blocks of all vectors are the cases."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tests.mutants.planting import Fault, faults, planted
from tests.mutants.reader import Case as VectorCase
from tests.mutants.reader import cases as vector_cases
from tests.mutants.reader import module as minimal_reader

FOLDER = Path(__file__).resolve().parents[2] / "ckptdiff" / "kernels"
DECODERS = {
    "adaptive": "new_contexts meet weigh_eight first_code decode_changes",
    "adaptive_block": "Counts decode_units decode_named",
    "static": "decode _take_codes _decode_tokens",
    "pace": "share next_pace run_limit next_stop take_rates",
    "range_coder": "refill learned decode_bit take_distance",
    "context_map": "ContextMap fill_contexts take_levels take_map",
    "context_groups": "take_groups",
    "rans": "take_table codes_of fill_lookup decode_token decode_tokens",
    "tokens": "token_count take_changes",
    "raw_bits": "take_raw take_number take_step",
    "escapes": "join_planes join_changes",
    "classes": "fill_classes bits_of",
    "ulps": "order_of max_unit ordered moved_unit fill_zigzags",
    "moves": "move_some move_and_hash",
    "block_layout": "BlockLayout",
}
"""Functions that a decoder runs. Not those of ``adaptive_blocks``: what these refuse is given to ``decode_named``, so
most of their faults change nothing. All blocks are given to that here; ``tests/codecs/test_many_blocks.py`` compares both. Nor the quick
loops of ``escapes``, ``sum_gaps`` and ``join_zigzags``: what these find wrong is done again by ``join_planes``."""
MOST = 200_000
"""Units of a block: a larger one takes too long."""


@dataclass
class Case:
    """A coded block."""

    name: str
    codec: str
    dtype: str
    base: bytes
    coded: bytes
    expected: tuple[bytes, int] | None
    """The leaf of the target, and how many units change; None where the block breaks a rule."""

    @property
    def size(self) -> int:
        return len(self.base)


def all_faults() -> list[Fault]:
    """Faults of what the decoders run, and of the constants that it names."""
    sources = {name: (FOLDER / f"{name}.py").read_text() for name in DECODERS}
    trees = {name: ast.parse(source) for name, source in sources.items()}
    used: set[str] = set()
    for name, tree in trees.items():
        for node in tree.body:
            if getattr(node, "name", "") in DECODERS[name].split():
                used |= _names(node)
    constants = [node for tree in trees.values() for node in tree.body if isinstance(node, ast.Assign)]
    for _ in range(4):  # constants that follow from others
        for node in constants:
            if used & _targets(node):
                used |= _names(node.value)
    found = []
    for name, source in sources.items():
        wanted = set(DECODERS[name].split())

        def chosen(top: str, node: ast.stmt, wanted: set[str] = wanted) -> bool:
            return top in wanted or (isinstance(node, ast.Assign) and bool(used & _targets(node)))

        found += faults(source, name, chosen)
    return found


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def _targets(node: ast.Assign) -> set[str]:
    return {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name) and not n.id.startswith("_")}


def cases(folder: Path) -> list[Case]:
    reader: Any = minimal_reader(None)
    found: dict[Any, Case] = {}
    for vector in vector_cases(folder):
        for key, case in _blocks(reader, vector):
            found.setdefault(key, case)
    return list(found.values())


def _blocks(reader: Any, vector: VectorCase) -> list[tuple[Any, Case]]:
    """The coded blocks of one vector that has one patch, as far as it can be opened."""
    try:
        patch = reader.Patch(str(vector.patches[0]))
        base = reader.Base(str(vector.base), patch)
        reader.find_base(base, patch)
    except reader.PatchError:
        return []
    found = []
    for shard in patch.shards:
        for e in shard.entries:
            if e.kind != "delta" or e.units > MOST or len(vector.patches) > 1:
                continue
            at = e.payload[0]
            for k, (size, block) in enumerate(zip(e.blocks, reader.adapted(e))):  # noqa: B905
                coded = shard.weights.read(at, at + size)
                at += size
                case = Case(f"{vector.name}: {e.name} {k}", e.codec, e.dtype, bytes(block), coded, None)
                if vector.expect == "success" and len(e.blocks) == 1:
                    case.expected = (e.digest, e.changed)
                else:
                    case.expected = by_reader(reader, case)
                found.append(((e.codec, e.dtype, block, coded), case))
    return found


def by_reader(reader: Any, case: Case) -> tuple[bytes, int] | None:
    """What the minimal reader says."""
    carrier, is_float = reader.DTYPES[case.dtype][1:]
    try:
        if case.codec == "raw":
            target = reader.decode_raw(case.coded, len(case.base), carrier)
            unit = f"<u{carrier}"
            return digest(target), int((np.frombuffer(target, unit) != np.frombuffer(case.base, unit)).sum())
        if case.codec == "sparse":
            target, changed = reader.decode_sparse(case.coded, case.base, carrier, is_float)
        else:
            target, changed = reader.decode_context(case.coded, case.base, case.dtype)
    except reader.PatchError:
        return None
    return digest(target), changed


def digest(block: bytes) -> bytes:
    return xxhash.xxh3_128_digest(xxhash.xxh3_128_digest(block))


class _Planted(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module with a fault."""

    def __init__(self, fault: Fault) -> None:
        self.short = fault.key.split(".")[0]
        self.name, self.fault = f"ckptdiff.kernels.{self.short}", fault

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def exec_module(self, module: Any) -> None:
        path = FOLDER / f"{self.short}.py"
        exec(compile(planted(path.read_text(), self.fault), str(path), "exec"), module.__dict__)


def judge(fault: Fault | None, folder: Path) -> Callable[[Case], str]:
    """Tells what is wrong with what the kernels make of a case: "" if nothing. Only in a child: it imports them."""
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.startswith(("ckptdiff.kernels", "ckptdiff.codecs"))]:
        del sys.modules[name]
    if fault:
        sys.meta_path.insert(0, _Planted(fault))
    import tests.fuzz.plain_kernels as plain

    plain.install()
    from ckptdiff import codecs
    from ckptdiff.format.dtypes import DTYPES

    def wrong(case: Case) -> str:
        dtype, base = DTYPES[case.dtype], np.frombuffer(case.base, np.uint8).copy()
        try:
            if case.codec == "context" and case.coded:
                change = codecs.context._unpack_named(memoryview(case.coded), base.view(dtype.unit), dtype)
            else:
                change = codecs.CODECS[case.codec].unpack(memoryview(case.coded), base, len(base), dtype)
        except ValueError as error:
            return f"refused: {error}" if case.expected else ""
        target, changed, leaf = codecs.apply_change(change, base, dtype)
        if leaf is not None and leaf != xxhash.xxh3_128_digest(target.tobytes()):
            return "another leaf"
        found = digest(target.tobytes()), changed
        return "" if found == case.expected else "it is not refused" if case.expected is None else "another block"

    return wrong
