"""Commands whose base, target, patch and output lie in stores: the same files as on this machine, or an error, and never half an output."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

import ckptdiff
from ckptdiff.io import store_spool, store_upload
from ckptdiff.io.store_path import UNFINISHED
from ckptdiff.io.store_urls import FsspecStore
from ckptdiff.patching import destination
from tests.support.commands import run
from tests.support.hub_client import Client, files_of, publish
from tests.support.hub_state import Hub
from tests.support.s3_server import SETTINGS, faulty_proxy, s3_client, s3_server
from tests.support.small_pair import Pair


def objects(url: str) -> dict[str, bytes]:
    """All objects below a URL."""
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return {name[len(root) :].strip("/"): fs.cat_file(name) for name in fs.find(root)}


def put(url: str, folder: Path) -> str:
    """Put a folder's files below a URL."""
    fs, root = fsspec.core.url_to_fs(url)
    for path, data in files_of(folder).items():
        fs.pipe_file(f"{root}/{path}", data)
    return url


@pytest.fixture
def store(folders: Pair, tmp_path: Path) -> str:
    """A store with the pair of folders."""
    url = f"memory://{tmp_path.name}"
    put(f"{url}/base", folders.base)
    put(f"{url}/target", folders.target)
    return url


def test_all_in_a_store(store: str, folders: Pair) -> None:
    base, target, patch, out = (f"{store}/{name}" for name in ("base", "target", "patch", "out"))
    made = ckptdiff.make(base, target, patch)
    assert objects(patch) == files_of(folders.patch) and made.traffic.written >= made.patch_size
    applied = ckptdiff.apply(base, patch, out)
    assert objects(out) == files_of(folders.target) and str(applied.out) == out
    mark = {"files": applied.files, "run": 16 * "0"}
    assert applied.traffic.written == sum(map(len, objects(out).values())) + len(json.dumps(mark))
    assert ckptdiff.verify(patch, base=base, target=out).ok
    assert ckptdiff.compare(target, out).same
    assert ckptdiff.report(base, patch).to_json() == ckptdiff.report(folders.base, folders.patch).to_json()
    assert (
        ckptdiff.overlap([patch, target], base).to_json()["tensors"]
        == ckptdiff.overlap([folders.patch, folders.target], folders.base).to_json()["tensors"]
    )
    assert ckptdiff.Mask.from_patch(patch, base) == ckptdiff.Mask.from_patch(folders.patch, folders.base)
    shown, local = ckptdiff.info(patch), ckptdiff.info(folders.patch)
    assert (shown.totals, shown.patch_size, shown.files, shown.tensors) == (local.totals, local.patch_size, local.files, local.tensors)


@pytest.mark.parametrize("remote", [(True, False, False), (False, True, True), (True, True, False), (False, False, True)])
def test_in_part_in_a_store(store: str, folders: Pair, tmp_path: Path, remote: tuple[bool, bool, bool]) -> None:
    put(f"{store}/patch", folders.patch)
    base, patch, out = (
        f"{place if here else tmp_path}/{name}" for name, here, place in zip(("base", "patch", "out"), remote, [store] * 3, strict=True)
    )
    ckptdiff.apply(base, patch, out)
    assert (objects(out) if remote[2] else files_of(Path(out))) == files_of(folders.target)
    ckptdiff.make(base, folders.target, f"{out}-patch")
    assert (objects(f"{out}-patch") if remote[2] else files_of(Path(f"{out}-patch"))) == files_of(folders.patch)


def test_files_and_some_tensors(files: Pair, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/b.safetensors", files.base.read_bytes())
    ckptdiff.make(f"{url}/b.safetensors", files.target, f"{url}/p.safetensors")
    ckptdiff.apply(f"{url}/b.safetensors", f"{url}/p.safetensors", f"{url}/t.safetensors")
    ckptdiff.apply(f"{url}/b.safetensors", [f"{url}/p.safetensors"], f"{url}/some.safetensors", only=["a.*"])
    found = objects(url)
    ckptdiff.make(tmp_path / "base.safetensors", tmp_path / "target.safetensors", tmp_path / "again")
    ckptdiff.apply(files.base, files.patch, tmp_path / "some", only=["a.*"])
    assert found["p.safetensors"][-100:] == (tmp_path / "again").read_bytes()[-100:]
    assert found["t.safetensors"] == files.target.read_bytes() and found["some.safetensors"] == (tmp_path / "some").read_bytes()
    assert ckptdiff.verify(f"{url}/p.safetensors", base=f"{url}/b.safetensors", target=f"{url}/t.safetensors").ok


def test_the_command_line(store: str, folders: Pair) -> None:
    made = json.loads(run("make", f"{store}/base", f"{store}/target", "-o", f"{store}/patch", "--json").stdout)
    assert made["patch"] == f"{store}/patch" and made["traffic"]["written"] > made["patch_size"]
    shown = run("apply", f"{store}/base", f"{store}/patch", "-o", f"{store}/out").stdout
    assert re.search(r"stores +\d+ requests, .* read, .* written", shown) and f"{store}/out" in shown
    assert run("verify", f"{store}/patch", "--target", f"{store}/out").exit_code == 0
    assert "is the URL of a store: masks are written on this machine alone" in run("mask", f"{store}/patch", "-o", f"{store}/m").stderr
    assert "push sends a patch that lies on this machine alone" in run("push", f"{store}/patch", "me/x").stderr


def refused(base: str, patch: str, out: str, text: str, **options: bool) -> None:
    with pytest.raises(ckptdiff.CkptdiffError, match=text):
        ckptdiff.apply(base, patch, out, **options)


def test_what_is_refused(store: str, folders: Pair, tmp_path: Path) -> None:
    patch = put(f"{store}/patch", folders.patch)
    before = objects(store)
    refused(
        f"{store}/base", patch, f"{store}/target", r"/target: has README\.md, and nothing in a store is replaced; choose another output, or"
    )
    refused(f"{store}/base", patch, f"{store}/base/out", r"is the input memory://.*/base, or one lies in the other; choose another output")
    refused(f"{store}/base", patch, f"{store}/o", r"--overwrite replaces nothing in a store", overwrite=True)
    refused(f"{store}/none", patch, f"{store}/o", r"/none: no such object, and none below it: check the URL$")
    refused(f"{store}/base", f"{store}/target", f"{store}/o", r"/target: not a ckptdiff patch")
    refused(
        patch, patch, f"{store}/o", r"/patch: is a ckptdiff patch, not a checkpoint; rebuild its target with: ckptdiff apply BASE memory://"
    )
    refused(f"{store}/target", patch, f"{store}/o", r"/target: is already the target of memory://")
    refused("nosuch://x/base", patch, f"{store}/o", r"^nosuch://x/base: cannot be opened: .*: check the URL$")
    fsspec.filesystem("memory").rm_file(f"/{tmp_path.name}/patch/files/README.md.zst")
    refused(f"{store}/base", patch, f"{store}/o", r"/patch/files/README\.md\.zst: is missing: fetch the patch again$")
    assert objects(store) == {key: data for key, data in before.items() if key != "patch/files/README.md.zst"}


def test_a_flipped_bit_leaves_nothing(store: str, folders: Pair, tmp_path: Path) -> None:
    patch, memory = put(f"{store}/patch", folders.patch), fsspec.filesystem("memory")
    name = f"/{tmp_path.name}/base/model.safetensors"
    data = bytearray(memory.cat_file(name))
    data[-3000] ^= 1
    memory.pipe_file(name, bytes(data))
    refused(f"{store}/base", patch, f"{store}/out", r"/base: is not the base of memory://.*/patch: its tensor a\.weight has the digest")
    assert objects(f"{store}/out") == {}


def test_an_unfinished_output_is_named_and_written_anew(store: str, folders: Pair, tmp_path: Path) -> None:
    """What a killed run leaves: the list of what it writes, some objects, a part of its temporary file. Nothing else is ever removed."""
    patch, memory, out = put(f"{store}/patch", folders.patch), fsspec.filesystem("memory"), f"/{tmp_path.name}/out"
    memory.pipe_file(f"{out}/{UNFINISHED}", json.dumps({"files": [*files_of(folders.target)]}).encode())
    memory.pipe_file(f"{out}/config.json", b"half")
    memory.pipe_file(f"{out}/{destination.SPOOL}/0", b"spool")
    for call in (ckptdiff.info, lambda url: ckptdiff.compare(url, folders.target)):
        with pytest.raises(
            ckptdiff.CheckpointError, match=r"/out: is not finished: the command that writes it is still running, or was stopped; run"
        ):
            call(f"{store}/out")
    memory.pipe_file(f"{out}/mine.txt", b"somebody's")
    refused(f"{store}/base", patch, f"{store}/out", r"/out: has mine\.txt, and nothing in a store is replaced")
    assert len(objects(f"{store}/out")) == 4
    memory.rm_file(f"{out}/mine.txt")
    ckptdiff.apply(f"{store}/base", patch, f"{store}/out")
    assert objects(f"{store}/out") == files_of(folders.target)
    memory.pipe_file(f"{out}2/{UNFINISHED}", b"not ours")
    refused(f"{store}/base", patch, f"{store}/out2", r"its \.ckptdiff-unfinished is not one that ckptdiff wrote; delete what is there")


class Meanwhile:
    """Calls something once, in the middle of what another command does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: Callable[[], object], at: int = 1) -> None:
        self.left, real = at, getattr(owner, name)

        def replaced(*arguments: object) -> object:
            self.left -= 1
            if self.left == 0:
                call()
            return real(*arguments)

        monkeypatch.setattr(owner, name, replaced)


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (store_upload.StoreWriter, "write_at", 1),
        (store_upload.StoreWriter, "close", 2),
        (store_upload.StoreWriter, "_put", 1),
        (store_upload.StoreWriter, "_put", 3),
        (FsspecStore, "put", 1),
    ],
)
def test_of_two_commands_at_one_place_one_ends(
    folders: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, at: int
) -> None:
    """The second begins in the middle of the first, which it must take for killed, and makes another patch. Its own is what is there then.

    Where the first had looked at the mark just before, S3 refuses to replace what the second has made.
    """
    with s3_server() as port, s3_client(port) as url:
        out = f"{url}/patch"
        Meanwhile(monkeypatch, owner, name, lambda: ckptdiff.make(folders.base, folders.target, out, codec="raw"), at)
        text = r"(another command writes there too: its output would be a mixture of both|another command has written it meanwhile)"
        with pytest.raises(ckptdiff.CkptdiffError, match=text):
            ckptdiff.make(folders.base, folders.target, out)
        ckptdiff.make(folders.base, folders.target, tmp_path / "wanted", codec="raw")
        assert objects(out) == files_of(tmp_path / "wanted")


def test_of_two_commands_at_one_file_one_ends(files: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a temporary file of its own in the store."""
    monkeypatch.setattr(store_spool.StoreSpool.__init__, "__defaults__", (64,))
    with s3_server() as port, s3_client(port) as url:
        out = f"{url}/p.safetensors"
        Meanwhile(monkeypatch, store_upload.StoreWriter, "close", lambda: ckptdiff.make(files.base, files.base, out, force=True))
        with pytest.raises(ckptdiff.StoreError, match=r"p\.safetensors"):
            ckptdiff.make(files.base, files.target, out)
        ckptdiff.make(files.base, files.base, tmp_path / "wanted", force=True)
        assert objects(url) == {"p.safetensors": (tmp_path / "wanted").read_bytes()}


def test_what_cannot_be_removed_is_told(store: str, folders: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C too: it said that nothing unfinished was left behind."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def fails(self: FsspecStore, key: str) -> None:
        raise ckptdiff.StoreError(f"{key}: cannot be deleted")

    monkeypatch.setattr(store_upload.StoreWriter, "close", interrupted)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt) as told:
        broken.setattr(FsspecStore, "delete", fails)
        ckptdiff.make(f"{store}/base", f"{store}/target", f"{store}/patch")
    assert "/patch is unfinished, and could not be removed: the same command removes it and starts over" in str(told.value)
    assert UNFINISHED in objects(f"{store}/patch")
    with pytest.raises(KeyboardInterrupt) as told:
        ckptdiff.make(f"{store}/base", f"{store}/target", f"{store}/patch")
    assert not str(told.value) and not objects(f"{store}/patch")


def test_the_marker_comes_last(store: str, folders: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of a patch, and those of a checkpoint, are written after all else."""
    order, close = list[str](), store_upload.StoreWriter.close

    def noted(self: store_upload.StoreWriter) -> None:
        close(self)
        order.append(str(self._path).removeprefix(f"{store}/"))

    monkeypatch.setattr(store_upload.StoreWriter, "close", noted)
    ckptdiff.make(f"{store}/base", f"{store}/target", f"{store}/patch")
    ckptdiff.apply(f"{store}/base", f"{store}/patch", f"{store}/out")
    assert [name for name in order if name.startswith("patch/")][-1] == "patch/ckptdiff.json"
    assert [name for name in order if name.startswith("out/")][-1] == "out/model.safetensors.index.json"


@pytest.mark.slow
def test_a_server_that_fails(folders: Pair, tmp_path: Path) -> None:
    """Commands are run until they succeed. A failed one leaves nothing that looks finished."""
    faults, met, at = itertools.cycle(("lost", "500", "drop", "503")), Counter[str](), {4, 12, 21, 33, 47, 62, 80}

    def fault(method: str, path: str) -> str:
        what = next(faults) if sum(met.values()) in at else "ok"
        met[what] += 1
        return what

    errors = []
    with s3_server() as port, faulty_proxy(port, fault) as bad:
        with s3_client(port) as url:
            put(f"{url}/base", folders.base)
            put(f"{url}/target", folders.target)
        for arguments, wanted in (
            (("make", "base", "target", "patch"), folders.patch),
            (("apply", "base", "patch", "out"), folders.target),
        ):
            verb, one, two, out = arguments
            for _ in range(12):
                try:
                    with s3_client(bad) as url:
                        getattr(ckptdiff, verb)(f"{url}/{one}", f"{url}/{two}", f"{url}/{out}")
                    break
                except ckptdiff.CkptdiffError as error:
                    errors.append(str(error))
                    assert re.match(r"s3://bucket\S+: ", str(error)), str(error)
                with s3_client(port) as url:
                    left = objects(f"{url}/{out}")
                    assert not left or UNFINISHED in left
            with s3_client(port) as url:
                assert objects(f"{url}/{out}") == files_of(wanted)
    assert errors and all(met[what] for what in ("lost", "500", "drop", "503")), (errors, met)


@pytest.mark.slow
def test_pull_into_a_store(hub: Hub, models: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    publish(hub, Client(hub, tmp_path / "a"), models)
    with s3_server() as port, s3_client(port) as url:
        client = Client(hub, tmp_path / "b", cold=True)
        shown = client.run("pull", "me/patch", "-o", f"{url}/out", **SETTINGS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
        assert objects(f"{url}/out") == files_of(models[1]) and "SHA-256 as the patch states" in shown.stdout
        weights = {path.name for path in models[0].glob("*.safetensors")}
        assert weights and not weights & {path.name for path in tmp_path.glob("b/**/snapshots/**/*") if "org--base" in str(path)}
        client.run("pull", "me/patch", "-o", "out")
        hub.requests.clear()
        client.run("pull", "me/patch", "-o", f"{url}/again", **SETTINGS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
        assert objects(f"{url}/again") == files_of(models[1])
        assert not [line for line in hub.requests if "org/base/resolve" in line and "safetensors" in line]  # they are in the cache
