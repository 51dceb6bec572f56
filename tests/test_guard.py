"""``benchmarks/guard.py`` without two installed trees: its verdicts, the order of its runs, how it compares bytes, its report."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ckptdiff
from tests.support.checkpoints import BITS
from tests.support.small_pair import Pair

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # the guard's modules import each other by their names, as scripts of one folder
guard, guard_bytes, guard_child, guard_report, guard_time, guard_trees, guard_verdict = (
    import_module(f"guard{part}") for part in ("", "_bytes", "_child", "_report", "_time", "_trees", "_verdict")
)
sys.path.remove(str(BENCHMARKS))


def test_orders_are_balanced() -> None:
    """Any three rounds that begin at a multiple of three give each tree each place and the same mean time; six each successor."""
    for first in (0, 3, 6):
        turns = [(tree, place) for order in guard_verdict.orders(first, 3) for place, tree in enumerate(order)]
        assert set(Counter(turns).values()) == {1} and len(set(turns)) == 9
        times = {tree: sum(at for at, (other, _) in enumerate(turns) if other == tree) for tree, _ in turns}
        assert len(set(times.values())) == 1
    followers = Counter(pair for order in guard_verdict.orders(0, 6) for pair in pairwise(order))
    assert len(followers) == 6 and set(followers.values()) == {2}


def samples(rng: np.random.Generator, rounds: int, factor: float, noise: float) -> list[list[float]]:
    """Seconds of old, new and again: the machine slows down by half, and one round in five is disturbed by up to half."""
    drift = np.linspace(1, 1.5, rounds) * np.where(rng.random(rounds) < 0.2, 1 + rng.random(rounds) / 2, 1)
    return [(scale * drift * np.exp(rng.normal(0, noise, rounds))).tolist() for scale in (1, factor, 1)]


@pytest.mark.parametrize("rounds", [3, 5, 9, 18])
def test_the_same_is_within_noise(rounds: int) -> None:
    """One row in fifty may be flagged (``width``); drift and disturbed rounds do not add to that."""
    rng = np.random.default_rng(rounds)
    verdicts = Counter(guard_verdict.judged(*samples(rng, rounds, 1, 0.03)).verdict for _ in range(2000))
    assert verdicts["faster"] + verdicts["slower"] <= 60, verdicts


@pytest.mark.parametrize(("factor", "verdict"), [(1.15, "slower"), (1 / 1.15, "faster")])
def test_a_change_is_seen(factor: float, verdict: str) -> None:
    rng = np.random.default_rng(1)
    drifting = Counter(guard_verdict.judged(*samples(rng, 9, factor, 0.02)).verdict for _ in range(500))
    assert set(drifting) <= {verdict, "within noise"}
    steady = [rng.normal(1, 0.01, (9, 3)) * [1, factor, 1] for _ in range(500)]
    assert Counter(guard_verdict.judged(*values.T.tolist()).verdict for values in steady)[verdict] >= 499


def test_figures_of_a_judgement() -> None:
    found = guard_verdict.judged([1.0, 1.0, 1.0], [1.5, 1.5, 3.0], [1.0, 1.0, 1.0], ("less", "more"))
    assert (found.old, found.new) == ((1.0, 1.0, 1.0), (1.5, 1.5, 3.0))
    assert (found.ratio, found.paired, found.itself, found.verdict) == (1.5, 1.5, 1.0, "more")
    assert found.noise == guard_verdict.FLOOR  # nothing less counts
    small = [guard_verdict.judged_memory([mb] * 3, [mb + 1.9] * 3, [mb] * 3).verdict for mb in (30.0, 90.0, 300.0)]
    large = [guard_verdict.judged_memory([mb] * 3, [mb * 1.03] * 3, [mb] * 3).verdict for mb in (30.0, 60.0, 300.0)]
    assert (small, large) == (["within noise"] * 3, ["within noise", "within noise", "more"])  # 2 % or 2 MB count for nothing
    near = guard_verdict.judged([1.0, 1.0, 1.0], [1.009, 1.009, 1.009], [1.0, 1.0, 1.0])
    assert near.verdict == "within noise"


def test_a_biased_second_install_is_noise() -> None:
    """Where the second install is always 5 % slower than the first, 4 % say nothing."""
    old = [1.0] * 9
    found = guard_verdict.judged(old, [1.06] * 9, [1.05] * 9)
    assert found.itself == 1.05 and found.noise > 0.05 and found.verdict == "within noise"


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="want 3 or more rounds of all three, found 2, 2 and 2"):
        guard_verdict.judged([1.0, 1.0], [1.0, 1.0], [1.0, 1.0])


def test_differences_of_folders(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "patch").mkdir(parents=True)
        (folder / "patch" / "same").write_bytes(b"same")
        (folder / "patch" / "other").write_bytes(b"abc")
        (folder / "longer").write_bytes(b"x" * 1000)
    assert guard_bytes.differences(one, two, ("of old", "of new")) == []
    (two / "patch" / "other").write_bytes(b"abd")
    (two / "longer").write_bytes(b"x" * 2000)
    (one / "first").write_bytes(b"")
    (two / "second").write_bytes(b"")
    assert guard_bytes.differences(one, two, ("of old", "of new")) == [
        "first: only of old",
        "longer: 1,000 and 2,000 bytes",
        "patch/other: 3 bytes in both, other content",
        "second: only of new",
    ]


def test_differences_of_files(tmp_path: Path) -> None:
    one, two = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    one.write_bytes(b"abc")
    assert guard_bytes.differences(one, two, ("in the target", "rebuilt")) == ["a.safetensors: only in the target"]
    two.write_bytes(b"abd")
    assert guard_bytes.differences(one, two, ("", "")) == ["a.safetensors: 3 bytes in both, other content"]
    two.write_bytes(b"abc")
    assert guard_bytes.differences(one, two, ("", "")) == []


def test_the_formats_version(files: Pair, folders: Pair) -> None:
    assert guard_bytes.format_version(files.patch) == guard_bytes.format_version(folders.patch) == 1
    assert guard_bytes.format_version(files.base) is None
    assert guard_bytes.format_version(folders.base) is None


class InProcess(guard_bytes.Comparison):
    """A comparison whose trees are this process's ckptdiff: ``broken`` names a tree, a verb and what it does instead."""

    broken: dict[tuple[str, ...], Callable[[Path], object]]

    def errors(self, tree, verb, rows, jobs):
        def run(case: dict) -> None:
            if verb == "make":
                ckptdiff.make(case["base"], case["target"], case["patch"], codec=case["codec"])
            else:
                ckptdiff.apply(case["base"], case["patch"], case["out"])
            if (tree.name, verb) in self.broken:
                self.broken[tree.name, verb](Path(case["patch" if verb == "make" else "out"]))

        self.note(tree, verb, rows, guard_child.for_each(jobs, run)["errors"])


def compared(pair: Pair, tmp_path: Path, **broken) -> guard_bytes.Row:
    trees = [SimpleNamespace(name=name) for name in ("old", "new")]
    (tmp_path / "comparison" / "left by a run that was stopped").mkdir(parents=True)
    comparison = InProcess(*trees, tmp_path / "comparison", 0)
    comparison.broken = {tuple(key.split("_")): value for key, value in broken.items()}
    row = comparison.rows([guard_bytes.Case("pair", "sparse", pair.base, pair.target)])[0]
    assert list((tmp_path / "comparison").iterdir()) == []
    return row


@pytest.mark.parametrize("kind", ["files", "folders"])
def test_equal_patches_are_applied_by_both(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    row = compared(request.getfixturevalue(kind), tmp_path)
    assert row.same and row.exact and row.sizes["old"] == row.sizes["new"] > 0
    assert row.rebuilt == {"old by old": "exact", "old by new": "exact"}


def test_other_bytes_are_told_and_applied_across(files: Pair, tmp_path: Path) -> None:
    def another(patch: Path) -> None:
        patch.unlink()
        ckptdiff.make(files.base, files.target, patch, codec="raw")

    row = compared(files, tmp_path, new_make=another)
    assert not row.same and row.exact
    assert row.differ == [f"patch-old-pair-sparse.safetensors: {row.sizes['old']:,} and {row.sizes['new']:,} bytes"]
    assert row.rebuilt == dict.fromkeys(["old by old", "old by new", "new by old", "new by new"], "exact")


def test_another_format_is_not_applied_across(files: Pair, tmp_path: Path) -> None:
    def later(patch: Path) -> None:
        patch.write_bytes(patch.read_bytes().replace(b'\\"version\\":1', b'\\"version\\":2'))

    row = compared(files, tmp_path, new_make=later)
    assert row.rebuilt["old by new"] == row.rebuilt["new by old"] == "not tried: formats 1 and 2"
    assert row.rebuilt["old by old"] == "exact"
    assert row.rebuilt["new by new"].startswith("UnsupportedError: ") and not row.exact


def test_a_wrong_result_is_not_exact(folders: Pair, tmp_path: Path) -> None:
    row = compared(folders, tmp_path, new_apply=lambda out: (out / "README.md").write_bytes(b"NEW"))
    assert row.same and not row.exact
    assert row.rebuilt == {"old by old": "exact", "old by new": "README.md: 3 bytes in both, other content"}


def test_a_tree_that_fails_is_told(files: Pair, tmp_path: Path) -> None:
    def fail(patch: Path) -> None:
        raise ckptdiff.OutputError("the disk is full")

    row = compared(files, tmp_path, new_make=fail)
    assert row.failed == "make by new: OutputError: the disk is full" and not row.same and not row.exact


def test_random_pairs_hold_everything(tmp_path: Path) -> None:
    """The guard's twenty have every dtype, files and folders, renames and resizes, and are the same every time."""
    found = guard_child.pairs(str(tmp_path / "one"), str(guard.RANDOM))["pairs"]
    dtypes, kinds = set(), set()
    for _, base, target in found:
        sides = [tensors(Path(side)) for side in (base, target)]
        dtypes |= {dtype for side in sides for dtype, _ in side.values()}
        kinds.add("folder" if Path(base).is_dir() else "file")
        for tensor, (dtype, shape) in sides[1].items():
            there = sides[0].get(tensor)
            kinds.add("added" if not there else "kept" if there == (dtype, shape) else "resized" if there[0] == dtype else "cast")
            kinds |= {"renamed"} if tensor.startswith("new.") else {"prefix"} if tensor.startswith("model.") else set()
    assert kinds == {"folder", "file", "added", "kept", "resized", "cast", "renamed", "prefix"}
    assert dtypes == set(BITS)
    guard_child.pairs(str(tmp_path / "two"), str(guard.RANDOM))
    assert guard_bytes.differences(tmp_path / "one", tmp_path / "two", ("", "")) == []


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    found = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        data = file.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        found |= {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items() if name != "__metadata__"}
    return found


def findings(cpu: float) -> guard_report.Findings:
    """One pair of equal patches, and one row that takes ``cpu`` as much."""
    case = guard_bytes.Case("pair", "auto", Path("a"), Path("b"))
    row = guard_bytes.Row(case, {"old": 2000, "new": 2000}, [], {"old by old": "exact", "old by new": "exact"})
    task = guard_time.Task(["make tiny"], lambda tree, scratch: {}, rounds=9)
    figures = {name: {"cpu": 2.0 * factor, "wall": 1.0, "rss": 100.0} for name, factor in (("old", 1), ("new", cpu), ("again", 1))}
    task.samples = {"make tiny": {name: [one] * 9 for name, one in figures.items()}}
    facts = {"trees": {"old": "687b727"}, "machine": guard.machine(), "load at end": (1.25, 0, 0)}
    return guard_report.Findings(facts, ["a note"], [row], [task])


def test_the_report(tmp_path: Path) -> None:
    found = findings(1.25)
    guard_report.save(tmp_path / "deep" / "guard", found)
    text = (tmp_path / "deep" / "guard.md").read_text()
    assert "- old: 687b727\n- machine: " in text and "- load at end: 1.2, 0.0, 0.0\n- a note\n" in text
    assert "| pair | auto | 2,000 | 2,000 | 1.0000 | same bytes | exact, 2 ways |" in text
    figures = "2.000 (2.000 to 2.000) | 2.500 (2.500 to 2.500) | 1.250 | 1.250 | 1.000"
    assert f"| make tiny | 9 | {figures} | ± 1.0 % | slower |" in text
    assert "Bytes: 1 of 1 patches are the same; 2 rebuilt, 0 pairs not exact." in text
    told = "0 of 1 rows within noise; make tiny slower (1.250). The ratio furthest from 1 is 1.250 (make tiny)."
    assert f"CPU seconds (user and system): {told}" in text
    facts = json.loads((tmp_path / "deep" / "guard.json").read_text())
    assert facts["times"]["cpu"]["make tiny"]["ratio"] == 1.25 and facts["bytes"][0]["same"]
    assert facts["tasks"][0]["samples"]["make tiny"]["new"][0]["cpu"] == 2.5


def test_what_is_fine() -> None:
    assert guard_report.summary(findings(1.0)).fine and guard_report.summary(findings(0.8)).fine
    assert not guard_report.summary(findings(1.25)).fine
    for attribute, value in (
        ("differ", ["x: 1 and 2 bytes"]),
        ("rebuilt", {"old by old": "x: only rebuilt"}),
        ("failed", "make by new: x"),
    ):
        found = findings(1.0)
        setattr(found.bytes[0], attribute, value)
        assert not guard_report.summary(found).fine, attribute
    found = findings(1.0)
    found.tasks[0].failed = "new: it stopped"
    assert not guard_report.summary(found).fine
    assert "FAILED: make tiny: new: it stopped" in guard_report.markdown(found)
    found = findings(1.0)
    found.wrong = ["demo's files: x"]
    assert not guard_report.summary(found).fine and "WRONG: demo's files: x" in guard_report.markdown(found)


def test_tasks_take_turns_and_stop_at_a_failure(tmp_path: Path) -> None:
    turns = []

    def sample(tree: SimpleNamespace, scratch: Path) -> dict:
        assert list(scratch.iterdir()) == []
        (scratch / "left").touch()
        turns.append(tree.name)
        return {"row": {"cpu": 1.0}}

    def failing(tree: SimpleNamespace, scratch: Path) -> dict:
        raise guard_time.NotExactError(f"{tree.name} is wrong")

    trees = [SimpleNamespace(name=name) for name in ("old", "again", "new")]
    timing = guard_time.Timing(tmp_path / "time", 0)
    timing.trees = trees
    tasks = [guard_time.Task(["row"], sample), guard_time.Task(["other"], failing)]
    timing.measure(tasks, 3)
    expected = [name for order in guard_verdict.orders(0, 3) for name in order]
    assert turns == ["old", "again", "new", *expected]
    assert tasks[1].failed == "old: old is wrong" and tasks[1].samples == {}
    timing.measure(tasks[:1], 3)  # more rounds go on where the first ended, without another warm-up
    assert turns[12:] == [name for order in guard_verdict.orders(3, 3) for name in order]
    assert {name: len(found) for name, found in tasks[0].samples["row"].items()} == {"old": 6, "new": 6, "again": 6}
    assert guard_time.judgements(tasks[0], "cpu")["row"].verdict == "within noise"


def test_which_rows_are_wanted() -> None:
    names = ["bytes demo sparse", "make tiny", "make large", "apply_ sparse"]
    assert [name for name in names if guard.wanted(name, "bytes*, *large")] == ["bytes demo sparse", "make large"]
    assert all(guard.wanted(name, "*") for name in names)


def test_real_pairs_are_those_beside_a_base(tmp_path: Path) -> None:
    for name in ("m-base", "m-tuned", "m-other", "unrelated"):
        (tmp_path / name).mkdir()
    (tmp_path / "m-notes.txt").touch()
    assert [name for name, _, _ in guard_bytes.real(tmp_path)] == ["m-other", "m-tuned"]
    assert list(guard_bytes.real(tmp_path / "nowhere")) == []


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_working_trees_files(tmp_path: Path) -> None:
    """A copy has the package and what is new, and nothing that git ignores."""
    if not (guard_trees.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = guard_trees.working_files()
    assert {"ckptdiff/__init__.py", "pyproject.toml", "tests/test_guard.py"} <= set(names)
    assert not any("__pycache__" in name for name in names)
    with pytest.raises(guard_trees.TreeError, match=r"^git rev-parse: "):
        guard_trees.resolved("no-such-commit")
