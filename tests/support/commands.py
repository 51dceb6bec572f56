"""ckptdiff's command line in this process, and the words that start it in another."""

from __future__ import annotations

import json
import sys

from click.testing import CliRunner, Result

from ckptdiff.cli.main import main

CKPTDIFF = [sys.executable, "-c", "from ckptdiff.cli.main import main; main()"]


def run(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def error_of(result: Result) -> dict[str, str]:
    """The error that ``--json`` prints."""
    return json.loads(result.stdout)["error"]
