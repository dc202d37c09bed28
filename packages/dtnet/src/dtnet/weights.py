"""Weights on disk: read without running anything in the file, and checked against the model before they go in."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tenfold import UserError

_MULTIARRAY = import_module("numpy._core.multiarray")
_DTYPES = tuple(type(np.dtype(name)) for name in ("uint8", "uint32", "uint64", "int32", "int64", "float32", "float64"))
# The random state and the scores in an official checkpoint are NumPy's; NumPy 2 moved these functions.
_NUMPY: tuple[Any, ...] = (
    np.ndarray,
    np.dtype,
    *_DTYPES,
    *((_MULTIARRAY._reconstruct, f"{core}.multiarray._reconstruct") for core in ("numpy.core", "numpy._core")),
    *((_MULTIARRAY.scalar, f"{core}.multiarray.scalar") for core in ("numpy.core", "numpy._core")),
)

# What torch.load was seen to raise on random, cut and altered bytes.
BROKEN = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_weights(path: str | Path) -> dict[str, Any]:
    """The content of a .safetensors file, or of a file of `torch.save` that holds tensors, numbers and NumPy arrays.

    Raises:
        UserError: no such file; broken or truncated; a pickle that names any other class.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", path, "a checkpoint: .pth, .pt or .safetensors")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"broken or truncated ({error})", path, "a safetensors file") from error
    try:
        with torch.serialization.safe_globals(list(_NUMPY)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"broken, truncated or no plain weights ({reason[:120]})", path, "a checkpoint") from error
    if not isinstance(content, dict):
        raise UserError(f"{type(content).__name__} instead of a dict", path, "a checkpoint")
    return content


def check_fits(expected: Mapping[str, Any], state: Mapping[str, Tensor], where: str | Path) -> None:
    """Every key of `expected` is in `state`, no other is, and shapes are equal.

    Raises:
        UserError: names the first key that does not fit, and says how many there are.
    """
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    other = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    if missing:
        raise UserError(f"{len(missing)} weights missing, such as {missing[0]}", where, "those of this model")
    if unknown:
        raise UserError(f"{len(unknown)} weights of another model, such as {unknown[0]}", where, "those of this model")
    if other:
        name = other[0]
        shapes = f"{list(state[name].shape)} in the file, {list(expected[name].shape)} in the model"
        raise UserError(f"{len(other)} weights of another shape, such as {name}", where, shapes)


def load_into(module: nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy weights into a module, all of them or none.

    Raises:
        UserError: as `check_fits`; weights that are not numbers (NaN, infinity).
    """
    check_fits(module.state_dict(), state, where)
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise UserError(f"{len(bad)} weights that are not finite, such as {bad[0]}", where, "finite numbers")
    module.load_state_dict(dict(state))
