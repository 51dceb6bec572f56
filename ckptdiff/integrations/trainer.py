"""Callbacks for the trainers of transformers and TRL: one trains within a mask, one records how the weights change."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ckptdiff.errors import UnsupportedError
from ckptdiff.obtaining import how_to_get

try:
    import torch
    import transformers
except ImportError:
    raise UnsupportedError(f"transformers is missing; {how_to_get('transformers')}") from None

from ckptdiff.subnetwork import Frozen, Mask, UpdateTracker, freeze_outside


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


def plain_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside accelerate's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
