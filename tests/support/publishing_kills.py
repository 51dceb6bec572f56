"""A publisher and a subscriber in processes of their own, killed (SIGKILL) at random moments, the publisher's worker too.

Both go on from the chain and from what they have on the disk alone; each version that either reports is compared bit for bit. By hand,
50 kills over 200 steps: ``python -m tests.support.publishing_kills --kills 50 --steps 200``.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ckptdiff
from tests.support.states import State, copy_of, first_state, next_state, same
from tests.support.warm_process import SERVER


def states_up_to(step: int) -> list[State]:
    """The base, and the state of each step: every process finds the same ones."""
    rng, made = np.random.default_rng(7), [first_state(7)]
    for _ in range(step):
        made.append(next_state(made[-1], rng))
    return made


def publish(chain: Path, steps: int, worker: str) -> None:
    """Publish all steps from the last one of the chain on."""
    run = states_up_to(steps)
    with ckptdiff.Publisher(chain, base=run[0], keyframe_every=5, worker=worker or None, threads=1) as publisher:  # type: ignore[arg-type]
        last = publisher.resume()
        assert last is None or last.identity == ckptdiff.identity(run[last.step])
        if worker:
            print("worker", publisher._way._worker.process.pid, flush=True)  # type: ignore[union-attr]
        done = last.step if last else 0
        while done < steps:
            try:
                version = publisher.publish(run[done + 1], step=done + 1)
                version = version.result() if worker else version
            except ckptdiff.ResourceError:  # the worker was killed
                again = publisher.resume()
                done = again.step if again else 0
                print("worker", publisher._way._worker.process.pid, flush=True)  # type: ignore[union-attr]
                continue
            done = version.step
            print("published", done, version.identity, flush=True)


def follow(chain: Path, steps: int) -> None:
    """Take version after version, as they come."""
    run = states_up_to(steps)
    model = copy_of(run[0])
    while not (chain / "chain.json").exists():
        time.sleep(0.002)
    subscriber = ckptdiff.Subscriber(chain, threads=1)
    while subscriber.step != steps:
        newest = subscriber.latest()
        if newest is None or newest.step == subscriber.step:
            time.sleep(0.001)
            continue
        subscriber.stage().apply_(model)
        assert subscriber.step is not None and same(model, run[subscriber.step]), subscriber.step
        print("followed", subscriber.step, subscriber.identity, flush=True)


def start(folder: Path, role: str, *arguments: Any) -> Any:
    """A process in one of the roles, whose reports go to a file; forked from one that has the kernels loaded."""
    child = SERVER.Process(target=_play, args=(folder, role, arguments))
    child.start()
    return child


def _play(folder: Path, role: str, arguments: tuple[Any, ...]) -> None:
    for number, name in enumerate((role, "errors"), 1):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    {"publish": publish, "follow": follow}[role](folder / "chain", *arguments)


def kills(count: int, steps: int, worker: str, seed: int = 0, say: Callable[[str], None] = lambda _: None) -> None:
    """Run both until all steps are published and followed, with so many kills in between."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="ckptdiff-publishing-") as name:
        folder = Path(name)
        arguments: dict[str, tuple[Any, ...]] = {"publish": (steps, worker), "follow": (steps,)}
        running = {role: start(folder, role, *arguments[role]) for role in arguments}
        done = 0
        while any(child.exitcode is None for child in running.values()):
            role = rng.choice([*running, *(["worker"] if worker else [])])
            before = len(reports(folder))
            deadline = time.monotonic() + 60
            while len(reports(folder)) < before + rng.randint(1, 3) and time.monotonic() < deadline and both_run(running):
                time.sleep(0.002)
            time.sleep(rng.random() * 0.05)
            if done < count and kill(folder, role, running):
                done += 1
                say(f"{done}: {role} after {len(reports(folder))} reports")
            for each, child in running.items():
                code = child.exitcode
                assert code in (None, 0, -signal.SIGKILL), (each, code, (folder / "errors").read_text())
                if code == -signal.SIGKILL or (code == 0 and done < count and each == "follow"):
                    running[each] = start(folder, each, *arguments[each])
        check(folder, steps)
        assert done >= count, done


def both_run(running: dict[str, Any]) -> bool:
    return all(child.exitcode is None for child in running.values())


def kill(folder: Path, role: str, running: dict[str, Any]) -> bool:
    """Kill a process, or the newest worker; False if it has ended."""
    if role != "worker":
        if running[role].exitcode is not None:
            return False
        running[role].kill()
        running[role].join()
        return True
    workers = [line.split()[1] for line in lines_of(folder / "publish") if line.startswith("worker")]
    if not workers or running["publish"].exitcode is not None:
        return False
    try:
        os.kill(int(workers[-1]), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def reports(folder: Path) -> list[tuple[int, str]]:
    """The versions that either side has reported."""
    rows = [line.split() for role in ("publish", "follow") for line in lines_of(folder / role)]
    return [(int(row[1]), row[2]) for row in rows if row[0] in ("published", "followed") and len(row) == 3]


def check(folder: Path, steps: int) -> None:
    """Every version that was reported, and every step, is right; nothing is left to clean up."""
    run, chain = states_up_to(steps), folder / "chain"
    identities = [ckptdiff.identity(state) for state in run]
    assert all(identity == identities[step] for step, identity in reports(folder))
    for step in range(1, steps + 1, max(1, steps // 20)):
        model = copy_of(run[0])
        ckptdiff.Subscriber(chain, threads=1).stage(to=step).apply_(model)
        assert same(model, run[step]), step
    found = ckptdiff.chain_verify(chain)
    assert found.ok and [row.step for row in ckptdiff.chain_list(chain).steps] == list(range(1, steps + 1))
    assert {path.name for path in chain.iterdir() if not path.name.startswith(".")} == {
        "HEAD.json", "chain.json", "epochs", "keyframes", "steps",
    }  # fmt: skip
    errors = [line for line in lines_of(folder / "errors") if line.strip()]
    assert not errors, errors


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--worker", default="")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.monotonic()
    kills(options.kills, options.steps, options.worker, options.seed, lambda line: print(line, flush=True))
    print(f"{options.kills} kills, {options.steps} steps: exact, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
