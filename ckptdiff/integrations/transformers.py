"""Loads patches as models of Hugging Face transformers: rebuilt in memory, with the target's own config and tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptdiff.errors import UnsupportedError
from ckptdiff.io.work_folder import work_folder
from ckptdiff.live.target import PathLike, Target, open_target
from ckptdiff.obtaining import how_to_get

try:
    import torch
    import transformers
except ImportError as error:
    raise UnsupportedError(f"{error.name} is missing; {how_to_get('transformers')}") from None

WEIGHT_CHANGING_ARGUMENTS = ("quantization_config", "load_in_8bit", "load_in_4bit", "torch_dtype", "dtype")
"""Arguments of ``from_pretrained`` with which the model would not have the weights that the patch gives."""

FILE_ARGUMENTS = {"revision", "subfolder", "variant", "state_dict", "gguf_file", "key_mapping", "use_safetensors"}
"""Arguments of ``from_pretrained`` that choose the files to load, which the patch does instead."""


def from_pretrained(
    cls: Any, patch: PathLike | Sequence[PathLike], base: PathLike | None = None, *, threads: int | None = None, **kwargs: Any
) -> Any:
    """Call ``cls.from_pretrained`` for the target of a patch, without a copy of it on the disk.

        model = from_pretrained(AutoModelForCausalLM, "org/patch", device_map="auto")
        tokenizer = from_pretrained(AutoTokenizer, "org/patch")

    The base is read block by block, and each block is patched and checked on its way into memory. transformers takes the tensors as they
    are, so that host memory holds the model once. Config, generation config and tokenizer are those of the target, which the patch holds.

    Args:
        cls: an Auto class or a model class, or a class of a tokenizer, processor or config.
        patch: a patch file, a patch folder or an id on the Hub, or several of them in order.
        base: the checkpoint that the first patch was made from; by default the repo that this patch names as its base.
        threads: number of threads.
        kwargs: other arguments of ``cls.from_pretrained``, such as ``device_map``, ``attn_implementation`` or ``trust_remote_code``.

    Raises:
        UnsupportedError: an argument would change the weights (``dtype`` other than "auto", or quantization): change the model afterwards.
            Other errors are those of :func:`ckptdiff.apply`.
    """
    for name in FILE_ARGUMENTS & kwargs.keys():
        raise UnsupportedError(f"{name}={kwargs[name]!r}: does not apply to a patch; give the revision in its id: org/name@revision")
    for name in WEIGHT_CHANGING_ARGUMENTS:
        if kwargs.get(name) not in (None, "auto", False):
            raise UnsupportedError(
                f"{name}={kwargs[name]!r}: would change the weights that the patch gives: load the model, then change it"
            )
        kwargs.pop(name, None)
    with _opened(patch, base, threads) as (target, folder):
        if not hasattr(cls, "from_config") and not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
            return _with_name(cls.from_pretrained(folder, **kwargs), patch)
        return _with_name(_load_model(cls, target, folder, kwargs), patch)


@contextmanager
def _opened(patch: PathLike | Sequence[PathLike], base: PathLike | None, threads: int | None) -> Iterator[tuple[Target, str]]:
    """The target, and a temporary folder with its files without weights."""
    with open_target(base, patch, threads=threads) as target, work_folder(Path(tempfile.gettempdir()), "ckptdiff-model-") as work:
        folder = work.path / "target"
        folder.mkdir()
        target.write_files(folder)
        yield target, str(folder)


def _load_model(cls: Any, target: Target, folder: str, kwargs: dict[str, Any]) -> Any:
    """The model of the target's config and tensors."""
    trust = {"trust_remote_code": kwargs.pop("trust_remote_code")} if "trust_remote_code" in kwargs else {}
    config = kwargs.pop("config", None)
    if config is None:
        config, kwargs = transformers.AutoConfig.from_pretrained(folder, return_unused_kwargs=True, **trust, **kwargs)
    if hasattr(cls, "from_config"):  # the from_pretrained of an Auto class takes no tensors, that of a model class does
        with torch.device("meta"):
            cls = type(cls.from_config(config, **trust))
    model = cls.from_pretrained(None, config=config, state_dict=target.tensors(), dtype="auto", **kwargs)
    loaded = model[0] if isinstance(model, tuple) else model  # a tuple with output_loading_info
    if loaded.can_generate() and Path(folder, "generation_config.json").exists():
        loaded.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model


def _with_name(loaded: Any, patch: PathLike | Sequence[PathLike]) -> Any:
    """What was loaded, named after the patch instead of the temporary folder, which no longer exists."""
    name = str(patch if isinstance(patch, (str, Path)) or not isinstance(patch, Sequence) else patch[-1])
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    for holder in (model, getattr(model, "config", None)):
        for attribute in ("name_or_path", "_name_or_path"):
            current = str(getattr(holder, attribute, ""))
            if holder is not None and ("ckptdiff-" in current or current == "None"):
                setattr(holder, attribute, name)
    return loaded
