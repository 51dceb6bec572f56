"""vLLM's weight-transfer engine ``ckptdiff``: a patch, a step of a chain, or a patch on the Hub updates the served model.

vLLM imports this module in its workers, once the model is loaded; nothing here, or below, imports Numba before that.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from vllm.distributed import get_world_group
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from ckptdiff.engines.updater import Updater, Wanted
from ckptdiff.engines.vllm_ways import way_of
from ckptdiff.engines.warming import warm_up
from ckptdiff.errors import CheckpointError
from ckptdiff.io.parallel import default_threads
from ckptdiff.patching.torch_dtypes import dtype_of


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """What ``init_weight_transfer_engine`` takes."""

    mode: str = "move"
    """``move``, ``sparse`` or ``mirror``."""
    base: str | None = None
    """The checkpoint that the model was loaded from; None: vLLM's ``--model``, with its revision."""
    digests: Literal["whole", "sampled"] = "whole"
    """As of :func:`ckptdiff.engines.record`, in the mode ``move``."""
    threads: int | None = None


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """What ``update_weights`` takes: ``stage`` while the engine serves, ``apply`` in the pause, ``update`` (both), or ``undo``.

    What is named: one of ``patch`` (a path or an id on the Hub), ``chain`` (with ``step``, or the last one), and ``base``.
    """

    action: str = "update"
    patch: str | None = None
    chain: str | None = None
    step: int | None = None
    base: bool = False
    to: str | None = None
    """``undo``: identity of the state that is to be served afterwards."""


class Engine(WeightTransferEngine):  # type: ignore[misc]
    """See vLLM's ``WeightTransferEngine``."""

    init_info_cls, update_info_cls = InitInfo, UpdateInfo
    supports_draft_weight_update = False
    updater: Updater | None = None
    _init: InitInfo | None = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Compile what updates need, and find out what is served. Where that is known already, the same request changes nothing."""
        if self.updater is not None and self._init == init_info:
            return
        self._agreed(lambda: self._init_transfer_engine(init_info))

    def _init_transfer_engine(self, init_info: InitInfo) -> None:
        config = self.model_config
        base = init_info.base or (f"{config.model}@{config.revision}" if config.revision else config.model)
        warm_up({dtype_of(parameter, name) for name, parameter in self.model.named_parameters()})
        way = way_of(init_info.mode, self.model, config, base, init_info.digests, init_info.threads or default_threads())
        self.updater, self._init = Updater(way, init_info.threads), init_info

    def start_weight_update(self) -> None:
        """Do nothing: each update is whole by itself."""

    def finish_weight_update(self) -> None:
        """Do nothing: each update is whole by itself."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As vLLM's own, but that it waits for the device only where there is one."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Do what is asked; raises CkptdiffError, and then the model is as it was."""
        if self.updater is None:
            self._agreed(self._not_ready)
            return
        before = self.updater.way.identity
        self._agreed(lambda: self._do(update_info), lambda: self._return_to(before))

    def _do(self, update_info: UpdateInfo) -> None:
        assert self.updater is not None
        updater, action = self.updater, update_info.action
        if action not in ("stage", "apply", "update", "undo"):
            raise CheckpointError(f"unknown action {action!r}: expected stage, apply, update or undo")
        if action in ("stage", "update"):
            updater.stage(Wanted(update_info.patch, update_info.chain, update_info.step, update_info.base))
        if action in ("apply", "update"):
            updater.apply()
        if action == "undo":
            updater.undo(update_info.to or updater.base)

    def _not_ready(self) -> None:
        raise CheckpointError("the engine ckptdiff is not initialized: call init_weight_transfer_engine first")

    def _return_to(self, identity: str) -> None:
        if self.updater is not None and self.updater.way.identity != identity:
            self.updater.undo(identity)

    def _agreed(self, action: Callable[[], None], undo: Callable[[], None] = lambda: None) -> None:
        """Do something on all ranks or on none: where it fails on one, the others undo it.

        Of several ranks only the last one raises: vLLM 0.32 reads the ranks' answers in order and stops at the first error, so that an
        error of an earlier rank would leave answers unread, and later calls would get those.
        """
        error: Exception | None = None
        try:
            action()
        except Exception as raised:
            error = raised
        group = get_world_group()
        if group.world_size == 1:
            if error is not None:
                raise error
            return
        errors: list[Any] = [None] * group.world_size
        torch.distributed.all_gather_object(errors, None if error is None else f"{type(error).__name__}: {error}", group=group.cpu_group)
        failed = [f"rank {rank}: {text}" for rank, text in enumerate(errors) if text is not None]
        if not failed:
            return
        undone = list(errors)
        torch.distributed.all_gather_object(undone, _text_of(undo) if error is None else None, group=group.cpu_group)
        failed += [f"rank {rank} could not take it back: {text}" for rank, text in enumerate(undone) if text is not None]
        if group.rank_in_group == group.world_size - 1:
            raise CheckpointError("; ".join(failed)) from error

    def shutdown(self) -> None:
        """Do nothing: nothing is held outside the process."""

    def state(self) -> dict[str, Any]:
        """What is served and prepared (:meth:`Updater.state`), and the largest resident size of this process in bytes."""
        told = self.updater.state() if self.updater is not None else {"identity": None}
        return {**told, "max_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _text_of(action: Callable[[], None]) -> str | None:
    """What an action raises, as text; None if it does not."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


class Extension:
    """Methods that vLLM's workers get by ``--worker-extension-cls ckptdiff.engines.vllm_engine.Extension``."""

    weight_transfer_engine: Engine
    _weight_update_active: bool
    finish_weight_update: Callable[[], None]

    def ckptdiff_state(self) -> dict[str, Any]:
        """See :meth:`Engine.state`."""
        return self.weight_transfer_engine.state()

    def ckptdiff_close(self) -> None:
        """Finish an update of vLLM that a killed client, or a failure on another rank, left open; where none is, do nothing."""
        if self._weight_update_active:
            self.finish_weight_update()
