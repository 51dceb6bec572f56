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
from ckptdiff.applier import check_stored
from ckptdiff.errors import CkptdiffError
from ckptdiff.patches import open_patch
from tests.checkpoints import tree
from tests.fuzz.engine import Disagreement, Outcome, Rng, Target
from tests.fuzz.trees import dump, mutate_text, mutate_tree
from tests.fuzz.vectors import BUILD, READER, Parts, pack, scenarios, unpack
from tests.mutations import mutate

LARGEST = 1 << 16
"""A target larger than this is not built."""

# --- a patch file in parts -----------------------------------------------------------------------------------------


class Opened:
    """A patch file taken apart without asking whether it is valid; :meth:`seal` puts it together again."""

    def __init__(self, data: bytes) -> None:
        length = int.from_bytes(data[:8], "little")
        self.members = json.loads(data[8 : 8 + length])
        self.metadata = json.loads(self.members.pop("__metadata__")["ckptdiff"])
        parts = {name: data[8 + length + v["data_offsets"][0] : 8 + length + v["data_offsets"][1]] for name, v in self.members.items()}
        self.parts: dict[str, bytes] = parts
        self.header = next(name for name in parts if name.startswith("ckptdiff/header/"))
        content = READER.decode_frame(parts["ckptdiff/table"], 1 << 24)
        size = int.from_bytes(content[:4], "little")
        self.table, self.digests = json.loads(content[4 : 4 + size]), content[4 + size :]

    def target_header(self) -> bytes:
        """The target's header, decoded against what the table predicts."""
        return bytes(READER.decode_frame(self.parts[self.header], 1 << 24, _predicted(self.table["tensors"])))

    def seal(self, text: bytes | None = None, frame: bytes | None = None, totals: bool = True, metadata: bytes | None = None) -> bytes:
        """The patch file with digests, sizes and, if asked for, totals that are right. ``text``: of the table; ``frame``: it, stored."""
        raw = dump(self.table) if text is None else text
        made = BUILD.frame(len(raw).to_bytes(4, "little") + raw + self.digests) if frame is None else frame
        self.parts["ckptdiff/table"] = bytes(made)
        value = self.metadata
        if isinstance(value, dict):
            for key, name in (("table", "ckptdiff/table"), ("header", self.header), ("report", "ckptdiff/report")):
                if isinstance(value.get(key), str) and name in self.parts:
                    value[key] = BUILD.hex128(self.parts[name])
            if totals:
                value = {**value, "totals": _totals(self.table, value.get("totals"))}
            rest = {key: member for key, member in value.items() if key != "digest"}
            value = {**rest, "digest": BUILD.hex128(dump(rest))} if "digest" in value else rest
        sealed = dump(value) if metadata is None else metadata
        members: dict[str, Any] = {"__metadata__": {"ckptdiff": sealed.decode("utf-8", "surrogatepass")}}
        at = 0
        for name, data in self.parts.items():
            members[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
            at += len(data)
        head = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        head += b" " * (-len(head) % 8)
        return len(head).to_bytes(8, "little") + head + b"".join(self.parts.values())


def _predicted(entries: list[dict[str, Any]]) -> bytes:
    tensors = {e["name"]: BUILD.T(e["dtype"], e["shape"], bytes(BUILD.units(e) * BUILD.CARRIER[e["dtype"]])) for e in entries}
    return bytes(BUILD.header(tensors))


def _totals(table: Any, old: Any) -> Any:
    try:
        return BUILD.totals_of(table)
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError):
        return old


def seal_identity(opened: Opened) -> None:
    """Let the target's identity be what follows from the table, as far as that has names and digests."""
    at, rows, found = 0, {}, opened.digests
    try:
        for e in opened.table["tensors"]:
            two = e["kind"] == "delta" or (e["kind"] == "same" and bool({"dtype", "shape"} & set(e.get("base", {}))))
            rows[e["name"]] = e, found[at : at + 16]
            at += {"copy": 0, "new": 24, "delta": 40, "same": 32 if two else 16}[e["kind"]]
        state = b""
        for name in sorted(rows, key=str.encode):
            e, digest = rows[name]
            digest = rows[e["of"]][1] if e["kind"] == "copy" else digest
            state += BUILD.canonical(["", name, e["dtype"], e["shape"], digest.hex()]) + b"\n"
        opened.metadata["target"]["identity"] = BUILD.hex128(state)
    except (TypeError, KeyError, ValueError, AttributeError):
        pass


# --- mutating ------------------------------------------------------------------------------------------------------

BROKEN = (
    ValueError,
    IndexError,
    TypeError,
    KeyError,
    AttributeError,
    StopIteration,
    RecursionError,
    AssertionError,
    MemoryError,
    READER.PatchError,
)
"""What taking apart a patch that an earlier mutation broke may raise."""


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
    return pack(_listed({**parts, name: made}, name) if "/" in name else {**parts, name: made})


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


def dump_in_order(value: Any) -> bytes:
    """JSON whose keys stay as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


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
    return _listed({**parts, name: made}, name)


def _listed(parts: Parts, name: str) -> Parts:
    """A folder whose index has the size and digests of one of its files."""
    root, _, member = name.partition("/")
    try:
        index = json.loads(parts[f"{root}/ckptdiff.json"])
        for item in index["files"]:
            if f"files/{item['path']}.zst" == member:
                item |= {"stored": len(parts[name]), "digest": BUILD.hex128(parts[name])}
        for shard in index["shards"]:
            if shard["path"] == member:
                digest = Opened(parts[name]).metadata["digest"]
                shard |= {"size": len(parts[name]), "sha256": BUILD.sha256(parts[name]), "digest": digest}
        rest = {key: value for key, value in index.items() if key != "digest"}
        return {**parts, f"{root}/ckptdiff.json": dump({**rest, "digest": BUILD.hex128(dump(rest))})}
    except BROKEN:
        return parts


# --- judging -------------------------------------------------------------------------------------------------------


class Seen(READER.PatchFile):  # type: ignore[misc, name-defined]
    """The minimal reader's patch file, which notes that the digests of metadata, table, header and report were right."""

    passed = False

    def read_table(self, raw: bytes) -> None:
        Seen.passed = True
        super().read_table(raw)


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
    compare(found, expected, f"{what}, but the minimal reader: {wanted}")
    if found != "accepted" or size > LARGEST:
        return Outcome(sealed, found if found != "accepted" else "opened")
    if what != wanted:
        raise Disagreement(f"opened as {what}, by the minimal reader as {wanted}")
    outcomes = []
    for run, name in ((_ours, "ours"), (_theirs, "theirs")):
        outcomes.append(run(base, patch, folder / name))
    refusals = {"format", "integrity", "wrong_base"}  # which fault comes first a reader may choose, as it may check while it decodes
    if not set(outcomes) <= refusals:
        compare(*outcomes, f"applied to its base: {outcomes}")
    if outcomes[0] == "accepted" and tree(folder / "ours") != tree(folder / "theirs"):
        raise Disagreement("the two readers rebuild other files")
    return Outcome(sealed, outcomes[0])


def compare(found: str, expected: str, what: str) -> None:
    """Both accept or both refuse. Which kind of error is told only where one rule is broken, or their order is written; a mutation
    may break several rules of one document at once, of the kinds ``format`` and ``unsupported``."""
    loose = {"format", "unsupported"}
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
