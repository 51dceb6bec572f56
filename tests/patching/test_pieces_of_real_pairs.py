"""Real pairs in other layouts, adapted by pieces that are given: exact, and as small as against a base that was adapted by hand."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.format.entry import Entry, Piece, Totals
from ckptdiff.io.parallel import no_progress
from ckptdiff.patching.encode_options import on_threads
from ckptdiff.patching.encode_pair import encode_pair
from ckptdiff.patching.patch import open_patch
from ckptdiff.patching.write import PatchContents, encoded_files, write_patch
from tests.support.checkpoints import SHARED_DATA, tree, write
from tests.support.layouts_by_pieces import CHAINS, LAYOUTS, Layout, made_table_cut, stated
from tests.support.pieces import paired_by_hand
from tests.support.real_pairs import BASE, TARGETS
from tests.support.roundtrips import Tensors
from tests.support.safetensors_views import our_view
from tests.support.vectors import READER

PAIRS = TARGETS[:2]
"""Weights in pure BF16, of which few changed, and weights trained in F32, of which many did."""
MARGIN = 0.005
"""By how much of its size a patch may differ from that against the base adapted by hand, but for its table."""
COLUMNS = "{:31} {:20} {:>7} {:>9} {:>9} {:>9} {:>8} {:>7} {:>7}"

needs_pairs = pytest.mark.skipif(not BASE.is_dir(), reason=f"the real checkpoint pairs are not at {SHARED_DATA}")


@dataclass(frozen=True)
class Contents:
    """What a patch of one weight file consists of; sizes are in bytes."""

    patch: int
    """The patch file."""
    table: int
    entries: tuple[Entry, ...]
    totals: Totals

    @classmethod
    def of(cls, folder: Path) -> Contents:
        data = (folder / "patch" / "model.safetensors").read_bytes()
        begin, end = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["ckptdiff/table"]["data_offsets"]
        with open_patch(folder) as patch:
            (file,) = patch.files
            return cls(len(data), end - begin, file.table.entries, patch.totals)

    @property
    def rest(self) -> int:
        """The patch file without its table."""
        return self.patch - self.table

    @property
    def payload(self) -> int:
        return sum(entry.payload_size for entry in self.entries)

    @property
    def pieces(self) -> int:
        return sum(len(entry.pieces) for entry in self.entries)

    @property
    def without_bases(self) -> list[Entry]:
        """The entries with all that they say, their digests too, but not what their bases are made of."""
        return [entry._replace(base_dtype=None, pieces=()) for entry in self.entries]


@pytest.fixture(scope="module")
def results() -> Iterator[list[str]]:
    """Lines of a table, which is printed at the end."""
    head = ("pair", "layout", "pieces", "by pieces", "by hand", "ratio", "payloads", "table", "extra")
    lines = [COLUMNS.format(*head)]
    yield lines
    print("\n", *lines, sep="\n")


def checkpoint(folder: Path, tensors: Tensors, others: Path | None = None) -> Path:
    """Write tensors as a folder of one weight file, with the other files of a checkpoint."""
    write(folder / "model.safetensors", tensors, {"format": "pt"})
    for path in others.iterdir() if others else ():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    return folder


def make_by_pieces(base: Path, target: Path, out: Path, pieces: Mapping[str, Sequence[Piece]]) -> Path:
    """What ``make`` does, with pieces for some tensors of the target."""
    with open_checkpoint(base, with_files=True) as old, open_checkpoint(target, with_files=True) as new:
        options = on_threads(old, new, None, 2, None)
        with open(out.with_name(f"{out.name}.spool"), "w+b") as spool:
            encoded = encode_pair(old, new, paired_by_hand(old, new, pieces), options, spool, no_progress)
            contents = PatchContents(encoded, {}, None)
            write_patch(contents, out, encoded_files(contents, out))
    return out


def check(layout: Layout, tmp: Path, old: Path | None = None, new: Path | None = None) -> tuple[Contents, Contents]:
    """Check the patch by pieces; returns what it consists of, and the patch of the base that was adapted by hand."""
    base, target = checkpoint(tmp / "base", layout.base, old), checkpoint(tmp / "target", layout.target, new)
    patch = make_by_pieces(base, target, tmp / "patch", layout.pieces)
    ckptdiff.apply(base, patch, tmp / "out")
    assert tree(tmp / "out") == tree(target)
    assert ckptdiff.verify(patch, base=base, target=tmp / "out").ok

    ckptdiff.make(checkpoint(tmp / "by hand", layout.by_hand, old), target, tmp / "hand patch")
    found, hand = Contents.of(patch), Contents.of(tmp / "hand patch")
    assert hand.pieces == 0 and all(entry.base_dtype == entry.dtype for entry in hand.entries)
    assert found.pieces == stated(layout)
    assert found.totals == hand.totals and found.totals.delta and not found.totals.new and not found.totals.removed
    assert found.without_bases == hand.without_bases
    assert abs(found.payload - hand.payload) <= MARGIN * hand.payload
    assert abs(found.rest - hand.rest) <= MARGIN * hand.rest
    return found, hand


def line(pair: str, layout: str, found: Contents, hand: Contents) -> str:
    """``ratio``: of both patches without their tables; ``payloads``: of all payloads; ``extra``: how many bytes the tables differ by."""
    ratios = f"{found.rest / hand.rest:.5f}", f"{found.payload / hand.payload:.6f}"
    return COLUMNS.format(
        pair,
        layout,
        *(f"{n:,}" for n in (found.pieces, found.patch, hand.patch)),
        *ratios,
        f"{found.table:,}",
        f"{found.table - hand.table:,}",
    )


def model(folder: Path) -> Tensors:
    return our_view(folder / "model.safetensors")


def small_model(folder: Path) -> Tensors:
    """The first two layers, the embedding and the last norm."""
    return {name: data for name, data in model(folder).items() if "layers" not in name or re.match(r"model\.layers\.[01]\.", name)}


@needs_pairs
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_real_pair_in_another_layout(pair: str, name: str, tmp_path: Path, results: list[str]) -> None:
    layout = LAYOUTS[name](model(BASE), model(SHARED_DATA / pair))
    results.append(line(pair, name, *check(layout, tmp_path, BASE, SHARED_DATA / pair)))


def test_a_made_table_of_128_000_rows_cut_to_half(tmp_path: Path, results: list[str]) -> None:
    found, hand = check(made_table_cut(), tmp_path)
    assert found.pieces > 30_000
    results.append(line("a made table", "half of 128,000 rows", found, hand))


@needs_pairs
@pytest.mark.parametrize("name", ["split to fused", "experts to layers", "half, and new rows", "F32 to F16", "fused, in F16"])
def test_the_minimal_reader_gives_the_same_files(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name](small_model(BASE), small_model(SHARED_DATA / PAIRS[0]))
    base, target = checkpoint(tmp_path / "base", layout.base, BASE), checkpoint(tmp_path / "target", layout.target, SHARED_DATA / PAIRS[0])
    patch = make_by_pieces(base, target, tmp_path / "patch", layout.pieces)
    READER.apply(base, [patch], tmp_path / "out")
    assert tree(tmp_path / "out") == tree(target)


def make_chain(name: str, models: Sequence[Tensors], others: Sequence[Path], tmp: Path) -> tuple[Path, list[Path], Path]:
    """A base, the three patches of a chain, and its last target."""
    base = before = checkpoint(tmp / "base", models[0], others[0])
    patches = []
    for k, (tensors, pieces) in enumerate(CHAINS[name](*models[1:])):
        target = checkpoint(tmp / f"target{k}", tensors, others[k + 1])
        patches.append(make_by_pieces(before, target, tmp / f"patch{k}", pieces))
        assert not Contents.of(patches[-1]).totals.new
        before = target
    return base, patches, before


@needs_pairs
@pytest.mark.parametrize(("name", "targets"), [("fused, split, cast", TARGETS[:1] * 3), *((name, TARGETS) for name in CHAINS)])
def test_a_chain_of_three(name: str, targets: list[str], tmp_path: Path) -> None:
    """Of one real pair, whose target has other layouts only; and of four models, each tuned from the first."""
    folders = [BASE, *(SHARED_DATA / target for target in targets)]
    base, patches, last = make_chain(name, [model(folder) for folder in folders], folders, tmp_path)
    ckptdiff.apply(base, patches, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(last)


@needs_pairs
@pytest.mark.parametrize("name", CHAINS)
def test_the_minimal_reader_gives_the_same_files_after_a_chain(name: str, tmp_path: Path) -> None:
    folders = [BASE, *[SHARED_DATA / TARGETS[0]] * 3]
    base, patches, last = make_chain(name, [small_model(folder) for folder in folders], folders, tmp_path)
    READER.apply(base, patches, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(last)
