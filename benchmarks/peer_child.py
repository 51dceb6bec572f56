"""One step of a library peer in a process of its own, for ``peers.py``; needs nothing of ckptdiff.

    python peer_child.py PEER make  BASE TARGET PATCH
    python peer_child.py PEER apply BASE PATCH OUT
    python peer_child.py PEER warm  BASE TARGET RUNS

Reads files, works in memory, writes a file, and prints the seconds of each part as one JSON object: ``import``, ``read``,
``work``, ``write``. ``work`` is the peer's own encode or decode and nothing else; all of it is in the process's wall time.
``warm`` encodes and decodes again and again in one process and prints the seconds of every run.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

THREADS = int(os.environ.get("PEERS_THREADS", "2"))
Entries = dict[str, Any]
Codec = Callable[[Any, Any], Any]  # base and target to patch, or base and patch to target


class FilePeer:
    """A codec of whole files: bytes in, bytes out."""

    def __init__(self) -> None:
        self.encode_bytes, self.decode_bytes = self.load()

    def load(self) -> tuple[Codec, Codec]:
        raise NotImplementedError

    def read(self, path: str) -> Any:
        return Path(path).read_bytes()

    def start(self, base: Any) -> Any:
        """What the peer holds before an encode or decode begins."""
        return base

    def encode(self, base: Any, target: Any) -> bytes:
        patch: bytes = self.encode_bytes(base, target)
        return patch

    def decode(self, base: Any, patch: bytes) -> Any:
        return self.decode_bytes(base, patch)

    def write(self, result: Any, path: str) -> None:
        Path(path).write_bytes(result)


class Bsdiff4(FilePeer):
    def load(self) -> tuple[Codec, Codec]:
        module = importlib.import_module("bsdiff4")
        return module.diff, module.patch


class HDiffPatch(FilePeer):
    def load(self) -> tuple[Codec, Codec]:
        module = importlib.import_module("hdiffpatch")
        return lambda base, target: module.diff(base, target, module.COMPRESSION_ZSTD, validate=False), module.apply


class Z4ai(FilePeer):
    """Its codec for a whole safetensors file against another."""

    def load(self) -> tuple[Codec, Codec]:
        module = importlib.import_module("z4ai.model_delta")
        return lambda base, target: module.compress(target, base, threads=THREADS), lambda base, patch: module.decompress(patch, base)


class ZipNN(FilePeer):
    """Its delta of bytes, which wants two files of one length. Its Huffman core codes bf16 and fp32 whatever ``method`` says."""

    def load(self) -> tuple[Codec, Codec]:
        self.module = importlib.import_module("zipnn")
        return self.compress, self.decompress

    def codec(self, base: bytes) -> Any:
        dtypes = {entry["dtype"] for entry in entries(memoryview(base))[1].values()}
        dtype = "float32" if dtypes == {"F32"} else "float16" if dtypes == {"F16"} else "bfloat16"
        return self.module.ZipNN(input_format="byte", bytearray_dtype=dtype, delta_compressed_type="byte", threads=THREADS)

    def compress(self, base: bytes, target: bytes) -> bytes:
        if len(base) != len(target):
            raise SystemExit(f"zipnn's delta wants files of one length, these have {len(base)} and {len(target)} bytes")
        return bytes(self.codec(base).compress(target, delta_second_data=base))

    def decompress(self, base: bytes, patch: bytes) -> bytes:
        return bytes(self.codec(base).decompress(patch, delta_second_data=base))


def entries(data: memoryview) -> tuple[int, Entries]:
    """Where a safetensors file's data begins, and its tensors in the order of their data."""
    size = int.from_bytes(data[:8], "little")
    found = {name: entry for name, entry in json.loads(bytes(data[8 : 8 + size])).items() if name != "__metadata__"}
    return 8 + size, dict(sorted(found.items(), key=lambda item: item[1]["data_offsets"]))


class Xor(FilePeer):
    """XOR with the base's tensor of the same name, byte planes, zstd -3: what slime and BitX do. Tensors in parallel."""

    def load(self) -> tuple[Codec, Codec]:
        self.numpy: Any = importlib.import_module("numpy")
        self.zstd: Any = importlib.import_module("zstandard")
        return self.compress, self.decompress

    def bases(self, base: bytes, new: Entries) -> dict[str, Any]:
        """The base's bytes for each new tensor, where it has as many."""
        data, (start, old) = self.numpy.frombuffer(base, "u1"), entries(memoryview(base))
        spans = {name: (start + entry["data_offsets"][0], start + entry["data_offsets"][1]) for name, entry in old.items()}
        return {name: data[slice(*spans[name])] for name in new if name in old and length(old[name]) == length(new[name])}

    def compress(self, base: bytes, target: bytes) -> bytes:
        numpy, (first, new) = self.numpy, entries(memoryview(target))
        data, before = numpy.frombuffer(target, "u1"), self.bases(base, new)

        def squeeze(name: str) -> list[bytes]:
            begin, end = new[name]["data_offsets"]
            part = data[first + begin : first + end]
            part = (part ^ before[name] if name in before else part).reshape(-1, width(new[name]))
            packer = self.zstd.ZstdCompressor(level=3)
            return [packer.compress(numpy.ascontiguousarray(plane)) for plane in part.T]

        with ThreadPoolExecutor(THREADS) as pool:
            frames = [frame for group in pool.map(squeeze, new) for frame in group]
        frames.insert(0, self.zstd.ZstdCompressor(level=3).compress(target[:first]))
        sizes = json.dumps([len(frame) for frame in frames], separators=(",", ":")).encode()
        return b"".join([len(sizes).to_bytes(8, "little"), sizes, *frames])

    def decompress(self, base: bytes, patch: bytes) -> Any:
        numpy, size = self.numpy, int.from_bytes(patch[:8], "little")
        at, frames = 8 + size, []
        for count in json.loads(patch[8 : 8 + size]):
            frames.append(memoryview(patch)[at : at + count])
            at += count
        head = self.zstd.ZstdDecompressor().decompress(frames[0])
        first, new = entries(memoryview(head))
        before, places, at = self.bases(base, new), {}, 1
        for name, entry in new.items():
            places[name] = at
            at += width(entry)
        out = numpy.empty(first + sum(length(entry) for entry in new.values()), "u1")
        out[:first] = numpy.frombuffer(head, "u1")

        def rebuild(name: str) -> None:
            begin, end = new[name]["data_offsets"]
            part, unpacker = out[first + begin : first + end], self.zstd.ZstdDecompressor()
            planes = part.reshape(-1, width(new[name]))
            for index in range(planes.shape[1]):
                planes[:, index] = numpy.frombuffer(unpacker.decompress(frames[places[name] + index]), "u1")
            if name in before:
                numpy.bitwise_xor(part, before[name], out=part)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(rebuild, new))
        return out


def length(entry: Entries) -> int:
    """Bytes of a tensor."""
    begin, end = (int(offset) for offset in entry["data_offsets"])
    return end - begin


def width(entry: Entries) -> int:
    """Bytes of one element, at least one."""
    return max(1, length(entry) // max(1, math.prod(entry["shape"])))


class Pulse(FilePeer):
    """PULSE's patch codec as its trainer and its engine call it: named bf16 tensors and a snapshot of the last state."""

    version = 3

    def load(self) -> tuple[Codec, Codec]:
        self.codec: Any = importlib.import_module("basilica._pulse.codec")
        self.files: Any = importlib.import_module("safetensors.torch")
        return self.encode, self.decode

    def read(self, path: str) -> Any:
        return self.files.load_file(path)

    def start(self, base: Any) -> Any:
        return self.codec.Snapshot(base)

    def encode(self, base: Any, target: Any) -> bytes:
        model = self.codec.ModelMeta(id="peers", digest="", param_count=base.param_count())
        patch: bytes = base.encode_step(target.items(), step=1, base_step=0, model=model, workers=THREADS, format_version=self.version)[0]
        return patch

    def decode(self, base: Any, patch: bytes) -> Any:
        base.apply_patch(self.codec.parse_patch(patch))
        return base

    def write(self, result: Any, path: str) -> None:
        if isinstance(result, bytes):
            Path(path).write_bytes(result)
        else:
            self.files.save_file(dict(result.named_tensors()), path)


class Pulse1(Pulse):
    version = 1


class Pulse2(Pulse):
    version = 2


PEERS: dict[str, type[FilePeer]] = {
    "bsdiff4": Bsdiff4,
    "hdiffpatch": HDiffPatch,
    "z4ai": Z4ai,
    "zipnn": ZipNN,
    "xor": Xor,
    "pulse1": Pulse1,
    "pulse2": Pulse2,
    "pulse3": Pulse,
}


def step(peer: FilePeer, verb: str, base: str, second: str, output: str) -> dict[str, float]:
    """Read, encode or decode, write; the seconds of each."""
    begun = time.perf_counter()
    other = Path(second).read_bytes() if verb == "apply" else peer.read(second)
    held = peer.start(peer.read(base))
    read = time.perf_counter()
    result = (peer.encode if verb == "make" else peer.decode)(held, other)
    worked = time.perf_counter()
    peer.write(result, output)
    return {"read": read - begun, "work": worked - read, "write": time.perf_counter() - worked}


def repeated(work: Callable[[], Any], runs: int, fresh: Callable[[], Any] | None = None) -> list[float]:
    """Seconds of each call of ``work``; ``fresh`` runs before each, outside the clock. The first call is dropped."""
    found = []
    for _ in range(runs + 1):
        if fresh:
            fresh()
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return found[1:]


def warm(peer: FilePeer, base: str, target: str, runs: int) -> dict[str, list[float]]:
    """Encode and decode again in one process, from warm memory; every run begins with a fresh snapshot."""
    old, new = peer.read(base), peer.read(target)
    held: list[Any] = [None]

    def fresh() -> None:
        held[0] = None
        held[0] = peer.start(old)

    fresh()
    patch = peer.encode(held[0], new)
    encode = repeated(lambda: peer.encode(held[0], new), runs, fresh)
    return {"encode": encode, "decode": repeated(lambda: peer.decode(held[0], patch), runs, fresh)}


def main() -> None:
    name, verb, base, second, last = sys.argv[1:]
    begun = time.perf_counter()
    peer = PEERS[name]()
    imported = time.perf_counter() - begun
    if verb == "warm":
        print(json.dumps(warm(peer, base, second, int(last))))
    else:
        print(json.dumps({"import": imported, **step(peer, verb, base, second, last)}))


if __name__ == "__main__":
    main()
