"""Reports stored inside patches (spec section 5.4)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import zstandard

import ckptdiff
from ckptdiff import CheckpointError, CkptdiffError, FormatError, Report, UnsupportedError, report, report_patch
from ckptdiff.analysis import report_stored
from ckptdiff.analysis.report_stored import unpack
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.patching.patch import open_patch
from tests.support.checkpoints import SHARED_DATA, tensor, write
from tests.support.commands import run
from tests.support.real_pairs import BASE, TARGETS
from tests.support.reports import SCHEMA


def packed(value: Any) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=True).compress(json.dumps(value).encode())


def json_of(result: Report) -> dict[str, Any]:
    return json.loads(zstandard.ZstdDecompressor().decompress(result.to_bytes()))


def nearly(found: Any, expected: Any) -> bool:
    """Whether two JSON values are the same but for the fifth digit of floats."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(nearly(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(nearly, found, expected))
    return math.isclose(found, expected, rel_tol=1e-3) if isinstance(expected, float) else found == expected


def test_make_stores_what_report_found(pair: tuple[Path, Path], tmp_path: Path) -> None:
    patch = tmp_path / "patch.safetensors"
    assert run("make", *pair, "-o", patch, "--report").exit_code == 0
    found = json.loads(run("report", patch, "--json").stdout)
    jsonschema.validate(found, SCHEMA)
    expected = report(*pair).to_json() | {"base": "", "target": "patch.safetensors"}
    assert nearly(found, expected) and found["totals"] == expected["totals"]
    assert "stored: ckptdiff report" in run("info", patch).stdout and json.loads(run("info", patch, "--json").stdout)["has_report"]
    assert "mean rank" in run("report", patch).stdout
    ckptdiff.apply(pair[0], patch, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == pair[1].read_bytes()
    assert ckptdiff.verify(patch, base=pair[0]).ok


def test_pictures_need_no_base_then(pair: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("altair")
    patch, page = tmp_path / "patch.safetensors", tmp_path / "page.html"
    ckptdiff.make(*pair, patch, report=report(*pair))
    assert run("report", patch, "--html", page).exit_code == 0
    assert "patch.safetensors" in page.read_text()


def test_other_bytes_of_the_patch_stay(pair: tuple[Path, Path], tmp_path: Path) -> None:
    sizes = []
    for name, measured in (("without", None), ("with", report(*pair))):
        ckptdiff.make(*pair, tmp_path / name, report=measured)
        with open_patch(tmp_path / name) as patch:
            sizes.append((patch.files[0].table.to_bytes(), patch.files[0].header, patch.report is not None))
    assert [has for *_, has in sizes] == [False, True] and sizes[0][:2] == sizes[1][:2]


def test_stored_bytes_do_not_depend_on_the_place(pair: tuple[Path, Path], tmp_path: Path) -> None:
    first = report(*pair).to_bytes()
    (tmp_path / "elsewhere").mkdir()
    assert report(*(path.rename(tmp_path / "elsewhere" / path.name) for path in pair), threads=3).to_bytes() == first


def test_only_the_first_shard_has_it(tmp_path: Path) -> None:
    units = np.arange(64, dtype="<u2") + 0x3F80
    for k, side in enumerate(("base", "target")):
        for shard in (1, 2):
            write(tmp_path / side / f"model-0000{shard}-of-00002.safetensors", {f"w{shard}": tensor("BF16", (8, 8), units + k)})
    ckptdiff.make(tmp_path / "base", tmp_path / "target", tmp_path / "patch", report=report(tmp_path / "base", tmp_path / "target"))
    with open_patch(tmp_path / "patch") as patch:
        assert [file.report is not None for file in patch.files] == [True, False]
    assert report_patch(tmp_path / "patch").totals.changed == 128


@pytest.mark.parametrize("rank", ["none", "all"])
@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_comes_back(tmp_path: Path, name: str, rank: Any) -> None:
    """Of any bits, infinities and NaNs among them."""
    rng = np.random.default_rng(len(name))
    nbytes = 24 * 32 * DTYPES[name].bits // 8
    old = rng.integers(0, 256, nbytes).astype(np.uint8)
    sides = (old, np.where(rng.random(nbytes) < 0.3, rng.integers(0, 256, nbytes), old).astype(np.uint8))
    both = [
        write(tmp_path / f"{k}.safetensors", {"model.layers.3.mlp.up_proj.weight": tensor(name, (24, 32), x)}) for k, x in enumerate(sides)
    ]
    measured = report(*both, rank=rank)
    found = unpack(measured.to_bytes(), "here", "patch")
    assert nearly(found.to_json(), measured.to_json() | {"base": "", "target": "patch"})
    assert found.to_bytes() == measured.to_bytes()
    ckptdiff.make(*both, tmp_path / "patch", report=measured)


def test_ranks_stay_within_the_largest_possible(tmp_path: Path) -> None:
    """A stable rank of 1001 and a random rank just below it, which four digits would round to 1001."""
    old = np.zeros((1001, 1001), "<f4")
    both = [
        write(tmp_path / f"{k}.safetensors", {"w": tensor("F32", old.shape, x)}) for k, x in enumerate((old, np.eye(1001, dtype="<f4")))
    ]
    ranks = unpack(report(*both).to_bytes(), "here", "patch").tensors[0].ranks
    assert ranks is not None and ranks[0].spectrum.stable_rank == ranks[0].spectrum.rank == 1001


def test_a_report_of_other_checkpoints(pair: tuple[Path, Path], tmp_path: Path) -> None:
    same = report(pair[1], pair[1])
    with pytest.raises(
        CheckpointError, match=r"tensor \S+: it says that 0 of [\d,]+ elements changed, found [\d,]+; make it with the same"
    ):
        ckptdiff.make(*pair, tmp_path / "patch", report=same)
    write(tmp_path / "other.safetensors", {"x": tensor("BF16", (2,), bytes(4))})
    other = report(tmp_path / "other.safetensors", tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="tensor x: it says that 0 of 2 elements changed, there is no such tensor"):
        ckptdiff.make(*pair, tmp_path / "patch", report=other)
    assert not (tmp_path / "patch").exists()


def test_renames_and_globs_are_those_of_make(tmp_path: Path) -> None:
    units = np.arange(64, dtype="<u2") + 0x3F80
    for k, (side, name) in enumerate((("base", "a.w"), ("target", "b.w"))):
        write(tmp_path / side / "model.safetensors", {name: tensor("BF16", (8, 8), units + k)})
        write(tmp_path / side / "optimizer.safetensors", {"m": tensor("F32", (8,), bytes(32))})
    folders = (tmp_path / "base", tmp_path / "target")
    options = ("--rename", "^b=a", "--include", "optimizer.*")
    assert run("make", *folders, "-o", tmp_path / "patch", "--report", *options).exit_code == 0
    assert {t.name for t in report_patch(tmp_path / "patch").tensors} == {"b.w", "m"}
    assert json.loads(run("report", *folders, *options, "--json").stdout)["totals"]["elements"] == 72
    for wrong in (("--rename", "^x=a"), ("--include", "no.*")):
        result = run("report", *folders, *wrong)
        assert result.exit_code == 3 and "matches no" in result.stderr


# --- hostile reports ---


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all members; of lists the first item."""
    members = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in members:
        yield (*path, key)
        yield from places(item, (*path, key))


def test_every_member_is_checked(pair: tuple[Path, Path]) -> None:
    """Any member dropped, or of a value that it cannot have, ends in one error; none escapes, and none is taken."""
    good = json_of(report(*pair, rank="all"))
    assert unpack(packed(good), "here", "").to_json() == good
    for path in places(good):
        for wrong in ("drop", "\u001b[2J", -1.5, [[]], {"a": 1}, 1e400, math.nan, 2**65, True):
            value = json.loads(json.dumps(good))
            at = value
            for key in path[:-1]:
                at = at[key]
            if wrong == "drop" and isinstance(at, dict):
                del at[path[-1]]
            else:
                at[path[-1]] = wrong
            if value == good or (isinstance(wrong, str) and path[-1] in ("name", "scope")) or path[-2:-1] in (("added",), ("removed",)):
                continue
            try:
                taken = unpack(packed(value), "here", "")
            except CkptdiffError as error:
                assert "here" in str(error)
            else:
                assert taken.to_json() == value and isinstance(wrong, (str, list)), (path, wrong)


@pytest.mark.parametrize(
    ("path", "wrong", "kind", "text"),
    [
        (
            ("schema",),
            "ckptdiff-report/2",
            UnsupportedError,
            "its schema is 'ckptdiff-report/2', expected 'ckptdiff-report/1': try to upgrade",
        ),
        (("tensors", 0, "module"), "warp", UnsupportedError, 'unknown dtype "BF16" or module "warp": try to upgrade'),
        (("later",), 1, UnsupportedError, 'unknown member "later"'),
        (("totals", "elements"), 1, FormatError, "its sums do not agree with its tensors: do not trust this patch"),
        (("settings", "rank"), "some", FormatError, 'settings.rank: expected one of none, sample, all, found "some"'),
        (("settings", "as"), "BF16", FormatError, "settings.as: expected null, as what a patch stores is not cast, found BF16"),
        (("tensors", 0, "target_dtype"), "F32", FormatError, "tensors[0]: holds a value in another form than its type has"),
        (("tensors", 0, "expert_changes"), [1], FormatError, "tensors[0].expert_changes: does not agree with the shape and the changed"),
        (("tensors", 0, "equal"), 10**9, FormatError, "tensors[0].equal: expected 0 to"),
        (("tensors", 0, "rows"), [0.5], FormatError, "tensors[0].rows: expected 7 to 7 numbers, found 1"),
        (("tensors", 0, "spectra", 0, "rank"), 99, FormatError, "tensors[0].spectra[0].rank: expected 0 to 32, found 99"),
        (("tensors", 0, "spectra", 0, "stable_rank"), math.inf, FormatError, "bad JSON: Infinity is not an integer"),
        (("moves", "ulp", 0, "count"), -1, FormatError, "moves.ulp[0].count: expected 0 to"),
        (("settings", "nulls", "draws"), 1001, FormatError, "settings.nulls.draws: expected 0 to 1000, found 1001"),
        (("tensors", 0, "exponents", "changed", 0), 10**9, FormatError, "exponents: more elements changed than there are"),
        (("tensors", 0, "exponents", "zeros"), [1, 0], FormatError, "exponents: their counts do not add up to the tensor's"),
        (("tensors", 0, "exponents", "zeros"), [1], FormatError, "expected two counts of zeros, and two for each exponent of BF16"),
        (("tensors", 0, "exponents", "explained"), 0.5, FormatError, "tensors[0]: holds a value in another form"),
        (("tensors", 0, "spectra", 0, "nulls", "flipped", "rank"), [1], FormatError, "expected 2 to 1000 draws of each figure, found 1"),
        (("tensors", 0, "spectra", 0, "nulls", "shuffled", "rank", 0), 33, FormatError, "shuffled.rank[0]: expected 0 to 32, found 33"),
        (("tensors", 0, "spectra", 0, "nulls", "principal", "shuffled"), [], FormatError, "principal.shuffled: expected 5 draws, found 0"),
        (("tensors", 0, "spectra", 0, "nulls", "principal", "turned", "drift"), 1e101, FormatError, "a number from 0 to 1e+100, found"),
        (("nulls", 0, "value"), 0.5, FormatError, "its sums do not agree with its tensors: do not trust this patch"),
        (("size", "explained"), 0.5, FormatError, "its sums do not agree with its tensors: do not trust this patch"),
        (("added", 0), 5, FormatError, "added[0]: expected a string, found int"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_what_is_wrong_is_said(pair: tuple[Path, Path], path: Any, wrong: Any, kind: Any, text: str) -> None:
    value = json_of(report(*pair))
    value["added"] = ["x"]
    at = value
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = wrong
    with pytest.raises(kind, match=re.escape(text)):
        unpack(packed(value), "here", "")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"no frame", "bad zstd frame"),
        (packed([]), "expected an object"),
        (packed(5), "expected an object"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(b"{}"), "must state a content size"),
        (zstandard.ZstdCompressor(write_content_size=True).compress(b'{"a":1,"a":2}'), 'the key "a" is repeated'),
    ],
    ids=["frame", "list", "number", "size", "repeated"],
)
def test_what_is_no_report(data: bytes, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        unpack(data, "here", "")


def test_a_report_that_says_it_is_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_stored, "MAX_REPORT", 100)
    with pytest.raises(FormatError, match="at most 100"):
        unpack(zstandard.ZstdCompressor(write_content_size=True).compress(bytes(101)), "here", "")


@pytest.mark.parametrize("target", TARGETS)
def test_real_reports_come_back(target: str) -> None:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs {SHARED_DATA}")
    measured = report(BASE, SHARED_DATA / target, rank="none")
    found = unpack(measured.to_bytes(), "here", target)
    assert found.totals == measured.totals and found.modules == measured.modules and found.exponents == measured.exponents


def test_experts_and_components_are_stored_and_checked(tmp_path: Path) -> None:
    names = [f"model.{tower}.layers.{k}.mlp.experts.{k}.w1" for tower in ("vision_tower", "language_model") for k in range(2)]
    sides = []
    for k in range(2):
        tensors = {name: tensor("BF16", (2, 2), np.full(4, 0x3C00 + k * n, "<u2")) for n, name in enumerate(names)}
        sides.append(write(tmp_path / f"{k}.safetensors", tensors))
    found = report(*sides, rank="none")
    value = json_of(found)
    assert [(row["expert"], row["elements"], row["bit_identical"]) for row in value["experts"]] == [(0, 8, 4), (1, 8, 0)]
    assert [row["component"] for row in value["components"]] == ["language_model", "vision_tower"]
    assert unpack(packed(value), "report", "x").experts == found.experts
    for key in ("experts", "components"):
        without = {name: member for name, member in value.items() if name != key}
        wrong = json.loads(json.dumps(value))
        wrong[key][0]["elements"] += 1
        for other in (without, wrong):
            with pytest.raises(FormatError, match="its sums do not agree with its tensors"):
                unpack(packed(other), "report", "x")
