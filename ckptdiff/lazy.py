"""Modules that are imported when they are first used, since they take long to import, or may not be installed.

Libraries are imported from here: ``from ckptdiff.lazy import torch``. Modules of ckptdiff are attributes of their package, whose
``__init__`` has its ``__getattr__`` from :func:`submodules`: after ``from ckptdiff import kernels`` the first ``kernels.changes`` imports
that module.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # not from typing, which takes longer to import than this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    import altair as altair
    import fsspec as fsspec
    import huggingface_hub as huggingface_hub
    import jinja2 as jinja2
    import markupsafe as markupsafe
    import pandas as pandas
    import ray as ray
    import rich as rich
    import safetensors as safetensors
    import torch as torch
    import transformers as transformers
    from huggingface_hub import constants, errors, hf_api  # noqa: F401
    from rich import bar, cells, console, live, progress, table, text  # noqa: F401
else:
    LIBRARIES = (
        *("altair", "fsspec", "huggingface_hub", "jinja2", "markupsafe", "pandas", "ray", "rich", "safetensors", "torch", "transformers"),
    )

    class _Library:
        """Stands for a library and its submodules. Where the library is missing, every attribute raises ModuleNotFoundError."""

        def __init__(self, name: str) -> None:
            self._name, self._library = name, None

        def __getattr__(self, attribute: str) -> Any:
            if self._library is None:
                self._library = import_module(self._name)
            try:
                return getattr(self._library, attribute)
            except AttributeError:
                return submodules(self._name)(attribute)

    def __getattr__(name: str) -> Any:
        if name not in LIBRARIES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return _Library(name)


def require(library: str) -> ModuleType:
    """Import a library now.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    return import_module(library)


def submodules(package: str) -> Callable[[str], ModuleType]:
    """A ``__getattr__`` for a package, which imports a submodule when it is first used."""

    def load(name: str) -> ModuleType:
        try:
            return import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{name}":  # a library that the submodule imports is missing
                raise
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None

    return load
