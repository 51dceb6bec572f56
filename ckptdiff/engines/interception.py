"""The final copies of an engine's loader, taken out of its hands: what it would write to the model's memory is given to a sink instead.

A loader maps names, cuts shards, and copies. While a :class:`FinalCopies` is entered, on this thread alone, every operation of torch that
writes to the model's memory is seen. A copy of a carrier (:mod:`ckptdiff.engines.carriers`) to a place of its shape and dtype goes to the
sink; anything else there is refused. So is whatever computes with a carrier, whose bits are no numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ckptdiff.engines.carriers import Carrier
from ckptdiff.errors import UnsupportedError, cut

ANOTHER_WAY = "update it through a mirror (mode mirror), or reload it whole; nothing was written"
"""What to do about a model that cannot be moved in place."""
MOVES = {"aten::clone", "aten::_to_copy", "aten::_unsafe_view", "aten::lift_fresh"}
"""Operations that give the bits of a tensor as they are, in a new tensor, as long as its dtype stays."""


class Copy(NamedTuple):
    """A final copy that a loader wants to make."""

    name: str
    """The tensor of the checkpoint."""
    number: int
    """How many copies of this tensor came before."""
    destination: torch.Tensor
    """A view of the model's memory."""
    source: torch.Tensor
    """What it would become: a part of the carrier."""


class FinalCopies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives the final copies of a loader to a sink, while it is entered.

    Args:
        model: the module, or its tensors.
        sink: takes each final copy. What it does is not intercepted.
    """

    def __init__(self, model: Any, sink: Callable[[Copy], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sink, self._model = sink, model
        self._memory = storages_of(model)
        self._carriers = dict[int, tuple[StorageWeakRef, str]]()
        self._copies = dict[str, int]()

    def handing_out(self, carriers: Iterable[Carrier]) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors for the loader, which are carriers from then on."""
        return map(self._hand_out, carriers)  # which, unlike a loop, does not hold on to a carrier while the next one is made

    def _hand_out(self, carrier: Carrier) -> tuple[str, torch.Tensor]:
        self._carry(carrier.tensor, carrier.name)
        return carrier.name, carrier.tensor

    def copies(self) -> Mapping[str, int]:
        """How many copies were made of each tensor."""
        return self._copies

    def check_memory(self) -> None:
        """Raise UnsupportedError unless the model still has the memory that it had."""
        if storages_of(self._model) != self._memory:
            raise UnsupportedError(f"the model: its loader replaced tensors by others, and did more than copy: {ANOTHER_WAY}")

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """See torch: called for every operation on this thread."""
        kwargs = kwargs or {}
        names = list(dict.fromkeys(name for tensor in _tensors((args, kwargs)) if (name := self._carried(tensor)) is not None))
        written = [tensor for tensor in _written(func, args, kwargs) if tensor.untyped_storage()._cdata in self._memory and tensor.numel()]
        if written:
            return self._write(func, args, written[0], names)
        if not names or _is_view(func):
            return func(*args, **kwargs)
        if func._schema.name not in MOVES:
            raise UnsupportedError(f"the model: tensor {cut(names[0])}: its loader does more than copy it ({func}): {ANOTHER_WAY}")
        made = func(*args, **kwargs)
        if made.dtype != args[0].dtype:
            raise UnsupportedError(
                f"the model: tensor {cut(names[0])}: its loader casts it from {args[0].dtype} to {made.dtype}: {ANOTHER_WAY}"
            )
        self._carry(made, names[0])
        return made

    def _write(self, func: Any, args: tuple[Any, ...], into: torch.Tensor, names: list[str]) -> torch.Tensor:
        """Give a write to the model's memory to the sink, or refuse it. A fill with what is there already is nothing."""
        if func._schema.name in ("aten::fill_", "aten::zero_") and not names:
            value = args[1] if len(args) > 1 else 0
            if bool((into == value).all()):
                return into
        if func is not torch.ops.aten.copy_.default or self._carried(args[1]) is None:
            what = f"tensor {cut(names[0])}: " if names else ""
            raise UnsupportedError(f"the model: {what}its loader writes to the model by {func}, and does more than copy: {ANOTHER_WAY}")
        name, source = names[0], args[1]
        if into.dtype != source.dtype:
            raise UnsupportedError(
                f"the model: tensor {cut(name)}: is served in {into.dtype}, expected the checkpoint's {source.dtype}: "
                f"serve it in that dtype (--dtype), or {ANOTHER_WAY}"
            )
        if into.shape != source.shape:
            raise UnsupportedError(
                f"the model: tensor {cut(name)}: its loader copies a part of shape {list(source.shape)} to a place of shape "
                f"{list(into.shape)}: {ANOTHER_WAY}"
            )
        number = self._copies.get(name, 0)
        self._copies[name] = number + 1
        self._sink(Copy(name, number, into, source))
        return into

    def _carry(self, tensor: torch.Tensor, name: str) -> None:
        """Note that a tensor's memory carries (a part of) a tensor of the checkpoint. The reference keeps the address from being reused."""
        reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._carriers[reference.cdata] = reference, name

    def _carried(self, tensor: Any) -> str | None:
        found = self._carriers.get(tensor.untyped_storage()._cdata) if isinstance(tensor, torch.Tensor) else None
        return found[1] if found is not None else None


def storages_of(model: Any) -> frozenset[int]:
    """The storages of a model's tensors, which is a module, or a dict."""
    if isinstance(model, torch.nn.Module):
        tensors: Iterable[Any] = [*model.parameters(), *model.buffers()]
    else:
        tensors = model.values()
    return frozenset(tensor.untyped_storage()._cdata for tensor in tensors if not tensor.is_meta)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors among the arguments of an operation."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that an operation writes to."""
    if not func._schema.is_mutable:
        return
    for k, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[k] if k < len(args) else kwargs.get(argument.name))


def _is_view(func: Any) -> bool:
    """Whether an operation only gives views of its arguments."""
    returns = func._schema.returns
    return bool(returns) and all(part.alias_info is not None and not part.alias_info.is_write for part in returns)
