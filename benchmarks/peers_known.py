"""The peers of ``peers.py``: how each is found, and the commands by which it makes and applies a patch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

CHILD = str(Path(__file__).with_name("peer_child.py"))
THREADS = 2
MEGABYTE = 10**6
Command = list[str]


@dataclass(frozen=True)
class Pair:
    """Two safetensors files."""

    name: str
    base: Path
    target: Path
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.target.stat().st_size

    def dtypes(self) -> set[str]:
        with open(self.target, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


@dataclass(frozen=True)
class Plan:
    """One way to run a peer: the commands, one process each, and what they leave."""

    make: list[Command]
    apply: list[Command]
    patch: Path
    output: Path


@dataclass(frozen=True)
class Peer:
    """A rival, or ckptdiff with one codec. Several plans are one row: the better of them is quoted for each figure."""

    name: str
    plans: Callable[[Peer, Pair, Path, str], dict[str, Plan]]
    program: str = ""  # a command that must be on the PATH ...
    distribution: str = ""  # ... or a distribution that the peer's Python must have
    limit_mb: float = float("inf")  # larger pairs take it too long
    memory: float = 1.0  # bytes it holds for each byte of the target, roughly
    only: frozenset[str] = frozenset()  # dtypes; empty: all
    option: str = ""
    note: str = ""


def ckptdiff_program(python: str) -> str:
    beside = Path(python).parent / "ckptdiff"
    return str(beside) if beside.exists() else shutil.which("ckptdiff") or "ckptdiff"


def ckptdiff(peer: Peer, pair: Pair, work: Path, python: str) -> dict[str, Plan]:
    patch, output = work / "patch.safetensors", work / "rebuilt.safetensors"
    codec = [] if peer.option == "default" else ["--codec", peer.option]
    shared = ["--threads", str(THREADS), "--overwrite"]
    program = ckptdiff_program(python)
    make = [program, "make", str(pair.base), str(pair.target), "-o", str(patch), *codec, *shared]
    return {"": Plan([make], [[program, "apply", str(pair.base), str(patch), "-o", str(output), *shared]], patch, output)}


def zstd(peer: Peer, pair: Pair, work: Path, python: str) -> dict[str, Plan]:
    """Both thread settings: with ``-T2`` zstd is faster at times, and may lose its match window."""
    plans, prefix = {}, ["zstd", "-q", "-f", "--long=31"]
    for name, threads in (("--single-thread", ["--single-thread"]), (f"-T{THREADS}", [f"-T{THREADS}"])):
        patch, output = work / f"patch{name}.zst", work / f"rebuilt{name}"
        make = [*prefix, peer.option, *threads, f"--patch-from={pair.base}", str(pair.target), "-o", str(patch)]
        plans[name] = Plan([make], [[*prefix, "-d", f"--patch-from={pair.base}", str(patch), "-o", str(output)]], patch, output)
    return plans


def xdelta3(peer: Peer, pair: Pair, work: Path, python: str) -> dict[str, Plan]:
    """The source window holds the whole base, up to xdelta3's limit of 2 GiB."""
    patch, output = work / "patch.xdelta", work / "rebuilt"
    window = str(min(2**31, max(2**26, 1 << (pair.base.stat().st_size - 1).bit_length())))
    shared = ["-q", "-f", "-B", window, "-s", str(pair.base)]
    make = ["xdelta3", "-e", *([peer.option] if peer.option else []), *shared, str(pair.target), str(patch)]
    return {"": Plan([make], [["xdelta3", "-d", *shared, str(patch), str(output)]], patch, output)}


def library(peer: Peer, pair: Pair, work: Path, python: str) -> dict[str, Plan]:
    """Through ``peer_child.py``."""
    patch, output, base = work / "patch", work / "rebuilt.safetensors", str(pair.base)
    run = [python, CHILD, peer.name]
    return {"": Plan([[*run, "make", base, str(pair.target), str(patch)]], [[*run, "apply", base, str(patch), str(output)]], patch, output)}


def weightscope(peer: Peer, pair: Pair, work: Path, python: str) -> dict[str, Plan]:
    """It takes folders, so each file is linked into one of its own."""
    patch, output, program = work / "patch.wsp", work / "rebuilt.safetensors", str(Path(python).parent / "weightscope")
    for side, file in (("base", pair.base), ("target", pair.target)):
        (work / side).mkdir(exist_ok=True)
        link = work / side / "model.safetensors"
        if not link.exists():
            link.symlink_to(file.resolve())
    threshold = ["--threshold", peer.option] if peer.option else []
    make = [program, "export", str(work / "base"), str(work / "target"), "-o", str(patch), *threshold]
    return {"": Plan([make], [[program, "apply", str(patch), str(work / "base"), "-o", str(output)]], patch, output)}


def reminis(peer: Peer, pair: Pair, work: Path, python: str) -> dict[str, Plan]:
    """It works on its own databases: the files are converted first, and the result is exported."""
    program, patch, output = str(Path(python).parent / "reminis"), work / "patch.delta", work / "rebuilt.safetensors"
    old, new, result = str(work / "base.db"), str(work / "target.db"), str(work / "result.db")
    make = [
        [program, "convert", "-q", str(pair.base), "-o", old],
        [program, "convert", "-q", str(pair.target), "-o", new],
        [program, "diff", "-q", old, new, "-o", str(patch)],
    ]
    apply = [make[0], [program, "apply", "-q", old, str(patch), "-o", result], [program, "export", "-q", result, "-o", str(output)]]
    return {"": Plan(make, apply, patch, output)}


def copy(peer: Peer, pair: Pair, work: Path, python: str) -> dict[str, Plan]:
    output = work / "copy"
    return {"": Plan([], [["cp", str(pair.target), str(output)]], output, output)}


BF16 = frozenset({"BF16"})
PULSE = "basilica-sdk"
RIVALS = (
    Peer("cp", copy, program="cp", note="floor of apply: a copy of the target"),
    Peer("zstd-3", zstd, program="zstd", option="-3", memory=2.5),
    Peer("zstd-19", zstd, program="zstd", option="-19", memory=10, limit_mb=100),
    Peer("xdelta3", xdelta3, program="xdelta3", memory=1.5, limit_mb=1100),
    Peer("xdelta3-9", xdelta3, program="xdelta3", option="-9", memory=1.5, limit_mb=200),
    Peer("bsdiff4", library, distribution="bsdiff4", memory=18, limit_mb=64),
    Peer("hdiffpatch", library, distribution="hdiffpatch", memory=10, limit_mb=64),
    Peer("xor", library, distribution="zstandard", memory=3.5, note="XOR, byte planes, zstd -3"),
    Peer("zipnn", library, distribution="zipnn", memory=5, note="delta_compressed_type=byte"),
    Peer("z4ai", library, distribution="z4ai", memory=6, limit_mb=1100, note="model_delta"),
    Peer("weightscope", weightscope, distribution="weightscope", memory=6, limit_mb=1100, option="0", note="--threshold 0"),
    Peer("weightscope-default", weightscope, distribution="weightscope", memory=6, limit_mb=1100, note="its threshold of 1e-6"),
    Peer("reminis", reminis, distribution="reminis", memory=4, limit_mb=1100, note="convert, diff; convert, apply, export"),
    *(Peer(f"pulse{n}", library, distribution=PULSE, memory=4.5, only=BF16, note=f"PULSEPT1 format {n}") for n in (1, 2, 3)),
)
ALIASES = {"zstd": ("zstd-3", "zstd-19"), "xdelta": ("xdelta3", "xdelta3-9"), "pulse": ("pulse1", "pulse2", "pulse3")}


def ours(codecs: list[str]) -> list[Peer]:
    names = [f"ckptdiff {codec}" if codec != "default" else "ckptdiff" for codec in codecs]
    return [Peer(name, ckptdiff, program="ckptdiff", option=codec) for name, codec in zip(names, codecs, strict=True)]


def chosen(names: str) -> list[Peer]:
    """The rivals named in a comma-separated list; all of them for an empty one."""
    if not names:
        return list(RIVALS)
    known = {peer.name: peer for peer in RIVALS}
    wanted = [part for name in names.split(",") for part in ALIASES.get(name, (name,))]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"no peer {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def named(options: list[str]) -> dict[str, str]:
    """``PEER=VALUE`` options; a name may be ``all`` or an alias."""
    found = {}
    for option in options:
        name, equals, value = option.partition("=")
        names = {"all": ("all",), **ALIASES}.get(name, (name,))
        if not equals or not {*names} <= {"all", "ckptdiff", *(peer.name for peer in RIVALS)}:
            raise SystemExit(f"{option}: want PEER=VALUE with a peer's name or all")
        found.update(dict.fromkeys(names, value))
    return found


def python_of(peer: Peer, paths: dict[str, str]) -> str:
    """Which Python runs a peer: its own, the one for all, or the one that runs now; ckptdiff's may only be its own."""
    path = paths.get(peer.name.split()[0], sys.executable if peer.program else paths.get("all", sys.executable))
    if not Path(path).exists():
        raise SystemExit(f"no Python {path} for {peer.name}")
    return os.path.abspath(path)


@cache
def version(peer: Peer, python: str) -> str:
    """The version of an installed peer; empty if it is not there."""
    if peer.distribution:
        ask = f"import importlib.metadata as m; print(m.version({peer.distribution!r}))"
        found = subprocess.run([python, "-c", ask], capture_output=True, text=True)
        return f"{peer.distribution} {found.stdout.strip()}" if not found.returncode else ""
    program = ckptdiff_program(python) if peer.program == "ckptdiff" else peer.program
    if not shutil.which(program):
        return ""
    found = subprocess.run([program, "-V" if program == "xdelta3" else "--version"], capture_output=True, text=True)
    number = re.search(r"\d+\.\d+[.\w]*", found.stdout + found.stderr)
    return f"{peer.program} {number[0] if number else 'of unknown version'}"


def obstacle(peer: Peer, pair: Pair, python: str, memory: float, limits: dict[str, str]) -> str:
    """Why a peer is not run on a pair; empty if it is."""
    if not version(peer, python):
        return f"{peer.distribution or peer.program} is not installed" + (f" for {python}" if peer.distribution else "")
    others = pair.dtypes() - peer.only if peer.only else set()
    if others:
        return f"takes {', '.join(sorted(peer.only))} only, the pair has {', '.join(sorted(others))}"
    limit = float(limits.get(peer.name, limits.get("all", peer.limit_mb)))
    if pair.size > limit * MEGABYTE:
        return f"over the {limit:.0f} MB that it is given here (--limit-mb)"
    if peer.memory * pair.size > memory:
        return f"would need about {peer.memory * pair.size / 1e9:.1f} GB of memory, {memory / 1e9:.1f} GB are free for it"
    return ""
