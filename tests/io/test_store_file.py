"""Objects read by ranges and written in parts: the bytes that a file would have, each fetched once, in bounded memory, or an error."""

from __future__ import annotations

import io
import os
import random
import threading
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

import ckptdiff
from ckptdiff.io import range_cache, store_file, store_upload
from ckptdiff.io.places import create_file, local_path, open_file, place_of, size_of
from ckptdiff.io.source import read_bytes
from ckptdiff.io.store_path import StorePath
from ckptdiff.io.store_spool import StoreSpool
from ckptdiff.io.store_traffic import TRAFFIC, Traffic
from ckptdiff.io.store_upload import StoreWriter, abort_uploads
from tests.support.s3_server import s3_client, s3_server


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of 4 KiB, and what goes with them."""
    for module in (range_cache, store_file):
        monkeypatch.setattr(module, "CHUNK", 1 << 12)
    monkeypatch.setattr(store_file, "HEAD", 1 << 9)
    monkeypatch.setattr(store_file, "SMALL", 1 << 8)
    pool, range_cache.RANGE_CACHE._pool = range_cache.RANGE_CACHE._pool, None
    if pool is not None:
        pool.shutdown()  # what an earlier test began to fetch would be counted as this one's
    return 1 << 12


def memory_object(tmp_path: Path, data: bytes, name: str = "object") -> StorePath:
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/{name}", data)
    place = place_of(f"memory://{tmp_path.name}/{name}")
    assert isinstance(place, StorePath)
    return place


def test_any_range_is_read_right_by_many_threads(tmp_path: Path, small_chunks: int) -> None:
    data = os.urandom(50 * small_chunks + 77)
    file, errors = open_file(memory_object(tmp_path, data)), list[str]()

    def read(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(200):
            start = chosen.randrange(len(data))
            size = min(chosen.choice((1, 8, 200, 300, small_chunks, 3 * small_chunks)), len(data) - start)
            if read_bytes(file, start, size) != data[start : start + size]:
                errors.append(f"{start} {size}")

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and read_bytes(file, len(data), 0) == b""
    assert len(range_cache.RANGE_CACHE._streamed) <= range_cache.STREAMED and len(range_cache.RANGE_CACHE._jumped) <= range_cache.JUMPED
    file.close()


def test_what_is_read_on_and_on_is_fetched_once(tmp_path: Path, small_chunks: int) -> None:
    """In reads that are smaller than chunks, with a second reader that lags behind, as the one that hashes files does."""
    data = os.urandom(60 * small_chunks)
    file, before = open_file(memory_object(tmp_path, data)), TRAFFIC.total()
    step = small_chunks // 2
    for start in range(0, len(data), step):
        assert read_bytes(file, start, step) == data[start : start + step]
        if start:
            assert read_bytes(file, start - step, step) == data[start - step : start]
    asked = TRAFFIC.total() - before
    file.close()
    assert asked == Traffic(requests=60, read=len(data))


def test_a_header_costs_one_small_request(tmp_path: Path) -> None:
    file, before = open_file(memory_object(tmp_path, bytes(1 << 23))), TRAFFIC.total()
    read_bytes(file, 0, 8)
    read_bytes(file, 8, 50_000)
    assert TRAFFIC.total() - before == Traffic(1, store_file.HEAD)
    read_bytes(file, 1 << 22, 512)  # a sample far away
    assert TRAFFIC.total() - before == Traffic(2, store_file.HEAD + 512)
    file.close()


def test_of_many_objects_at_once_memory_is_bounded(tmp_path: Path, small_chunks: int) -> None:
    data = os.urandom(4 * small_chunks)
    files = [open_file(memory_object(tmp_path, data, f"{k}")) for k in range(30)]
    for start in range(0, len(data), 1000):
        for file in files:
            assert read_bytes(file, start, min(1000, len(data) - start)) == data[start : start + 1000]
    assert len(range_cache.RANGE_CACHE._streamed) <= range_cache.STREAMED
    for file in files:
        file.close()


def test_errors_name_the_url_and_what_to_do(tmp_path: Path) -> None:
    place = memory_object(tmp_path, b"12345")
    file = open_file(place)
    with pytest.raises(
        ckptdiff.CheckpointError, match=r"^memory://.*/object: ends at byte 5, expected 9 or more: truncated\? fetch it again$"
    ):
        read_bytes(file, 4, 5)
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/object", b"12346")
    with pytest.raises(ckptdiff.CheckpointError, match=r"/object: was changed by another program while it was read: run again$"):
        file.check_unchanged()
    missing = place_of(f"memory://{tmp_path.name}/none")
    for call in (open_file, size_of):
        with pytest.raises(ckptdiff.CheckpointError, match=r"/none: no such object: check the URL, or fetch what is missing$"):
            call(missing)
    with pytest.raises(ckptdiff.CheckpointError, match=r"is the URL of a store: masks are written on this machine alone: give a path$"):
        local_path(missing, "masks are written")
    assert isinstance(place_of(f"file://{tmp_path}/x"), Path) and isinstance(place_of("hf://org/name"), Path)


def test_passwords_in_urls_are_never_shown(tmp_path: Path) -> None:
    place = place_of(f"memory://user:secret@{tmp_path.name}/model")
    assert "secret" in os.fspath(place)
    assert "secret" not in str(place / "a") + repr(place) and str(place / "a").startswith("memory://***@")
    with pytest.raises(ckptdiff.CkptdiffError) as error:
        ckptdiff.info(place)
    assert "secret" not in str(error.value) and "***@" in str(error.value)


def test_objects_are_written_in_parts(tmp_path: Path) -> None:
    data = os.urandom(21_000_000)
    starts = [*range(0, len(data), 1_000_000)]
    random.Random(3).shuffle(starts[:6])
    with s3_server() as port, s3_client(port) as url:
        for base in (url, f"memory://{tmp_path.name}"):
            folder = place_of(f"{base}/a b")
            assert isinstance(folder, StorePath)
            place = folder / "object"
            writer, before = StoreWriter(place, len(data)), TRAFFIC.total()
            for start in starts[3::-1] + starts[4:]:
                writer.write_at(start, data[start : start + 1_000_000])
            writer.close()
            asked = TRAFFIC.total() - before
            assert asked.written == len(data) and asked.requests == (6 if base == url else 4)
            file = open_file(place)
            assert read_bytes(file, 0, file.size) == data
            file.close()
            for small in (b"", b"123"):
                with create_file(folder / f"small-{len(small)}") as out:
                    out.write(small)
                assert size_of(folder / f"small-{len(small)}") == len(small)
            with pytest.raises(RuntimeError), create_file(folder / "broken", len(data)) as out:
                out.write(data)
                raise RuntimeError
            assert [*folder.store.listing()] == ["object", "small-0", "small-3"]


def test_uploads_of_killed_runs_are_aborted(tmp_path: Path) -> None:
    with s3_server() as port, s3_client(port) as url:
        place, other = place_of(f"{url}/run"), place_of(f"{url}/runs")
        assert isinstance(place, StorePath) and isinstance(other, StorePath)
        for path in (place / "a", other / "a"):
            StoreWriter(path, 1).write(bytes(store_upload.PART))
        while len(place.store.fs.list_multipart_uploads("bucket")) < 2:
            pass
        abort_uploads(place)
        assert [row["Key"] for row in place.store.fs.list_multipart_uploads("bucket")] == ["runs/a"]
        abort_uploads(other)


def test_uploads_are_listed_page_by_page() -> None:
    """S3 lists a thousand at once; moto all of them."""
    pages = {None: ("a", "1"), "1": ("a/x", "2"), "2": ("ab", None)}
    asked = list[dict[str, str]]()

    class Fs:
        def call_s3(self, method: str, **arguments: str) -> dict[str, object]:
            asked.append({"method": method, **arguments})
            if method != "list_multipart_uploads":
                return {}
            key, more = pages[arguments.get("UploadIdMarker")]
            found = {"Uploads": [{"Key": key, "UploadId": f"of {key}"}], "IsTruncated": more is not None}
            return found if more is None else {**found, "NextKeyMarker": key, "NextUploadIdMarker": more}

        def split_path(self, path: str) -> tuple[str, str, None]:
            return "bucket", path, None

    store = SimpleNamespace(fs=Fs(), at=lambda key: key, url="s3://bucket")
    abort_uploads(StorePath(store, "a"))  # type: ignore[arg-type]
    assert [row["UploadId"] for row in asked if row["method"] == "abort_multipart_upload"] == ["of a", "of a/x"]
    assert [row.get("KeyMarker") for row in asked if row["method"] == "list_multipart_uploads"] == [None, "a", "a/x"]


def test_a_spool_in_a_store_is_a_file(tmp_path: Path) -> None:
    """Any sequence of what a spool is asked for gives what a file gives, and nothing is left."""
    folder, chosen = place_of(f"memory://{tmp_path.name}/spool"), random.Random(5)
    assert isinstance(folder, StorePath)
    spool, model, peak = StoreSpool(folder, part=100), io.BytesIO(), 0
    for _ in range(600):
        what = chosen.random()
        if what < 0.5:
            data = chosen.randbytes(chosen.randrange(90))
            assert spool.seek(0, os.SEEK_END) == model.seek(0, os.SEEK_END)
            spool.write(data)
            model.write(data)
        elif what < 0.6:
            at = max(model.seek(0, os.SEEK_END) - chosen.randrange(150), 0)
            for file in (spool, model):
                file.seek(at)
                file.truncate()
        else:
            at = chosen.randrange(model.seek(0, os.SEEK_END) + 1)
            spool.seek(at)
            size, found = chosen.randrange(300), b""
            while len(found) < size and (piece := spool.read(size - len(found))):
                found += piece
            assert found == model.getvalue()[at : at + size]
        peak = max(peak, len(spool._tail))
    assert peak < 100 and model.seek(0, os.SEEK_END) > 1000
    spool.close()
    assert not folder.store.listing()
