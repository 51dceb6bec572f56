"""Patches as models of Hugging Face transformers: rebuilt in memory, with the patch's own config and tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptdiff.errors import UnsupportedError
from ckptdiff.io.work_folder import work_folder
from ckptdiff.live.target import PathLike, Target, open_target

try:
    import torch
    import transformers
except ImportError as error:
    raise UnsupportedError(f"{error.name} is missing: pip install 'ckptdiff[transformers]'") from None

CHANGES = ("quantization_config", "load_in_8bit", "load_in_4bit", "torch_dtype", "dtype")
"""Arguments of ``from_pretrained`` after which the model would not have the weights that the patch gives."""

ELSEWHERE = {"revision", "subfolder", "variant", "state_dict", "gguf_file", "key_mapping", "use_safetensors"}
"""Those that say which files to load: the patch does."""


def from_pretrained(
    cls: Any, patch: PathLike | Sequence[PathLike], base: PathLike | None = None, *, threads: int | None = None, **kwargs: Any
) -> Any:
    """``cls.from_pretrained`` of what a patch gives, without a copy of it on the disk.

        model = from_pretrained(AutoModelForCausalLM, "org/patch", device_map="auto")
        tokenizer = from_pretrained(AutoTokenizer, "org/patch")

    The base is read, each block patched and checked on the way into memory, and transformers takes the tensors as they are: host memory
    holds the model once. Config, generation config and tokenizer are the target's, as the patch has them.

    Args:
        cls: an Auto class or a model class; or one of a tokenizer, processor or config.
        patch: a patch file, a folder, or an id on the Hub; or several in order.
        base: the checkpoint that the first was made from; by default the repo that the patch names.
        threads: how many to use.
        kwargs: as of ``cls.from_pretrained``, such as ``device_map``, ``attn_implementation``, ``trust_remote_code``.

    Raises:
        UnsupportedError: an argument would change the weights (``dtype`` other than "auto", quantization): change the model after.
        Others as :func:`ckptdiff.apply`.
    """
    for name in ELSEWHERE & kwargs.keys():
        raise UnsupportedError(f"{name}={kwargs[name]!r}: means nothing to a patch; its id has the revision: org/name@revision")
    for name in CHANGES:
        if kwargs.get(name) not in (None, "auto", False):
            raise UnsupportedError(f"{name}={kwargs[name]!r}: would change the weights that the patch gives: load, then change the model")
        kwargs.pop(name, None)
    with _opened(patch, base, threads) as (target, folder):
        if not hasattr(cls, "from_config") and not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
            return _named(cls.from_pretrained(folder, **kwargs), patch)
        return _named(_model(cls, target, folder, kwargs), patch)


@contextmanager
def _opened(patch: PathLike | Sequence[PathLike], base: PathLike | None, threads: int | None) -> Iterator[tuple[Target, str]]:
    """The target, and a folder with its files without weights."""
    with open_target(base, patch, threads=threads) as target, work_folder(Path(tempfile.gettempdir()), "ckptdiff-model-") as work:
        folder = work.path / "target"
        folder.mkdir()
        target.write_files(folder)
        yield target, str(folder)


def _model(cls: Any, target: Target, folder: str, kwargs: dict[str, Any]) -> Any:
    trust = {"trust_remote_code": kwargs.pop("trust_remote_code")} if "trust_remote_code" in kwargs else {}
    config = kwargs.pop("config", None)
    if config is None:
        config, kwargs = transformers.AutoConfig.from_pretrained(folder, return_unused_kwargs=True, **trust, **kwargs)
    if hasattr(cls, "from_config"):  # an Auto class: its from_pretrained takes no tensors, that of the model class does
        with torch.device("meta"):
            cls = type(cls.from_config(config, **trust))
    model = cls.from_pretrained(None, config=config, state_dict=target.tensors(), dtype="auto", **kwargs)
    loaded = model[0] if isinstance(model, tuple) else model  # with output_loading_info
    if loaded.can_generate() and Path(folder, "generation_config.json").exists():
        loaded.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model


def _named(loaded: Any, patch: PathLike | Sequence[PathLike]) -> Any:
    """Say where it is from, instead of the temporary folder that is gone."""
    name = str(patch if isinstance(patch, (str, Path)) or not isinstance(patch, Sequence) else patch[-1])
    made = loaded[0] if isinstance(loaded, tuple) else loaded
    for holder in (made, getattr(made, "config", None)):
        for attribute in ("name_or_path", "_name_or_path"):
            found = str(getattr(holder, attribute, ""))
            if holder is not None and ("ckptdiff-" in found or found == "None"):
                setattr(holder, attribute, name)
    return loaded
