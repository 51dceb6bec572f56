"""The text of ``--help``: options in groups, examples that parse, and lines that fit a terminal."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from ckptdiff.cli.grouped import GROUPS, GroupedOption
from ckptdiff.cli.main import main
from tests.support.commands import run


def _all_commands(group: click.Group, before: str = "") -> dict[str, click.Command]:
    """Every command by its words, those of groups behind their group."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found[before + name] = command
        if isinstance(command, click.Group):
            found |= _all_commands(command, f"{before}{name} ")
    return found


BY_NAME = _all_commands(main)
COMMANDS = list(BY_NAME)


def help_of(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    return run(*name.split(), "--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_but_help_names_its_group(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(name, monkeypatch)
    for option in BY_NAME[name].params:
        if not isinstance(option, click.Option):
            continue
        assert isinstance(option, GroupedOption) and option.group in GROUPS, option.name
        section = text.split(f"\n{option.group}:\n")[1].split("\n\n")[0]
        assert option.opts[-1] in section, (option.name, section)
    heads = [head for head in re.findall(r"^(\S.*):$", text, re.MULTILINE) if head != "Commands"]
    assert heads == [group for group in GROUPS if group in heads] and "Options" not in heads, heads


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_described_by_sentences(name: str) -> None:
    for option in BY_NAME[name].params:
        if isinstance(option, click.Option):
            text = (option.help or "").split("  [")[0]
            assert re.match(r"[A-Z][a-z]+ ", text) and text.endswith("."), (option.name, text)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_two_examples_that_parse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"^  Examples:\n((?:    .+\n)+)", help_of(name, monkeypatch), re.MULTILINE)
    assert block is not None
    examples = [line.strip() for line in block[1].splitlines()]
    assert len(examples) >= 2
    for line in examples:
        words = shlex.split(line)
        words, own = words[words.index("ckptdiff") + 1 :], name.split()
        assert words[: len(own)] == own
        BY_NAME[name].make_context(name, words[len(own) :], resilient_parsing=False).close()


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(*name.split(), "--help").stdout.splitlines()
    assert lines and max(map(len, lines)) <= 80


def test_help_says_how_to_complete_by_tab() -> None:
    assert 'eval "$(_CKPTDIFF_COMPLETE=bash_source ckptdiff)"' in run("--help").stdout


def test_the_columns_of_a_series_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(help_of("overlap", monkeypatch).split())
    for head in ("kept", "kept to the end", "of the last"):
        assert f'"{head}" is the share' in text or f'"{head}" the share' in text
