"""Callbacks for the trainers of transformers and TRL: one trains within a mask, one records how the weights change, one keeps every
checkpoint in a chain."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckptdiff.errors import UnsupportedError
from ckptdiff.io.durable import sync
from ckptdiff.io.work_folder import work_folder
from ckptdiff.obtaining import how_to_get
from ckptdiff.patching.output import explain_write_errors

try:
    import torch
    import transformers
except ImportError:
    raise UnsupportedError(f"transformers is missing; {how_to_get('transformers')}") from None

from ckptdiff.subnetwork import Frozen, Mask, UpdateTracker, freeze_outside
from ckptdiff.verbs.chain_add import chain_add
from ckptdiff.verbs.chain_restore import chain_restore


class SubnetworkCallback(transformers.TrainerCallback):
    """Train only the elements in a mask: ``Trainer(..., callbacks=[SubnetworkCallback(mask)])``.

    :func:`ckptdiff.subnetwork.freeze_outside` says how, and what ``before_clipping`` means.
    """

    def __init__(self, mask: Mask, *, before_clipping: bool = False) -> None:
        self.mask, self.before_clipping = mask, before_clipping
        self.frozen: Frozen | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = plain_optimizer(kwargs["optimizer"])
        self.frozen = freeze_outside(kwargs["model"], self.mask, optimizer, before_clipping=self.before_clipping)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.frozen is not None:
            self.frozen.remove()


class UpdateTrackerCallback(transformers.TrainerCallback):
    """Record how training changes the weights: ``trainer.add_callback(UpdateTrackerCallback(trainer, every=10))``.

    The records of an :class:`~ckptdiff.subnetwork.UpdateTracker`, which explains ``every``, ``sample`` and ``dtype``, go to the trainer's
    own log, and are in ``records``.
    """

    def __init__(self, trainer: Any, *, every: int = 10, sample: int = 1, dtype: torch.dtype | None = None) -> None:
        self._trainer, self._logged = trainer, 0
        self._options: dict[str, Any] = {"every": every, "sample": sample, "dtype": dtype}
        self.tracker: UpdateTracker | None = None

    @property
    def records(self) -> list[Any]:
        """The tracker's records so far."""
        return self.tracker.records if self.tracker else []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tracker = UpdateTracker(kwargs["model"], plain_optimizer(kwargs["optimizer"]), **self._options)
        self._logged = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = control.should_log  # logging clears it, and the trainer's own row of this step, with the loss, would then be left out
        for record in self.records[self._logged :]:
            self._trainer.log({f"update/{name}": value for name, value in asdict(record).items() if name != "step"})
        self._logged, control.should_log = len(self.records), due

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tracker is not None:
            self.tracker.remove()


class ChainCallback(transformers.TrainerCallback):
    """Put every checkpoint that the trainer saves into a chain: ``Trainer(..., callbacks=[ChainCallback("run-chain", "base")])``.

    After each save the weights, and the other files of the model, go in as :func:`ckptdiff.chain_add` puts them, checked against both
    checkpoints. Optimizer, scheduler and trainer state are not in the chain, and stay where they are. :func:`restore_weights` puts the
    files back.

    Args:
        chain: a folder or a URL; it is made at the first save.
        base: the checkpoint that training starts from: a path, or an id on the Hub.
        remove_weights: remove the files of each checkpoint that the chain has, once the next one is in and the stored bytes were compared.
            Those of the last checkpoint stay.
        keyframe_every, codec, threads: as of :func:`ckptdiff.chain_add`.
    """

    def __init__(
        self,
        chain: str | os.PathLike[str],
        base: str | os.PathLike[str],
        *,
        remove_weights: bool = False,
        keyframe_every: int | None = None,
        codec: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.chain, self.base, self.remove_weights = chain, base, remove_weights
        self._options: dict[str, Any] = {"keyframe_every": keyframe_every, "codec": codec, "threads": threads}
        self._last: Path | None = None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        saved, last = Path(args.output_dir) / f"checkpoint-{state.global_step}", self._last
        before = [last] if last is not None and last != saved and last.is_dir() else []  # save_total_limit may have removed it
        chain_add(self.chain, [*before, saved], base=self.base, **self._options)
        if before and self.remove_weights:
            chain_add(self.chain, before, base=self.base, remove_originals=True, **self._options)
        self._last = saved


def restore_weights(
    chain: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    step: int,
    *,
    base: str | os.PathLike[str] | None = None,
    threads: int | None = None,
) -> None:
    """Put the files of a step back into a checkpoint folder, beside optimizer and trainer state, for ``resume_from_checkpoint``.

    Each file is rebuilt and compared elsewhere first, and then moved to its place, one after another: if that is interrupted, the same call
    completes it. Files of the same names are replaced.

    Args:
        chain: the chain.
        checkpoint: the folder, which is made if it is not there.
        step: the step's number.
        base, threads: as of :func:`ckptdiff.chain_restore`, whose errors are raised.
    """
    folder = Path(checkpoint)
    with explain_write_errors(folder), work_folder(folder.absolute().parent, ".restored.ckptdiff-") as work:
        built = work.path / "built"
        done = chain_restore(chain, step, built, base=base, threads=threads)
        for name in done.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(built / name, folder / name)
            sync((folder / name).parent)


def plain_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside accelerate's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
