"""The command line."""

from __future__ import annotations

from ckptdiff.lazy import submodules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptdiff.cli import chain_commands as chain_commands
    from ckptdiff.cli import compose_command as compose_command
    from ckptdiff.cli import demo as demo
    from ckptdiff.cli import hub_commands as hub_commands
    from ckptdiff.cli import main as main
    from ckptdiff.cli import options as options
    from ckptdiff.cli import render as render
    from ckptdiff.cli import render_chain as render_chain
    from ckptdiff.cli import render_hub as render_hub
    from ckptdiff.cli import render_overlap as render_overlap
    from ckptdiff.cli import render_plan as render_plan
    from ckptdiff.cli import render_report as render_report
    from ckptdiff.cli import report_commands as report_commands
    from ckptdiff.cli import tables as tables
    from ckptdiff.cli import warmup as warmup
else:
    __getattr__ = submodules(__name__)
