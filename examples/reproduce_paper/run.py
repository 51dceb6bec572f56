"""Reproduce arXiv 2505.11711 at a small scale, on a CPU: one command.

    pip install torch==2.13.0 && pip install -r examples/reproduce_paper/requirements.txt
    python examples/reproduce_paper/run.py [--out reproduction] [--part PART]... [--quick] [--jobs 2] [--keep]

Trains two small Llamas on the spot, then fine-tunes them by SFT, DPO and GRPO (TRL's trainers) in pure bf16 and with fp32 masters,
measures every run with ckptdiff, and writes OUT/measures.json, OUT/RESULTS.md and OUT/charts. What is done already is not done again,
whether it was stopped or another ``--part`` needed it. Each run is a process of its own with one thread, ``--jobs`` at a time.
``--quick``: a few steps of tiny models, to see that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from places import base_of, rollouts_of, run_folder, write_json
from plan import FULL, PARTS, QUICK, Part, Run, Scale, runs

HERE = Path(__file__).resolve().parent
JOBS = multiprocessing.get_context("forkserver")
"""Each job is a process of its own, forked from one that has imported the libraries, which takes longer than a small job."""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}


def start_server() -> None:
    """Start the process that jobs are forked from; the environment must be set before it imports anything."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT, PYTHONPATH=os.pathsep.join([str(HERE), *filter(None, [before.get("PYTHONPATH")])]))
    try:
        JOBS.set_forkserver_preload(["train", "transformers.models.llama.modeling_llama", "torch._dynamo", "ckptdiff.codecs.context"])
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def process(scale: Scale, out: Path, job: str) -> None:
    """One job in a process of its own, with one thread; its output goes to a file."""
    log = out / "logs" / f"{job}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    child = JOBS.Process(target=work, args=(job, scale, out, log))
    child.start()
    child.join()
    if child.exitcode:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:])
        raise SystemExit(f"{job} failed with exit code {child.exitcode}; the end of {log}:\n{tail}")


def work(job: str, scale: Scale, out: Path, log: Path) -> None:
    """What a job's process does: ``base MODEL``, ``rollouts MODEL``, or a run by name."""
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    import base
    import train

    kind, _, model = job.partition(" ")
    if kind == "base":
        building = out / f"{model}.part"
        building.mkdir(parents=True, exist_ok=True)
        base.train_base(scale, getattr(scale, model), building)
        (out / "base").mkdir(exist_ok=True)
        building.replace(base_of(out, model))
    elif kind == "rollouts":
        train.roll_out(model, scale, out)
    else:
        train.train(next(run for run in runs(scale) if run.name == job), scale, out)


def train_all(arguments: argparse.Namespace, scale: Scale, planned: list[Run]) -> None:
    """The bases, what they say, and all runs; a masked run waits for the one that it takes its mask of."""
    out: Path = arguments.out
    start_server()
    started = time.perf_counter()
    futures: dict[str, Future[None]] = {}

    def prepare(model: str) -> None:
        for job, done in ((f"base {model}", base_of(out, model)), (f"rollouts {model}", rollouts_of(out, model) / "record.json")):
            if not done.exists():
                say(f"{job} ...")
                process(scale, out, job)

    def one(number: int, run: Run) -> None:
        folder = run_folder(out, run.name)
        if (folder / "record.json").exists():
            return
        futures[run.model].result()
        if run.of:
            futures[run.of].result()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        process(scale, out, run.name)
        say(f"[{number}/{len(planned)}] {run.name}, {time.perf_counter() - started:.0f} s in all")

    with ThreadPoolExecutor(arguments.jobs) as pool:
        for model in sorted({run.model for run in planned}):  # the large model first, which takes longest
            futures[model] = pool.submit(prepare, model)
        for number, run in enumerate(planned, 1):
            futures[run.name] = pool.submit(one, number, run)
        try:
            for future in futures.values():
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def parts_with_their_runs(chosen: Sequence[Part], scale: Scale) -> list[Run]:
    """The runs of some parts. All small parts need the full runs of ``updates``."""
    wanted = set(chosen) | ({"updates"} if set(chosen) - {"size"} else set())
    return [run for run in runs(scale) if run.part in wanted]


def machine() -> dict[str, Any]:
    """What the figures of time depend on."""
    import torch

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fast = any(name in flags for name in ("avx512_bf16", "amx_bf16", " bf16"))
    return {"cores": os.cpu_count(), "bf16": fast, "torch": torch.__version__}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reproduction"))
    parser.add_argument("--part", choices=list(PARTS), action="append", help="; ".join(f"{part}: {what}" for part, what in PARTS.items()))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the patches, logs and bases, also where all parts are done")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    check_plan(out / "plan.json", scale)
    chosen = [part for part in PARTS if part in (arguments.part or PARTS)]
    found = run_parts(arguments, scale, chosen)
    from results import page  # here, as every job's process imports this file anew

    (out / "RESULTS.md").write_text(page(found))
    if not arguments.keep and list(found["parts"]) == list(PARTS):
        for name in ("runs", "rollouts", "base", "logs"):
            shutil.rmtree(out / name, ignore_errors=True)
    say(f"{out / 'RESULTS.md'} and {out / 'charts'} after {found['seconds']['wall']:.0f} s in all")


def check_plan(path: Path, scale: Scale) -> None:
    """Note the plan of a folder; end if the folder has runs of another one."""
    planned = json.loads(json.dumps(asdict(scale)))
    if path.exists() and json.loads(path.read_text()) != planned:
        raise SystemExit(f"{path.parent}: has runs of another plan (--quick?): give another --out, or remove it")
    write_json(path, planned)


def run_parts(arguments: argparse.Namespace, scale: Scale, chosen: Sequence[Part]) -> dict[str, Any]:
    """The measures of all parts that are done: of these, and of those that were done before in the same folder."""
    out: Path = arguments.out
    path = out / "measures.json"
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"parts": []}
    if not set(chosen) - set(before["parts"]):
        return before
    host, planned = machine(), parts_with_their_runs(chosen, scale)
    if not host["bf16"]:
        say("this CPU has no instructions for bf16: README.md says how much longer that takes")
    with counted_seconds(out / "seconds.json"):
        train_all(arguments, scale, planned)
        say("measuring ...")
        from measure import measure

        found = measure(scale, out, [part for part in PARTS if part in {*before["parts"], *(run.part for run in planned)}])
    cpu = sum(record["seconds"]["cpu"] for record in found["records"].values())
    seconds = {"wall": json.loads((out / "seconds.json").read_text()), "cpu of runs": cpu}
    from charts import draw
    from kept import trimmed

    draw(found, out / "charts")
    write_json(path, trimmed(found | {"machine": host, "scale": asdict(scale), "seconds": seconds}))
    found = json.loads(path.read_text())
    return found


@contextmanager
def counted_seconds(path: Path) -> Iterator[None]:
    """Add the seconds that it takes to those of a file, also where it is interrupted."""
    begun, before = time.perf_counter(), json.loads(path.read_text()) if path.exists() else 0.0
    try:
        yield
    finally:
        write_json(path, before + time.perf_counter() - begun)


if __name__ == "__main__":
    main()
