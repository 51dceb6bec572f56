"""Composition (spec section 10.1): without the base the patch that ``make`` gives of base and target, byte for byte, or a refusal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptdiff
from ckptdiff.codecs import sparse
from ckptdiff.errors import BaseMismatchError, CheckpointError, FormatError, IntegrityError, UnsupportedError
from tests.support.checkpoints import TensorData, bf16, perturb, random_tensor, tensor
from tests.support.composed import chain, check_composed, direct, kinds, moved
from tests.support.strategies import DTYPE_NAMES, SEEDS, quick
from tests.support.strategies import units as hard_units


@st.composite
def states(draw: Callable[[Any], Any]) -> list[dict[str, TensorData]]:
    """States of tensors of any dtype, of which each has some units from the one before, and the last perhaps from the first."""
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True))
    found: list[dict[str, TensorData]] = [{} for _ in range(draw(st.integers(2, 5)))]
    for name in names:
        dtype = draw(DTYPE_NAMES)
        width = {"C64": 8, "F4": 1, "F6_E2M3": 1, "F6_E3M2": 1}.get(dtype) or len(random_tensor(np.random.default_rng(0), dtype, (1,))[2])
        count = 8 * draw(st.sampled_from([0, 1, 3, 40]))
        shape = {"F4": (2 * count,), "F6_E2M3": (4 * count // 3,), "F6_E3M2": (4 * count // 3,)}.get(dtype, (count,))
        count = count if not dtype.startswith("F6_") else 3 * (count // 3)
        shape = (4 * count // 3,) if dtype.startswith("F6_") else shape
        size = count * width
        values = draw(hard_units(1, size)) if size else np.zeros(0, np.uint8)
        first = values
        for k, state in enumerate(found):
            if k and size:
                rng, kept = np.random.default_rng(draw(SEEDS)), draw(st.sampled_from([0, 0.5, 0.95, 1, 1]))
                other = first if draw(st.booleans()) else draw(hard_units(1, size))
                values = np.where(rng.random(size) < kept, values, other).astype(np.uint8)
            state[name] = tensor(dtype, shape, values.tobytes())
    return found


@quick(40)
@given(states=states())
def test_it_is_the_direct_patch_for_every_dtype(states: list[dict[str, TensorData]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files, patches = chain(Path(folder), states)
        composed = check_composed(files, patches, Path(folder, "composed.safetensors"))
        expected = direct(files, Path(folder, "direct.safetensors"))
        assert composed.read_bytes() == expected.read_bytes()
        through = ckptdiff.compose(patches, files[0], output=Path(folder, "through"), codec="sparse", threads=1)
        assert through.patch.read_bytes() == expected.read_bytes()
        opened = [ckptdiff.Patch.open(patch) for patch in patches]
        assert ckptdiff.compose(opened, threads=1).to_bytes() == expected.read_bytes()


def bf16_states(count: int, seed: int = 0, size: int = 3000) -> list[dict[str, TensorData]]:
    rng = np.random.default_rng(seed)
    found = [{name: bf16(rng.normal(0, 0.02, (size // 50, 50))) for name in ("a", "b", "c")}]
    for k in range(count):
        found.append({name: data if name == "c" and k % 3 else moved(rng, data, 40) for name, data in found[-1].items()})
    return found


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads(tmp_path: Path, threads: int) -> None:
    """A tensor of two blocks, one that changes once, and one that comes back to what it was."""
    rng = np.random.default_rng(1)
    long, once, back = (random_tensor(rng, "BF16", (n,)) for n in (1_200_000, 100, 100))
    found = [{"long": long, "once": once, "back": back}]
    for k in range(3):
        long = perturb(rng, long, 0.01)
        once = perturb(rng, once, 0.1) if k == 1 else once
        found.append({"long": long, "once": once, "back": perturb(rng, back, 0.1) if k < 2 else back})
    files, patches = chain(tmp_path, found)
    ckptdiff.compose(patches, output=tmp_path / "composed", threads=threads)
    assert (tmp_path / "composed").read_bytes() == direct(files, tmp_path / "direct").read_bytes()
    assert kinds(tmp_path / "composed") == {"long": ("delta", "sparse"), "once": ("delta", "sparse"), "back": ("same", None)}


def test_what_one_patch_changed_keeps_its_payload(tmp_path: Path) -> None:
    """Whatever its codec is; what none changed is unchanged."""
    rng = np.random.default_rng(2)
    first = {name: bf16(rng.normal(0, 0.02, (64, 64))) for name in ("context", "raw", "sparse", "none")}
    found, codecs = [first], ["context", "raw", "sparse"]
    for name in codecs:
        found.append({**found[-1], name: moved(rng, first[name], 100)})
    files, patches = chain(tmp_path, found)
    for k, codec in enumerate(codecs):
        ckptdiff.make(files[k], files[k + 1], patches[k], codec=codec, overwrite=True)
    composed = check_composed(files, patches, tmp_path / "composed")
    assert kinds(composed) == {**{name: ("delta", name) for name in codecs}, "none": ("same", None)}


def test_new_tensors_are_known(tmp_path: Path) -> None:
    """One appears, and then is changed by each codec; one appears and goes; one that the base has goes."""
    rng = np.random.default_rng(3)
    a, new, gone = (bf16(rng.normal(0, 0.02, (64, 50))) for _ in range(3))
    found = [{"a": a, "gone": gone}, {"a": a, "gone": gone, "new": new}]
    for _ in range(2):
        new = moved(rng, new, 50)
        found.append({"a": a, "new": new, "once": gone})
    found.append({"a": a, "new": moved(rng, new, 50)})
    files, patches = chain(tmp_path, found)
    ckptdiff.make(files[2], files[3], patches[2], codec="context", overwrite=True)
    composed = check_composed(files, patches, tmp_path / "composed")
    assert composed.read_bytes() == direct(files, tmp_path / "direct").read_bytes()
    assert kinds(composed) == {"a": ("same", None), "new": ("new", "raw")}
    assert ckptdiff.info(composed).totals.removed == 1


def test_a_replacement_wins(tmp_path: Path) -> None:
    """What ``raw`` has whole between other changes is stored whole: how many units it changes only the base tells."""
    found = bf16_states(3)
    files, patches = chain(tmp_path, found)
    ckptdiff.make(files[1], files[2], patches[1], codec="raw", overwrite=True)
    ckptdiff.make(files[0], files[1], patches[0], codec="context", overwrite=True)
    composed = check_composed(files, patches, tmp_path / "composed")
    assert kinds(composed) == {"a": ("new", "raw"), "b": ("new", "raw"), "c": ("delta", "context")}
    through = check_composed(files, patches, tmp_path / "through", base=files[0], codec="sparse")
    assert through.read_bytes() == direct(files, tmp_path / "direct").read_bytes()


def test_the_first_patch_may_do_anything(tmp_path: Path) -> None:
    """Casts, pieces, renames and lengths of the first patch stay; ulp distances of later ones are added."""
    rng = np.random.default_rng(4)
    wide = tensor("F32", (600,), rng.normal(0, 1, 600).astype("<f4"))
    q, k, old = (bf16(rng.normal(0, 0.02, (64, 50))) for _ in range(3))
    cast = tensor("BF16", (600,), (np.frombuffer(wide[2], "<u4") >> 16).astype("<u2"))
    fused = tensor("BF16", (128, 50), q[2] + k[2])
    longer = tensor("BF16", (70, 50), old[2] + rng.bytes(600))
    found = [
        {"w": wide, "q": q, "k": k, "table": old, "old.name": old},
        {"w": moved(rng, cast, 9), "qk": moved(rng, fused, 9), "table": longer, "new.name": old},
    ]
    for _ in range(2):
        found.append({name: moved(rng, data, 30) for name, data in found[-1].items()})
    files, patches = chain(tmp_path, found)
    composed = check_composed(files, patches, tmp_path / "composed")
    assert {kind for kind, _ in kinds(composed).values()} == {"delta"}


@pytest.mark.parametrize("shared", [True, False])
def test_copies_with_one_content_in_the_base(tmp_path: Path, shared: bool) -> None:
    """Norms that begin alike and meet again: the second is coded as a copy in between, and can be told from the first."""
    rng = np.random.default_rng(5)
    ones = bf16(np.ones(200))
    first = {"a": ones, "b": ones if shared else bf16(np.full(200, 2.0))}
    a, b = moved(rng, ones, 9), moved(rng, ones, 12)
    found = [first, {"a": a, "b": b}, {"a": moved(rng, a, 3), "b": moved(rng, a, 3)}, {"a": b, "b": b}, {"a": moved(rng, b, 3), "b": b}]
    files, patches = chain(tmp_path, found)
    assert ("copy", None) in kinds(patches[2]).values()
    if shared:
        composed = check_composed(files, patches, tmp_path / "composed")
        assert composed.read_bytes() == direct(files, tmp_path / "direct").read_bytes()
    else:
        with pytest.raises(UnsupportedError, match=r"tensor b: was a in the first patch, .*: only the base can tell what it becomes"):
            ckptdiff.compose(patches, output=tmp_path / "composed")


def test_a_copy_of_what_was_another_needs_the_base(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    a, b = (bf16(rng.normal(0, 0.02, (40, 50))) for _ in range(2))
    new = moved(rng, a, 30)
    refused(tmp_path, [{"a": a, "b": b}, {"a": new, "b": new}, {"a": new, "b": moved(rng, new, 9)}], "tensor b: is a copy of a" + WAY_ON)


def test_tied_copies_stay_copies(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    data = [bf16(rng.normal(0, 0.02, (40, 50)))]
    for _ in range(3):
        data.append(moved(rng, data[-1], 30))
    files, patches = chain(tmp_path, [{"head": w, "table": w} for w in data])
    composed = check_composed(files, patches, tmp_path / "composed")
    assert kinds(composed) == {"head": ("delta", "sparse"), "table": ("copy", None)}
    assert composed.read_bytes() == direct(files, tmp_path / "direct").read_bytes()


# --- refusals ---


def refused(tmp_path: Path, found: list[dict[str, TensorData]], text: str, codec: str = "sparse") -> None:
    """Composing is refused by name without the base, and gives the direct patch with it."""
    files, patches = chain(tmp_path, found, codec)
    with pytest.raises(UnsupportedError, match=text):
        ckptdiff.compose(patches, output=tmp_path / "composed")
    assert not (tmp_path / "composed").exists()
    for way in (None, "sparse", "context"):
        composed = check_composed(files, patches, tmp_path / f"through-{way}", base=files[0], codec=way)
        assert composed.read_bytes() == direct(files, tmp_path / f"direct-{way}", way).read_bytes()


WAY_ON = r": only the base can tell what it becomes: give the base \(--base\), or make the patches with --codec sparse$"


def test_context_needs_the_base(tmp_path: Path) -> None:
    refused(
        tmp_path,
        bf16_states(3),
        r"patch-0.safetensors: tensor a: is coded by context, and is changed by other patches too" + WAY_ON,
        "context",
    )


def test_later_casts_need_the_base(tmp_path: Path) -> None:
    a = bf16([0.5, 0.25, 3.0] * 40)
    wide = tensor("F32", (120,), (np.frombuffer(a[2], "<u2").astype("<u4") << 16) + 1)
    refused(
        tmp_path,
        [{"a": a}, {"a": moved(np.random.default_rng(0), a, 5)}, {"a": wide}],
        "patch-1.safetensors: tensor a: is cast from BF16" + WAY_ON,
    )


def test_later_lengths_need_the_base(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = bf16(rng.normal(0, 0.02, (60, 50)))
    longer = tensor("BF16", (62, 50), a[2] + rng.bytes(200))
    refused(tmp_path, [{"a": a}, {"a": moved(rng, a, 5)}, {"a": longer}], "tensor a: has 3,100 units, of which its base has 3,000" + WAY_ON)


def test_later_pieces_need_the_base(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, k = (bf16(rng.normal(0, 0.02, (60, 50))) for _ in range(2))
    both = tensor("BF16", (120, 50), q[2] + k[2])
    refused(tmp_path, [{"q": q, "k": k}, {"q": moved(rng, q, 3), "k": k}, {"qk": both}], "tensor qk: is put together from pieces" + WAY_ON)


def test_later_names_need_the_base(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = (bf16(rng.normal(0, 0.02, (60, 50))) for _ in range(2))
    refused(
        tmp_path,
        [{"a": a, "b": b}, {"a": moved(rng, a, 3), "b": b}, {"x": moved(rng, a, 3), "b": b}],
        "tensor x: was a in the first patch, which does not say how long the base's tensor is" + WAY_ON,
    )


def test_a_tensor_that_may_be_in_the_base_and_is_gone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = (bf16(rng.normal(0, 0.02, (60, 50))) for _ in range(2))
    refused(
        tmp_path, [{"a": a}, {"a": a, "b": b}, {"a": moved(rng, a, 3)}], r"patch-0.safetensors: tensor b: does not come from .* \(--base\)$"
    )


def test_what_does_not_follow(tmp_path: Path) -> None:
    files, patches = chain(tmp_path, bf16_states(3))
    for chosen, text in (
        ([patches[0], patches[2]], "put the patches in the order in which they were made, none left out"),
        ([patches[1], patches[0]], "put the patches in the order"),
        ([patches[0], patches[0]], "is listed twice in a row"),
    ):
        for base in (None, files[0]):
            with pytest.raises(BaseMismatchError, match=text):
                ckptdiff.compose(chosen, base, output=tmp_path / "composed")
    with pytest.raises(BaseMismatchError, match="is not the base of"):
        ckptdiff.compose(patches, files[1], output=tmp_path / "composed")
    with pytest.raises(FormatError, match="a chain has 1 to 4,096 patches, found 0"):
        ckptdiff.compose([], output=tmp_path / "composed")
    with pytest.raises(FormatError, match="a chain has 1 to 4,096 patches, found 4,097"):
        ckptdiff.compose([patches[0]] * 4097, output=tmp_path / "composed")
    with pytest.raises(CheckpointError, match="expected sparse, the only one that needs no base"):
        ckptdiff.compose(patches, output=tmp_path / "composed", codec="context")
    with pytest.raises(CheckpointError, match="takes patches in memory and gives one, or paths"):
        ckptdiff.compose([patches[0], ckptdiff.Patch.open(patches[1])], output=tmp_path / "composed")  # type: ignore[list-item]
    assert not (tmp_path / "composed").exists()


def test_patches_that_contradict_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that leave a tensor as it was, although the digests differ; and a payload that was changed after it was checked."""
    rng = np.random.default_rng(0)
    a = bf16(rng.normal(0, 0.02, (60, 50)))
    patches = chain(tmp_path, [{"a": a}, {"a": moved(rng, a, 3)}, {"a": moved(rng, a, 4)}])[1]
    monkeypatch.setattr("ckptdiff.kernels.sums.changes_of_sums", lambda sums, dtype: (np.empty(0, np.int32), np.empty(0, "<u2")))
    with pytest.raises(IntegrityError, match="tensor a: its changes sum to 0 units that differ from the base, whose digest is"):
        ckptdiff.compose(patches, output=tmp_path / "composed")
    monkeypatch.undo()
    data = bytearray(patches[0].read_bytes())
    data[-1] ^= 1
    patches[0].write_bytes(data)
    with pytest.raises(IntegrityError, match="its payload has the digest"):
        ckptdiff.compose(patches, output=tmp_path / "composed")


def test_a_content_that_is_not_the_one_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tensor whose content is known the digest is compared; so is how many units each patch changes."""
    rng = np.random.default_rng(0)
    new = [bf16(rng.normal(0, 0.02, (60, 50)))]
    for _ in range(2):
        new.append(moved(rng, new[-1], 9))
    _, patches = chain(tmp_path, [{"a": bf16([1.0])}, *({"a": bf16([1.0]), "new": data} for data in new)])
    monkeypatch.setattr("ckptdiff.kernels.moves.move_and_hash", lambda *given: None)
    with pytest.raises(IntegrityError, match=r"patch-2.safetensors: tensor new: built with the digest [0-9a-f]{32}, expected"):
        ckptdiff.compose(patches, output=tmp_path / "composed")
    monkeypatch.undo()
    unpack = sparse.unpack

    def short(*given: Any) -> Any:
        positions, zigzags = unpack(*given)
        return positions[1:], zigzags[1:]

    monkeypatch.setattr(sparse, "unpack", short)
    with pytest.raises(FormatError, match=r"patch-1.safetensors: tensor new: its blocks change \d units, expected \d$"):
        ckptdiff.compose(patches, output=tmp_path / "composed")
