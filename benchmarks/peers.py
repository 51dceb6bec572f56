"""Race ckptdiff against every installed peer on the same pairs, in one run, and check every result byte for byte.

    python benchmarks/peers.py WORKDIR [--workloads real,rl-0.4,rl-12,rl-34,sft-90,fp32,growth] [--peers zstd,pulse3,...]
        [--codecs default,sparse,raw] [--runs 3] [--mb 488] [--python-for all=VENV/bin/python] [--pair NAME=BASE,TARGET]

prints a Markdown table for each pair and writes WORKDIR/peers.md and WORKDIR/peers.json (``--out``). ``peers.txt`` pins
the peers; those that are not installed, or that cannot take a pair, are named with the reason. Real pairs lie in the
folder ``--data`` or $CKPTDIFF_DATA: NAME-base and the other folders of one prefix. Made pairs (``made_pairs.py``) that lie
in WORKDIR are taken; others are made there, and removed after use unless ``--keep``. Exit code 1 if any row of ckptdiff
is not its target's file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import peers_known
from peers_known import Pair
from peers_measure import Figures, Row, race, warm

HERE = Path(__file__).resolve().parent
MADE = {"rl-0.4": (0.4, "BF16", 1.0), "rl-12": (12, "BF16", 1.0), "rl-34": (34, "BF16", 1.0)}
MADE |= {"sft-90": (90, "BF16", 0.25), "fp32": (100, "F32", 0.25)}  # per cent changed, dtype, share of --mb
GROWTH, GROWTH_CHANGED = (250, 500, 1000, 2000, 4000), 1.0
WORKLOADS = ("real", *MADE, "growth")
COLUMNS = (
    "peer", "patch bytes", "ours / its", "make s", "ours / its", "CPU s", "RSS MB",
    "apply s", "ours / its", "CPU s", "RSS MB", "encode s", "decode s", "exact",
)  # fmt: skip
NOTES = """Wall and CPU (user + system) seconds of whole processes, start-up and files included; medians, the first run dropped.
Ratios are the first ckptdiff row's figure over the peer's: below 1 ckptdiff is ahead. Peak RSS cannot read lower than
about 25 MB (the harness's own). `encode s` and `decode s` are a library's own time in memory, without start-up and files:
medians of repeated calls in one warm process, or `cold`: the one call of the measured process. zstd: the better of
`--single-thread` and `-T2` for each figure. Exact: `file` = the target's file byte for byte; `tensors` = every tensor is,
but not the file (another header or order); else what is wrong. ckptdiff checks base and result and syncs to disk; of the
peers some check, none syncs."""


class MakingError(Exception):
    """``made_pairs.py`` made or counted no pair."""


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="comma-separated; 'none' with --pair")
    parser.add_argument("--peers", default="", help="comma-separated names of rivals; default all, 'none' for ckptdiff alone")
    parser.add_argument("--codecs", default="default", help="codecs of ckptdiff, a row each; ratios are to the first")
    parser.add_argument("--runs", type=int, default=3, help="measured runs, after one that warms up")
    parser.add_argument("--warm", type=int, default=3, help="calls of a library's encode and decode in one process; 0: none")
    parser.add_argument("--mb", type=float, default=488, help="size of made pairs; a quarter for sft-90 and fp32, not for growth")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CKPTDIFF_DATA", HERE.parents[1] / "shared" / "data")))
    parser.add_argument("--only", default="", help="take only pairs with this in their name")
    parser.add_argument("--pair", action="append", default=[], metavar="NAME=BASE,TARGET", help="two more safetensors files")
    parser.add_argument("--python-for", action="append", default=[], metavar="PEER=PATH", help="a Python that has the peer; all=PATH")
    parser.add_argument("--patience", type=float, default=120, help="a peer whose turn takes more seconds is run once")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which one command is stopped")
    parser.add_argument("--memory-gb", type=float, help="what a peer may need; default 80 %% of what is free")
    parser.add_argument("--limit-mb", action="append", default=[], metavar="PEER=MB", help="take larger pairs, too; all=inf")
    parser.add_argument("--keep", action="store_true", help="leave the pairs that were made")
    parser.add_argument("--out", type=Path, help="FILE.md and FILE.json; default WORKDIR/peers")
    arguments = parser.parse_args()
    unknown = set(arguments.workloads.split(",")) - {*WORKLOADS, "none"}
    if unknown or arguments.runs < 1:
        parser.error(f"no workload {', '.join(sorted(unknown))}" if unknown else "--runs wants 1 or more")
    return arguments


def free_memory() -> float:
    for text in Path("/proc/meminfo").read_text().splitlines():
        if text.startswith("MemAvailable"):
            return int(text.split()[1]) * 1024.0
    return 8e9


def made_by(*options: object) -> str:
    """Output of ``made_pairs.py``, in a process of its own, so that this one stays small."""
    command = [sys.executable, str(HERE / "made_pairs.py"), *map(str, options)]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise MakingError((found.stderr.strip().splitlines() or ["it failed"])[-1])
    return found.stdout


def files(name: str, base: Path, target: Path) -> Pair:
    return Pair(name, base, target, json.loads(made_by("--count", base, target)))


def real(data: Path) -> Iterator[Pair | str]:
    """Every folder beside a NAME-base with the same NAME, file by file; a reason where there is nothing."""
    bases = sorted(data.glob("*-base")) if data.is_dir() else []
    if not bases:
        yield f"real: skipped, no folder NAME-base in {data} (--data or $CKPTDIFF_DATA)"
    for base in bases:
        for target in sorted(path for path in data.glob(f"{base.name.removesuffix('base')}*") if path.is_dir() and path != base):
            found = sorted(file.name for file in target.glob("*.safetensors"))
            if not found:
                yield f"{target.name}: skipped, it has no safetensors file"
            for file in found:
                name = target.name if len(found) == 1 else f"{target.name}/{file}"
                there = (base / file).is_file()
                yield files(name, base / file, target / file) if there else f"{name}: skipped, the base has no {file}"


def specs(workload: str, megabytes: float) -> list[tuple[str, float, float, str]]:
    """Name, MB, per cent changed and dtype of a workload's made pairs."""
    if workload == "growth":
        return [(f"growth-{size / 1000:g}GB", size, GROWTH_CHANGED, "BF16") for size in GROWTH]
    changed, dtype, share = MADE[workload]
    return [(workload if megabytes == 488 else f"{workload}-{megabytes:g}MB", megabytes * share, changed, dtype)]


def made(workload: str, arguments: argparse.Namespace) -> Iterator[Pair | str]:
    """The pairs of a workload, made as they are needed and removed after, unless they were there."""
    for name, megabytes, changed, dtype in specs(workload, arguments.mb):
        folder = arguments.workdir / name
        there = (folder / "pair.json").exists()
        if arguments.only not in name:
            continue
        if not there and shutil.disk_usage(arguments.workdir).free < 4.5e6 * megabytes:
            yield f"{name}: skipped, wants {4.5e-3 * megabytes:.1f} GB of disk"
            continue
        try:
            made_by(folder, "--mb", megabytes, "--changed", changed, "--dtype", dtype)
            facts = json.loads((folder / "pair.json").read_text())
            yield Pair(name, folder / "base.safetensors", folder / "target.safetensors", facts)
        except MakingError as error:
            yield f"{name}: skipped, {error}"
        finally:
            if not (there or arguments.keep):
                shutil.rmtree(folder, ignore_errors=True)


def pairs(arguments: argparse.Namespace) -> Iterator[Pair | str]:
    """All pairs asked for; text for what is skipped."""
    for option in arguments.pair:
        name, _, both = option.partition("=")
        base, _, target = both.partition(",")
        there = Path(base).is_file() and Path(target).is_file()
        yield files(name, Path(base), Path(target)) if there else f"{option}: skipped, want NAME=BASE,TARGET of two files"
    for workload in arguments.workloads.split(","):
        if workload == "real":
            yield from (pair for pair in real(arguments.data) if isinstance(pair, str) or arguments.only in pair.name)
        elif workload != "none":
            yield from made(workload, arguments)


def rows_for(pair: Pair, arguments: argparse.Namespace) -> list[Row]:
    paths, limits = peers_known.named(arguments.python_for), peers_known.named(arguments.limit_mb)
    memory = arguments.memory_gb * 1e9 if arguments.memory_gb else 0.8 * free_memory()
    rivals = [] if arguments.peers == "none" else peers_known.chosen(arguments.peers)
    rows = []
    for peer in [*peers_known.ours(arguments.codecs.split(",")), *rivals]:
        python = peers_known.python_of(peer, paths)
        why = peers_known.obstacle(peer, pair, python, memory, limits)
        rows.append(Row(peer, python, peers_known.version(peer, python), skipped=why))
    return rows


def number(found: Figures, key: str, form: str = ".2f") -> str:
    return format(found[key], form) if key in found else ""


def ratio(ours: Figures, found: Figures, key: str) -> str:
    return f"{ours[key] / found[key]:.3f}" if key in ours and found.get(key) else ""


def in_memory(row: Row, found: Figures, warm_key: str, cold_key: str) -> str:
    if row.warm.get(warm_key):
        return f"{median(row.warm[warm_key]):.3f}"
    return f"{found[cold_key]:.3f} cold" if cold_key in found else ""


def line(row: Row, ours: Figures) -> str:
    found, status = row.better(), row.status()
    if not found:
        return f"| {row.peer.name} " + "| " * (len(COLUMNS) - 2) + f"| {status} |"
    if status.startswith("INEXACT") and row.peer.note:
        status += f" ({row.peer.note})"
    if row.failures:
        status += "; failed: " + "; ".join(f"{name} {why}" for name, why in row.failures.items())
    if row.sizes_vary():
        status += "; patch bytes vary between runs"
    if row.slow:
        status += "; run once"
    cells = [row.peer.name, number(found, "bytes", ",.0f"), ratio(ours, found, "bytes")]
    for verb in ("make", "apply"):
        cells += [number(found, f"{verb} wall"), ratio(ours, found, f"{verb} wall"), number(found, f"{verb} cpu")]
        cells += [number(found, f"{verb} rss", ".0f")]
    cells += [in_memory(row, found, "encode", "make work"), in_memory(row, found, "decode", "apply work"), status]
    return f"| {' | '.join(cells)} |"


def table(pair: Pair, rows: list[Row]) -> str:
    heading = f"### {pair.name}: {pair.size:,} bytes, {', '.join(sorted(pair.dtypes()))}"
    heading += f", {pair.made['percent']:.2f} % of {pair.made['elements']:,} elements differ" + (", made" if "recipe" in pair.made else "")
    lines = [heading, "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    ours = rows[0].better()
    return "\n".join([*lines, *(line(row, ours) for row in rows)]) + "\n"


def as_json(pair: Pair, rows: list[Row]) -> dict[str, Any]:
    ours, found = rows[0].better(), []
    for row in rows:
        best = row.better()
        keys = ("bytes", "make wall", "make cpu", "make rss", "apply wall", "apply cpu", "apply rss")
        ratios = {key: ours[key] / best[key] for key in keys if key in ours and best.get(key)}
        entry: dict[str, Any] = {"peer": row.peer.name, "version": row.version, "note": row.peer.note, "status": row.status(), "best": best}
        entry |= {"ours_over_its": ratios, "samples": row.samples, "warm": row.warm, "failures": row.failures, "run_once": row.slow}
        found.append(entry)
    return {"name": pair.name, "bytes": pair.size, "dtypes": sorted(pair.dtypes()), "made": pair.made, "rows": found}


def growth_table(found: list[dict[str, Any]]) -> str:
    """Make and apply of the growth series side by side: seconds and peak RSS, to see what grows with the model."""
    series = [pair for pair in found if pair.get("name", "").startswith("growth-")]
    if len(series) < 2:
        return ""
    lines = ["### growth: make s / RSS MB, apply s / RSS MB", "", f"| peer | {' | '.join(pair['name'] for pair in series)} |"]
    lines.append("|---" * (len(series) + 1) + "|")
    for index, row in enumerate(series[0]["rows"]):
        cells = []
        for pair in series:
            best = pair["rows"][index]["best"]
            both = [f"{best[f'{verb} wall']:.2f} / {best[f'{verb} rss']:.0f}" for verb in ("make", "apply") if f"{verb} wall" in best]
            cells.append(", ".join(both) or pair["rows"][index]["status"].partition(":")[0])
        lines.append(f"| {row['peer']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")), platform.processor())
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}


def raced(pair: Pair, arguments: argparse.Namespace) -> list[Row]:
    rows = rows_for(pair, arguments)
    race(rows, pair, arguments.workdir, arguments.runs, arguments.limit, arguments.patience)
    for row in rows if arguments.warm else []:
        warm(row, pair, arguments.warm, arguments.limit, arguments.patience)
    return rows


def save(out: Path, texts: list[str], found: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    out.with_name(f"{out.name}.md").write_text("\n".join(texts))
    facts = {"machine": machine(), "runs": arguments.runs, "warm": arguments.warm, "pairs": found}
    out.with_name(f"{out.name}.json").write_text(json.dumps(facts, indent=1) + "\n")


def main() -> int:
    arguments = arguments_of()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    out, wrong = arguments.out or arguments.workdir / "peers", False
    texts: list[str] = [f"{NOTES}\n"]
    found: list[dict[str, Any]] = []
    print(NOTES, end="\n\n")
    for pair in pairs(arguments):
        if isinstance(pair, str):
            texts.append(f"{pair}\n")
            found.append({"skipped": pair})
        else:
            rows = raced(pair, arguments)
            wrong |= any(row.status() != "file" for row in rows if row.peer.program == "ckptdiff")
            texts.append(table(pair, rows))
            found.append(as_json(pair, rows))
        print(texts[-1], flush=True)
        save(out, texts, found, arguments)
    if grown := growth_table(found):
        print(grown)
        save(out, [*texts, grown], found, arguments)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
