"""Folders of torch.distributed.checkpoint, written by FSDP2 on two processes, as bases and targets; and hostile ones."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff.checkpoint.dcp_metadata import METADATA_NAME
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.io import unit_log
from ckptdiff.io.ray_pool import open_pool
from tests.support.checkpoints import tree
from tests.support.killed_calls import killed_at
from tests.support.process_pool import process_pool

dcp = pytest.importorskip("torch.distributed.checkpoint")
torch = pytest.importorskip("torch")
library = pytest.importorskip("safetensors.torch")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a model under FSDP2, each as a DCP folder and as the file that torch gathers of it."""
    folder = tmp_path_factory.mktemp("dcp") / "written"
    subprocess.run([sys.executable, "-m", "tests.support.dcp_writer", str(folder)], cwd=ROOT, check=True, capture_output=True, timeout=300)
    return folder


def in_pieces(path: Path, size: int) -> bytes:
    """The weight file of a checkpoint, read so many bytes at once."""
    with open_checkpoint(path) as checkpoint:
        file = checkpoint.weights[0].file
        out = np.empty(file.size, np.uint8)
        for start in range(0, len(out), size):
            file.readinto(start, out[start : start + size])
        return out.tobytes()


@pytest.mark.parametrize("size", [1 << 20, 777, 64, 5])
def test_a_folder_reads_as_the_file_that_torch_gathers(written: Path, size: int) -> None:
    """Rows, columns and inner dimensions in unequal parts, tensors saved transposed, scalars, empty ones, fp8: at any cut."""
    assert in_pieces(written / "after" / "dcp", size) == (written / "after" / "gathered.safetensors").read_bytes()


def test_a_target_comes_back_as_one_safetensors_file(written: Path, tmp_path: Path) -> None:
    target, gathered = written / "after" / "dcp", written / "after" / "gathered.safetensors"
    made = ckptdiff.make(written / "before" / "gathered.safetensors", target, tmp_path / "patch")
    assert made.left_out == () and "optim.state.0.weight.exp_avg" in made.left_out_tensors and "step" in made.left_out_tensors
    assert not made.paired and made.totals.new == 0
    applied = ckptdiff.apply(written / "before" / "gathered.safetensors", tmp_path / "patch", tmp_path / "out")
    assert applied.files == ("model.safetensors",)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == gathered.read_bytes()
    assert ckptdiff.verify(tmp_path / "patch", base=written / "before" / "dcp", target=target).ok
    other = ckptdiff.verify(tmp_path / "patch", target=written / "before" / "dcp")
    assert [problem.kind for problem in other.problems] == ["integrity"] and "read as one safetensors file" in other.problems[0].message
    again = ckptdiff.apply(written / "before" / "dcp", tmp_path / "patch", tmp_path / "again")
    assert again.size == applied.size and (tmp_path / "again" / "model.safetensors").read_bytes() == gathered.read_bytes()
    assert ckptdiff.compare(tmp_path / "out", target).same_files
    assert ckptdiff.report(written / "before" / "dcp", target).to_bytes()


def test_a_base_stands_for_a_checkpoint_of_other_names(written: Path, tmp_path: Path) -> None:
    """What transformers would save has no prefix, shards and a config; the base is the trainer's folder."""
    tensors = {
        name.removeprefix("model."): tensor for name, tensor in library.load_file(written / "after" / "gathered.safetensors").items()
    }
    names, target = sorted(tensors), tmp_path / "target"
    target.mkdir()
    for k in range(2):
        library.save_file(
            {name: tensors[name] for name in names[k::2]}, target / f"model-{k + 1:05d}-of-00002.safetensors", {"format": "pt"}
        )
    (target / "config.json").write_text("{}")
    made = ckptdiff.make(written / "before" / "dcp", target, tmp_path / "patch")
    assert made.paired and 100 * made.whole.nbytes < made.target_size
    ckptdiff.apply(written / "before" / "dcp", tmp_path / "patch", tmp_path / "out")
    for file in target.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert ckptdiff.plan_make(written / "before" / "dcp", target, tmp_path / "planned").pairs.sampled
    plan = ckptdiff.plan_make(written / "before" / "dcp", target, tmp_path / "planned", rename=["^=model."])
    assert not plan.pairs.sampled and plan.pairs.by_means == {"rename": 20}  # but for the tensor without elements
    assert plan.weight_files == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_workers_read_the_folders_for_themselves(written: Path, tmp_path: Path) -> None:
    """With --ray: as base, as target and as what is verified; in processes that tell whether they see the same files."""
    before, after = written / "before" / "dcp", written / "after" / "dcp"
    ckptdiff.make(before, after, tmp_path / "patch")
    with process_pool(2) as pool:
        ckptdiff.make(before, after, tmp_path / "again", ray="local")
        assert tree(tmp_path / "again") == tree(tmp_path / "patch") and pool.submitted > 2
        ckptdiff.apply(before, tmp_path / "patch", tmp_path / "out", ray="local")
        assert (tmp_path / "out" / "model.safetensors").read_bytes() == (written / "after" / "gathered.safetensors").read_bytes()
        assert ckptdiff.verify(tmp_path / "patch", base=before, target=after, ray="local").ok
        assert ckptdiff.report(before, after, ray="local") == ckptdiff.report(before, after)
        assert not ckptdiff.verify(tmp_path / "patch", base=after, target=before, ray="local").ok


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_workers_of_ray_read_the_folders(written: Path, tmp_path: Path) -> None:
    before, after = written / "before" / "dcp", written / "after" / "dcp"
    ckptdiff.make(before, after, tmp_path / "patch")
    with open_pool("local", 2):
        ckptdiff.make(before, after, tmp_path / "again", ray="auto")
        ckptdiff.apply(before, tmp_path / "patch", tmp_path / "out", ray="auto")
        assert ckptdiff.verify(tmp_path / "patch", base=before, target=after, ray="auto").ok
    assert tree(tmp_path / "again") == tree(tmp_path / "patch")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (written / "after" / "gathered.safetensors").read_bytes()


def test_a_killed_run_goes_on_unless_a_file_of_the_folder_changed(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_log, "UNIT_BYTES", 4000)
    base = Path(shutil.copytree(written / "before" / "dcp", tmp_path / "base"))
    (tmp_path / "x").mkdir()

    def made() -> list[str]:
        notes = list[str]()
        ckptdiff.make(base, written / "after" / "dcp", tmp_path / "x" / "out", threads=1, noted=notes.append)
        shutil.rmtree(tmp_path / "x" / "out")
        return notes

    def killed() -> None:
        assert killed_at(12, "fsync", made)

    killed()
    assert "going on after the " in made()[0]
    killed()
    os.utime(base / "__0_0.distcp", ns=(1, 1))
    assert made() == ["unfinished work of an earlier run was removed, as it is of another base: starting over"]


# --- what nobody should have written ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A DCP folder of one tensor in two chunks, and a scalar."""
    state = {"a": torch.arange(24, dtype=torch.float32).reshape(6, 4), "b": torch.tensor(1.5)}
    with pytest.warns(UserWarning):
        dcp.save(state, checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    return tmp_path / "dcp"


def rewritten(folder: Path, change: Callable[[Any], None]) -> None:
    """Change the metadata, as torch reads and writes it."""
    path = folder / METADATA_NAME
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def place(metadata: Any, **members: Any) -> None:
    """Say another place of the tensor ``a``."""
    index = next(index for index in metadata.storage_data if index.fqn == "a")
    metadata.storage_data[index] = replace(metadata.storage_data[index], **members)


def chunks(*boxes: tuple[tuple[int, int], tuple[int, int]]) -> Callable[[Any], None]:
    """Say other chunks of the tensor ``a``, all of which lie where its only one does."""

    def change(metadata: Any) -> None:
        row, places = metadata.state_dict_metadata["a"], metadata.storage_data
        index = next(index for index in places if index.fqn == "a")
        row.chunks = [replace(row.chunks[0], offsets=torch.Size(first), sizes=torch.Size(sizes)) for first, sizes in boxes]
        places.update({replace_index(index, first): places[index] for first, _ in boxes})

    return change


def replace_index(index: Any, offset: tuple[int, int]) -> Any:
    return type(index)(index.fqn, offset)


class Foreign:
    """Would run a command where a pickle is trusted."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "gap": (chunks(((0, 0), (5, 4))), "do not cover the shape"),
    "overlap": (chunks(((0, 0), (4, 4)), ((2, 0), (2, 4))), "overlaps another one"),
    "outside": (chunks(((1, 0), (6, 4))), "lies outside of the shape"),
    "huge": (lambda m: setattr(m.state_dict_metadata["a"], "size", torch.Size([1 << 39, 1 << 39])), "lies outside of|do not cover"),
    "beyond the file": (lambda m: place(m, length=1 << 30), "truncated"),
    "item too long": (lambda m: place(m, offset=0, length=1), "has 1 bytes for a chunk of 96"),
    "another item": (lambda m: place(m, offset=3), "not a tensor as torch.save writes it"),
    "another folder": (lambda m: place(m, relative_path="../x.distcp"), "lies in a file whose path"),
    "no such file": (lambda m: place(m, relative_path="gone.distcp"), "cannot be opened"),
    "transformed": (lambda m: place(m, transform_descriptors=["zstd"]), "an extension of DCP"),
    "no place": (lambda m: m.storage_data.clear(), "nothing says where its chunk"),
    "no tensors": (lambda m: m.state_dict_metadata.clear(), "no tensors of a model"),
    "never finished": (lambda m: setattr(m, "storage_data", None), "written to the end"),
    "foreign": (lambda m: setattr(m, "planner_data", Foreign()), "names posix.system, which is no part of"),
    "odd dtype": (lambda m: setattr(m.state_dict_metadata["a"].properties, "dtype", torch.complex128), "complex128"),
    "odd name": (lambda m: m.state_dict_metadata.update({5: m.state_dict_metadata["a"]}), "expected a name"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metadata_is_refused_by_name(case: str, folder: Path) -> None:
    change, message = HOSTILE[case]
    rewritten(folder, change)
    with pytest.raises(ckptdiff.CheckpointError, match=message) as caught:
        in_pieces(folder, 1 << 20)
    assert str(folder) in str(caught.value)


def test_broken_pickles_are_errors_of_the_checkpoint(folder: Path) -> None:
    """Cut anywhere, flipped anywhere, or one that asks for a memo of 32 GB."""
    path = folder / METADATA_NAME
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    broken = [data[:k] for k in rng.integers(0, len(data), 60)] + [b"\x80\x04}r\xff\xff\xff\xff."]
    for at, bit in zip(rng.integers(0, len(data), 200), rng.integers(0, 8, 200), strict=True):
        broken.append(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
    for raw in broken:
        path.write_bytes(raw)
        try:
            assert len(in_pieces(folder, 1 << 20)) > 100  # a flip that says nothing else
        except ckptdiff.CheckpointError as error:
            assert str(folder) in str(error)


def test_no_pickle_leaves_anything_behind(folder: Path) -> None:
    """A pickle that sets attributes of a class, instead of an object of it, spoils only its own reading."""
    data = (folder / METADATA_NAME).read_bytes()
    spoilt = b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n(N}X\x05\x00\x00\x00stateX\x01\x00\x00\x00xst\x62."
    (folder / METADATA_NAME).write_bytes(spoilt)
    with pytest.raises(ckptdiff.CheckpointError, match=r"\.metadata: "):
        in_pieces(folder, 100)
    (folder / METADATA_NAME).write_bytes(data)
    assert in_pieces(folder, 100)
    assert pickle.loads(data).storage_data


def test_items_that_are_no_plain_tensors_are_refused(folder: Path) -> None:
    """Compressed archives, and those whose pickle names something else."""

    def with_archive(compression: int, rename: bytes) -> None:
        metadata = pickle.loads((folder / METADATA_NAME).read_bytes())
        index = next(index for index in metadata.storage_data if index.fqn == "a")
        info = metadata.storage_data[index]
        data = (folder / info.relative_path).read_bytes()[info.offset : info.offset + info.length]
        old, new = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
        with zipfile.ZipFile(new, "w", compression) as archive:
            for name in old.namelist():
                archive.writestr(name, old.read(name).replace(b"torch._utils", rename))
        (folder / "new.distcp").write_bytes(new.getvalue())
        rewritten(folder, lambda m: place(m, relative_path="new.distcp", offset=0, length=len(new.getvalue())))

    data = {path.name: path.read_bytes() for path in folder.iterdir()}
    for compression, rename, message in (
        (zipfile.ZIP_DEFLATED, b"torch._utils", "has [0-9]+ bytes for a chunk|compressed"),
        (zipfile.ZIP_STORED, b"torch._other", "names torch._other._rebuild_tensor_v2"),
    ):
        for name, content in data.items():
            (folder / name).write_bytes(content)
        with_archive(compression, rename)
        with pytest.raises(ckptdiff.CheckpointError, match=message):
            in_pieces(folder, 1 << 20)


def test_a_folder_above_names_the_one_to_give(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "pytorch_model_fsdp_0")
    with pytest.raises(ckptdiff.CheckpointError, match=r"wrote pytorch_model_fsdp_0: give .*/run/pytorch_model_fsdp_0$"):
        in_pieces(tmp_path / "run", 1)


def test_a_folder_that_changes_meanwhile_is_an_error(folder: Path, tmp_path: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        shutil.copy(folder / "__0_0.distcp", tmp_path / "copy")
        os.utime(folder / "__0_0.distcp", ns=(1, 1))
        checkpoint.weights[0].file.close()
        with pytest.raises(ckptdiff.CheckpointError, match="was changed by another program"):
            checkpoint.check_unchanged()
