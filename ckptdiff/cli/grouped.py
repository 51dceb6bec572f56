"""Commands whose ``--help`` lists options in groups, each of which an option names where it is defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

OUTPUT = "Output"
FILES = "Which files and tensors"
MEASURED = "What is measured"
HUB = "Hub"
SPEED = "Speed"
OTHER = "Other"
GROUPS = (OUTPUT, FILES, MEASURED, HUB, SPEED, OTHER)
"""The groups, in the order in which they are listed."""


class GroupedOption(click.Option):
    """An option that names its group."""

    def __init__(self, *arguments: Any, group: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


def option(group: str, *names: str, **settings: Any) -> Decorator:
    """``click.option`` in one of :data:`GROUPS`."""
    return click.option(*names, cls=GroupedOption, group=group, **settings)


class GroupedCommand(click.Command):
    """A command that lists its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group that has options."""
        _write_groups(self, ctx, formatter)


class OrderedGroup(click.Group):
    """A group that lists its commands in the order in which they were added, and its options and theirs in groups."""

    command_class = GroupedCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which they were added, instead of by alphabet."""
        return list(self.commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group that has options, and one of the commands."""
        _write_groups(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def _write_groups(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    sections: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
        if record is not None:
            sections[getattr(parameter, "group", OTHER)].append(record)
    for group, records in sections.items():
        if records:
            with formatter.section(group):
                formatter.write_dl(records)
