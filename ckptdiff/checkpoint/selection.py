"""Which files of a folder belong to a checkpoint."""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate

from ckptdiff.checkpoint.secrets import suspicious_name

HOUSEKEEPING = (
    ".git",
    ".git/*",
    ".cache/*",
    "__pycache__/*",
    ".ipynb_checkpoints/*",
    ".DS_Store",
    "*.lock",
    "*.incomplete",
)
"""Version control and caches."""

LOGS = (
    "*.log",
    "*.log.*",
    "*.out",
    "*.err",
    "events.out.tfevents*",
    "*.tfevents.*",
    "trainer_log.jsonl",
    "logging.jsonl",
    "running_log.txt",
    "wandb/*",
    "mlruns/*",
    "lightning_logs/*",
    "tb_logs/*",
    "swanlog/*",
)
"""What trainers, batch systems and trackers write down."""

OPTIMIZER_ENDINGS = (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".npz", ".safetensors", ".safetensors.index.json")
TRAINING_STATE = (
    "trainer_state.json",
    "training_args.bin",
    # the HF Trainer, accelerate (a number for each object), MLX, PyTorch
    *(f"optimizer*{end}" for end in OPTIMIZER_ENDINGS),
    *(f"optim{end}" for end in OPTIMIZER_ENDINGS),
    "scheduler*.pt",
    "scheduler*.bin",
    "lr_scheduler*.pt",
    "sampler.bin",
    "sampler_[0-9]*.bin",
    "dl_state_dict*.bin",
    "scaler.pt",
    "scaler_[0-9]*.pt",
    "rng_state*.pt",
    "rng_state*.pth",
    "random_states_*.pkl",
    "custom_checkpoint_*.pkl",
    # FSDP, by accelerate and verl; torch.distributed.checkpoint
    "pytorch_model_fsdp*.bin",
    "pytorch_model_fsdp_*/*",
    "model_world_size_*_rank_*.pt",
    "optim_world_size_*_rank_*.pt",
    "extra_state_*.pt",
    "*.distcp",
    # DeepSpeed
    "model_states.pt",
    "*[_-]model_states.pt",
    "*[_-]optim_states.pt",
    # Megatron and NeMo
    "model_optim_rng.pt",
    "distrib_optim*",
    "dist_optimizer/*",
    "latest_checkpointed_iteration.txt",
    "train_dataloader*.pt",
    "train_state.pt",
    # torchtune
    "recipe_state.pt",
    "recipe_state/*",
)
"""Optimizer and trainer state, and weights that only the trainer which wrote them can read, by their file names."""

ROOT_FOLDERS = (
    "checkpoint-*/*",
    "global_step*/*",
    "logs/*",
    "runs/*",
    "tensorboard/*",
    "completions/*.parquet",
)
"""Folders whose names mean this at the root of a checkpoint only: other checkpoints of the run, logs, TRL's samples."""

DEEPSPEED = ("zero_to_fp32.py", "global_step*/*", "*[_-]model_states.pt", "*[_-]optim_states.pt")
AMBIGUOUS_NAMES = {
    "latest": DEEPSPEED,
    "latest_universal": DEEPSPEED,
    "data.pt": TRAINING_STATE,  # the place in the data, by verl; a model alone may have a file of this name
    ".metadata": ("*.distcp",),
    "common.pt": ("*.distcp",),
    "metadata.json": ("*.distcp",),
}
"""Names that say little alone: state where a file of these names lies in their folder, or below it."""

ANYWHERE = (*HOUSEKEEPING, *LOGS, *TRAINING_STATE)


def _compiled(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))


_EXCLUDED_PATTERN = _compiled((*ANYWHERE, *(f"*/{pattern}" for pattern in ANYWHERE), *ROOT_FOLDERS))
_AMBIGUOUS_PATTERNS = {
    name: _compiled((*patterns, *(f"*/{pattern}" for pattern in patterns))) for name, patterns in AMBIGUOUS_NAMES.items()
}


@dataclass(frozen=True, slots=True)
class Selection:
    """What a caller says of which files belong to a checkpoint: globs to take and to leave, and whether links out of its folder count."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    follow_links: bool = False

    @property
    def globs(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.include, *self.exclude)


def select(names: Iterable[str], include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Split paths into those that go in and those that are left out. ``exclude`` beats ``include`` beats the defaults.

    Patterns are globs over the whole path, where ``*`` also matches ``/``. A name that ends in ``/`` is a folder not looked into.
    """
    kept: list[str] = []
    left: list[str] = []
    names = list(names)
    for name in names:
        wanted = matches_path(name, include) or not _is_left_out_by_default(name, names)
        (kept if wanted and not matches_path(name, exclude) else left).append(name)
    return kept, left


def _is_left_out_by_default(name: str, names: Sequence[str]) -> bool:
    """Whether a file is left out where nobody asks for it."""
    if _EXCLUDED_PATTERN.match(name) or suspicious_name(name):
        return True
    folder, slash, last = name.rpartition("/")
    start = len(folder + slash)
    return last in _AMBIGUOUS_PATTERNS and any(
        other.startswith(folder + slash) and _AMBIGUOUS_PATTERNS[last].match(other, start) for other in names
    )


def exclude_option(*names: str) -> str:
    """The option that leaves out files of these paths, or below these folders (that end in ``/``), as a shell takes it."""
    return " ".join(f"--exclude {shlex.quote(glob.escape(name) + '*' * name.endswith('/'))}" for name in names)


def matches_path(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path matches one of the globs; that of a folder, which ends in ``/``, may also do so without the ``/``."""
    return matches(name, patterns) or (name.endswith("/") and matches(name[:-1], patterns))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the globs."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
