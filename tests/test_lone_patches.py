"""One rule says what a patch is: a lone patch file on the Hub is one for every command, as a base too; cards say what was compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.manifest import Index, Metadata
from ckptdiff.patches import open_patch
from ckptdiff.patchfile import Spooled, write_patch_file
from ckptdiff.recognition import is_patch
from tests.checkpoints import perturb, tensor, tree, write
from tests.hub_server import Hub, running
from tests.test_hub import CARD, Client, files_of

pytest.importorskip("huggingface_hub")
CONFIG = b'{"model_type": "llama"}\n'


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A weight file and two steps of its training."""
    rng = np.random.default_rng(8)
    state = {name: tensor("BF16", (48, 64), rng.integers(0x3C00, 0x3E00, (48, 64)).astype("<u2")) for name in ("q.weight", "v.weight")}
    paths = []
    for step in range(3):
        paths.append(write(tmp_path / f"step{step}" / "model.safetensors", state, {"format": "pt"}))
        state = {name: perturb(rng, value, 0.05) for name, value in state.items()}
    return paths


def base_repo(hub: Hub, model: Path) -> None:
    hub.add("org/base", {"model.safetensors": model.read_bytes(), "config.json": CONFIG, "README.md": CARD})


def rewritten(patch: Path, out: Path, **changes: object) -> Path:
    """A patch file with other metadata, sealed anew; the payloads stay."""
    with open_patch(patch) as opened:
        file = opened.files[0]
        offsets = {entry.name: file.offsets[entry.name] for entry in file.table.entries if entry.has_payload}
        metadata: Metadata = replace(file.metadata, **changes)  # type: ignore[arg-type]
        with open(patch, "rb") as spool, open(out, "wb") as sink:
            write_patch_file(sink, metadata, Spooled(file.table, file.header.raw, file.report, spool, offsets))
    return out


# --- what a patch is ---


@pytest.mark.slow
def test_every_command_reads_a_lone_patch_on_the_hub(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    base_repo(hub, models[0])
    client.run("make", models[0], models[1], "-o", "lone.safetensors", "--base-repo", "org/base", "--codec", "sparse")
    shown = client.run("push", "lone.safetensors", "me/lone", "--dry-run").stdout
    assert "ckptdiff pull me/lone -o lone.safetensors" in shown and "SHA-256 of one weight file of its base" in shown
    client.run("push", "lone.safetensors", "me/lone")
    assert sorted(hub.tree("me/lone")) == [".gitattributes", "README.md", "patch/model.safetensors"]
    changed = json.loads(client.run("info", "me/lone", "--json").stdout)["totals"]["changed"]
    alone = json.loads(client.run("report", "me/lone", "--json").stdout)["totals"]
    assert alone["elements"] - alone["bit_identical"] == changed > 0
    both = json.loads(client.run("report", "org/base", "me/lone", "--rank", "none", "--json").stdout)["totals"]
    assert both["elements"] - both["bit_identical"] == changed
    assert json.loads(client.run("overlap", "me/lone", "--json").stdout)["base"] != ""
    assert json.loads(client.run("mask", "me/lone", "-o", "mask", "--json").stdout)["elements"] == changed
    client.run("verify", "me/lone", "--base", "org/base", "--target", models[1])
    client.run("pull", "me/lone", "-o", "out.safetensors")
    assert (tmp_path / "a" / "out.safetensors").read_bytes() == models[1].read_bytes()
    for arguments in (("make", "me/lone", models[2], "-o", "x"), ("compare", models[0], "me/lone")):
        assert "is a ckptdiff patch, not a checkpoint; rebuild that with: ckptdiff pull me/lone" in client.run(*arguments, code=3).stderr


@pytest.mark.slow
def test_a_lone_patch_is_a_base(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """``make --base-repo``, ``push`` and ``pull`` follow it as they follow a patch folder."""
    client = Client(hub, tmp_path / "a")
    base_repo(hub, models[0])
    client.run("make", models[0], models[1], "-o", "one.safetensors", "--base-repo", "org/base", "--codec", "sparse")
    client.run("push", "one.safetensors", "me/one")
    client.run("make", models[1], models[2], "-o", "two.safetensors", "--base-repo", "me/one", "--codec", "sparse")
    wrong = client.run("make", models[2], models[1], "-o", "x", "--base-repo", "me/one", code=3).stderr
    assert "is not what the patch in me/one@" in wrong
    client.run("push", "two.safetensors", "me/two", "--license", "mit")
    assert "that commit gives its base" in hub.tree("me/two")["README.md"].decode()
    done = json.loads(client.run("pull", "me/two", "-o", "out.safetensors", "--json").stdout)
    assert (tmp_path / "a" / "out.safetensors").read_bytes() == models[2].read_bytes()
    assert [patch.split("@")[0] for patch in done["patches"]] == ["me/one", "me/two"] and done["verified"] is True
    assert "is itself a patch: rebuild that with ckptdiff pull" in client.run("overlap", "me/two", code=3).stderr


@pytest.mark.slow
def test_a_lone_patch_that_was_uploaded_by_hand(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """Under any name; and a model whose only weight file lies in a folder called patch is none."""
    client = Client(hub, tmp_path / "a")
    base_repo(hub, models[0])
    client.run("make", models[0], models[1], "-o", "lone.safetensors", "--base-repo", "org/base", "--codec", "sparse")
    hub.add("me/hand", {"my-update.safetensors": (tmp_path / "a" / "lone.safetensors").read_bytes(), "notes.txt": b"mine"})
    hub.add("org/odd", {"patch/model.safetensors": models[0].read_bytes()})
    client.run("pull", "me/hand", "-o", "out.safetensors")
    assert json.loads(client.run("report", "me/hand", "--json").stdout)["totals"]["elements"] == 2 * 48 * 64
    client.run("compare", "org/odd", models[0], code=0)
    assert "not a ckptdiff patch, but a plain safetensors file" in client.run("info", "org/odd", code=3).stderr
    assert "is not a patch: give BASE and TARGET" in client.run("report", "org/odd", code=2).stderr


def test_a_folder_with_a_lone_patch(models: list[Path], tmp_path: Path) -> None:
    """What fetching such a repo gives."""
    folder = tmp_path / "snapshot"
    (folder / "patch").mkdir(parents=True)
    ckptdiff.make(models[0], models[1], folder / "patch" / "model.safetensors")
    assert is_patch(folder) and is_patch(folder / "patch") and not is_patch(models[0].parent)
    assert ckptdiff.info(folder).totals == ckptdiff.info(folder / "patch" / "model.safetensors").totals
    ckptdiff.apply(models[0], folder, tmp_path / "out.safetensors")
    assert tree(tmp_path / "out.safetensors") == tree(models[1])
    with pytest.raises(ckptdiff.CheckpointError, match="snapshot: is a ckptdiff patch, not a checkpoint"):
        ckptdiff.compare(folder, models[0])


def test_a_patch_folder_that_lost_its_index(models: list[Path], tmp_path: Path) -> None:
    """Its one shard must not pass for a lone patch file: the config would be missing from what it gives."""
    for model, text in zip(models, "ab", strict=False):
        (model.parent / "config.json").write_text(text)
    ckptdiff.make(models[0].parent, models[1].parent, tmp_path / "patch")
    (tmp_path / "patch" / "ckptdiff.json").unlink()
    with pytest.raises(ckptdiff.FormatError, match=r"model\.safetensors: belongs to a patch folder, but its ckptdiff\.json is missing"):
        ckptdiff.apply(models[0].parent, tmp_path / "patch", tmp_path / "out")


# --- what was compared ---


def test_a_patch_of_files_lists_its_base_s(models: list[Path], tmp_path: Path) -> None:
    ckptdiff.make(models[0], models[1], tmp_path / "patch.safetensors")
    rewritten(tmp_path / "patch.safetensors", tmp_path / "empty.safetensors", base_files=())
    with pytest.raises(ckptdiff.FormatError, match=r"empty\.safetensors: its table needs a base, but the patch lists no file of it"):
        ckptdiff.info(tmp_path / "empty.safetensors")
    ckptdiff.make(models[0].parent, models[1].parent, tmp_path / "folder")
    index = tmp_path / "folder" / "ckptdiff.json"
    index.write_bytes(replace(Index.from_bytes(index.read_bytes(), "index"), base_files=()).to_bytes())
    with pytest.raises(ckptdiff.FormatError, match=r"patch/model\.safetensors: its table needs a base, but the patch lists no file of it"):
        ckptdiff.info(tmp_path / "folder")


@pytest.mark.slow
def test_a_card_claims_only_what_was_compared(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    base_repo(hub, models[0])
    patch = tmp_path / "a" / "patch.safetensors"
    client.run("make", models[0], models[1], "-o", patch, "--base-repo", "org/base", "--codec", "sparse")
    rewritten(patch, tmp_path / "a" / "unlisted.safetensors", base_files=None)
    rewritten(patch, tmp_path / "a" / "memory.safetensors", base_files=(), target_sha256=None)
    for name in ("unlisted", "memory"):
        said = client.run("push", f"{name}.safetensors", "me/patch", "--dry-run", code=3).stderr
        assert "needs a base but lists no file of it, so nothing shows whether org/base has it" in said
    shown = client.run("push", patch, "me/patch", "--dry-run").stdout
    assert "- `ckptdiff verify`: digests of its table, header and all payloads\n" in shown
    assert "- SHA-256 of one weight file of its base: as the Hub states it of `org/base` at that commit\n" in shown
    base = hub.repos["org/base"].commits[hub.repos["org/base"].branches["main"]]
    base["model.safetensors"].lfs = False  # the Hub states no SHA-256 of it then
    shown = client.run("push", patch, "me/patch", "--dry-run").stdout
    assert "- not its base: of none of the weight files that the patch lists does the Hub state a SHA-256 in `org/base`\n" in shown
    assert "SHA-256 of one" not in shown and "me/patch" not in hub.repos


@pytest.mark.slow
def test_pull_says_the_same_weights_only_where_it_compared(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "a")
    base_repo(hub, models[0])
    client.run("make", models[0], models[1], "-o", "patch.safetensors", "--base-repo", "org/base", "--codec", "sparse")
    whole = tmp_path / "a" / "patch.safetensors"
    hub.add("me/whole", {"patch/model.safetensors": whole.read_bytes()})
    memory = rewritten(whole, tmp_path / "memory.safetensors", base_files=(), target_sha256=None)
    hub.add("me/memory", {"patch/model.safetensors": memory.read_bytes()})
    repo = hub.repos["org/base"]
    del repo.commits[repo.branches["main"]]
    hub.add("org/base", {"model.safetensors": models[0].read_bytes(), "LICENSE": b"another commit"})
    done = client.run("pull", "me/whole", "-o", "whole.safetensors")
    assert "is gone from org/base; " in done.stderr and "has the same weights, by SHA-256" in done.stderr
    assert "SHA-256 as the patch states" in done.stdout
    done = client.run("pull", "me/memory", "-o", "memory.safetensors")
    assert "is taken: digests are compared as it is read" in done.stderr and "same weights" not in done.stderr
    assert "digests as the patch states" in done.stdout and "SHA-256" not in done.stdout
    for name in ("whole", "memory"):
        assert (tmp_path / "a" / f"{name}.safetensors").read_bytes() == models[1].read_bytes()
    for name in files_of(tmp_path / "a"):
        assert ".ckptdiff-" not in name
    said = client.run("pull", "me/whole", "-o", "other", "--base", "no/such/folder", code=3).stderr
    assert "no/such/folder: no such file or folder" in said
