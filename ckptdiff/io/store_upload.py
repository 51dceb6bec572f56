"""Objects written in parts, of which a few are in memory: each is seen whole or not at all, and checked by its size once it is there."""

from __future__ import annotations

import base64
import errno
import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ckptdiff.errors import StoreError
from ckptdiff.io.store_path import StorePath
from ckptdiff.io.store_traffic import TRAFFIC

PART = 1 << 23
"""Bytes of a part, unless the object would have too many."""
MOST_PARTS = 9_000
"""Parts of an object; S3 takes 10,000."""
UPLOADERS, UNDER_WAY = 4, 6
"""Parts that are sent at once, and those that are sent or wait for it."""
_room = threading.BoundedSemaphore(UNDER_WAY)
_pool = ThreadPoolExecutor(UPLOADERS, thread_name_prefix="ckptdiff-upload")


class Upload(Protocol):
    """An object on its way into a store; its parts are numbered from 0."""

    def send(self, number: int, data: bytes) -> None:
        """Send a part, on any thread."""

    @property
    def version(self) -> str:
        """The version that the object will have, once all parts are sent; empty if that cannot be told."""

    def finish(self) -> None:
        """Make the object of all parts."""

    def abort(self) -> None:
        """Leave nothing of it."""


class S3Upload:
    """A multi-part upload of s3fs: parts are sent in any order, and the store checks the MD5 of each."""

    def __init__(self, path: StorePath) -> None:
        self._fs, self._path, self._etags = path.store.fs, path, dict[int, str]()
        self._place = _bucket_and_key(path)
        TRAFFIC.add(requests=1)
        self._id = self._fs.call_s3("create_multipart_upload", **self._place)["UploadId"]

    def send(self, number: int, data: bytes) -> None:
        TRAFFIC.add(requests=1, written=len(data))
        answer = self._call("upload_part", PartNumber=number + 1, Body=data, ContentMD5=_md5(data))
        self._etags[number] = answer["ETag"]

    def finish(self) -> None:
        parts = [{"PartNumber": number + 1, "ETag": self._etags[number]} for number in sorted(self._etags)]
        arguments = {**self._place, "UploadId": self._id, "MultipartUpload": {"Parts": parts}}
        _make_new(self._path, self.version, "complete_multipart_upload", arguments)

    @property
    def version(self) -> str:
        """The ETag that S3 gives an object of these parts, unless it encrypts them by a key of its own."""
        parts = [bytes.fromhex(etag.strip('"')) for _, etag in sorted(self._etags.items())]
        return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"

    def abort(self) -> None:
        TRAFFIC.add(requests=1)
        self._call("abort_multipart_upload")

    def _call(self, method: str, **arguments: Any) -> Any:
        return self._fs.call_s3(method, **self._place, UploadId=self._id, **arguments)


class FileUpload:
    """A file that any other file system writes from its beginning to its end."""

    version = ""

    def __init__(self, path: StorePath, part: int) -> None:
        self._store, self._path = path.store, path
        self._file = path.store.fs.open(path.store.at(path.key), "wb", block_size=part)
        self._lock, self._next, self._waiting = threading.Lock(), 0, dict[int, bytes]()

    def send(self, number: int, data: bytes) -> None:
        with self._lock:
            self._waiting[number] = data
            while (part := self._waiting.pop(self._next, None)) is not None:
                TRAFFIC.add(requests=1, written=len(part))
                self._file.write(part)
                self._next += 1

    def finish(self) -> None:
        self._file.close()

    def abort(self) -> None:
        if hasattr(self._file, "discard"):
            with suppress(NotImplementedError):
                self._file.discard()
        self._store.delete(self._path.key)


def part_size(size: int) -> int:
    """Bytes of each part of an object of about so many bytes: whole MiB, so that there are not too many parts."""
    return max(PART, -(-size // (MOST_PARTS << 20)) << 20)


class StoreWriter:
    """Writes an object, as a file that is written from its beginning on, or at any place if what comes before it follows soon.

    Args:
        path: the object, which is not there yet.
        size: about how many bytes it will have, which tells how large its parts must be.
    """

    def __init__(self, path: StorePath, size: int = 0) -> None:
        self._path, self._part = path, part_size(size)
        self._lock, self._position, self._size = threading.Lock(), 0, 0
        self._open, self._filled = dict[int, bytearray](), dict[int, int]()
        self._sent = list[Future[None]]()
        self._begun: Upload | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write behind what was written before; returns the number of bytes."""
        self.write_at(self._position, data)
        self._position += len(data)
        return len(data)

    def write_at(self, offset: int, data: bytes | memoryview | npt.NDArray[np.uint8]) -> None:
        """Write at an offset, on any thread; raises StoreError."""
        view, done, full = memoryview(data).cast("B"), 0, list[tuple[int, bytearray]]()
        with self._lock:
            while done < len(view):
                number, at = divmod(offset + done, self._part)
                piece = view[done : done + self._part - at]
                buffer = self._open.setdefault(number, bytearray())
                if len(buffer) < at + len(piece):
                    buffer.extend(bytes(at + len(piece) - len(buffer)))
                buffer[at : at + len(piece)] = piece
                self._filled[number] = self._filled.get(number, 0) + len(piece)
                if self._filled[number] == self._part:
                    full.append((number, self._open.pop(number)))
                done += len(piece)
            self._size = max(self._size, offset + len(view))
        for number, part in full:
            self._send(number, bytes(part))

    def _send(self, number: int, data: bytes) -> None:
        """Send a part on another thread, once there is room for it."""
        with self._path.store.explained(self._path.key, "written"), self._lock:
            if self._begun is None:
                is_s3 = hasattr(self._path.store.fs, "call_s3")
                self._begun = S3Upload(self._path) if is_s3 else FileUpload(self._path, self._part)
        _room.acquire()
        future = _pool.submit(self._begun.send, number, data)
        future.add_done_callback(lambda _: _room.release())
        with self._lock:
            ended, self._sent = [f for f in self._sent if f.done()], [f for f in self._sent if not f.done()] + [future]
        self._raise_errors(ended)

    def _raise_errors(self, futures: list[Future[None]]) -> None:
        with self._path.store.explained(self._path.key, "written"):
            for future in futures:
                future.result()

    def close(self) -> None:
        """Send what is left, make the object, and compare its size with what was written.

        Raises:
            StoreError: it cannot be written, or has another size.
        """
        store, key = self._path.store, self._path.key
        rest = [(number, bytes(self._open.pop(number))) for number in sorted(self._open)]
        for number, part in rest if self._begun is not None else ():
            self._send(number, part)
        self._raise_errors(self._sent)
        store.before_making()
        if self._begun is None:
            self._put(rest[0][1] if rest else b"")
        else:
            store.made[key] = self._begun.version
            with store.explained(key, "written"):
                self._begun.finish()
        found = self._path.stat()
        if found is None or found.size != self._size:
            there = "is not there" if found is None else f"has {found.size} bytes"
            raise StoreError(
                f"{self._path}: {there}, expected {self._size}, after it was written: does another program write there? run again"
            )
        store.made[key] = found.version

    def _put(self, data: bytes) -> None:
        """Make an object of one part."""
        store, is_s3 = self._path.store, hasattr(self._path.store.fs, "call_s3")
        version = store.made[self._path.key] = hashlib.md5(data, usedforsecurity=False).hexdigest() if is_s3 else ""
        with store.explained(self._path.key, "written"):
            if is_s3:
                TRAFFIC.add(written=len(data))
                _make_new(self._path, version, "put_object", {**_bucket_and_key(self._path), "Body": data, "ContentMD5": _md5(data)})
            elif not store.put(self._path.key, data):
                raise FileExistsError("there is such an object")

    def abort(self) -> None:
        """Leave nothing in the store, as far as that can be reached."""
        for future in self._sent:
            future.exception()
        if self._begun is not None:
            with suppress(Exception):  # what is left is found by the next run that writes there
                self._begun.abort()


def _make_new(path: StorePath, version: str, method: str, arguments: Mapping[str, Any]) -> None:
    """Have S3 make an object, unless there is one: ``version`` tells whether that is the same, as the answer to a first try may be lost."""
    TRAFFIC.add(requests=1)
    try:
        try:
            path.store.fs.call_s3(method, IfNoneMatch="*", **arguments)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            path.store.fs.call_s3(method, **arguments)  # a store that cannot look first
    except Exception:
        found = path.stat()
        if found is None or found.version != version:
            raise


def abort_uploads(path: StorePath) -> None:
    """Abort the uploads that killed runs began of an object, or of objects below it, where the store has such and lets us see them."""
    store = path.store
    if not hasattr(store.fs, "call_s3"):
        return
    place = _bucket_and_key(path)
    with suppress(OSError, NotImplementedError):  # without the right to list them they stay, until a rule of the bucket removes them
        for row in list(_uploads(store.fs, place)):
            if not place["Key"] or row["Key"] == place["Key"] or row["Key"].startswith(f"{place['Key']}/"):
                TRAFFIC.add(requests=1)
                store.fs.call_s3("abort_multipart_upload", Bucket=place["Bucket"], Key=row["Key"], UploadId=row["UploadId"])


def _uploads(fs: Any, place: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The uploads of all objects whose names begin with a key: S3 lists a thousand at once."""
    more = dict[str, str]()
    while True:
        TRAFFIC.add(requests=1)
        found = fs.call_s3("list_multipart_uploads", Bucket=place["Bucket"], Prefix=place["Key"], **more)
        yield from found.get("Uploads", ())
        if not found.get("IsTruncated"):
            return
        more = {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]}


def _bucket_and_key(path: StorePath) -> dict[str, str]:
    bucket, key, _ = path.store.fs.split_path(path.store.at(path.key))
    return {"Bucket": bucket, "Key": key}


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
