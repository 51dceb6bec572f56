"""Files that the safetensors library writes: those whose bytes no patch has to give back."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ckptdiff.lazy import safetensors

DTYPE_NAMES = {"BF16": "bfloat16", "U8": "uint8", "U32": "uint32"}
"""The library's names of the dtypes that are written."""


def write_tensors(path: Path, tensors: Mapping[str, tuple[str, npt.NDArray[np.generic]]], metadata: Mapping[str, str]) -> None:
    """Write a new file of tensors, each given by its dtype and an array of its bits: by dtype, then by name.

    Raises:
        OSError: it cannot be written.
    """
    arrays = {name: (DTYPE_NAMES[dtype], np.ascontiguousarray(bits)) for name, (dtype, bits) in tensors.items()}
    rows = {
        name: safetensors.TensorSpec(dtype=dtype, shape=bits.shape, data_ptr=bits.ctypes.data, data_len=bits.nbytes)
        for name, (dtype, bits) in arrays.items()
    }
    with open(path, "xb") as file:
        mode = os.fstat(file.fileno()).st_mode
    try:
        safetensors.serialize_file(rows, path, dict(metadata))
    except safetensors.SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else 0, os.strerror(int(code[1])) if code else str(error), os.fspath(path)) from None
    os.chmod(path, mode)  # the library lets nobody but the owner read its files
