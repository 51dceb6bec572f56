"""The pages of docs/: commands and examples run as they stand, links of every document lead somewhere, figures are those that come out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.cli.demo import write_pair
from ckptdiff.cli.main import main
from ckptdiff.pages.null_prose import interval_words, null_row, shown
from ckptdiff.units import percent, percent_of, three_digits
from tests.support.chains import training_run, weights
from tests.support.checkpoints import SHARED_DATA
from tests.support.commands import run
from tests.support.documents import DOCUMENTS, ROOT, blocks, broken_links, commands, lines, text_of
from tests.support.real_pairs import BASE, TARGETS

real_pairs = pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real pairs of ../shared/data are not there")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    assert not broken_links(document)


def test_there_are_links_to_test() -> None:
    assert {"README.md", "docs/hub.md", "benchmarks/README.md", "spec/README.md", "CHANGELOG.md"} <= set(DOCUMENTS)
    readme = text_of("README.md")
    pages = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "release.md"]
    assert not [page for page in pages if f"](docs/{page}" not in readme], "README links each page for users"


@pytest.mark.slow
@pytest.mark.parametrize("document", ["docs/chains.md", "docs/commands.md", "docs/hub.md", "docs/reports.md"])
def test_commands_run(document: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("huggingface_hub")
    user = request.getfixturevalue("reader")
    assert len(commands(document)) >= 4
    for program, *arguments in lines(document):
        if program == "ckptdiff":
            user.run(*arguments)
        else:
            shutil.copytree(*(user.folder / name for name in arguments[1:]))


def test_every_command_has_its_row() -> None:
    rows = re.findall(r"^\| (`.*?) \|", text_of("docs/commands.md"), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)", row)} >= set(main.commands)


def test_examples_on_files_run(tmp_path: Path) -> None:
    write_pair(tmp_path / "models")
    result = subprocess.run([sys.executable, "-c", blocks("docs/api.md", "python")[0]], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "already_target"


def test_the_example_of_chains_runs(tmp_path: Path) -> None:
    training_run(tmp_path / "run", 3, form="step-{}")
    code = blocks("docs/chains.md", "python")[0]
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert weights(tmp_path / "restored") == weights(tmp_path / "run" / "step-200")


def test_the_example_of_publishing_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    code = blocks("docs/chains.md", "python")[-1]
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Version(step=5, ")


def test_the_example_of_engines_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    code = blocks("docs/engines.md", "python")[-1]
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_examples_in_memory_run(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("safetensors.torch")
    code = blocks("docs/api.md", "python")[1:]
    assert len(code) >= 4
    result = subprocess.run([sys.executable, "-W", "error", "-c", "\n".join(code)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("<ckptdiff.Patch: ")


def test_shell_completion() -> None:
    """The line of docs/install.md, in a bash that then completes a word."""
    program = shutil.which("ckptdiff", path=Path(sys.executable).parent)
    if program is None or shutil.which("bash") is None:
        pytest.skip("needs bash, and the command ckptdiff installed beside Python")
    (line,) = re.findall(r'^    (eval "\$\(_CKPTDIFF_COMPLETE=.*)$', text_of("docs/install.md"), re.MULTILINE)
    ask = "COMP_WORDS=(ckptdiff ov); COMP_CWORD=1; _ckptdiff_completion ckptdiff; echo ${COMPREPLY[@]}"
    environment = {**os.environ, "PATH": f"{Path(program).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", f"{line}\n{ask}"], env=environment, capture_output=True, text=True)
    assert done.stdout == "overlap\n", done.stderr


@real_pairs
@pytest.mark.slow
def test_sizes_of_real_pairs_are_those_of_the_benchmarks(tmp_path: Path) -> None:
    table, chart = text_of("benchmarks/README.md"), text_of("benchmarks/peers.svg")
    alone, shares = [], []
    for target in TARGETS:
        by_codec = [ckptdiff.make(BASE, SHARED_DATA / target, tmp_path / f"{target}-{c}", codec=c) for c in ("context", "sparse")]
        made, sparse = by_codec
        changed = f"{100 * made.totals.changed / made.totals.units:.2f} %"
        row = f"| {changed} | {made.target_size:,} | {made.patch_size:,} | {made.ratio:.1f} | {sparse.patch_size:,} | 5 of 5 files |"
        assert row in table
        files = [folder / "model.safetensors" for folder in (BASE, SHARED_DATA / target)]
        one = ckptdiff.make(*files, tmp_path / f"{target}.safetensors")
        alone.append(f"**{one.patch_size:,}**")
        shares.append(percent_of(one.patch_size, one.target_size))
    assert f"| **ckptdiff** | {' | '.join(alone)} |" in table
    assert not [share for share in shares if f">{share}<" not in chart]


@real_pairs
@pytest.mark.slow
def test_figures_of_the_reports() -> None:
    grpo, masters, sft = (SHARED_DATA / name for name in TARGETS)
    columns = []
    for target in (grpo, sft):
        report = json.loads(run("report", BASE, target, "--rank", "all", "--json").stdout)
        totals, moves = report["totals"], report["moves"]["ulp"]
        changed = totals["elements"] - totals["bit_identical"]
        four = sum(row["count"] for row in moves if row["from"] >= 4)
        shares = [percent_of(totals[name], totals["elements"]) for name in ("bit_identical", "within_atol")]
        columns.append([*shares, percent_of(totals["one_ulp"], changed), percent_of(four, changed), percent(report["rank"]["rank_share"])])
    text = text_of("docs/reports.md")
    shares, _, beside = text.partition("Beside nulls (")
    found = re.findall(r"^\| (?!GRPO)[^|].* \| (\S+ %) \| (\S+ %) \|$", shares, re.MULTILINE)
    assert found == list(zip(*columns, strict=True))
    pairs = json.loads(run("overlap", grpo, sft, masters, "--base", BASE, "--json").stdout)["pairs"]
    first = pairs[0]
    assert f"o1 is {percent(first['o1'])}." in text and f"chance gives {percent(first['o1_by_size'])} too" in text
    assert f"at random, {percent(first['random_o1'])} of GRPO's" in text and f"{percent(first['same_direction'])} of what both" in text
    assert max(abs(pair[name] - pair[f"{name}_by_size"]) for pair in pairs for name in ("o1", "o2")) < 0.0011
    assert f"of these two, z is {three_digits(first['z'])}." in text
    last = next(pair for pair in pairs if (pair["first"], pair["second"]) == (1, 2))
    assert f"fp32 masters it is {three_digits(last['z'])}, and the excess {percent(last['o1_excess'])}." in text
    assert [line for line in beside.splitlines() if line.startswith("| ") and "GRPO" not in line] == null_lines(grpo, sft, masters)


def test_what_measure_quotes_stands_in_the_reports() -> None:
    """The figures of docs/measure.md are those of docs/reports.md, which are compared with what the commands print."""
    measure, reports = text_of("docs/measure.md"), text_of("docs/reports.md")
    quoted = ["99.96 %", "12.8 %", "4.15", "74.7"]
    assert all(figure in measure and figure in reports for figure in quoted)
    explained, places, by_size = (re.findall(rf"^\| {name} \| (.*) \|$", reports, re.MULTILINE)[-1].split(" | ") for name in MEASURED)
    a, b, c = (round(_percents(cell)) for cell in explained)
    assert f"({a} and {b} % of two real updates), less with fp32 masters ({c} %)" in measure
    shares, deviations = [_percents(cell) for cell in places], [float(cell.split("; ")[1]) for cell in by_size]
    assert f"{min(shares):.0f} to {max(shares):.0f} % instead of 50 %" in measure
    assert f"z is {min(deviations):.1f} to {max(deviations):.1f}" in measure


def _percents(cell: str) -> float:
    return float(cell.removesuffix(" %"))


MEASURED = ("which weights changed, explained by size", "changes in the principal half", "… by size; z")


def null_lines(*targets: Path) -> list[str]:
    """The table of the nulls of three real updates."""
    reports = [json.loads(run("report", BASE, target, "--json").stdout) for target in targets]
    rows = {}
    stable, overlaps = ([null_row(report, figure) for report in reports] for figure in ("stable_rank", "principal_overlap"))
    rows["stable rank"] = [shown("stable_rank", row["value"]) for row in stable]
    for name, null in (("… signs flipped", "flipped"), ("… shuffled by size", "shuffled")):
        rows[name] = [interval_words("stable_rank", row[null]) for row in stable]
    rows["changes in the principal half"] = [percent(row["value"]) for row in overlaps]
    rows["… by size; z"] = [f"{percent(row['shuffled']['mean'])}; {three_digits(row['z'])}" for row in overlaps]
    rows["which weights changed, explained by size"] = [percent(report["size"]["explained"]) for report in reports]
    rows["like a run with float32 weights"] = ["yes" if report["size"]["updates"]["holds"] else "no" for report in reports]
    return [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
