"""Tensors of torch and numpy: their safetensors dtypes and shapes, and their bytes in memory."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ckptdiff.errors import UnsupportedError
from ckptdiff.format.dtypes import DTYPE_NAMES, DTYPE_OF_NAME, Bytes
from ckptdiff.lazy import torch

Array = Any
"""A torch tensor or a numpy array."""


def dtype_of(array: Array, where: str) -> str:
    """The safetensors dtype of a tensor.

    Raises:
        UnsupportedError: safetensors has none.
    """
    name = _name_of(array.dtype)
    if name not in DTYPE_OF_NAME:
        raise UnsupportedError(f"{where}: safetensors has no dtype for {name}: store it as another, or as the bytes of a uint8 tensor")
    return DTYPE_OF_NAME[name]


@functools.cache
def _name_of(dtype: Any) -> str:
    """Name of a dtype of torch or numpy, which numpy takes long to tell."""
    return str(getattr(dtype, "name", str(dtype)).removeprefix("torch."))


def shape_of(array: Array, dtype: str) -> tuple[int, ...]:
    """The shape of a tensor in elements of its safetensors dtype."""
    shape = tuple(map(int, array.shape))
    if dtype != "F4":
        return shape
    return (*shape[:-1], 2 * shape[-1]) if shape else (2,)


class _ArrayInterface:
    """Shows numpy the memory of a torch tensor on the host as bytes, and keeps the tensor alive as long as the array.

    ``Tensor.numpy()`` would forbid torch from then on to resize that memory, as FSDP does (``untyped_storage().resize_``).
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.address = tensor, tensor.data_ptr()
        self.__array_interface__ = {"data": (self.address, False), "shape": (tensor.nbytes,), "typestr": "|u1", "version": 3}


def memory_range(flat: Bytes | torch.Tensor) -> tuple[str, int, int]:
    """Where memory lies: device, address and size in bytes."""
    if not isinstance(flat, np.ndarray):
        return str(flat.device), flat.data_ptr(), len(flat)
    owner: object = flat.base
    return "cpu", owner.address if isinstance(owner, _ArrayInterface) else flat.ctypes.data, len(flat)  # NumPy takes long to tell


def memory_of(array: Array, where: str) -> tuple[str, int, int]:
    """Where a tensor's memory lies, as :func:`memory_range` says it; raises UnsupportedError as :func:`flat_bytes`."""
    if isinstance(array, np.ndarray):
        return memory_range(flat_bytes(array, where))
    _check_plain(array, where)
    return str(array.device), array.data_ptr(), array.nbytes


def flat_bytes(array: Array, where: str) -> Bytes | torch.Tensor:
    """A tensor's memory without a copy: a 1-D uint8 numpy array, or a torch tensor on another device.

    Raises:
        UnsupportedError: it has no memory of its own in plain order (meta, not contiguous, sparse, quantized, conjugated), or its memory
            was freed.
    """
    if isinstance(array, np.ndarray):
        if not array.flags.c_contiguous:
            raise UnsupportedError(f"{where}: is not contiguous: give np.ascontiguousarray of it")
        if array.dtype.byteorder == ">":
            raise UnsupportedError(f"{where}: is big-endian: give a little-endian copy")
        return array.reshape(-1).view(np.uint8)
    _check_plain(array, where)
    if not array.is_cpu:
        return array.detach().reshape(-1).view(torch.uint8)
    plain = array.detach() if array.requires_grad else array
    return np.asarray(_ArrayInterface(plain)) if array.nbytes else np.empty(0, np.uint8)


def host_address(array: Array, dtype: str, shape: tuple[int, ...], where: str = "") -> int | None:
    """Where a tensor of this dtype and shape lies in the host's memory, to be written to.

    ``where``: what messages call it.

    Returns:
        Its address; 0 if it is empty; None if it is another tensor, or lies elsewhere.

    Raises:
        UnsupportedError: as of :func:`flat_bytes`.
    """
    if array.shape != shape or DTYPE_OF_NAME.get(_name_of(array.dtype)) != dtype:
        return None
    if not array.nbytes:
        return 0
    if isinstance(array, np.ndarray):
        return memory_range(flat_bytes(array, where))[1] if array.flags.writeable else None
    _check_plain(array, where)
    return int(array.data_ptr()) if array.is_cpu else None


def _check_plain(array: torch.Tensor, where: str) -> None:
    """Raise UnsupportedError unless a tensor has memory of its own in plain order."""
    if array.is_meta:
        raise UnsupportedError(f"{where}: is a meta tensor, without content: load its weights first")
    if array.layout is not _plain_layout() or array.is_quantized or array.is_conj() or array.is_neg():
        raise UnsupportedError(f"{where}: is sparse, quantized or a lazy view: give a dense copy of it")
    if not array.is_contiguous():
        raise UnsupportedError(f"{where}: is not contiguous (strides {tuple(array.stride())}): give its .contiguous() copy")
    if array.untyped_storage().nbytes() < array.storage_offset() * array.element_size() + array.nbytes:
        raise UnsupportedError(f"{where}: its memory was freed, as FSDP does between uses: gather the full parameters first")
    if not array.data_ptr() and array.nbytes:
        raise UnsupportedError(f"{where}: has no memory that can be read, as a fake tensor or one that wraps others: give plain tensors")


@functools.cache
def _plain_layout() -> torch.layout:
    """That of a dense tensor: to ask torch each time takes as long as all other checks."""
    return torch.strided


def new_tensor(dtype: str, shape: tuple[int, ...], where: str) -> torch.Tensor:
    """A torch tensor in host memory, not initialized.

    Raises:
        UnsupportedError: this torch has no such dtype.
    """
    torch_dtype = getattr(torch, DTYPE_NAMES[dtype][0] or "", None)
    if torch_dtype is None:
        raise UnsupportedError(f"{where}: torch {torch.__version__} has no dtype for {dtype}; ckptdiff apply writes it to a file")
    if dtype == "F4":
        if not shape or shape[-1] % 2:
            raise UnsupportedError(f"{where}: torch has two F4 elements in one, and cannot hold the shape {list(shape)}")
        shape = (*shape[:-1], shape[-1] // 2)
    return torch.empty(shape, dtype=torch_dtype)
