"""Which files of a folder belong to a checkpoint."""

from __future__ import annotations

import functools
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
"""Files of version control and caches."""

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
"""Logs of trainers, batch systems and experiment trackers."""

OPTIMIZER_ENDINGS = (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".npz", ".safetensors", ".safetensors.index.json")
"""Endings of files with optimizer state."""
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
"""Names of files with optimizer and trainer state, and of weights that only the trainer which wrote them can read."""

ROOT_FOLDERS = (
    "checkpoint-*/*",
    "global_step*/*",
    "logs/*",
    "runs/*",
    "tensorboard/*",
    "completions/*.parquet",
)
"""Other checkpoints of the run, logs, and samples of TRL; folders of these names mean this only at the root of a checkpoint."""

DEEPSPEED = ("zero_to_fp32.py", "global_step*/*", "*[_-]model_states.pt", "*[_-]optim_states.pt")
AMBIGUOUS_NAMES = {
    "latest": DEEPSPEED,
    "latest_universal": DEEPSPEED,
    "data.pt": TRAINING_STATE,  # verl's position in the data; a model may have a file of this name too
    ".metadata": ("*.distcp",),
    "common.pt": ("*.distcp",),
    "metadata.json": ("*.distcp",),
}
"""Ambiguous names: such a file is trainer state if a file that matches one of its patterns lies in the same folder, or below."""

ANYWHERE = (*HOUSEKEEPING, *LOGS, *TRAINING_STATE)
"""What is left out by default in every folder."""


@functools.cache
def _anywhere(patterns: Sequence[str], at_root: Sequence[str] = ()) -> re.Pattern[str]:
    """Matches the paths that match one of the globs in any folder, or one of those of ``at_root``. Compiled when it is first needed."""
    return re.compile("|".join((f"(?:(?s:.*)/)?(?:{'|'.join(map(translate, patterns))})", *map(translate, at_root))))


@dataclass(frozen=True, slots=True)
class Selection:
    """A caller's options for which files belong to a checkpoint."""

    include: Sequence[str] = ()
    """Globs of files to take although they are left out by default."""
    exclude: Sequence[str] = ()
    """Globs of files to leave out."""
    follow_links: bool = False
    """Whether files that links out of the folder lead to belong to it."""

    @property
    def globs(self) -> tuple[str, ...]:
        """All globs."""
        return (*self.include, *self.exclude)


def select(names: Iterable[str], include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Split paths into those that belong to a checkpoint and those that are left out.

    ``exclude`` wins over ``include``, and that over the defaults. Patterns are globs over the whole path, in which ``*`` also matches
    ``/``. A name that ends in ``/`` is a folder whose files are not listed.
    """
    kept: list[str] = []
    left_out: list[str] = []
    names = list(names)
    for name in names:
        wanted = matches_path(name, include) or not _is_left_out_by_default(name, names)
        (kept if wanted and not matches_path(name, exclude) else left_out).append(name)
    return kept, left_out


def _is_left_out_by_default(name: str, names: Sequence[str]) -> bool:
    """Whether a file is left out unless the caller includes it."""
    if _anywhere(ANYWHERE, ROOT_FOLDERS).match(name) or suspicious_name(name):
        return True
    folder, slash, last = name.rpartition("/")
    start = len(folder + slash)
    return last in AMBIGUOUS_NAMES and any(
        other.startswith(folder + slash) and _anywhere(AMBIGUOUS_NAMES[last]).match(other, start) for other in names
    )


def exclude_option(*names: str) -> str:
    """The options, quoted for a shell, that leave out files of these paths; all files below a folder, whose name ends in ``/``."""
    return " ".join(f"--exclude {shlex.quote(glob.escape(name) + '*' * name.endswith('/'))}" for name in names)


def matches_path(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path matches one of the globs; the path of a folder, which ends in ``/``, may also match without the ``/``."""
    return matches(name, patterns) or (name.endswith("/") and matches(name[:-1], patterns))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the globs."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
