"""TRL's trainers and a vLLM server: each sync publishes the policy as a step of a chain, and the server moves to it.

:class:`ChainWeightTransfer` is a ``WeightTransferProtocol`` for ``trl.experimental.async_grpo.AsyncGRPOTrainer``. :class:`SyncCallback`
does the same from any other trainer of TRL or transformers.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from ckptdiff.chain.following import Version
from ckptdiff.chain.state_publisher import Publisher
from ckptdiff.engines.carriers import open_weights, weights_of
from ckptdiff.engines.vllm_client import Client, HttpServer, Updated
from ckptdiff.errors import CheckpointError, UnsupportedError
from ckptdiff.obtaining import how_to_get

try:
    import torch
    import transformers
except ImportError:
    raise UnsupportedError(f"transformers is missing; {how_to_get('transformers')}") from None


@dataclass(frozen=True, slots=True)
class Synced:
    """What a sync did."""

    version: Version
    """The step that was published, with what changed, the sizes of its patches, and the seconds of their encoding."""
    updated: Updated | None
    """What the server did, with its timings; None if it served that already."""


@dataclass(slots=True)
class ChainWeightTransfer:
    """Publishes a trainer's weights to a chain and brings a vLLM server there: ``AsyncGRPOTrainer(..., weight_transfer=...)``.

    The server, and with it the rollouts, go on while a patch is encoded, written and staged; they pause only while it is applied. TRL calls
    :meth:`pause` before it gives the weights: so the pause is made within :meth:`send_weights`, and :meth:`pause` and :meth:`resume` do
    nothing.

    Args:
        chain: a folder or URL of the chain, for the server as well as here. If it has steps, this run goes on from the last one.
        url: the server, such as ``http://127.0.0.1:8000``.
        base: the checkpoint that the server was started with, and the chain's base: a path, or an id on the Hub.
        mode: as of the server's weight-transfer engine (docs/engines.md).
        pause_mode: what becomes of rollouts in flight: ``keep`` them, ``wait`` for them, or ``abort`` them.
        publisher: more options of :class:`ckptdiff.Publisher`. Weights are cast to the base's dtypes, unless ``dtype`` says other.

    Attributes:
        synced: what each sync did.
    """

    chain: str | os.PathLike[str]
    url: str
    base: str | os.PathLike[str]
    mode: str = "move"
    pause_mode: str = "keep"
    publisher: dict[str, Any] = field(default_factory=dict)
    synced: list[Synced] = field(default_factory=list, init=False)
    _publisher: Publisher | None = field(default=None, init=False)
    _client: Client | None = field(default=None, init=False)
    _step: int = field(default=0, init=False)
    _frozen: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    _is_read: bool = field(default=False, init=False)

    def init_weight_transfer(self) -> None:
        """Open the chain, and find out that the server serves its base or a step of it.

        Raises:
            BaseMismatchError: the chain has another base. CheckpointError: the server refuses. StoreError: it does not answer.
        """
        self._publisher = Publisher(self.chain, base=self.base, **{"dtype": "base", **self.publisher})
        last = self._publisher.resume()
        self._step = last.step if last is not None else 0
        self._client = Client(HttpServer(self.url), pause_mode=self.pause_mode, mode=self.mode)
        self._client.recover()

    def pause(self) -> None:
        """Do nothing: see the class."""

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Publish the weights as the next step, and update the server to it.

        Args:
            iterator: names and tensors of the checkpoint. Those of the base that are not among them (frozen ones) stay as they are there.

        Raises:
            CheckpointError: the base has no such tensor; or the server refuses, as BaseMismatchError does where something else wrote to its
                weights: then the step is in the chain, the server serves what it did, and the next sync brings it up to date.
            OutputError, StoreError: the chain cannot be written, or the server does not answer.
        """
        if self._publisher is None or self._client is None:
            raise CheckpointError("the weight transfer is not initialized: call init_weight_transfer first")
        sent = dict(iterator)
        self._read_frozen(sent)
        published = self._publisher.publish({**self._frozen, **sent}, self._step + 1)
        version: Version = published if isinstance(published, Version) else published.result()
        self._step = version.step
        updated = None
        if self._client.state()["identity"] != version.identity:
            updated = self._client.update(chain=os.fspath(self.chain), step=version.step)
        self.synced.append(Synced(version, updated))

    def _read_frozen(self, sent: Collection[str]) -> None:
        """Read the tensors of the base that a trainer does not send, once."""
        if self._is_read:
            return
        with open_weights(self.base) as checkpoint:
            self._frozen = {tensor.name: carrier.tensor for tensor, carrier in weights_of(checkpoint, sent)}
        self._is_read = True

    def resume(self) -> None:
        """Do nothing: see the class."""

    def destroy(self) -> None:
        """Close the publisher."""
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None


class SyncCallback(transformers.TrainerCallback):
    """Syncs a trainer's model by a weight transfer when training begins, and after every so many steps.

    For trainers that have no such hook of their own: ``GRPOTrainer(..., callbacks=[SyncCallback(ChainWeightTransfer(...))])``.

    Args:
        transfer: the weight transfer.
        every: steps of the optimizer between two syncs.
    """

    def __init__(self, transfer: ChainWeightTransfer, every: int = 1) -> None:
        self.transfer, self.every = transfer, every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.transfer.init_weight_transfer()
        self._sync(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self._sync(kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.transfer.destroy()

    def _sync(self, model: Any) -> None:
        self.transfer.send_weights((name, parameter.detach()) for name, parameter in model.named_parameters())
