"""A training loop that publishes every step, and an engine that takes every one, beside PULSE: all in one process, in turn.

    VENV/bin/python benchmarks/chain_loop.py [--steps 100] [--threads 1] [--tiny 1000] [--beside 12] [--json FILE]

VENV has ckptdiff and the peers of ``peers.txt``. A small transformer is trained on the sources of Python's library, with fp32
masters and AdamW at a rate with which about 2 % of its bf16 weights change a step. For each step:

- *publish*: ``Publisher.publish`` (diff, write, head; all flushed to the disk) beside PULSE format 1's ``encode_step``, its file
  written, flushed and renamed;
- *take*: ``Subscriber.stage`` and ``Staged.apply_`` beside PULSE's reading, ``parse_patch`` and ``apply_patch``;
- *bytes*: ``Encoder`` with codec ``context`` beside PULSE format 3.

Then an engine that is 25 steps behind catches up, beside PULSE format 3's 25 patches; and a chain of tiny steps is published and
followed (``--tiny``): time of a step, memory and open files, tenth by tenth. Last, what publishing takes from training (``--beside``
rounds): the time of a step of training alone, and with each way to publish every second step. Every state that is taken is compared
bit by bit. Prints medians and ratios as a table, and JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from basilica._pulse import codec as pulse

import ckptdiff

BEHIND = 25
WARM_UP = 3
State = dict[str, torch.Tensor]
Rows = dict[str, list[float]]


class Block(torch.nn.Module):
    """A layer of a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 8, -1)).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))


def training(width: int = 256, layers: int = 7, rate: float = 7e-7) -> Iterator[State]:
    """The fp32 masters, first as they begin, then after each step."""
    torch.manual_seed(0)
    embed = torch.nn.Embedding(256, width)
    model = torch.nn.Sequential(embed, *(Block(width) for _ in range(layers)), torch.nn.LayerNorm(width), torch.nn.Linear(width, 256))
    for part in model.parameters():
        if part.dim() == 2:
            torch.nn.init.normal_(part, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources)), dtype=torch.uint8).long()
    yield dict(model.named_parameters())
    while True:
        starts = torch.randint(0, len(text) - 129, (4,)).tolist()
        batch = torch.stack([text[start : start + 129] for start in starts])
        loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield dict(model.named_parameters())


def served(masters: State) -> State:
    return {name: part.detach().to(torch.bfloat16) for name, part in masters.items()}


def copy_of(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def timed(rows: Rows, name: str, call: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    result = call()
    rows.setdefault(name, []).append(1000 * (time.perf_counter() - begun))
    return result


class Pulse:
    """PULSE as its trainer and its engine call it, with files that are flushed and then renamed."""

    def __init__(self, base: State, folder: Path, version: int, threads: int) -> None:
        self.source, self.sink = pulse.Snapshot(base), pulse.Snapshot(base)
        self.meta = pulse.ModelMeta(id="loop", digest="", param_count=self.source.param_count())
        self.folder, self.version, self.threads = folder, version, threads
        folder.mkdir()

    def encode(self, state: State, step: int) -> bytes:
        options = {"step": step, "base_step": step - 1, "model": self.meta, "workers": self.threads, "format_version": self.version}
        data: bytes = self.source.encode_step(state.items(), **options)[0]
        self.source.commit_step()
        return data

    def write(self, data: bytes, step: int) -> None:
        part = self.folder / f"{step}.part"
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, self.folder / str(step))
        folder = os.open(self.folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def take(self, step: int) -> None:
        self.sink.apply_patch(pulse.parse_patch((self.folder / str(step)).read_bytes()))

    def exact(self, state: State) -> bool:
        return same({name: self.sink.tensor(name) for name in state}, state)


def same(one: State, other: State) -> bool:
    return all(torch.equal(one[name].view(torch.int16), tensor.view(torch.int16)) for name, tensor in other.items())


def loop(folder: Path, steps: int, threads: int) -> dict[str, Any]:
    """Train, publish and take; then catch up."""
    masters = training()
    base = served(next(masters))
    publisher = ckptdiff.Publisher(folder / "chain", base=base, threads=threads)
    engine, late = copy_of(base), copy_of(base)
    subscriber = ckptdiff.Subscriber(folder / "chain", threads=threads)
    encoder = ckptdiff.Encoder(base, codec="context", threads=threads)
    first, third = (Pulse(base, folder / f"pulse{version}", version, threads) for version in (1, 3))
    rows: Rows = {}
    parts: Rows = {}
    sizes: Rows = {name: [] for name in ("sparse", "context", "pulse1", "pulse3")}
    changed = []
    total = steps + WARM_UP
    for step in range(1, total + 1):
        state = served(next(masters))
        if step == WARM_UP + 1:
            rows, parts = {}, {}
        for first_of_two in (True, False):  # in turn, who comes first
            if first_of_two is bool(step % 2):
                version = ours(rows, parts, publisher, subscriber, engine, state, step)
            else:
                data = theirs(rows, first, state, step)
        assert same(engine, state) and first.exact(state)
        timed(rows, "context: encode", lambda state=state: encoder.add_all(state))
        small = encoder.finish().to_bytes()
        encoder.commit()
        large = timed(rows, "pulse3: encode", lambda state=state, step=step: third.encode(state, step))
        third.write(large, step)
        for name, count in zip(sizes, (version.patch_size, len(small), len(data), len(large)), strict=True):
            sizes[name].append(count)
        changed.append(version.changed / version.units)
        if step <= total - BEHIND:
            third.take(step)
        if step == total - BEHIND:
            late, behind = copy_of(state), ckptdiff.Subscriber(folder / "chain", at=version, threads=threads)
    timed(rows, "pulse3: 25 steps", lambda: [third.take(step) for step in range(total - BEHIND + 1, total + 1)])
    timed(rows, "ckptdiff: 25 steps", lambda: behind.stage().apply_(late))
    joined = copy_of(base)
    timed(rows, "ckptdiff: join late", lambda: ckptdiff.Subscriber(folder / "chain", threads=threads).stage().apply_(joined))
    assert third.exact(state) and same(late, state) and same(joined, state)
    units = sum(tensor.numel() for tensor in base.values())
    facts = {"parameters": units, "tensors": len(base), "changed": statistics.mean(changed[WARM_UP:])}
    return {"facts": facts, "ms": medians(rows), "of publish and take, ms": medians(parts), "bytes": medians(sizes)}


def ours(rows: Rows, parts: Rows, publisher: Any, subscriber: Any, engine: State, state: State, step: int) -> Any:
    version = timed(rows, "ckptdiff: publish", lambda: publisher.publish(state, step=step))
    if step % 4 == 0:  # decoded against the model before the pause
        staged = timed(rows, "ckptdiff: stage with the model", lambda: subscriber.stage(model=engine))
        timed(rows, "ckptdiff: apply what was staged so", lambda: staged.apply_(engine))
        return version
    staged = timed(rows, "ckptdiff: stage", subscriber.stage)
    timed(rows, "ckptdiff: apply", lambda: staged.apply_(engine))
    for name, seconds in (version.timings | staged.timings).items():
        parts.setdefault(name, []).append(1000 * seconds)
    return version


def theirs(rows: Rows, peer: Pulse, state: State, step: int) -> bytes:
    data: bytes = timed(rows, "pulse1: encode", lambda: peer.encode(state, step))
    timed(rows, "pulse1: write", lambda: peer.write(data, step))
    timed(rows, "pulse1: take", lambda: peer.take(step))
    return data


def medians(rows: Rows) -> dict[str, float]:
    return {name: round(statistics.median(values), 3) for name, values in rows.items()}


def ratios(found: dict[str, Any]) -> dict[str, float]:
    ms, sizes = found["ms"], found["bytes"]
    return {
        "publish / PULSE v1 encode and write (0.8)": ms["ckptdiff: publish"] / (ms["pulse1: encode"] + ms["pulse1: write"]),
        "stage and apply / PULSE v1 (1.2)": (ms["ckptdiff: stage"] + ms["ckptdiff: apply"]) / ms["pulse1: take"],
        "apply of what was decoded before / PULSE v1": ms["ckptdiff: apply what was staged so"] / ms["pulse1: take"],
        "bytes of context / PULSE v3 (0.70)": sizes["context"] / sizes["pulse3"],
        "bytes of sparse / PULSE v1": sizes["sparse"] / sizes["pulse1"],
        "25 steps / PULSE v3 (1.0)": ms["ckptdiff: 25 steps"] / ms["pulse3: 25 steps"],
    }


def resources() -> dict[str, float]:
    """MB of memory, and open files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return {"MB": round(int(line.split()[1]) / 1024, 1), "open files": len(os.listdir("/proc/self/fd"))}


def tiny(folder: Path, steps: int) -> list[dict[str, float]]:
    """A chain of so many steps of a tiny model, published and followed: what a step takes, tenth by tenth."""
    base = {"w": torch.randn(64, 64).bfloat16(), "b": torch.randn(64).bfloat16()}
    state, engine, found = copy_of(base), copy_of(base), list[dict[str, float]]()
    publisher = ckptdiff.Publisher(folder / "tiny", base=base, threads=1)
    subscriber = ckptdiff.Subscriber(folder / "tiny", threads=1)
    rows: Rows = {}
    for step in range(1, steps + 1):
        state["w"].view(torch.int16)[step % 64] += 1
        timed(rows, "publish ms", lambda step=step: publisher.publish(state, step=step))
        timed(rows, "take ms", lambda: subscriber.stage().apply_(engine))
        if step % max(steps // 10, 1) == 0:
            found.append({"step": step, **medians(rows), **resources()})
            rows = {}
    assert same(engine, state)
    late = copy_of(base)
    timed(rows, "ms", lambda: ckptdiff.Subscriber(folder / "tiny", threads=1).stage(to=steps // 2 + 49).apply_(late))
    return [*found, {"step": steps // 2 + 49, "join late ms": rows["ms"][0], **resources()}]


WAYS = {"alone": "", "in the calling thread": None, "in a thread": "thread", "in a process": "process"}


def beside(folder: Path, rounds: int) -> dict[str, float]:
    """What a step of training takes, in ms: alone, and with a publisher of each kind at every second step. Four steps of each in turn."""
    masters, rows, publishers = training(rate=7e-6), Rows(), dict[str, Any]()
    base = copy_of(next(masters))
    for way, worker in WAYS.items():
        if way != "alone":
            publishers[way] = ckptdiff.Publisher(folder / way, base=base, dtype=torch.bfloat16, worker=worker, threads=1)  # type: ignore[arg-type]
            publishers[way].publish(base, step=1)
    for round_ in range(2, rounds + 2):
        for way in WAYS:
            for step in range(4):
                begun = time.perf_counter()
                state = next(masters)
                if way != "alone" and step % 2 == 0:
                    waiting = publishers[way].publish(state, step=10 * round_ + step)
                rows.setdefault(way, []).append(1000 * (time.perf_counter() - begun))
            if way in ("in a thread", "in a process"):
                waiting.result()
    for publisher in publishers.values():
        publisher.close()
    return {way: round(statistics.mean(values), 3) for way, values in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", type=int, default=1000)
    parser.add_argument("--beside", type=int, default=12)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="ckptdiff-loop-") as name:
        folder = Path(name)
        found = loop(folder, arguments.steps, arguments.threads)
        found["ratios"] = {name: round(value, 3) for name, value in ratios(found).items()}
        found["ms of a training step"] = beside(folder, arguments.beside) if arguments.beside else {}
        found["tiny"] = tiny(folder, arguments.tiny) if arguments.tiny else []
    for title in ("facts", "ms", "of publish and take, ms", "bytes", "ratios", "ms of a training step"):
        print(f"\n{title}")
        for row, value in found[title].items():
            print(f"  {row:45} {value:>14,.3f}")
    for row in found["tiny"]:
        print("  " + "  ".join(f"{key} {value:g}" for key, value in row.items()))
    text = json.dumps(found, indent=1)
    arguments.json.write_text(text) if arguments.json else print(text)


if __name__ == "__main__":
    main()
