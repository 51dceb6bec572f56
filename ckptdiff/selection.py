"""Which files of a folder belong to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

EXCLUDED = (
    ".git",
    "*/.git",
    ".git/*",
    "*/.git/*",
    ".cache/*",
    "*/.cache/*",
    "__pycache__/*",
    "*/__pycache__/*",
    ".DS_Store",
    "*/.DS_Store",
    "*.lock",
    "*.incomplete",
    "checkpoint-*/*",
    "global_step*/*",
    "runs/*",
    "wandb/*",
    "optimizer*",
    "*/optimizer*",
    "scheduler*.pt",
    "scaler*.pt",
    "rng_state*.pth",
    "trainer_state.json",
    "training_args.bin",
    "*.distcp",
    "zero_to_fp32.py",
    "latest",
)
"""Left out unless ``include`` names them: version control, caches, logs, optimiser and trainer state."""


def select(names: Iterable[str], include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Split paths into those that go in and those that are left out. ``exclude`` beats ``include`` beats the defaults.

    Patterns are globs over the whole path, where ``*`` also matches ``/``.
    """
    kept: list[str] = []
    left: list[str] = []
    for name in names:
        wanted = matches(name, include) or not matches(name, EXCLUDED)
        (kept if wanted and not matches(name, exclude) else left).append(name)
    return kept, left


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the globs."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
