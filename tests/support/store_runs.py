"""Run by hand: make, apply, verify, report, info and pull at an S3 server that fails, with a pair of any size: what they take.

    python -m tests.support.store_runs FOLDER --megabytes 600 --faults

Each command is a process of its own, whose peak memory, largest temporary file and requests are printed, beside the plan's: requests that
the store's library repeats after an error are not among them. What it wrote or printed is compared with what the same command writes or
prints on this machine; ``pull`` brings base and patch from a Hub on this machine, whose cache must stay empty. FOLDER takes four times the
size, and is removed.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ckptdiff.io.store_upload import PART
from tests.support.checkpoints import perturb, random_tensor, write_sharded
from tests.support.hub_client import Client, files_of
from tests.support.hub_server import environment, running
from tests.support.s3_server import BUCKET, SETTINGS, faulty_proxy, s3_server


def write_pair(folder: Path, megabytes: int, seed: int = 1) -> None:
    """Write ``folder``/base and ``folder``/target, of four shards each, of which a tenth of the elements differ."""
    rng, shards = np.random.default_rng(seed), 4
    rows = max(megabytes * 1_000_000 // (shards * 3 * 2 * 4096), 1)
    for k in range(shards):
        base, target = {}, {}
        for name, shape in (("a", (rows, 4096)), ("norm", (4096,)), ("b", (2 * rows, 4096))):
            tensor = random_tensor(rng, "BF16", shape)
            base[f"model.layers.{k}.{name}"], target[f"model.layers.{k}.{name}"] = tensor, perturb(rng, tensor, 0.1)
        for side, tensors in (("base", base), ("target", target)):
            write_sharded(folder / side, {f"model-{k + 1:05d}-of-{shards:05d}.safetensors": tensors}, index=None)
    for side in ("base", "target"):
        (folder / side / "config.json").write_text(json.dumps({"side": side}))
        (folder / side / "tokenizer.json").write_text("both " * 1000)


def put_folder(port: int, folder: Path, key: str) -> None:
    """Put the files of a folder into the bucket."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            connection = http.client.HTTPConnection("127.0.0.1", port)
            with open(path, "rb") as file:
                headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"}
                connection.request(
                    "PUT", f"/{BUCKET}/{key}/{path.relative_to(folder)}", file, {**headers, "Content-Length": str(path.stat().st_size)}
                )
                assert connection.getresponse().status == 200
            connection.close()


def objects_below(port: int, key: str, out: Path) -> Path:
    """Fetch all objects below a name into a new folder."""
    import s3fs

    fs = s3fs.S3FileSystem(key="x", secret="x", endpoint_url=f"http://127.0.0.1:{port}", use_listings_cache=False, skip_instance_cache=True)
    fs.get(f"{BUCKET}/{key}", str(out), recursive=True)
    return out


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """Watch a folder; gives the size of the largest file that was seen, and of all at one moment."""
    largest, ended = [0, 0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            sizes = [0]
            for path in folder.rglob("*"):
                try:
                    sizes.append(path.stat().st_size if path.is_file() else 0)
                except OSError:  # it is gone
                    continue
            largest[:] = [max(largest[0], *sizes), max(largest[1], sum(sizes))]

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield largest
    finally:
        ended.set()
        thread.join()


@contextmanager
def on_a_hub(work: Path) -> Iterator[dict[str, str]]:
    """A Hub with the base, and a patch from it; gives what a client needs, whose cache is ``work``/hub."""
    with running(work) as hub:
        hub.add("org/base", files_of(work / "base"))
        client = Client(hub, work / "pusher", cold=True)
        client.run("make", "org/base", work / "target", "-o", "patch")
        client.run("push", "patch", "me/patch", "--license", "apache-2.0")
        yield environment(hub, work / "hub")


def command(port: int, temporary: Path, *arguments: str, attempts: int = 1, **more: str) -> dict[str, Any]:
    """Run a command until it succeeds, and return what it printed as JSON, and its peak memory in MB."""
    code = "import sys; from ckptdiff.cli.main import main\ntry: main()\nfinally: print(open('/proc/self/status').read(), file=sys.stderr)"
    settings = {**SETTINGS, "AWS_MAX_ATTEMPTS": "5", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "TMPDIR": str(temporary), **more}
    errors = []
    for _ in range(attempts):
        with watched(temporary) as largest:
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments, "--json"], env={**os.environ, **settings}, capture_output=True, text=True
            )
        if done.returncode == 0:
            return {**json.loads(done.stdout), "peak_mb": _peak(done.stderr), "largest": largest[0], "errors": errors}
        errors.append(json.loads(done.stdout)["error"]["message"])
    raise AssertionError(errors)


def told(result: dict[str, Any]) -> dict[str, Any]:
    """What a command printed, but for what was measured of its run, and where files lie."""
    apart = ("peak_mb", "largest", "errors", "base", "target", "patch", "path")
    return {name: value for name, value in result.items() if name not in apart}


def _peak(status: str) -> float:
    """Peak memory in MB, of what Linux says of a process."""
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    return subprocess.run(["diff", "-r", one, other], check=False).returncode == 0


def show(what: str, result: dict[str, Any], counted: Counter[str], seconds: float) -> None:
    """Print what a command took."""
    row = [f"{what:8} peak {result['peak_mb']:5.0f} MB, largest temporary file {result['largest']:,} bytes (a part: {PART:,})"]
    if "planned" in result:
        ratios = [f"{name} {result['traffic'][name]:,} of {result['planned'][name]:,} planned" for name in ("requests", "read", "written")]
        row += ratios
        over = [f"{name} {result['traffic'][name] / max(result['planned'][name], 1) - 1:+.1%}" for name in ("requests", "read", "written")]
        row.append(f"against the plan: {', '.join(over)}")
    print("; ".join([*row, f"the server saw {dict(counted)}", f"{len(result['errors'])} failed runs before", f"{seconds:.0f} s"]))
    for error in result["errors"]:
        print("   ", error)


def main() -> None:
    """Run all commands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--faults", action="store_true", help="drop, lose, throttle and fail three requests in a hundred")
    parser.add_argument("--verbs", default="make,apply,verify,report,info,pull", help="which of the commands, in this order")
    arguments = parser.parse_args()
    work, met, chance = arguments.folder, Counter[str](), random.Random(1)
    temporary = work / "temporary"
    temporary.mkdir(parents=True)

    def fault(method: str, path: str) -> str:
        what = next(kinds) if arguments.faults and chance.random() < 0.03 else "ok"
        met[what] += 1
        return what

    kinds = itertools.cycle(("500", "drop", "503", "lost"))
    try:
        write_pair(work, arguments.megabytes)
        sys.path.insert(0, str(Path(__file__).parents[2]))
        import ckptdiff

        ckptdiff.make(work / "base", work / "target", work / "patch")
        with s3_server() as straight, faulty_proxy(straight, fault) as port:
            for side in ("base", "target"):
                put_folder(straight, work / side, side)
            url = f"s3://{BUCKET}"
            runs = {
                "make": ("make", f"{url}/base", f"{url}/target", "-o", f"{url}/patch"),
                "apply": ("apply", f"{url}/base", f"{url}/patch", "-o", f"{url}/out"),
                "verify": ("verify", f"{url}/patch", "--base", f"{url}/base", "--target", f"{url}/out"),
                "report": ("report", f"{url}/base", f"{url}/patch", "--rank", "none"),
                "info": ("info", f"{url}/patch"),
                "pull": ("pull", "me/patch", "-o", f"{url}/pulled"),
            }
            written = {"make": ("patch", "patch"), "apply": ("out", "target"), "pull": ("pulled", "target")}
            for what, words in ((what, runs[what]) for what in arguments.verbs.split(",")):
                met.clear()
                with on_a_hub(work) if what == "pull" else nullcontext({}) as more:
                    begun = time.time()
                    result = command(port, temporary, *words, attempts=12, **more)
                show(what, result, met, time.time() - begun)
                if what in written:
                    key, wanted = written[what]
                    fetched = objects_below(straight, key, work / "fetched")
                    print(f"         the same files as on this machine: {same_files(fetched, work / wanted)}", flush=True)
                    shutil.rmtree(fetched)
                    cached = sum(path.stat().st_size for path in (work / "hub").rglob("*") if path.is_file() and not path.is_symlink())
                    print(f"         bytes in the cache of the Hub: {cached:,}", flush=True)
                else:
                    here = [word.replace(f"{url}/out", str(work / "target")).replace(url, str(work)) for word in words]
                    same = told(command(straight, temporary, *here)) == told(result)
                    print(f"         the same as printed of files on this machine: {same}", flush=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
