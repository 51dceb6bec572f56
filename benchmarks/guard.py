"""Compare the working tree with an older commit in one run: the bytes that both write, and what both cost.

    python benchmarks/guard.py COMMIT [--quick] [--rows 'bytes*,make*'] [--out FILE] [--work FOLDER]

installs the commit, the commit once more, and the working tree, each into a virtual environment of its own, and prints
what ``README.md`` beside this file explains: of every pair whether both write the same patch and rebuild the target's
bytes from it and from each other's; of every command CPU, wall and peak memory, the ratio of new to old, and whether it lies
within the noise that the commit shows against itself. Writes FILE.md and FILE.json (``--out``, default guard). Exit code 1 where
bytes differ, a result is wrong, a row failed, or one takes more CPU than noise explains; 3 if a tree cannot be installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import guard_bytes
from guard_bytes import CODECS, Case, Comparison
from guard_report import FIGURES, Findings, save, summary
from guard_time import Task, Timing, judgements, say
from guard_trees import CHILD, ROOT, Tree, TreeError, build, facts, output
from guard_verdict import AGAIN, LEAST, NEW, OLD
from peers import machine
from peers_known import Pair
from peers_measure import StepError, run

HERE = Path(__file__).resolve().parent
RANDOM = 20
TINY_MB = 4


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the older commit, as git names it; HEAD, with a clean tree, tells what the noise is")
    parser.add_argument("--quick", action="store_true", help="5 rounds and 61 MB, where --rounds and --mb are not given")
    parser.add_argument(
        "--rows", default="*", metavar="PATTERNS", help="comma-separated: rows whose names match, such as 'bytes*' or '*large'"
    )
    parser.add_argument("--rounds", type=int, help="samples of each tree, alternating; default 9")
    parser.add_argument("--mb", type=float, help="size of the large made pair; default 488")
    parser.add_argument("--changed", type=float, default=12, help="per cent of the made pairs' elements that differ; default 12")
    parser.add_argument("--calls", type=int, default=3, help="calls in memory a sample, after one that warms up; default 3")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of real pairs")
    parser.add_argument("--work", type=Path, help="keep environments of commits and made pairs here, and take those that are there")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which one command is stopped")
    parser.add_argument("--out", type=Path, default=Path("guard"), help="FILE.md and FILE.json")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (5 if arguments.quick else 9)
    arguments.mb = arguments.mb or (61 if arguments.quick else 488)
    if arguments.rounds < LEAST:
        parser.error(f"--rounds wants {LEAST} or more: fewer say nothing of noise")
    return arguments


def wanted(name: str, patterns: str) -> bool:
    return any(fnmatch(name, pattern.strip()) for pattern in patterns.split(","))


def installed(name: str, commit: str | None, work: Path, found: Findings) -> Tree:
    """A tree, ready to run; what it is goes into the facts, and where its dependencies are not the first one's into the notes."""
    say(f"installing {name}")
    tree = build(name, work, commit)
    versions = found.facts.setdefault("versions", {})
    versions[name] = facts(tree)["versions"]
    found.facts.setdefault("trees", {})[name] = tree.what
    first = versions[OLD]
    for package in sorted(first.keys() | versions[name].keys()):
        both = first.get(package, "none"), versions[name].get(package, "none")
        if both[0] != both[1]:
            found.notes.append(f"dependency {package}: {both[0]} of {OLD}, {both[1]} of {name}")
    return tree


def made(name: str, megabytes: float, changed: float, work: Path, tree: Tree) -> Pair:
    """A made pair, which lies in ``work`` or is made there."""
    folder = work / f"{name}-{megabytes:g}MB-{changed:g}"
    command = [tree.python, str(HERE / "made_pairs.py"), str(folder), "--mb", str(megabytes), "--changed", str(changed), "--renamed"]
    output(command, f"{name}: made_pairs.py", env=tree.env())
    return Pair(name, folder / "base.safetensors", folder / "target.safetensors")


def groups(
    trees: dict[str, Tree], pairs: dict[str, Pair], work: Path, arguments: argparse.Namespace, found: Findings
) -> Iterator[list[Case]]:
    """Cases that are compared together."""
    real = list(guard_bytes.real(arguments.data))
    if not real:
        found.notes.append(f"real pairs: skipped, no folder NAME-base with others of that NAME in {arguments.data} (--data)")
    demo: list[tuple[str, Path, Path]] = []
    if any(wanted(f"bytes demo {codec}", arguments.rows) for codec in CODECS):
        try:
            demo, differ = guard_bytes.demo((trees[OLD], trees[NEW]), work, arguments.limit)
        except StepError as error:
            differ = [str(error)]
        found.wrong += [f"demo's files: {text}" for text in differ]
        found.notes += [] if differ else ["demo: all files that it leaves are the same, byte for byte"]
    yield from ([Case(name, codec, base, target) for codec in CODECS] for name, base, target in [*real, *demo])
    keys = {f"random-{k:02}": CODECS[k % len(CODECS)] for k in range(RANDOM)}
    if any(wanted(f"bytes {name} {codec}", arguments.rows) for name, codec in keys.items()):
        folder = work / "random"
        shutil.rmtree(folder, ignore_errors=True)
        told = run([trees[NEW].python, CHILD, "pairs", str(folder), str(RANDOM)], arguments.limit, trees[NEW].env())[1]
        yield [Case(name, keys[name], Path(base), Path(target)) for name, base, target in told["pairs"]]
    for name, pair in pairs.items():
        yield [Case(f"made-{name}", "auto", pair.base, pair.target)]


def compare_bytes(trees: dict[str, Tree], pairs: dict[str, Pair], work: Path, arguments: argparse.Namespace, found: Findings) -> None:
    comparison = Comparison(trees[OLD], trees[NEW], work / "bytes", arguments.limit)
    for cases in groups(trees, pairs, work, arguments, found):
        chosen = [case for case in cases if wanted(f"bytes {case.key}", arguments.rows)]
        if chosen:
            rows = comparison.rows(chosen)
            found.bytes += rows
            say(f"bytes of {chosen[0].pair}{' and others' if chosen[0].pair != chosen[-1].pair else ''}: ", end="")
            say("the same, exact" if all(row.same and row.exact for row in rows) else "DIFFER")


def flagged(task: Task) -> bool:
    return any(found.verdict != "within noise" for key in FIGURES for found in judgements(task, key).values())


def compare_times(trees: dict[str, Tree], pairs: dict[str, Pair], work: Path, arguments: argparse.Namespace, found: Findings) -> None:
    timing = Timing(work / "time", arguments.limit)
    found.tasks = [task for task in timing.tasks(pairs, arguments.calls) if any(wanted(row, arguments.rows) for row in task.rows)]
    if not found.tasks:
        return
    timing.trees = [*trees.values(), installed(AGAIN, arguments.commit, work, found)]
    timing.measure(found.tasks, arguments.rounds)
    save(arguments.out, found)
    again = [task for task in found.tasks if flagged(task)]
    if again:
        say(f"outside of noise, so measured for as many rounds more: {', '.join(row for task in again for row in task.rows)}")
        timing.measure(again, arguments.rounds)
    for codec, digests in timing.digests.items():
        same, text = len(set(digests.values())) == 1, f"tensors in memory, {codec}: the patch of"
        if same:
            found.notes.append(f"{text} all trees is the same (SHA-256 {digests[NEW]})")
        else:
            found.wrong.append(f"{text} {OLD} is {digests.get(OLD)}, that of {NEW} {digests.get(NEW)}")


def guard(arguments: argparse.Namespace, work: Path) -> Findings:
    found = Findings()
    found.facts |= {
        "machine": machine(),
        "command": sys.argv[1:],
        "rounds": arguments.rounds,
        "mb": arguments.mb,
        "load at start": os.getloadavg(),
    }
    trees = {name: installed(name, commit, work, found) for name, commit in ((OLD, arguments.commit), (NEW, None))}
    pairs = {name: made(name, mb, arguments.changed, work, trees[NEW]) for name, mb in (("tiny", TINY_MB), ("large", arguments.mb))}
    compare_bytes(trees, pairs, work, arguments, found)
    save(arguments.out, found)
    compare_times(trees, pairs, work, arguments, found)
    found.facts["load at end"] = os.getloadavg()
    save(arguments.out, found)
    return found


def main() -> int:
    arguments = arguments_of()
    work = arguments.work.resolve() if arguments.work else Path(tempfile.mkdtemp(prefix="guard-"))
    try:
        work.mkdir(parents=True, exist_ok=True)
        found = guard(arguments, work)
    except (TreeError, StepError) as error:
        say(f"guard: {error}")
        return 3
    finally:
        if not arguments.work:
            shutil.rmtree(work, ignore_errors=True)
    print(arguments.out.with_name(f"{arguments.out.name}.md").read_text())
    return 0 if summary(found).fine else 1


if __name__ == "__main__":
    sys.exit(main())
