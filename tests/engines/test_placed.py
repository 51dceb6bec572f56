"""Patches staged for places: parts of tensors, opposite distances, bounded memory, and what goes wrong between stage and pause."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff.errors import BaseMismatchError, IntegrityError

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")

from ckptdiff.engines import placed, record  # noqa: E402
from ckptdiff.engines.carriers import Distances, reversed_range  # noqa: E402
from ckptdiff.engines.destinations import part_of  # noqa: E402
from ckptdiff.live.updates import RangeUpdate  # noqa: E402
from tests.support.engine_model import Plain, Served, checkpoint, moved  # noqa: E402

BASE = checkpoint()
SFT = moved(BASE)
TO_SFT = ckptdiff.diff(BASE, SFT)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64"])
@pytest.mark.parametrize(
    "cut",
    [
        lambda t: t,
        lambda t: t[3:9],
        lambda t: t[:, 2:5],
        lambda t: t[4:5, 1:3, 2:],
        lambda t: t[:, 3:4],
        lambda t: t.reshape(-1)[7:90],
        lambda t: t.narrow(2, 1, 2),
    ],
)
def test_a_part_selects_what_a_view_shows(cut: Any, dtype: str) -> None:
    whole = torch.zeros(10, 6, 4, dtype=getattr(torch, dtype))
    unit = np.dtype("<u2" if dtype == "bfloat16" else "<u4")
    units = whole.view(torch.uint8).numpy().reshape(-1).view(unit)
    positions = np.flatnonzero(np.random.default_rng(0).random(len(units)) < 0.3)
    zigzags = np.arange(1, len(positions) + 1).astype(unit)
    units[positions] = zigzags
    part = part_of(cut(whole), whole.data_ptr(), tuple(whole.shape), unit.itemsize)
    assert part is not None
    shown = cut(whole).contiguous().view(torch.uint8).numpy().reshape(-1).view(unit)
    where, found = part.select(positions, zigzags)
    assert where.tolist() == np.flatnonzero(shown).tolist() and found.tolist() == shown[where].tolist()


def test_what_is_no_box_of_the_tensor_has_no_part() -> None:
    whole = torch.zeros(10, 6)
    for other in (whole.t(), whole[::2], whole[:, ::3], whole.clone(), whole[:0], whole.expand(2, 10, 6)):
        assert part_of(other, whole.data_ptr(), (10, 6), 4) is None


@pytest.mark.parametrize("unit", ["u1", "u2"])
def test_opposite_distances(unit: str) -> None:
    """All of them, modulo 2^m: the most negative distance is its own opposite."""
    bits = 8 * np.dtype(unit).itemsize
    zigzags = np.arange(1 << bits).astype(unit)

    def distances(values: Any) -> Any:
        return (values.astype(np.int64) >> 1) ^ -(values.astype(np.int64) & 1)

    opposite = reversed_range(RangeUpdate(0, 0, None, zigzags)).zigzags
    assert opposite.dtype == zigzags.dtype
    assert np.array_equal((distances(opposite) + distances(zigzags)) % (1 << bits), np.zeros(1 << bits))


def staged(model: Served, patch: Any = TO_SFT, back: bool = False, **options: Any) -> tuple[placed.PlacedPatch, Any]:
    served = record(model, BASE, threads=1, **options)
    distances = Distances(patch, BASE, 1)
    assert placed.is_placed(served, distances)
    update = placed.PlacedPatch(model, served, distances, back)
    update.check()
    update.decode()
    return update, served


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (3, 4)])
@pytest.mark.parametrize("digests", ["whole", "sampled"])
@pytest.mark.parametrize("codec", ["sparse", "context"])
@pytest.mark.parametrize("room", [1, 1 << 25])
def test_places_become_the_target(rank: int, ranks: int, digests: Any, codec: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for all of it in the pause, and for one tensor alone."""
    monkeypatch.setattr(placed, "MIN_STAGED", room)
    model = Plain(BASE, rank, ranks)
    patch = ckptdiff.diff(BASE, SFT, codec=codec)
    update, served = staged(model, patch, digests=digests)
    assert model.content() == Plain(BASE, rank, ranks).content()
    held = sum(loaded.nbytes for loaded in update._loaded)
    assert (len(update._loaded) < len(update._groups)) == (room == 1) and held <= max(room, 2 * max(e.nbytes for e in patch_entries(patch)))
    update.apply()
    assert model.content() == Plain(SFT, rank, ranks).content() and served.identity == ckptdiff.identity(SFT)
    back = placed.PlacedPatch(model, served, Distances(patch, BASE, 1), True)
    back.apply()
    assert model.content() == Plain(BASE, rank, ranks).content() and served.identity == ckptdiff.identity(BASE)


def patch_entries(patch: Any) -> list[Any]:
    return [entry for _, entry in patch.opened.entries.values()]


def test_a_model_whose_places_are_not_contiguous_goes_through_its_loader() -> None:
    assert not placed.is_placed(record(Served(BASE), BASE, threads=1), Distances(TO_SFT, None, 1))


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("room", [1, 1 << 25])
def test_weights_written_between_stage_and_pause(rank: int, ranks: int, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is not the target: it is taken back, of whole tensors and of parts, and so are the groups before it."""
    monkeypatch.setattr(placed, "MIN_STAGED", room)
    model = Plain(BASE, rank, ranks)
    update, served = staged(model)
    model.layers_1_o_proj.data.view(torch.int16)[3, 3] ^= 1
    before = model.content()
    error, words = (IntegrityError, "came out with the digest") if room > 1 or ranks == 1 else (BaseMismatchError, "was changed since")
    with pytest.raises(error, match=rf"o_proj\.weight:? {words}"):
        update.apply()
    assert model.content() == before and served.identity == ckptdiff.identity(BASE)
    with pytest.raises(BaseMismatchError, match="was changed since"):
        placed.PlacedPatch(model, served, Distances(TO_SFT, None, 1), False).apply()
    model.layers_1_o_proj.data.view(torch.int16)[3, 3] ^= 1
    placed.PlacedPatch(model, served, Distances(TO_SFT, None, 1), False).apply()
    assert model.content() == Plain(SFT, rank, ranks).content()


def test_a_staged_patch_starts_from_one_state_alone() -> None:
    model = Plain(BASE)
    update, served = staged(model)
    update.apply()
    with pytest.raises(BaseMismatchError, match="already") as caught:
        update.apply()
    assert caught.value.kind == "already_target"
    model.norm = torch.nn.Parameter(model.norm.clone(), requires_grad=False)
    with pytest.raises(BaseMismatchError, match=r"norm\.weight: has other memory"):
        placed.PlacedPatch(model, served, Distances(TO_SFT, None, 1), True).apply()
