"""What make and apply refuse: with which words, and with nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.format.index import Index, OtherFile
from ckptdiff.format.metadata import Metadata
from ckptdiff.format.safetensors import header_json
from ckptdiff.format.table import Totals
from ckptdiff.patching import output
from ckptdiff.patching.patch import open_patch
from ckptdiff.patching.rebuild import check_chain
from tests.conftest import Pair, tensors
from tests.support.checkpoints import bf16, perturb, tensor, tree, write, write_sharded


def reseal(patch: Path, change: Callable[[OtherFile], OtherFile]) -> None:
    """Change the entries of other files in a patch folder's index, and make its digest right again."""
    path = patch / "ckptdiff.json"
    index = Index.from_bytes(path.read_bytes(), "index")
    path.write_bytes(replace(index, files=tuple(map(change, index.files))).to_bytes())


@contextmanager
def refused(error: type[ckptdiff.CkptdiffError], text: str, folder: Path, kind: str | None = None) -> Iterator[None]:
    """Expect an error whose message holds ``text``, and a folder that is as it was."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(error) as info:
        yield
    assert text in str(info.value), str(info.value)
    assert kind is None or info.value.kind == kind
    assert "\n" not in str(info.value)
    assert sorted(folder.rglob("*")) == before


# --- the wrong base ---


def test_wrong_base_names_the_first_tensor_and_the_base_it_wants(files: Pair, tmp_path: Path) -> None:
    base, _ = tensors()
    rng = np.random.default_rng(9)
    other = write(tmp_path / "other.safetensors", {n: perturb(rng, t, 0.5) if n != "a.weight" else t for n, t in base.items()})
    sha256 = tree(files.base)["."]
    wanted = f'It wants "base.safetensors" with the SHA-256 {sha256}'
    with refused(ckptdiff.BaseMismatchError, "its tensor b.weight has the digest", tmp_path, "wrong_base"):
        ckptdiff.apply(other, files.patch, tmp_path / "out.safetensors")
    with refused(ckptdiff.BaseMismatchError, wanted, tmp_path):
        ckptdiff.apply(other, files.patch, tmp_path / "out.safetensors")


def test_wrong_base_names_the_hub_repo_if_the_patch_knows_it(files: Pair, tmp_path: Path) -> None:
    from ckptdiff.patching.rebuild import wanted_base

    with open_patch(files.patch) as patch:
        patch.files[0].metadata.info.update({"base_repo": "org/model", "base_revision": "abc123"})
        assert wanted_base(patch) == "It wants org/model@abc123"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: {n: v for n, v in t.items() if n != "b.weight"}, "it has no tensor b.weight"),
        (lambda t: {**t, "b.weight": bf16(np.zeros(30))}, "its tensor b.weight is BF16 [30], expected F32 [30]"),
        (lambda t: {**t, "a.weight": bf16(np.zeros((64, 40)))}, "its tensor a.weight is BF16 [64, 40], expected BF16 [40, 64]"),
    ],
)
def test_wrong_base_by_header(change: object, text: str, files: Pair, tmp_path: Path) -> None:
    assert callable(change)
    other = write(tmp_path / "other.safetensors", change(tensors()[0]))
    with refused(ckptdiff.BaseMismatchError, text, tmp_path, "wrong_base"):
        ckptdiff.apply(other, files.patch, tmp_path / "out.safetensors")


def test_a_patch_applied_twice(files: Pair, folders: Pair, tmp_path: Path) -> None:
    for pair in (files, folders):
        with refused(ckptdiff.BaseMismatchError, "is already the target of", tmp_path, "already_target"):
            ckptdiff.apply(pair.target, pair.patch, tmp_path / "out")


def test_a_base_that_is_partly_the_target_is_a_wrong_base(files: Pair, tmp_path: Path) -> None:
    base, target = tensors()
    mixed = write(tmp_path / "mixed.safetensors", {**base, "a.weight": target["a.weight"]})
    with refused(ckptdiff.BaseMismatchError, "its tensor a.weight has the digest", tmp_path, "wrong_base"):
        ckptdiff.apply(mixed, files.patch, tmp_path / "out.safetensors")


def test_a_base_with_another_config(folders: Pair, tmp_path: Path) -> None:
    (folders.base / "config.json").write_text("{}")
    with refused(ckptdiff.BaseMismatchError, "is not the file that the patch needs: its SHA-256 is", tmp_path, "wrong_base"):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")
    (folders.base / "config.json").unlink()
    with refused(ckptdiff.BaseMismatchError, "config.json: the base has no such file, which the patch needs", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")


def test_base_and_patch_the_wrong_way_round(files: Pair, folders: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.FormatError, "are base and patch the wrong way round?", tmp_path):
        ckptdiff.apply(files.patch, files.base, tmp_path / "out.safetensors")
    with refused(ckptdiff.FormatError, "not a ckptdiff patch, but a plain safetensors file; are base and patch the wrong way", tmp_path):
        ckptdiff.apply(folders.patch, folders.base, tmp_path / "out")
    swapped = "not a ckptdiff patch: it has no ckptdiff.json; are base and patch the wrong way round?"
    with refused(ckptdiff.FormatError, swapped, tmp_path):
        ckptdiff.apply(folders.patch, folders.target, tmp_path / "out")
    with refused(ckptdiff.CheckpointError, "is a ckptdiff patch, not a checkpoint; rebuild that with: ckptdiff apply", tmp_path):
        ckptdiff.make(folders.patch, folders.target, tmp_path / "out")


# --- chains ---


def test_a_chain_out_of_order_and_with_a_gap(files: Pair, tmp_path: Path) -> None:
    paths, rng = [files.target], np.random.default_rng(5)
    state = tensors()[1]
    for k in range(2):
        state = {name: perturb(rng, value, 0.01) for name, value in state.items()}
        paths.append(write(tmp_path / f"step{k}.safetensors", state, {"format": "pt"}))
        ckptdiff.make(paths[-2], paths[-1], tmp_path / f"patch{k}.safetensors")
    one, two, three = files.patch, tmp_path / "patch0.safetensors", tmp_path / "patch1.safetensors"
    ckptdiff.apply(files.base, [one, two, three], tmp_path / "ok.safetensors")
    assert tree(tmp_path / "ok.safetensors") == tree(paths[-1])
    for chain in ([one, three, two], [one, three], [two, one]):
        with refused(ckptdiff.BaseMismatchError, "put the patches in the order in which they were made, none left out", tmp_path):
            ckptdiff.apply(files.base, chain, tmp_path / "out.safetensors")
    with refused(ckptdiff.BaseMismatchError, "is not the base of", tmp_path, "wrong_base"):
        ckptdiff.apply(files.base, [two, three], tmp_path / "out.safetensors")


def test_a_chain_has_a_limit(files: Pair) -> None:
    with open_patch(files.patch) as patch, pytest.raises(ckptdiff.FormatError, match="1 to 64 patches, found 65"):
        check_chain([patch] * 65)
    with pytest.raises(ckptdiff.FormatError, match="1 to 64 patches, found 0"):
        check_chain([])


# --- broken patches ---


def test_truncated_patches(files: Pair, tmp_path: Path) -> None:
    whole = files.patch.read_bytes()
    for cut in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        files.patch.write_bytes(whole[:cut])
        with refused(ckptdiff.FormatError, "not a ckptdiff patch", tmp_path):
            ckptdiff.apply(files.base, files.patch, tmp_path / "out.safetensors")
    assert not ckptdiff.verify(files.patch).ok


def test_a_flipped_bit_in_a_payload_names_the_tensor(files: Pair, tmp_path: Path) -> None:
    whole = bytearray(files.patch.read_bytes())
    whole[-1] ^= 1
    files.patch.write_bytes(whole)
    with refused(ckptdiff.IntegrityError, "tensor b.weight: its payload has the digest", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "out.safetensors")


def test_parts_of_a_folder_are_missing_or_swapped(folders: Pair, tmp_path: Path) -> None:
    shard = folders.patch / "patch" / "model-00002-of-00002.safetensors"
    stored = folders.patch / "files" / "config.json.zst"
    saved = shard.read_bytes(), stored.read_bytes()
    shard.unlink()
    with refused(ckptdiff.FormatError, "model-00002-of-00002.safetensors: is missing: fetch the patch again", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")
    shutil.copy(folders.patch / "patch" / "model-00001-of-00002.safetensors", shard)
    with refused(ckptdiff.IntegrityError, "fetch the patch again", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")
    shard.write_bytes(saved[0])
    stored.write_bytes(b"x" * len(saved[1]))
    with refused(ckptdiff.IntegrityError, "config.json.zst: has the digest", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")


def test_file_names_that_escape(folders: Pair, tmp_path: Path) -> None:
    path = folders.patch / "ckptdiff.json"
    index = Index.from_bytes(path.read_bytes(), "index")
    for name in ("../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "C:evil"):
        value = json.loads(index.to_bytes())
        value["files"][0]["path"] = name
        from ckptdiff.format.metadata import _sealed

        del value["digest"]
        path.write_bytes(_sealed(value))
        with refused(ckptdiff.FormatError, "do not trust this patch", tmp_path):
            ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")


def test_a_newer_format_version(files: Pair) -> None:
    from ckptdiff.format.metadata import _sealed

    with open_patch(files.patch) as patch:
        value = json.loads(patch.files[0].metadata.to_bytes())
    value["version"] = 2
    with pytest.raises(ckptdiff.UnsupportedError, match="format version 2, this ckptdiff reads 1: upgrade ckptdiff"):
        Metadata.from_bytes(_sealed({k: v for k, v in value.items() if k != "digest"}), "patch")


def test_a_missing_patch(files: Pair, tmp_path: Path) -> None:
    for run in (lambda p: ckptdiff.apply(files.base, p, tmp_path / "out"), ckptdiff.verify, ckptdiff.info):
        with refused(ckptdiff.CheckpointError, "o such file", tmp_path):
            run(tmp_path / "nothing.safetensors")


# --- broken checkpoints ---


def test_truncated_and_flipped_bases(files: Pair, tmp_path: Path) -> None:
    whole = files.base.read_bytes()
    files.base.write_bytes(whole[:-1])
    with refused(ckptdiff.CheckpointError, "not a valid safetensors file: its tensors end at byte", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "out.safetensors")
    files.base.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with refused(ckptdiff.BaseMismatchError, "its tensor c has the digest", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "save_pretrained(..., safe_serialization=True)"),
        ("model.pt", "torch.load(weights_only=True)"),
        ("model.gguf", "gguf_file=NAME"),
        ("weights.distcp", "dcp_to_torch"),
    ],
)
def test_weights_that_are_not_safetensors(name: str, words: str, files: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / name).write_bytes(b"x")
    for path in (folder, folder / name):
        with refused(ckptdiff.CheckpointError, words, tmp_path):
            ckptdiff.make(files.base, path, tmp_path / "out")


def test_no_weights_at_all(files: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "notes.txt").write_bytes(b"x")
    with refused(ckptdiff.CheckpointError, "expected a .safetensors file or a folder that holds one, found none", tmp_path):
        ckptdiff.make(files.base, folder, tmp_path / "out")
    with refused(ckptdiff.CheckpointError, "notes.txt: not a valid safetensors file: it has 1 bytes, too few", tmp_path):
        ckptdiff.make(files.base, folder / "notes.txt", tmp_path / "out")


def test_a_hub_cache_repo_and_a_patch_are_no_checkpoints(files: Pair, folders: Pair, tmp_path: Path) -> None:
    (tmp_path / "models--org--name" / "snapshots" / "abc").mkdir(parents=True)
    (tmp_path / "models--org--name" / "blobs").mkdir()
    with refused(ckptdiff.CheckpointError, "is a repo of the Hub cache; give one of its snapshots: abc", tmp_path):
        ckptdiff.make(files.base, tmp_path / "models--org--name", tmp_path / "out")
    with refused(ckptdiff.CheckpointError, "is a ckptdiff patch, not a checkpoint", tmp_path):
        ckptdiff.make(files.patch, files.target, tmp_path / "out")


def test_patterns_that_match_nothing(files: Pair, folders: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.CheckpointError, "--rename '^transformer' matches no tensor of", tmp_path):
        ckptdiff.make(files.base, files.target, tmp_path / "out", rename=["^transformer=model"])
    for option in ("include", "exclude"):
        with refused(ckptdiff.CheckpointError, "the glob '*.onnx' matches no file of", tmp_path):
            ckptdiff.make(folders.base, folders.target, tmp_path / "out", **{option: ["*.onnx"]})


def test_missing_shards(tmp_path: Path) -> None:
    base, _ = tensors()
    shards = {f"model-0000{k}-of-00003.safetensors": {n: base[n]} for k, n in enumerate(base, 1)}
    folder = write_sharded(tmp_path / "sharded", shards)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with refused(ckptdiff.CheckpointError, "lists the shard model-00002-of-00003.safetensors, which is missing", tmp_path):
        ckptdiff.compare(folder, folder)
    (folder / "model.safetensors.index.json").unlink()
    with refused(ckptdiff.CheckpointError, "its sibling model-00002-of-00003.safetensors is missing", tmp_path):
        ckptdiff.compare(folder, folder)


def test_the_same_name_in_two_shards(tmp_path: Path) -> None:
    base, _ = tensors()
    folder = write_sharded(tmp_path / "m", {"model-00001-of-00002.safetensors": base, "model-00002-of-00002.safetensors": base}, None)
    before = len(os.listdir("/proc/self/fd"))
    with refused(ckptdiff.CheckpointError, "two files of one index must not share names: remove the stale shard", tmp_path):
        ckptdiff.compare(folder, folder)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "expected a JSON object with a weight_map"),
        ("[", "expected a JSON object with a weight_map"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "lists the shard ../x.safetensors, which is missing"),
    ],
)
def test_broken_indexes(text: str, words: str, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", {"model.safetensors": tensors()[0]}, None)
    (folder / "model.safetensors.index.json").write_text(text)
    with refused(ckptdiff.CheckpointError, words, tmp_path):
        ckptdiff.compare(folder, folder)


def test_an_index_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", {"model.safetensors": tensors()[0]}, None)
    (folder / "model.safetensors.index.json").symlink_to("/proc/self/mem")  # a regular file whose first bytes nobody can read
    with refused(ckptdiff.CheckpointError, "model.safetensors.index.json: cannot be read: Input/output error", tmp_path):
        ckptdiff.compare(folder, folder)


def test_names_that_no_file_system_takes(files: Pair, tmp_path: Path) -> None:
    name = tmp_path / ("x" * 300)
    for call in (
        lambda: ckptdiff.apply(files.base, name, tmp_path / "out"),
        lambda: ckptdiff.apply(name, files.patch, tmp_path / "out"),
        lambda: ckptdiff.verify(name),
        lambda: ckptdiff.verify(files.patch, base=name),
        lambda: ckptdiff.verify(files.patch, target=name),
        lambda: ckptdiff.info(name),
        lambda: ckptdiff.compare(name, name),
    ):
        with refused(ckptdiff.CheckpointError, "x" * 300, tmp_path):
            call()
    with refused(ckptdiff.OutputError, "File name too long", tmp_path):
        ckptdiff.make(files.base, files.target, name)


def test_a_stored_table_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    """The file is sparse: 300 MB that take no space."""
    size = 300_000_000
    metadata = Metadata(
        base_identity=bytes(16),
        base_scope=None,
        base_files=None,
        target_path="t.safetensors",
        target_size=8,
        target_sha256="0" * 64,
        target_identity=bytes(16),
        target_scope="t",
        table=bytes(16),
        header=bytes(16),
        totals=Totals(),
    )
    rows = [("ckptdiff/table", "U8", [size], size), ("ckptdiff/header/t.safetensors", "U8", [0], 0)]
    raw = header_json([("__metadata__", f'{{"ckptdiff":{json.dumps(metadata.to_bytes().decode())}}}')], rows)
    with open(tmp_path / "p.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + size)
    with refused(ckptdiff.FormatError, "ckptdiff/table has 300000000 bytes, expected at most 34078720", tmp_path):
        ckptdiff.info(tmp_path / "p.safetensors")


def test_a_delta_against_a_base_file_beyond_the_limit(folders: Pair, tmp_path: Path) -> None:
    """The index is resealed to name a sparse base file of 2^26 + 1 bytes."""
    with open(folders.base / "config.json", "wb") as file:
        file.truncate((1 << 26) + 1)
    sha256 = tree(folders.base / "config.json")["."]
    reseal(folders.patch, lambda file: replace(file, base_sha256=sha256) if file.kind == "delta" else file)
    with refused(ckptdiff.FormatError, "is coded against a base file of 67108865 bytes, more than 67108864", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")


def test_an_empty_chain(files: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.FormatError, "a chain has 1 to 64 patches, found 0", tmp_path):
        ckptdiff.apply(files.base, [], tmp_path / "out")


def test_odd_things_in_a_folder(files: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write(folder / "model.safetensors", tensors()[0])
    (folder / "link").symlink_to(tmp_path / "nowhere")
    with refused(ckptdiff.CheckpointError, "link: a link to a file that does not exist", tmp_path):
        ckptdiff.make(files.base, folder, tmp_path / "out")
    (folder / "link").unlink()
    os.mkfifo(folder / "pipe")
    with refused(ckptdiff.CheckpointError, "pipe: not a regular file", tmp_path):
        ckptdiff.make(files.base, folder, tmp_path / "out")
    (folder / "pipe").unlink()
    (folder / "a:b.txt").write_text("x")
    with refused(ckptdiff.CheckpointError, "holds a backslash, a colon or a control character: rename the file", tmp_path):
        ckptdiff.make(files.base, folder, tmp_path / "out")
    ckptdiff.make(files.base, folder, tmp_path / "out", exclude=["a:*"])


def test_a_checkpoint_that_changes_while_it_is_read(files: Pair, tmp_path: Path) -> None:
    def touch(what: str, done: int, total: int) -> None:
        os.utime(files.target, ns=(1, done))

    with refused(ckptdiff.CheckpointError, "was changed by another program while it was read", tmp_path):
        ckptdiff.make(files.base, files.target, tmp_path / "out.safetensors", progress=touch)


# --- the output ---


def test_an_output_that_exists(files: Pair, folders: Pair, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with refused(ckptdiff.OutputError, "out: exists; choose another output, or give --overwrite", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "out")
    with refused(ckptdiff.OutputError, "a folder cannot take its place", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"
    ckptdiff.apply(files.base, files.patch, tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") == tree(files.target)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.txt").write_text("mine")
    with refused(ckptdiff.OutputError, "is neither a checkpoint nor a patch, and --overwrite replaces nothing else", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "documents", overwrite=True)


def test_overwriting_a_folder(folders: Pair, tmp_path: Path) -> None:
    ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("edited")
    ckptdiff.apply(folders.base, folders.patch, tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") == tree(folders.target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "patch", "target"]


def test_what_overwrite_does_not_replace(files: Pair, folders: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, text in (("pipe", "is not a regular file, which --overwrite does not replace"), ("link", "is a link, which --overwrite")):
        with refused(ckptdiff.OutputError, text, tmp_path):
            ckptdiff.apply(files.base, files.patch, tmp_path / name, overwrite=True)
    (tmp_path / "projects" / "deep").mkdir(parents=True)
    write(tmp_path / "projects" / "deep" / "model.safetensors", tensors()[0])
    with refused(ckptdiff.OutputError, "is neither a checkpoint nor a patch", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "projects", overwrite=True)
    ckptdiff.apply(folders.base, folders.patch, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    with refused(ckptdiff.OutputError, "holds the current folder", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out", overwrite=True)


def test_an_output_that_comes_into_being_meanwhile_is_kept(files: Pair, folders: Pair, tmp_path: Path) -> None:
    def appear(what: str, done: int, total: int) -> None:
        if not (tmp_path / "late").exists():
            (tmp_path / "late").write_text("mine")

    for pair in (files, folders):
        with pytest.raises(ckptdiff.OutputError, match="late: "):
            ckptdiff.make(pair.base, pair.target, tmp_path / "late", progress=appear)
        assert (tmp_path / "late").read_text() == "mine"
        (tmp_path / "late").unlink()


def test_a_file_that_a_link_of_the_base_leads_to_is_an_input(files: Pair, folders: Pair, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    os.rename(folders.base / "model.safetensors", tmp_path / "store" / "weights.safetensors")
    (folders.base / "model.safetensors").symlink_to(tmp_path / "store" / "weights.safetensors")
    with refused(ckptdiff.OutputError, "the output is the input", tmp_path):
        ckptdiff.apply(folders.base, files.patch, tmp_path / "store" / "weights.safetensors", overwrite=True)
    with refused(ckptdiff.OutputError, "the output holds the input", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "store", overwrite=True)


def test_fifos_are_refused_and_not_waited_for(files: Pair, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with refused(ckptdiff.CheckpointError, "pipe: not a regular file", tmp_path):
        ckptdiff.info(tmp_path / "pipe")
    found = ckptdiff.verify(files.patch, target=tmp_path / "pipe")
    assert [problem.message for problem in found.problems] == [f"{tmp_path / 'pipe'}: not a regular file"]


def test_an_output_that_is_an_input(files: Pair, folders: Pair, tmp_path: Path) -> None:
    links = {"symlink": os.symlink, "hardlink": os.link}
    for name, link in links.items():
        link(files.base, tmp_path / name)
    (tmp_path / "sub").mkdir()
    for out in (files.base, tmp_path / "symlink", tmp_path / "hardlink", tmp_path / "sub" / ".." / "base.safetensors", files.patch):
        with refused(ckptdiff.OutputError, "the output is the input", tmp_path):
            ckptdiff.apply(files.base, files.patch, out, overwrite=True)
    with refused(ckptdiff.OutputError, "the output is the input", tmp_path):
        ckptdiff.make(files.base, files.target, files.target, overwrite=True)
    for out in (folders.base / "out", folders.patch / "out"):
        with refused(ckptdiff.OutputError, "the output lies in the input", tmp_path):
            ckptdiff.apply(folders.base, folders.patch, out)
    with refused(ckptdiff.OutputError, "the output holds the input", tmp_path):
        ckptdiff.apply(folders.base, folders.patch, tmp_path, overwrite=True)


def test_a_missing_parent_and_an_unwritable_one(files: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.OutputError, "no such folder; create it first", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "no" / "out.safetensors")
    with refused(ckptdiff.OutputError, "target.safetensors: no such folder; create it first", tmp_path):
        ckptdiff.apply(files.base, files.patch, files.target / "out.safetensors")


def test_too_little_space_is_seen_before_anything_is_written(files: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with refused(ckptdiff.OutputError, "bytes are needed, 100 are free; free some space, or write elsewhere", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "out.safetensors")


# --- arguments ---


def test_only_that_matches_nothing_or_two_scopes(files: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.OutputError, "--only matches none of the 3 tensors; ckptdiff info --tensors lists them", tmp_path):
        ckptdiff.apply(files.base, files.patch, tmp_path / "out.safetensors", only=["zzz*"])
    for side in ("b", "t"):
        for part in ("unet", "vae"):
            write(tmp_path / side / part / "model.safetensors", {"w": tensor("U8", (2,), b"ab")})
    ckptdiff.make(tmp_path / "b", tmp_path / "t", tmp_path / "p")
    with refused(ckptdiff.OutputError, "--only matches w of two scopes, unet/model and vae/model: narrow it", tmp_path):
        ckptdiff.apply(tmp_path / "b", tmp_path / "p", tmp_path / "out.safetensors", only=["w"])


@pytest.mark.parametrize("rule", ["nothing", "=x", "(=x", r"a=\9", "a{99999999999999}=x", "(" * 3000 + ")" * 3000 + "=x"])
def test_bad_rename_rules(rule: str, files: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.CheckpointError, "--rename", tmp_path):
        ckptdiff.make(files.base, files.target, tmp_path / "out.safetensors", rename=[rule])


def test_an_unknown_codec(files: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.CheckpointError, "unknown codec 'zip': expected one of raw, sparse, context", tmp_path):
        ckptdiff.make(files.base, files.target, tmp_path / "out.safetensors", codec="zip")
