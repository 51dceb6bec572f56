"""Targets: patch files (container and metadata; table), and patch folders.

An input is a whole scenario, base and patch, as a vector holds it. What is mutated is sealed again: digests, offsets, sizes and totals
around it are made right, so that what lies behind them is reached. Both readers must refuse it, or both give the same files.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ckptdiff
from ckptdiff.errors import CkptdiffError
from ckptdiff.patching.patch import open_patch
from ckptdiff.patching.rebuild import check_stored
from tests.fuzz.engine import Disagreement, Outcome, Rng, Target
from tests.fuzz.sealing import BROKEN, Opened, dump_in_order, listed, seal_identity
from tests.fuzz.trees import dump, mutate_text, mutate_tree
from tests.fuzz.vectors import BUILD, READER, Parts, pack, scenarios, unpack
from tests.support.checkpoints import tree
from tests.support.mutations import mutate

LARGEST = 1 << 16
"""A target larger than this is not built."""

# --- mutating ------------------------------------------------------------------------------------------------------


def mutate_file(change: Callable[[Rng, Opened], bytes], rng: Rng, data: bytes) -> bytes:
    """A scenario with one patch file changed by ``change``; now and then with any bytes changed."""
    parts = unpack(data)
    if parts is None:
        return mutate(rng, data)
    names = [name for name in parts if name.startswith("patch") and name.endswith(".safetensors")]
    if not names or rng.random() < 0.03:
        return pack(_anything(rng, parts))
    name = names[int(rng.integers(len(names)))]
    try:
        made = change(rng, Opened(parts[name]))
    except BROKEN:
        made = mutate(rng, parts[name])
    return pack(listed({**parts, name: made}, name) if "/" in name else {**parts, name: made})


def _anything(rng: Rng, parts: Parts) -> Parts:
    names = [name for name in parts if name.startswith("patch")] or list(parts)
    name = names[int(rng.integers(len(names)))]
    return {**parts, name: mutate(rng, parts[name])}


def change_table(rng: Rng, opened: Opened) -> bytes:
    """The table's JSON, its digests, its frame, or the payloads under it."""
    kind = rng.integers(10)
    if kind == 0:
        return opened.seal(text=mutate_text(rng, dump(opened.table)))
    if kind == 1:
        opened.digests = mutate(rng, opened.digests)
    elif kind == 2:
        return opened.seal(frame=mutate(rng, opened.parts["ckptdiff/table"]))
    elif kind == 3:
        raw = dump(opened.table)
        return opened.seal(frame=BUILD.frame(mutate(rng, len(raw).to_bytes(4, "little") + raw + opened.digests)))
    else:
        _change_entries(rng, opened)
    if rng.random() < 0.7:
        seal_identity(opened)
    return opened.seal(totals=rng.random() < 0.9)


def _change_entries(rng: Rng, opened: Opened) -> None:
    """The table as a tree; mostly with a target header and a size that go with it."""
    old = opened.table
    if rng.random() < 0.2 and isinstance(old.get("tensors"), list):
        opened.table = {**old, "tensors": list(rng.permutation(len(old["tensors"])))}
        opened.table["tensors"] = [old["tensors"][k] for k in opened.table["tensors"]]
    else:
        opened.table = mutate_tree(rng, old)
    if rng.random() < 0.8:
        try:
            tensors = {e["name"]: (e["dtype"], e["shape"], READER.size_of(e["dtype"], e["shape"])) for e in opened.table["tensors"]}
            raw, at = {}, 0
            for name, (dtype, shape, size) in tensors.items():
                raw[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
                at += size
            header = dump_in_order(raw)
            opened.parts[opened.header] = bytes(BUILD.frame(header))
            opened.metadata["target"]["size"] = 8 + len(header) + at
        except BROKEN:
            pass


def change_container(rng: Rng, opened: Opened) -> bytes:
    """Metadata as a tree or as text, the target's header, the report, or the container's header."""
    kind = rng.integers(10)
    if kind <= 3:
        opened.metadata = mutate_tree(rng, opened.metadata)
        return opened.seal(totals=rng.random() < 0.5)
    if kind == 4:
        opened.seal()
        return opened.seal(metadata=mutate_text(rng, dump(opened.metadata)))
    if kind == 5:
        opened.parts["ckptdiff/report"] = bytes(rng.bytes(int(rng.integers(40))))
        if rng.random() < 0.7:
            opened.metadata["report"] = "0" * 32
            order = ["ckptdiff/table", opened.header, "ckptdiff/report", "ckptdiff/payloads"]
            opened.parts = {name: opened.parts[name] for name in order}
        return opened.seal()
    if kind <= 7:
        return _change_header(rng, opened)
    data = opened.seal()
    length = int.from_bytes(data[:8], "little")
    raw, rest = data[8 : 8 + length].rstrip(b" "), data[8 + length :]
    raw = mutate_text(rng, raw) if kind == 8 else dump_in_order(mutate_tree(rng, json.loads(raw)))
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + rest


def _change_header(rng: Rng, opened: Opened) -> bytes:
    """The target's header, in a frame of its own, with a size that goes with it."""
    raw = opened.target_header()
    if rng.random() < 0.2:
        opened.parts[opened.header] = mutate(rng, opened.parts[opened.header])
        return opened.seal()
    if rng.random() < 0.5:
        made = dump_in_order(mutate_tree(rng, json.loads(raw.rstrip(b" "))))
    else:
        made = mutate_text(rng, raw)
    made += b" " * int(rng.integers(9))
    opened.parts[opened.header] = bytes(BUILD.frame(made))
    size = opened.metadata["target"]["size"]
    opened.metadata["target"]["size"] = size + len(made) - len(raw) if rng.random() < 0.9 else size
    return opened.seal()


def mutate_folder(rng: Rng, data: bytes) -> bytes:
    """A scenario with its index changed and sealed again, or a file that it lists, listed again."""
    parts = unpack(data)
    if parts is None or rng.random() < 0.03:
        return mutate(rng, data) if parts is None else pack(_anything(rng, parts))
    index = next((name for name in parts if name.endswith("/ckptdiff.json")), None)
    if index is None:
        return mutate_file(change_table, rng, data)
    kind = rng.random()
    try:
        if kind < 0.15:
            return pack({**parts, index: mutate_text(rng, parts[index])})
        if kind < 0.65:
            value = mutate_tree(rng, json.loads(parts[index]))
            rest = {key: member for key, member in value.items() if key != "digest"}
            return pack({**parts, index: dump({**rest, "digest": BUILD.hex128(dump(rest))})})
        frames = [name for name in parts if "/files/" in name]
        if kind < 0.85 and frames:
            return pack(_change_frame(rng, parts, frames[int(rng.integers(len(frames)))]))
        if kind < 0.9:
            names = [name for name in parts if name.startswith("patch/")]
            return pack({name: data for name, data in parts.items() if name != names[int(rng.integers(len(names)))]})
    except BROKEN:
        return mutate(rng, data)
    return mutate_file(change_container if kind < 0.95 else change_table, rng, data)


def _change_frame(rng: Rng, parts: Parts, name: str) -> Parts:
    """The stored frame of another file: any bytes of it, or other content."""
    made = mutate(rng, parts[name])
    if rng.random() < 0.5:
        content = rng.bytes(int(rng.integers(64)))
        made = bytes(BUILD.frame(content, state_size=bool(rng.integers(2)), window=None if rng.random() < 0.5 else int(rng.integers(0xA0))))
    return listed({**parts, name: made}, name)


# --- judging -------------------------------------------------------------------------------------------------------


class Seen(READER.PatchFile):  # type: ignore[misc, name-defined]
    """The minimal reader's patch file, which notes that the digests of metadata, table, header and report were right."""

    passed = False

    def read_table(self, raw: bytes) -> Any:
        Seen.passed = True
        return super().read_table(raw)


def run_scenario(data: bytes) -> Outcome:
    """Open the patch with both readers; where it is accepted rebuild the target with both, and compare kinds or files."""
    parts = unpack(data)
    if parts is None:
        return Outcome(False, "no scenario")
    folder = Path(tempfile.mkdtemp(prefix="ckptdiff-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        roots = _write(parts, folder)
        bases, patches = ([root for root in roots if root.startswith(side)] for side in ("base", "patch"))
        if len(bases) != 1 or len(patches) != 1:
            return Outcome(False, "no scenario")
        return _both(folder / bases[0], folder / patches[0], folder)
    finally:
        shutil.rmtree(folder)


def _write(parts: Parts, folder: Path) -> list[str]:
    try:
        for name, data in parts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    except (OSError, ValueError):  # a name that cannot be written
        return []
    return list(dict.fromkeys(name.split("/")[0] for name in parts))


def _both(base: Path, patch: Path, folder: Path) -> Outcome:
    expected, wanted, sealed, size = _reference(patch)
    try:
        with open_patch(patch) as opened:
            check_stored(opened)
            found, what = "accepted", _summary(opened)
    except CkptdiffError as error:
        found, what = error.kind, str(error)
    compare(found, expected, patch.is_dir(), f"{what}, but the minimal reader: {wanted}")
    if found != "accepted" or size > LARGEST:
        return Outcome(sealed, found if found != "accepted" else "opened")
    if what != wanted:
        raise Disagreement(f"opened as {what}, by the minimal reader as {wanted}")
    outcomes = []
    for run, name in ((_ours, "ours"), (_theirs, "theirs")):
        outcomes.append(run(base, patch, folder / name))
    refusals = {"format", "integrity", "wrong_base"}  # which fault comes first a reader may choose, as it may check while it decodes
    if not set(outcomes) <= refusals:
        compare(*outcomes, patch.is_dir(), f"applied to its base: {outcomes}")
    if outcomes[0] == "accepted" and tree(folder / "ours") != tree(folder / "theirs"):
        raise Disagreement("the two readers rebuild other files")
    return Outcome(sealed, outcomes[0])


def compare(found: str, expected: str, folder: bool, what: str) -> None:
    """Both accept or both refuse. Which kind of error is told where the specification decides it: not between ``format`` and
    ``unsupported`` where a mutation breaks several rules of one document, nor where several files of a folder are broken."""
    loose = {"format", "unsupported"} | ({"integrity"} if folder else set())
    if found != expected and not {found, expected} <= loose:
        raise Disagreement(f"{found}, but {expected} is expected: {what}")


def _reference(patch: Path) -> tuple[str, Any, bool, int]:
    """The outcome, what was opened or why not, whether all digests were right, and the target's size, by the minimal reader."""
    READER.PatchFile, Seen.passed = Seen, False
    try:
        opened = READER.Patch(str(patch))
    except READER.PatchError as error:
        sealed = error.kind != "integrity" and (Seen.passed or _index_is_sealed(patch))
        return error.kind, error.message, sealed, 0
    finally:
        READER.PatchFile = Seen.__mro__[1]
    size = sum(shard.metadata["target"]["size"] for shard in opened.shards) + sum(item["size"] for item in opened.files)
    shards = [
        (s.metadata["target"]["path"], s.header, [(e.name, e.dtype, list(e.shape), e.kind, list(e.blocks)) for e in s.entries])
        for s in opened.shards
    ]
    return "accepted", (opened.identities, shards, sorted(item["path"] for item in opened.files)), True, size


def _summary(opened: Any) -> Any:
    shards = [
        (f.metadata.target_path, f.header.raw, [(e.name, e.dtype, list(e.shape), e.kind, list(e.blocks)) for e in f.table.entries])
        for f in opened.files
    ]
    identities = opened.base_identity.hex(), opened.target_identity.hex()
    return identities, shards, sorted(other.path for other in opened.others)


def _index_is_sealed(patch: Path) -> bool:
    """Whether the index's digest is right."""
    try:
        value = READER.canonical_json((patch / "ckptdiff.json").read_bytes())
        return value["digest"] == BUILD.hex128(BUILD.canonical({key: member for key, member in value.items() if key != "digest"}))
    except (OSError, READER.PatchError, KeyError, TypeError, AttributeError):
        return False


def _ours(base: Path, patch: Path, out: Path) -> str:
    try:
        ckptdiff.apply(base, patch, out, threads=1)
    except CkptdiffError as error:
        return error.kind
    return "accepted"


def _theirs(base: Path, patch: Path, out: Path) -> str:
    try:
        READER.apply(str(base), [str(patch)], str(out))
    except READER.PatchError as error:
        return str(error.kind)
    return "accepted"


# --- corpus --------------------------------------------------------------------------------------------------------


def seeds(folders: bool, every: int) -> list[bytes]:
    """The vectors of one patch file, or of one patch folder: all successes, and some of the others."""
    found = []
    for k, (_, expect, parts) in enumerate(scenarios()):
        roots = {name.split("/")[0] for name in parts if name.startswith("patch")}
        is_folder = any(name.startswith("patch/") for name in parts)
        if len(roots) == 1 and is_folder == folders and (expect == "success" or k % every == 0) and sum(map(len, parts.values())) < 40000:
            found.append(pack(parts))
    return found


TARGETS = [
    Target("container", partial(seeds, False, 9), partial(mutate_file, change_container), run_scenario, 2500),
    Target("table", partial(seeds, False, 9), partial(mutate_file, change_table), run_scenario, 2500),
    Target("index", partial(seeds, True, 5), mutate_folder, run_scenario, 2000),
]
