"""Patches in inference engines: a served model is updated in place, through the engine's own loader. Needs torch.

:func:`load_through` moves the weights of any model that has a ``load_weights``; ``vllm_engine`` is a weight-transfer engine for vLLM, and
``vllm_client`` drives a server that has it.
"""

from __future__ import annotations

from ckptdiff.errors import UnsupportedError
from ckptdiff.lazy import require, submodules
from ckptdiff.obtaining import how_to_get

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ckptdiff.engines.served import Record, record
    from ckptdiff.engines.through import load_through

__all__ = ["Record", "load_through", "record"]

_MODULES = {"Record": "served", "load_through": "through", "record": "served"}
_submodule = submodules(__name__)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            return _submodule(name)
        try:
            require("torch")
        except ImportError:
            raise UnsupportedError(f"updating a served model needs torch; {how_to_get('torch')}") from None
        return getattr(_submodule(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
