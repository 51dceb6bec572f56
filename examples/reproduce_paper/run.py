"""Reproduce arXiv 2505.11711 at a small scale, on a CPU: one command.

    pip install torch==2.13.0 && pip install -r examples/reproduce_paper/requirements.txt
    python examples/reproduce_paper/run.py [--out reproduction] [--quick] [--jobs 2] [--keep]

Trains a small Llama on the spot, then fine-tunes it by SFT, DPO and GRPO (TRL's trainers) in pure bf16 and with fp32 masters,
measures every run with ckptdiff, and writes OUT/tables.md and OUT/charts. What is done already is not done again. Each run is a
process of its own with one thread, ``--jobs`` at a time. ``--quick``: a few steps of a tiny model, to see that all of it runs.
``--publish``: also put tables and charts into RESULTS.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

from plan import FULL, QUICK, Run, Scale, runs

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- written by run.py --publish -->", "<!-- end -->"


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
    """What a job's process does."""
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    import base
    import train

    if job == "base":
        building = out / "base.part"
        building.mkdir(parents=True, exist_ok=True)
        base.train_base(scale, building)
        building.replace(out / "base")
    elif job == "rollouts":
        train.roll_out(scale, out)
    else:
        train.train(next(run for run in runs(scale) if run.name == job), scale, out)


def train_all(arguments: argparse.Namespace, scale: Scale) -> None:
    """The base, what it says, and all runs; a masked run waits for the one that it takes its mask of."""
    out: Path = arguments.out
    start_server()
    for job, done in (("base", out / "base"), ("rollouts", out / "rollouts" / "record.json")):
        if not done.exists():
            say(f"{job} ...")
            process(scale, out, job)
    planned, started = runs(scale), time.perf_counter()
    futures: dict[str, Future[None]] = {}

    def one(number: int, run: Run) -> None:
        if run.of:
            futures[run.of].result()
        folder = out / "runs" / run.name
        if (folder / "record.json").exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        process(scale, out, run.name)
        say(f"[{number}/{len(planned)}] {run.name}, {time.perf_counter() - started:.0f} s in all")

    with ThreadPoolExecutor(arguments.jobs) as pool:
        for number, run in enumerate(planned, 1):
            futures[run.name] = pool.submit(one, number, run)
        try:
            for future in futures.values():
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def publish(text: str, pictures: list[Path]) -> None:
    """Tables and charts between the marks of RESULTS.md."""
    folder = HERE / "charts"
    folder.mkdir(exist_ok=True)
    for path in pictures:
        shutil.copy(path, folder / path.name)
    images = "\n\n".join(f"![{path.stem.replace('-', ' ')}](charts/{path.name})" for path in pictures)
    page = HERE / "RESULTS.md"
    old = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{text}\n{images}\n\n{END}", old, flags=re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reproduction"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the patches, logs and the base")
    parser.add_argument("--publish", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    begun = time.perf_counter()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not (arguments.out / "measures.json").exists():
        train_all(arguments, scale)
        say("measuring ...")
        from measure import measure

        (arguments.out / "measures.json").write_text(json.dumps(measure(scale, arguments.out)))
    from charts import draw
    from tables import tables

    found = json.loads((arguments.out / "measures.json").read_text())
    text = tables(found, scale)
    (arguments.out / "tables.md").write_text(text)
    pictures = draw(found, scale, arguments.out / "charts")
    if arguments.publish:
        publish(text, pictures)
    if not arguments.keep:
        for name in ("runs", "rollouts", "base", "logs"):
            shutil.rmtree(arguments.out / name, ignore_errors=True)
    say(f"{arguments.out / 'tables.md'} and {len(pictures)} charts after {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
