"""What ``guard.py`` times: commands of three installed trees in turn, whole processes each."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guard_trees import CHILD, Tree
from guard_verdict import AGAIN, NEW, OLD, Judgement, judged, judged_memory, orders
from peers_known import THREADS, Command, Pair
from peers_measure import Figures, StepError, run, same_file

IMPORTS = 10
"""Processes of one sample where a process takes some hundredths of a second."""

Sampler = Callable[[Tree, Path], dict[str, Figures]]
"""Runs a tree once, in an empty folder; the figures of one row or several by their names."""


class NotExactError(Exception):
    """Something measured gave a wrong result."""


@dataclass
class Task:
    """Rows that are measured together: all trees in turn, round after round."""

    rows: list[str]
    sample: Sampler
    warm: bool = True  # run each tree once before the first round
    samples: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)  # by row and tree, a figure a round
    rounds: int = 0
    failed: str = ""


class Timing:
    """All that can be timed, in a folder of its own."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.trees: list[Tree] = []
        self.folder, self.limit = folder, limit
        self.digests: dict[str, dict[str, str]] = {}  # of patches made in memory, by pair and codec, and tree
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def tasks(self, pairs: dict[str, Pair], calls: int) -> list[Task]:
        """``pairs``: "tiny" and "large"; ``calls`` of each function in memory are one sample."""
        found = [self.task("import ckptdiff", self.many(lambda tree: [tree.python, "-c", "import ckptdiff"]))]
        found.append(self.task("ckptdiff --help", self.many(lambda tree: [tree.program, "--help"])))
        for name, pair in pairs.items():
            found += self.verbs(name, pair)
        found.append(self.renamed(pairs["large"]))
        for codec in ("context", "sparse"):
            rows = [f"{call} {codec}" for call in ("diff", "from_bytes", "apply_")]
            found.append(Task(rows, self.memory(pairs["large"], codec, calls)))
        base, target = str(pairs["tiny"].base), str(pairs["tiny"].target)
        cold = {
            "demo, cold": lambda scratch: ["demo"],
            "make tiny, cold": lambda scratch: ["make", base, target, "-o", str(scratch / "patch")],
            "report tiny, cold": lambda scratch: ["report", base, target, "--rank", "none"],
        }
        return [*found, *(Task([name], self.cold(name, arguments), warm=False) for name, arguments in cold.items())]

    def task(self, name: str, sample: Callable[[Tree, Path], Figures]) -> Task:
        return Task([name], lambda tree, scratch: {name: sample(tree, scratch)})

    def many(self, command: Callable[[Tree], Command]) -> Callable[[Tree, Path], Figures]:
        def sample(tree: Tree, _: Path) -> Figures:
            found = [run(command(tree), self.limit, tree.env())[0] for _ in range(IMPORTS)]
            means = {key: sum(figures[key] for figures in found) / IMPORTS for key in ("wall", "cpu")}
            return {**means, "rss": max(figures["rss"] for figures in found)}

        return sample

    def verbs(self, name: str, pair: Pair) -> Iterator[Task]:
        base, target, threads = str(pair.base), str(pair.target), ["--threads", str(THREADS)]

        def patch(tree: Tree) -> str:
            """The tree's own patch, made when it is first asked for."""
            path = self.folder / f"{name}-{tree.name}.safetensors"
            if not path.exists():
                run([tree.program, "make", base, target, "-o", str(path), *threads], self.limit, tree.env())
            return str(path)

        def row(
            verb: str, *arguments: str | Callable[[Tree], str], out: str = "", fine: tuple[int, ...] = (0,), check: bool = False
        ) -> Task:
            def sample(tree: Tree, scratch: Path) -> Figures:
                given = [argument if isinstance(argument, str) else argument(tree) for argument in arguments]
                output = ["-o", str(scratch / out)] if out else []
                figures = run([tree.program, verb.split()[0], *given, *output], self.limit, tree.env(), fine)[0]
                if check and not same_file(scratch / out, pair.target):
                    raise NotExactError(f"{tree.name}: {verb} did not give the target's bytes")
                return figures

            return self.task(f"{verb} {name}", sample)

        yield row("make", base, target, *threads, out="patch.safetensors")
        yield row("apply", base, patch, *threads, out="rebuilt.safetensors", check=True)
        yield row("info", patch)
        yield row("report", base, target, "--rank", "none", *threads)
        yield row("verify", patch, "--base", base, "--target", target, *threads)
        yield row("compare", base, target, *threads, fine=(1,))  # they do differ
        yield row("verify alone", patch)
        yield row("compare equal", base, base)

    def renamed(self, pair: Pair) -> Task:
        """``make`` of a pair none of whose names agree."""

        def sample(tree: Tree, scratch: Path) -> Figures:
            target, out = pair.target.with_name("renamed.safetensors"), scratch / "patch.safetensors"
            command = [tree.program, "make", str(pair.base), str(target), "-o", str(out), "--threads", str(THREADS)]
            return run(command, self.limit, tree.env())[0]

        return self.task("make renamed", sample)

    def memory(self, pair: Pair, codec: str, calls: int) -> Sampler:
        def sample(tree: Tree, _: Path) -> dict[str, Figures]:
            command = [tree.python, CHILD, "memory", str(pair.base), str(pair.target), codec, str(calls)]
            figures, told = run(command, self.limit, tree.env())
            if not told["exact"]:
                raise NotExactError(f"{tree.name}: apply_ of {codec} did not give the target")
            self.digests.setdefault(codec, {})[tree.name] = f"{told['sha256']}, {told['bytes']:,} bytes"
            found = {f"{call} {codec}": row for call, row in told["rows"].items()}
            found[f"diff {codec}"]["rss"] = figures["rss"]  # of the process, all three calls
            return found

        return sample

    def cold(self, name: str, arguments: Callable[[Path], Command]) -> Sampler:
        """A command with an empty kernel cache."""

        def sample(tree: Tree, scratch: Path) -> dict[str, Figures]:
            cache = scratch / "cache"
            cache.mkdir()
            figures = run([tree.program, *arguments(scratch)], self.limit, tree.env(cache))[0]
            if not any(path.is_file() for path in cache.rglob("*")):
                raise NotExactError(
                    f"{tree.name}: {name} put nothing into an empty cache: its kernels lie elsewhere, and the run was not cold"
                )
            return {name: figures}

        return sample

    def measure(self, tasks: list[Task], rounds: int) -> None:
        """So many more rounds of some tasks."""
        fresh = [task for task in tasks if task.warm and not task.rounds]
        for task in fresh:
            for tree in self.trees:
                self.turn(task, tree, keep=False)
        say(f"{len(fresh)} of {len(tasks)} tasks warmed up")
        for k in range(rounds):
            for task in tasks:
                for name in orders(task.rounds, 1)[0]:
                    self.turn(task, next(tree for tree in self.trees if tree.name == name))
                task.rounds += 1
            say(f"round {k + 1} of {rounds}")

    def turn(self, task: Task, tree: Tree, keep: bool = True) -> None:
        """One sample. A task that failed once is not tried again."""
        if task.failed:
            return
        scratch = self.folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            found = task.sample(tree, scratch)
        except (StepError, NotExactError, OSError, KeyError) as error:
            task.failed = f"{tree.name}: {error}"
            say(f"{', '.join(task.rows)}: {task.failed}")
            return
        for row, figures in found.items() if keep else ():
            task.samples.setdefault(row, {}).setdefault(tree.name, []).append(figures)


def judgements(task: Task, key: str) -> dict[str, Judgement]:
    """The verdicts on one figure of the rows of a task."""
    found = {}
    for row, samples in {} if task.failed else task.samples.items():
        values = {tree: [figures[key] for figures in of_tree] for tree, of_tree in samples.items() if key in of_tree[0]}
        if values:
            three = values[OLD], values[NEW], values[AGAIN]
            found[row] = judged_memory(*three) if key == "rss" else judged(*three)
    return found


def say(*words: Any, end: str = "\n") -> None:
    print(*words, file=sys.stderr, flush=True, end=end)
