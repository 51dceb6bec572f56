"""Bases and patches made by hand, on which the package and the minimal reader must agree: paths, links, indexes, versions, several faults.

Each case states the kinds that the spec allows (sections 3.1, 3.3, 9, 12 and 13); both readers must give one of them, and the same output.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.vectors import BUILD as B
from tests.support.checkpoints import tree
from tests.support.vectors import Outcome, run_minimal, run_package

Files = Mapping[str, Any]
"""The files of a folder by path: tensors, bytes, a :class:`Link`, or PIPE."""
PIPE = object()


@dataclass(frozen=True)
class Link:
    """A symbolic link. A path that begins with ``OUTSIDE`` leads to a folder beside the base, with files of ``OUT``."""

    to: str


@dataclass(frozen=True)
class Case:
    name: str
    kinds: str
    base: Any
    patch: Any
    outside: Files = field(default_factory=dict)


OLD, NEW, OTHER = (B.T("U8", [4], text) for text in ("01020304", "01020305", "11121314"))
MODEL = {"model.safetensors": {"a": OLD}}
ASIDE = {"aside.safetensors": {"z": B.T("U8", [1], "2a")}}
OUT = "/OUTSIDE/"


def patch_on(scope: str = "model", *known: str, sizes: Files | None = None) -> bytes:
    """A patch file that takes ``a`` from a scope; ``known``: the paths in base.files."""
    files = [{"path": path, **B.stat(B.weights({"a": OLD})), **((sizes or {}).get(path, {}))} for path in sorted(known, key=os.fsencode)]
    return B.patch_file({"a": OLD}, {"a": NEW}, [B.delta("a")], base_scope=scope, **({"base_files": files} if known else {})).bytes


# --- paths ---------------------------------------------------------------------------------------------------------

UNSAFE = (
    "", ".", "..", "/", "/a", "a/", "a//b", "./a", "a/.", "a/./b", "../a", "a/..", "a/../b", "a\\b", "a:b", "c:/a",
    "a\0b", "a\nb", "a\x1fb", "a\x7fb",
    ".git", ".GIT/a", "a/.Git/b", "ckptdiff.json", "a" * 251, "\u00e9" * 126, "/".join("a" * 33), "/".join(["a" * 204] * 5) + "a",
)  # fmt: skip
SAFE = (
    "...", "a...", ".a", " ", "a ", "~", "-", "-rf", "%2e%2e", "con", "aux.txt", "a*b?", "\u2028", "\U0001f600", "\u0085",
    "a/ckptdiff.json", ".github/a",
    "git", "patch/a", "files/a.zst", "a" * 250, "/".join("a" * 32), "CKPTDIFF.JSON", ".git ", "x/.gitignore",
)  # fmt: skip


def paths() -> Iterator[Case]:
    for safe, path in [*((False, path) for path in UNSAFE), *((True, path) for path in SAFE)]:
        shown = f"{path[:20]!r} of {len(path)}"
        kinds = "success" if safe else "format"
        target = {"keep.txt": b"keep", path: b"made"}
        patch = B.patch_folder({"keep.txt": b"keep"}, target, {}, [B.same_file("keep.txt"), B.new_file(path)])
        stored = patch.pop(f"files/{path}.zst")
        place = f"files/{path}.zst" if safe else "files/x.zst"
        yield Case(f"path of a file: {shown}", kinds, {"keep.txt": b"keep"}, {**patch, place: stored})
        gone = B.patch_folder({"keep.txt": b"keep"}, {"keep.txt": b"keep"}, {}, [B.same_file("keep.txt")], removed=[path])
        yield Case(f"removed path: {shown}", kinds, {"keep.txt": b"keep"}, gone)
        if path and "/" not in path[-1:]:
            made = B.patch_file({"a": OLD}, {"a": NEW}, [B.delta("a")], path=path, scope="x")
            yield Case(f"target.path: {shown}", kinds if path != "ckptdiff.json" else "format", B.weights({"a": OLD}), made.bytes)
        recorded = [{"path": path, "size": 1, "sha256": "0" * 64}]
        made = B.patch_file({"a": OLD}, {"a": NEW}, [B.delta("a")], base_files=recorded)
        yield Case(f"path in base.files: {shown}", kinds, B.weights({"a": OLD}), made.bytes)


# --- links ---------------------------------------------------------------------------------------------------------


def links() -> Iterator[Case]:
    def case(name: str, kinds: str, files: Files, scope: str = "model", *known: str, **outside: Any) -> Case:
        return Case(
            f"links: {name}", kinds, files, patch_on(scope, *known), {key.replace("_", "."): value for key, value in outside.items()}
        )

    a = {"a": OLD}
    yield case("to a file beside it", "success", {"model.safetensors": Link("blob"), "blob": B.weights(a), **ASIDE})
    yield case("to a file outside", "success", {"model.safetensors": Link(OUT + "m.st"), **ASIDE}, m_st=a)
    yield case("to a file below .cache", "success", {"model.safetensors": Link(".cache/b"), ".cache/b": B.weights(a), **ASIDE})
    yield case("a weight file that leads nowhere", "checkpoint", {**MODEL, "x.safetensors": Link("gone")})
    yield case("an index that leads nowhere", "checkpoint", {**MODEL, "x.safetensors.index.json": Link("gone")})
    yield case("another file that leads nowhere", "success", {**MODEL, "x.txt": Link("gone")})
    yield case("a weight file that leads to itself", "checkpoint", {**MODEL, "x.safetensors": Link("x.safetensors")})
    yield case("another file that leads to itself", "success", {**MODEL, "x": Link("x")})
    yield case("a weight file that is a pipe", "checkpoint", {**MODEL, "x.safetensors": PIPE})
    yield case("another file that is a pipe", "success", {**MODEL, "x": PIPE})
    yield case("an index that is a folder", "success", {**MODEL, "x.safetensors.index.json/y.txt": b""})
    yield case("a folder that ends as weight files do", "success", {"x.safetensors/m.safetensors": a, **ASIDE}, "x.safetensors/m")
    yield case("a link to a folder that ends so", "success", {"x/m.safetensors": a, "l.safetensors": Link("x")}, "l.safetensors/m")
    inside = {"x/m.safetensors": a, "link": Link("x")}
    yield case("to a folder below: the link's scope", "success", inside, "link/m")
    yield case("to a folder below: the folder's scope", "success", inside, "x/m")
    yield case("to a folder below: two scopes", "wrong_base", inside, "other")
    yield case("to a folder outside", "wrong_base", {"link": Link(OUT), **MODEL, **ASIDE}, "link/m", m_safetensors=a)
    yield case("to a folder outside: not counted", "success", {"link": Link(OUT), **MODEL}, "other", m_safetensors=a)
    yield case("to the folder it is in", "success", {"x/m.safetensors": a, "x/link": Link(".")}, "other")
    yield case("to the base", "success", {"x/m.safetensors": a, "x/link": Link("..")}, "other")
    behind = {"a/b/m.safetensors": {"a": OTHER}, "c/m.safetensors": a, "a/k": Link("../c"), "l": Link("a")}
    yield case("behind no link", "success", behind, "a/k/m")
    yield case("behind a link", "wrong_base", behind, "l/k/m")
    yield case("to a folder whose link is behind it", "wrong_base", behind, "l/b/m")
    yield case("to .cache", "success", {**MODEL, ".cache/x/m.safetensors": {"a": OTHER}, "l": Link(".cache/x")}, "other")
    yield case("to .cache, wanted", "wrong_base", {**MODEL, **ASIDE, ".cache/x/m.safetensors": a, "l": Link(".cache/x")}, "l/m")
    yield case("an index outside", "success", {"part.safetensors": a, "m.safetensors.index.json": Link(OUT + "i.json"), **ASIDE}, "m",
               i_json=B.index_of(a="part.safetensors"))  # fmt: skip
    yield case("recorded files behind a link outside", "success", {"l": Link(OUT), **ASIDE}, "l/m", "l/m.safetensors", m_safetensors=a)
    yield case("a recorded file outside", "success", {"m.safetensors": Link(OUT + "b"), **ASIDE}, "m", "m.safetensors", b=a)
    yield case("a recorded file that leads nowhere", "checkpoint", {**MODEL, "m.safetensors": Link("gone")}, "model", "m.safetensors")
    yield case("a recorded file that is a folder", "success", {**MODEL, "m.safetensors/x": b""}, "model", "m.safetensors")
    nowhere = {"x.safetensors": Link("gone"), "y.safetensors.index.json": Link("gone")}
    yield case("beside recorded files: links to nowhere", "success", {**MODEL, **nowhere}, "model", "model.safetensors")
    yield case("beside recorded files: pipes", "success", {**MODEL, "x.safetensors": PIPE}, "model", "model.safetensors")
    strange = os.fsdecode(b"\xff")
    for name, path in (
        ("a weight file", ".safetensors"),
        ("another file", ".txt"),
        ("an index", "x.safetensors.index.json"),
        ("a folder", "/x.txt"),
    ):
        content: Any = a if path == ".safetensors" else b"{}"
        yield case(f"a name that is not UTF-8, of {name}", "checkpoint", {**MODEL, strange + path: content})
        yield case(
            f"a name that is not UTF-8, of {name}, beside recorded files",
            "success",
            {**MODEL, strange + path: content},
            "model",
            "model.safetensors",
        )


# --- indexes -------------------------------------------------------------------------------------------------------

WEIGHT_MAPS = (
    '{"a":""}', '{"a":"/"}', '{"a":"/part.safetensors"}', '{"a":"part.safetensors/"}',
    '{"a":"x//part.safetensors"}', '{"a":"x/../part.safetensors"}',
    '{"a":" part.safetensors"}', '{"a":"part.safetensors\\u0000"}', '{"a":"PART.safetensors"}', '{"a":"part"}', '{"a":null}',
    '{"a":true}', '{"a":1.5}',
    '{"a":[]}', '{"a":{}}', '{"a":["part.safetensors"]}', "null", "0", '"part.safetensors"', "[]",
    '{"a":"part.safetensors","b":"gone.safetensors"}',
    '{"a":"part.safetensors","b":3}', '{"a":"part.safetensors"',
)  # fmt: skip
"""Of each a reader must say that it is no index, or lists a missing file."""
GOOD_MAPS = ('{"a":"part.safetensors"}', ' { "a" :\t"part.safetensors" } ', '{"":"part.safetensors"}', '{"a":"part\\u002esafetensors"}',
             '{"a":"gone","a":"part.safetensors"}', '{"b":"part.safetensors","c":"part.safetensors"}')  # fmt: skip


def indexes() -> Iterator[Case]:
    def both(name: str, listing: bytes, good: bool) -> Iterator[Case]:
        files = {"part.safetensors": {"a": OLD}, **ASIDE, "model.safetensors.index.json": listing}
        yield Case(f"index: {name}", "success" if good else "checkpoint", files, patch_on("model" if good else "part"))
        sizes = {"aside.safetensors": B.stat(B.weights(ASIDE["aside.safetensors"]))}
        yield Case(f"index: {name}, beside recorded files", "success", files, patch_on(
            "model" if good else "part", "part.safetensors", "aside.safetensors", sizes=sizes))  # fmt: skip

    for good, maps in ((False, WEIGHT_MAPS), (True, GOOD_MAPS)):
        for text in maps:
            yield from both(text, b'{"weight_map":%s}' % text.encode(), good)
    listing = '"weight_map":{"a":"part.safetensors"}'
    for name, text, good in (
        ("twice", '{"weight_map":{"a":"gone"},MAP}', True), ("twice, the last bad", '{MAP,"weight_map":7}', False),
        ("floats", '{"x":[1e5,-0.0,1E-3],MAP}', True), ("large integers", f'{{"x":{1 << 80},MAP}}', True),
        ("text behind it", "{MAP} x", False), ("a comment", "{MAP} // x", False), ("single quotes", "{'weight_map':{}}", False),
        ("an escape", '{"weight\\u005fmap":{"a":"part.safetensors"}}', True), ("Weight_Map", '{"Weight_Map":{}}', False),
        ("deep", f'{{"x":{"[" * 200000}{"]" * 200000},MAP}}', False),
    ):  # fmt: skip
        yield from both(name, text.replace("MAP", listing).encode(), good)
    whole = f"{{{listing}}}"
    strange = b'{"x":"\xff",' + whole.encode()[1:]
    for name, raw, good in (
        ("mark", whole.encode("utf-8-sig"), True),
        ("UTF-16", whole.encode("utf-16"), False),
        ("not UTF-8", strange, False),
        ("no bytes", b"", False),
    ):
        yield from both(name, raw, good)
    yield Case("left out: a scope without tensors", "success", {**MODEL, "x.safetensors": {}}, patch_on("other"))


# --- versions ------------------------------------------------------------------------------------------------------


def versions() -> Iterator[Case]:
    whole = (0, -1, 2, 3, 1 << 31, 1 << 32, (1 << 53) - 1, 1 - (1 << 53))
    other = (1 << 53, -(1 << 53), 1 << 64, "1", "", "2", None, True, False, [], [1], {}, B.DROP)
    for value in (*whole, *other):
        shown = "absent" if value is B.DROP else json.dumps(value)
        kinds = "unsupported" if any(value is k for k in whole) else "format"
        fault = B.setter("version", value)
        yield Case(f"version {shown}", kinds, B.weights(B.TWO_BASE), B.two(meta=fault).bytes)
        yield Case(f"version {shown} of an index", kinds, B.TEXT_OLD, B.texts(index=fault))
    for text in ("1.0", "1e0", "01", "+1", "0x1", "1 ", "NaN", "-0", "'1'"):
        change = B.swap(b'"version":1', b'"version":' + text.encode())
        yield Case(f"version written {text}", "format", B.weights(B.TWO_BASE), B.two(meta_text=change).bytes)
        yield Case(f"version written {text} in an index", "format", B.TEXT_OLD, B.texts(index_text=change))


# --- several faults ------------------------------------------------------------------------------------------------

Fault = tuple[int, str, dict[str, Callable[[Any], Any]]]
FAULTS: dict[str, Fault] = {  # in what place of the order of section 13 each is; 9: no order
    "not canonical": (0, "format", {"meta_text": lambda text: text + b" "}),
    "format wrong": (1, "format", {"meta": B.setter("format", "x")}),
    "version 2": (2, "unsupported", {"meta": B.setter("version", 2)}),
    "unknown member": (3, "unsupported", {"meta": B.setter("x", 1)}),
    "digest short": (4, "format", {"meta": B.setter("digest", "0" * 31)}),
    "digest wrong": (4, "integrity", {"meta": B.setter("digest", "0" * 32)}),
    "unknown member of base": (9, "unsupported", {"meta": B.setter("base", "x", 1)}),
    "member missing": (9, "format", {"meta": B.setter("totals", B.DROP)}),
    "path unsafe": (9, "format", {"meta": B.setter("target", "path", "../w")}),
    "table's digest wrong": (9, "integrity", {"meta": B.setter("table", "0" * 32)}),
    "removed unsorted": (9, "format", {"table": B.setter("removed", ["y", "x"])}),
    "codec unknown": (9, "unsupported", {"table": lambda table: table["tensors"][0].update(codec="lz4")}),
    "header padded": (9, "format", {"padding": lambda _: b" " * 16}),
    "payload's digest wrong": (9, "integrity", {"payloads": lambda d: [*d[:2], (d[2][0], b"\xff" * len(d[2][1]))]}),
    "key of __metadata__": (9, "format", {"layout": B.setter("__metadata__", "x", "y")}),
}


def several() -> Iterator[Case]:
    for (one, (rank, kind, faults)), (two, (rank2, kind2, faults2)) in itertools.combinations(FAULTS.items(), 2):
        if rank == rank2 == 4:
            continue  # two values of one member
        options: dict[str, Any] = {key: B.both(*(f[key] for f in (faults, faults2) if key in f)) for key in faults | faults2}
        if "padding" in options:
            options["padding"] = b" " * 16
        kinds = f"{kind} {kind2}" if rank == rank2 else kind if rank < rank2 else kind2
        if "table's digest wrong" in (one, two) and {"removed unsorted", "codec unknown"} & {one, two}:
            kinds = "integrity"
        yield Case(f"{one} and {two}", kinds, B.weights(B.TWO_BASE), B.two(**options).bytes)
    broken, lacking, target = B.weights(B.TWO_BASE)[:-1], B.weights({"x": OLD}), B.weights(B.TWO_TARGET)
    for name, (_, kind, faults) in FAULTS.items():
        options = {**faults, **({"padding": b" " * 16} if "padding" in faults else {})}
        for what, base, other in (
            ("base broken", broken, "checkpoint"),
            ("base without its tensors", lacking, "wrong_base"),
            ("base is target", target, "already_target"),
        ):
            yield Case(f"{name} and {what}", f"{kind} {other}", base, B.two(**options).bytes)


CASES = [*paths(), *links(), *indexes(), *versions(), *several()]


def lay(root: Path, content: Any, outside: Path) -> Path:
    """Write a file or a folder."""
    if not isinstance(content, Mapping):
        root.write_bytes(content)
        return root
    for path, item in content.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(item, Link):
            place.symlink_to(item.to.replace(OUT, f"{outside}/") if item.to.startswith(OUT) else item.to)
        elif item is PIPE:
            os.mkfifo(place)
        else:
            place.write_bytes(B.weights(item) if isinstance(item, dict) else item)
    return root


def package(base: Path, patch: Path, out: Path) -> Outcome:
    try:
        return run_package(base, [patch], out)
    except (UnicodeError, OSError) as error:  # no reader may end like this
        return "crash", repr(error)


def test_there_are_cases_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 171


@pytest.mark.parametrize("case", CASES, ids=[case.name.encode("ascii", "backslashreplace").decode() for case in CASES])
def test_both_readers_judge_alike(case: Case, tmp_path: Path) -> None:
    outside = lay(tmp_path / "outside", {"here": b"", **case.outside}, tmp_path)
    base, patch = lay(tmp_path / "base", case.base, outside), lay(tmp_path / "patch", case.patch, outside)
    theirs, their_message = run_minimal(base, [patch], tmp_path / "theirs")
    ours, message = package(base, patch, tmp_path / "ours")
    assert theirs in case.kinds.split(" "), f"the minimal reader: {theirs}: {their_message}"
    assert ours in case.kinds.split(" "), f"the package: {ours}: {message}"
    if case.kinds == "success":
        assert tree(tmp_path / "ours") == tree(tmp_path / "theirs")
