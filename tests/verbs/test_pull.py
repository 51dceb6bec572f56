"""pull: what was pushed comes back, from chains too, in spite of faults, and with bases that are not as they were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from ckptdiff.format import canonical
from tests.support.hub_client import CARD, Client, files_of, learn, publish, pushed
from tests.support.hub_state import Fault, Hub
from tests.support.resumed_kills import START

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.slow


def test_there_and_back(any_hub: Hub, models: list[Path], tmp_path: Path) -> None:
    publish(any_hub, Client(any_hub, tmp_path / "a", cold=True), models, "--report")
    other = Client(any_hub, tmp_path / "b", cold=True)
    shown = other.run("pull", "me/patch", "-o", "out")
    assert files_of(tmp_path / "b" / "out") == files_of(models[1]) and "SHA-256 as the patch states" in shown.stdout


def test_files_that_may_run_are_listed(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    (models[1] / "modeling.py").write_text("print('hello')")
    hub.add("org/base", files_of(models[0]) | {"README.md": CARD})
    client = Client(hub, tmp_path / "a")
    client.run("make", "org/base", models[1], "-o", "patch", "--codec", "sparse")
    client.run("push", "patch", "me/patch")
    shown = Client(hub, tmp_path / "b").run("pull", "me/patch", "-o", "out")
    assert "files that other tools may run, read them before you use them: modeling.py\n" in shown.stderr


def test_a_chain_of_two(any_hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = Client(any_hub, tmp_path / "a")
    publish(any_hub, client, models)
    client.run("make", models[1], models[2], "-o", "second", "--base-repo", "me/patch", "--codec", "sparse")
    learn(any_hub, tmp_path / "a" / "second")
    client.run("push", "second", "me/second", "--license", "mit")
    other = Client(any_hub, tmp_path / "b")
    done = json.loads(other.run("pull", "me/second", "-o", "out", "--json").stdout)
    assert files_of(tmp_path / "b" / "out") == files_of(models[2])
    assert [p.split("@")[0] for p in done["patches"]] == ["me/patch", "me/second"] and done["base"].startswith("org/base@")


def test_a_base_with_more_shards_than_were_taken(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """A leftover set beside the model, which nobody but the repo's owner can remove: left out by make, and so by pull."""
    leftover = {f"model-0000{k}-of-00003.safetensors": files_of(models[0])["model-00001-of-00002.safetensors"] for k in (1, 2, 3)}
    hub.add("org/base", files_of(models[0]) | leftover | {"README.md": CARD})
    client = Client(hub, tmp_path / "a")
    client.run("make", "org/base", models[1], "-o", "patch", "--codec", "sparse", "--exclude", "*-of-00003*")
    client.run("push", "patch", "me/patch")
    other = Client(hub, tmp_path / "b")
    other.run("pull", "me/patch", "-o", "out")
    assert files_of(tmp_path / "b" / "out") == files_of(models[1])
    fetched = {path.name for path in (tmp_path / "b" / "home").rglob("*.safetensors")}
    assert not fetched & set(leftover) and "model-00001-of-00002.safetensors" in fetched


@pytest.mark.parametrize("at", ["apply.write_others", "verify._target_checks"])
def test_a_killed_pull_goes_on(hub: Hub, models: list[Path], tmp_path: Path, at: str) -> None:
    """Also one that was killed while it compared the files that it had written: they are not in their place before that."""
    client = pushed(hub, models, tmp_path)
    killed = f"import os\nfrom ckptdiff.verbs import apply, verify\n{at} = lambda *given: os.kill(os.getpid(), 9)\nmain()"
    command = [sys.executable, "-c", START.replace("main()", killed), "1", "pull", "me/patch", "-o", "out"]
    for code in (-9, 0):
        done = subprocess.run(command, cwd=client.folder, env=client.environment, capture_output=True, text=True)
        assert done.returncode == code and ("going on after the " in done.stderr) == (code == 0), done
        assert (client.folder / "out").exists() == (code == 0)
        command[2] = START
    assert files_of(client.folder / "out") == files_of(models[1])


def test_offline_with_a_warm_cache(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = pushed(hub, models, tmp_path)
    cold = client.run("pull", "me/patch", "-o", "out", code=3, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set, and the cache has no files of it" in cold.stderr
    client.run("pull", "me/patch", "-o", "out")
    hub.requests.clear()
    client.run("pull", "me/patch", "-o", "again", HF_HUB_OFFLINE="1")
    assert not hub.requests and files_of(tmp_path / "b" / "again") == files_of(models[1])


def test_bases_that_are_not_as_they_were(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = pushed(hub, models, tmp_path)
    base = hub.repos["org/base"]
    base.gated = True
    assert "org/base: is gated: ask for access at" in client.run("pull", "me/patch", "-o", "out", code=3).stderr
    base.gated = False
    del base.commits[base.branches["main"]]
    hub.add("org/base", files_of(models[0]))
    notes = client.run("pull", "me/patch", "-o", "rewritten").stderr
    assert "is gone from org/base" in notes and files_of(tmp_path / "b" / "rewritten") == files_of(models[1])
    del base.commits[base.branches["main"]]
    hub.add("org/base", files_of(models[2]))
    hub.sent.clear()
    said = client.run("pull", "me/patch", "-o", "other", code=3).stderr
    assert "is gone, and on the main branch" in said and "not the same checkpoint" in said
    assert not [line for line in hub.sent if "resolve" in line and "org/base" in line], "nothing large is fetched before"
    del hub.repos["org/base"]
    assert "the base of me/patch@" in client.run("pull", "me/patch", "-o", "gone", code=3).stderr
    client.run("pull", "me/patch", "-o", "local", "--base", models[0])
    assert files_of(tmp_path / "b" / "local") == files_of(models[1])
    assert not any((tmp_path / "b" / name).exists() for name in ("out", "other", "gone"))


def test_a_renamed_base(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = pushed(hub, models, tmp_path)
    hub.repos["new/home"] = hub.repos.pop("org/base")
    hub.moved["org/base"] = "new/home"
    assert "the base org/base is called new/home now" in client.run("pull", "me/patch", "-o", "out").stderr


def test_a_chain_that_goes_round(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    """A commit cannot name itself, a branch can."""
    client = pushed(hub, models, tmp_path)
    index = json.loads(hub.tree("me/patch")["ckptdiff.json"])
    del index["digest"]
    index["info"] = {"base_repo": "me/patch", "base_revision": "main"}
    digest = xxhash.xxh3_128_hexdigest(canonical.dumps(index))
    sealed = canonical.dumps({**index, "digest": digest})
    hub.add("me/patch", hub.tree("me/patch") | {"ckptdiff.json": sealed})
    assert "goes round in a circle" in client.run("pull", "me/patch", "-o", "out", code=3).stderr


@pytest.mark.parametrize("what", ["nobody/here", "me/patch@v9"])
def test_repos_that_are_not_there(hub: Hub, models: list[Path], tmp_path: Path, what: str) -> None:
    client = pushed(hub, models, tmp_path)
    said = client.run("pull", what, "-o", "out", code=3).stderr
    assert ("no such repo" if what == "nobody/here" else "has no revision v9") in said


FAULTS = {
    "a busy server": [Fault("GET /me/patch/resolve", 2, status=503), Fault("GET /org/base/resolve", 1, status=500)],
    "too many requests": [Fault("GET /org/base/resolve", 1, status=429, headers={"Retry-After": "0"})],
    "a download cut short": [Fault("GET /org/base/resolve.*safetensors", 1, kind="cut", after=5000)],
    "slow bytes": [Fault("resolve", 5, kind="slow")],
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_pull_survives(hub: Hub, models: list[Path], tmp_path: Path, name: str) -> None:
    client = pushed(hub, models, tmp_path)
    hub.faults = [Fault(f.pattern, f.times, f.status, f.kind, f.after, f.headers) for f in FAULTS[name]]
    try:
        client.run("pull", "me/patch", "-o", "out")
    except AssertionError:  # a clear error, and the next run completes
        assert not (tmp_path / "b" / "out").exists()
        client.run("pull", "me/patch", "-o", "out")
    assert files_of(tmp_path / "b" / "out") == files_of(models[1]) and all(not fault.times for fault in hub.faults[:1])


def test_wrong_bytes_are_found(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    client = pushed(hub, models, tmp_path)
    hub.faults = [Fault("GET /org/base/resolve.*safetensors", 9, kind="flip")]
    said = client.run("pull", "me/patch", "-o", "out", code=3).stderr
    assert "error: " in said and not (tmp_path / "b" / "out").exists()
