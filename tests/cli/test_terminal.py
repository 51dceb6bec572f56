"""Text on terminals of several widths, and in a pipe."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.cli import tables
from ckptdiff.cli.tables import Column
from tests.support.checkpoints import bf16, perturb, write
from tests.support.commands import run
from tests.support.small_pair import Pair
from tests.support.terminal import shown

WIDTHS = (120, 80, 40)
NAMES = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.post_attention_layernorm.weight", "model.embed_tokens.weight")
HEADS = {
    "info": ["file", "kind", "size", "in the patch", "SHA-256", "tensor", "dtype", "shape", "codec", "changed", "payload"],
    "compare": ["tensor", "dtype", "shape", "elements", "bit-identical", "within 1e-5", "within 1e-4"],
    "report": [
        *("tensor", "dtype", "changed", "one ulp", "rank", "stable rank", "… shuffled", "99 % energy", "at random", "size explains"),
        *("module", "elements", "beside nulls", "matrices", "measured", "signs flipped", "shuffled by size", "verdict"),
    ],
    "overlap": ["#", "update", "first", "second", "1st", "2nd", "o1", "by size", "excess", "z", "o2", "Jaccard", "same direction"],
    "series": ["#", "update", "changed", "since the last", "ever changed", "changed and back", "kept", "kept to the end", "of the last"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two checkpoints of each of two runs, all with long names, and a patch."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    state = {name: bf16(rng.normal(0, 0.02, (64, 48))) for name in NAMES}
    write(folder / "base" / "model.safetensors", state)
    for name in ("r1", "r2"):
        moved = state
        for step in (100, 200):
            moved = {key: perturb(rng, tensor, 0.1) for key, tensor in moved.items()}
            write(folder / name / f"checkpoint-{step}" / "model.safetensors", moved)
            (folder / name / f"checkpoint-{step}" / "config.json").write_text("{}")
    ckptdiff.make(folder / "base", folder / "r1" / "checkpoint-100", folder / "patch")
    return folder


@pytest.fixture(scope="module")
def looks(runs: Path) -> dict[int, dict[str, str]]:
    """What each command shows at each width."""
    updates = [f"{name}/checkpoint-{step}" for name in ("r1", "r2") for step in (100, 200)]
    found = {}
    for width in WIDTHS:
        commands: dict[str, list[object]] = {
            "make": ["make", "base", "r2/checkpoint-200", "-o", f"made-{width}"],
            "apply": ["apply", "base", "patch", "-o", f"out-{width}"],
            "info": ["info", "patch", "--tensors"],
            "verify": ["verify", "patch", "--base", "base"],
            "wrong base": ["verify", "patch", "--base", "r2/checkpoint-100"],
            "compare": ["compare", "base", "r1/checkpoint-100", "--tensors"],
            "report": ["report", "base", "patch", "--rank", "all", "--tensors"],
            "overlap": ["overlap", *updates, "--base", "base", "--tensors"],
            "series": ["overlap", *updates[:2], "--base", "base", "--series", "--tensors"],
            "mask": ["mask", "patch", "--base", "base", "-o", f"mask-{width}.safetensors"],
        }
        found[width] = dict(zip(commands, shown(list(commands.values()), width, runs), strict=True))
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal(looks: dict[int, dict[str, str]], width: int) -> None:
    for command, text in looks[width].items():
        assert text.strip(), command
        assert max(map(len, text.splitlines())) <= width, (command, text)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", HEADS)
def test_no_word_of_a_heading_is_broken(looks: dict[int, dict[str, str]], command: str, width: int) -> None:
    """The lines of a heading hold whole words of headings, and nothing else."""
    words = {word for heads in HEADS.values() for head in heads for word in head.split()} | {"layer", "|d|", ">"}
    legend = ("since the last: ", "by size: ")
    blocks = [block.splitlines() for block in looks[width][command].split("\n\n")[1:] if not block.startswith(legend)]
    assert blocks
    for lines in blocks:
        starts = ("file", "tensor", "#", "module", "layer", "first", "1st", "beside")
        heading = next(k for k, line in enumerate(lines) if line.split()[0] in starts)
        assert set(" ".join(lines[: heading + 1]).split()) <= words, lines[: heading + 1]


def test_the_least_important_columns_are_left_out_first_and_named(looks: dict[int, dict[str, str]]) -> None:
    for command in HEADS:
        left_out = re.findall("fit: (.*) \\(--json has all", looks[120][command])
        assert left_out == {"overlap": ["at random"], "series": ["at random"], "report": ["shape"]}.get(command, []), command
    assert "1 column does not fit: shape (--json has all)\n" in looks[80]["compare"]
    assert looks[40]["compare"].endswith("4 columns do not fit: dtype, shape,\nelements, within 1e-4 (--json has all)\n")
    assert looks[40]["compare"].split("\n\n")[1].splitlines()[1].split() == ["tensor", "bit-identical", "1e-5"]


def test_names_of_tensors_are_folded_at_their_dots(looks: dict[int, dict[str, str]]) -> None:
    folded = [line[:17].strip() for line in looks[40]["compare"].split("\n\n")[1].splitlines()]
    assert "".join(folded[2:]).startswith("".join(NAMES)), folded
    assert folded[2:5] == ["model.layers.0.", "self_attn.q_proj.", "weight"]


def test_digests_are_short_on_a_terminal_and_whole_elsewhere(looks: dict[int, dict[str, str]], runs: Path) -> None:
    patch = ckptdiff.info(runs / "patch")
    digests = [patch.base_identity, patch.target_identity, *(file.sha256 or "" for file in patch.files)]
    piped, whole = run("info", runs / "patch").stdout, run("info", runs / "patch", "--json").stdout
    for digest in digests:
        for width in (120, 80):
            assert f"{digest[:12]}…" in looks[width]["info"] and digest[:13] not in looks[width]["info"]
        assert digest in piped and digest in whole


def test_values_hang_behind_their_labels(looks: dict[int, dict[str, str]]) -> None:
    """At 40 columns, and a number stays with its unit."""
    lines = looks[40]["info"].splitlines()
    at = next(k for k, line in enumerate(lines) if "13 same" in line or "tensors  " in line)
    assert lines[at].startswith("      tensors  ") and lines[at + 1].startswith(" " * 15) and lines[at + 1].strip()
    assert lines[at + 2].startswith("     elements  ") and lines[at + 3].rstrip() == "      changed", lines[at : at + 4]
    for text in looks[40].values():
        assert not re.search(r"^\s*(%|kB|MB|B|times)(\W|$)", text, re.MULTILINE), text


def test_updates_are_named_where_names_fit(looks: dict[int, dict[str, str]]) -> None:
    """By as much of their paths as tells them apart; else by numbers."""
    pairs = {width: looks[width]["overlap"].split("\n\n")[2] for width in WIDTHS}
    assert re.search(r"^r1/checkpoint-100 +r2/checkpoint-200 ", pairs[120], re.MULTILINE)
    assert re.search(r"^1st +2nd", pairs[40], re.MULTILINE) and re.search(r"^ +3 +4 ", pairs[40], re.MULTILINE)


# --- elsewhere ---


def test_a_pipe_has_one_line_for_each_row_and_nothing_is_left_out(runs: Path) -> None:
    text = run("compare", runs / "base", runs / "r1" / "checkpoint-100", "--tensors").stdout
    lines = text.split("\n\n")[1].splitlines()
    assert lines[0].split("  ")[0] == "tensor" and lines[0].endswith("within 1e-4") and len(lines) == 1 + len(NAMES)
    assert {line.split()[0] for line in lines[1:]} == set(NAMES) and "fit:" not in text
    assert len({len(line) for line in lines}) == 1, "the last column is at the right"
    report = run("report", runs / "base", runs / "patch", "--rank", "none").stdout
    assert "█" not in report and not [line for line in report.splitlines() if line != line.rstrip()]


NO_RICH = """
import sys
from ckptdiff.cli.main import main
for arguments in ("make base target -o new", "apply base new -o out", "info new --tensors", "verify new --base base", "compare base base"):
    assert main(arguments.split(), standalone_mode=False) in (None, 0), arguments
print([name for name in sys.modules if name.split(".")[0] == "rich"], file=sys.stderr)
"""


def test_where_nobody_watches_rich_is_not_imported(folders: Pair) -> None:
    done = subprocess.run([sys.executable, "-c", NO_RICH], cwd=folders.base.parent, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "[]\n", done.stderr


# --- the module of tables by itself ---


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(tables, "watched", lambda: True)
    return monkeypatch


def test_columns_go_by_their_order(terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Column("name", "name"), Column("two words", order=1), Column("wide", "number", 3), Column("count", "number", 2)]
    rows = [["a", "text", "1,234,567", "12"], ["b", "text", "7", "9"]]
    expected = {
        40: "name  two words       wide  count\na     text       1,234,567     12\nb     text               7      9\n",
        24: "name  two words  count\na     text          12\nb     text           9\n1 column does not fit:\nwide (--json has all)\n",
        20: "      two\nname  words  count\na     text      12\nb     text       9\n1 column does not\nfit: wide (--json\nhas all)\n",
        12: "      two\nname  words\na     text\nb     text\n2 columns do\nnot fit:\nwide, count\n(--json has\nall)\n",
    }
    for width, text in expected.items():
        terminal.setenv("COLUMNS", str(width))
        tables.print_table(columns, rows)
        found = capsys.readouterr().out
        assert [line.rstrip() for line in found.splitlines()] == [line.rstrip() for line in text.splitlines()], found


def test_wide_characters_take_two_columns(terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.setenv("COLUMNS", "20")
    tables.print_table([Column("file", "name"), Column("size", "number")], [["模型" * 9, "12 B"]])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2 and "".join(line[:8].strip() for line in lines[1:]).replace("12 B", "").count("模型") >= 4


def test_words_longer_than_a_line_are_cut(terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.setenv("COLUMNS", "20")
    tables.print_grid([("at", "see " + "0123456789" * 2 + " and so 12 kB of it")])
    tables.print_text("  a path of " + "x" * 30)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "at  see",
        "    0123456789012345",
        "    6789 and so",
        "    12 kB of it",
        "  a path of",
        "    " + "x" * 16,
        "    " + "x" * 14,
    ]


def test_a_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table([Column("file", "name"), Column("size", "number")], [])
    assert capsys.readouterr().out == "file  size\n"


def test_no_cell_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table([Column("file", "name")], [["a\x1b[2J"]])
    tables.print_grid([("label", "b\u202e")])
    tables.print_text("c\x9b")
    assert capsys.readouterr().out == "file\na\\u001b[2J\nlabel  b\\u202e\nc\\u009b\n"
