"""Fixtures that several folders of tests share, and the order of the tests."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.register_assert_rewrite("tests.support")

import ckptdiff  # noqa: E402
from ckptdiff.kernels import cache  # noqa: E402
from tests.support.checkpoints import perturb, random_tensor, tensor, write, write_sharded  # noqa: E402
from tests.support.small_pair import Pair, tensors  # noqa: E402

if TYPE_CHECKING:
    from tests.support.hub_client import Client
    from tests.support.hub_state import Hub

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads wait for each other by spinning: many times slower on busy cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first, so that no worker is left alone with one at the end."""
    slow = Counter(item.path for item in items if "slow" in item.keywords)
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture
def files(tmp_path: Path) -> Pair:
    """A pair of single files and the patch file between them."""
    base, target = tensors()
    write(tmp_path / "base.safetensors", base)
    write(tmp_path / "target.safetensors", target, {"format": "pt"})
    ckptdiff.make(tmp_path / "base.safetensors", tmp_path / "target.safetensors", tmp_path / "patch.safetensors")
    return Pair(tmp_path / "base.safetensors", tmp_path / "target.safetensors", tmp_path / "patch.safetensors")


@pytest.fixture
def folders(tmp_path: Path) -> Pair:
    """A pair of folders, sharded differently, and the patch folder between them."""
    base, target = tensors()
    write_sharded(tmp_path / "base", {"model.safetensors": base}, index=None)
    names = list(target)
    shards = {
        "model-00001-of-00002.safetensors": {n: target[n] for n in names[:1]},
        "model-00002-of-00002.safetensors": {n: target[n] for n in names[1:]},
    }
    write_sharded(tmp_path / "target", shards)
    for side in ("base", "target"):
        (tmp_path / side / "config.json").write_text(json.dumps({"side": side, "same": "x" * 200}))
        (tmp_path / side / "tokenizer.json").write_text("same on both sides")
    (tmp_path / "target" / "README.md").write_text("new")
    ckptdiff.make(tmp_path / "base", tmp_path / "target", tmp_path / "patch")
    return Pair(tmp_path / "base", tmp_path / "target", tmp_path / "patch")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model of two layers: a stack of experts, matrices, a norm that stays, a bias, a tensor that only one side has."""
    rng = np.random.default_rng(2)
    shapes = {
        "model.embed_tokens.weight": (90, 32),
        **{f"model.layers.{i}.self_attn.q_proj.weight": (32, 32) for i in (0, 1)},
        **{f"model.layers.{i}.mlp.experts.gate_up_proj": (3, 32, 48) for i in (0, 1)},
        **{f"model.layers.{i}.input_layernorm.weight": (32,) for i in (0, 1)},
        "model.layers.1.mlp.up_proj.bias": (48,),
    }
    sides: list[dict[str, object]] = [{"old": tensor("F32", (1,), bytes(4))}, {}]
    for name, shape in shapes.items():
        units = (rng.normal(0, 0.02, shape).astype("<f4").view("<u4") >> 16).astype("<u2")
        moved = units + (0 if "norm" in name else (rng.random(shape) < 0.2).astype("<u2"))
        for side, values in zip(sides, (units, moved), strict=True):
            side[name] = tensor("BF16", shape, values)
    return write(tmp_path / "base.safetensors", sides[0]), write(tmp_path / "a target.safetensors", sides[1])  # type: ignore[arg-type]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can get to, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="ckptdiff-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def kernel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that this process keeps kernels in."""
    monkeypatch.setenv("CKPTDIFF_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    cache.folders.cache_clear()
    yield tmp_path / "cache"
    cache.folders.cache_clear()


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in each run."""
    return np.random.default_rng(7)


@pytest.fixture
def two_folders(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """A base and a target folder, each with one weight file."""
    w = random_tensor(rng, "BF16", [30, 10])
    write(tmp_path / "base" / "model.safetensors", {"w": w})
    write(tmp_path / "target" / "model.safetensors", {"w": perturb(rng, w, 0.1)})
    return tmp_path / "base", tmp_path / "target"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hugging Face Hub on this machine, whose large files are LFS objects."""
    from tests.support.hub_server import running  # needs huggingface_hub, which not every environment has

    with running(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture(params=["lfs", "xet"])
def any_hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    """A Hub with LFS, and one with Xet."""
    from tests.support.hub_server import running

    with running(tmp_path / "hub", xet=request.param == "xet") as hub:
        yield hub


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Three steps of one model's training, for a Hub."""
    from tests.support.hub_client import checkpoint

    return [checkpoint(tmp_path / f"model{step}", step) for step in range(3)]


@pytest.fixture
def reader(hub: Hub, models: list[Path], tmp_path: Path) -> Client:
    """Someone who follows a page of the documents, and has the checkpoints, patches and repos that its commands name."""
    from tests.support.hub_client import CARD, Client, files_of

    client = Client(hub, tmp_path / "reader")
    hub.add("org/base", files_of(models[0]) | {"README.md": CARD})
    hub.add("org/tuned", files_of(models[1]))
    for name, model in (("base", 0), ("my-model", 1), ("run/step-0", 0), ("run/step-100", 1), ("run/step-200", 2)):
        shutil.copytree(models[model], client.folder / name)
    for name, model in (("grpo-patch", 1), ("sft-patch", 2)):
        ckptdiff.make(models[0], models[model], client.folder / name)
    return client
