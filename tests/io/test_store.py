"""Stores: a folder, memory and S3 do the same, whole or not at all, and never replace what is there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.io.places import is_in_store
from ckptdiff.io.store import FolderStore, Store, fetch, holds, read_object
from ckptdiff.io.store_urls import FsspecStore, open_store
from tests.support.s3_server import s3_client, s3_server


@pytest.fixture(params=["folder", "without unnamed files", "file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "without unnamed files":
        monkeypatch.setattr("ckptdiff.io.durable.os.O_TMPFILE", os.O_WRONLY)  # as old kernels do: to write to a folder is an error
    if request.param == "s3":
        with s3_server() as port, s3_client(port) as url:
            yield open_store(f"{url}/a run")
    else:
        urls = {name: str(tmp_path / "a store") for name in ("folder", "without unnamed files")}
        urls |= {"file": f"file://{tmp_path}/a store", "memory": f"memory://{tmp_path.name}/a store"}
        yield open_store(urls[request.param])


def test_what_a_killed_run_left_of_a_hint_is_replaced(tmp_path: Path) -> None:
    """A run that is killed between the two steps of a replacement leaves a hidden file, which is no object and which the next one takes."""
    store, left = FolderStore(tmp_path), tmp_path / ".HEAD.json.new"
    left.write_bytes(b"left")
    assert store.objects("") == {}
    for data in (b"first", b"second"):
        store.replace("HEAD.json", data)
        assert (tmp_path / "HEAD.json").read_bytes() == data and [path.name for path in tmp_path.iterdir()] == ["HEAD.json"]


def test_objects(store: Store, tmp_path: Path) -> None:
    content, other = tmp_path / "content", tmp_path / "other"
    content.write_bytes(os.urandom(100_000))
    other.write_bytes(os.urandom(100_000))
    assert store.objects("") == store.objects("steps") == {} and store.size("x") is None
    assert store.put("steps/a/b.json", b"123") and store.put("steps/a/b.json", b"123")
    assert not store.put("steps/a/b.json", b"124") and not store.put("steps/a/b.json", b"1234")
    assert store.put_file("steps/a/patch/f", content) and store.put_file("steps/a/patch/f", content)
    assert not store.put_file("steps/a/patch/f", other)
    assert store.put("stepsofanother", b"")
    store.replace("HEAD.json", b"old")
    store.replace("HEAD.json", b"newer")
    assert store.objects("steps") == {"steps/a/b.json": 3, "steps/a/patch/f": 100_000}
    assert store.objects("") == {"HEAD.json": 5, "steps/a/b.json": 3, "steps/a/patch/f": 100_000, "stepsofanother": 0}
    assert store.read("steps/a/patch/f", 70_000, 11) == content.read_bytes()[70_000:70_011] and store.read("HEAD.json", 0, 0) == b""
    assert holds(store, "steps/a/patch/f", content) and not holds(store, "steps/a/patch/f", other)
    fetch(store, "steps/a/patch/f", 100_000, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == content.read_bytes()
    assert store.size("steps/a") is None and read_object(store, "HEAD.json", 5) == b"newer" and read_object(store, "none", 5) is None
    for key in ("steps/a/b.json", "steps/a/patch/f", "steps/a/patch/f"):
        store.delete(key)
    assert store.objects("steps") == {}


def test_errors_name_the_object_and_what_to_do(store: Store) -> None:
    store.put("a/b", b"12345")
    for start, size in ((3, 3), (5, 1)):
        with pytest.raises(ckptdiff.StoreError, match=r"a/b: .*(expected \d+ or more|expected \d+: truncated|cannot be read)"):
            store.read("a/b", start, size)
    with pytest.raises(ckptdiff.StoreError, match=r"a/c: .*was it removed meanwhile\? run again"):
        store.read("a/c", 0, 1)
    with pytest.raises(ckptdiff.StoreError, match=r"a/b: has 5 bytes, expected at most 4"):
        read_object(store, "a/b", 4)


def test_of_many_at_one_moment_one_makes_the_object(store: Store) -> None:
    barrier, made = threading.Barrier(4), list[int]()

    def put(number: int) -> None:
        barrier.wait()
        if store.put("epochs/1", bytes([number])):
            made.append(number)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and store.read("epochs/1", 0, 1) == bytes(made)


def test_which_store() -> None:
    assert isinstance(open_store("a:b"), FolderStore) and isinstance(open_store("memory://x"), FsspecStore)
    assert is_in_store("s3://x/y") and not any(map(is_in_store, ("/x", "s3:/x", "hf://org/name", "file:///x")))
    cases = {
        "nothing://x": "nothing://x: cannot be opened: Protocol not known: nothing: check the URL",
        "hf://org/name": "the Hub cannot create files only where there are none, which a chain needs: use a folder or s3://",
    }
    for url, text in cases.items():
        with pytest.raises(ckptdiff.StoreError, match=text):
            open_store(url)


def test_passwords_are_not_shown() -> None:
    with pytest.raises(ckptdiff.StoreError) as raised:
        open_store("nothing://me:secret@host/path")
    assert "secret" not in str(raised.value) and "nothing://***@host/path" in str(raised.value)


def test_a_folder_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    store = FolderStore(tmp_path / "store")
    (tmp_path / "f").write_bytes(b"12")
    (tmp_path / "g").write_bytes(b"34")
    assert store.put_file("a/f", tmp_path / "f") and store.put_file("a/f", tmp_path / "f") and not store.put_file("a/f", tmp_path / "g")
    assert os.listdir(tmp_path / "store") == ["a"] and os.listdir(tmp_path / "store" / "a") == ["f"]


def test_what_stands_in_the_place_of_a_folder(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put("a", b"1")
    with pytest.raises(ckptdiff.StoreError, match=r"store/a/b: cannot be written: "):
        store.put("a/b", b"2")
    assert store.objects("a") == {} and store.objects("") == {"a": 1}
    with pytest.raises(ckptdiff.StoreError, match=r"no such folder; create it first"):
        FolderStore(tmp_path / "x" / "y").put("a", b"1")
