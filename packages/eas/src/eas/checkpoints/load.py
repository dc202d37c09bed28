"""A folder of adapters at work on a loaded host."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from eas.checkpoints.folder import About, load_folder
from eas.skipper import Skipper


def load(adapters: str | Path, model: nn.Module) -> Skipper:
    """Attach the adapters of a folder to a loaded host; `detach` on what is returned takes them off.

    Args:
        adapters: what `eas train`, `eas tune` or `eas convert` wrote.
        model: the frozen transformers host that they were tuned on.

    Raises:
        UserError: a broken folder, or adapters of another host.
    """
    return open_adapters(adapters, model)[0]


def open_adapters(adapters: str | Path, model: nn.Module) -> tuple[Skipper, About]:
    """The same, in the host's dtype, with what the folder says of itself."""
    skipper, about = load_folder(adapters)
    skipper.attach(model)
    dtype = next(model.parameters()).dtype
    for module in skipper.modules():
        module.to(dtype=dtype)
    for parameter in skipper.projector.values():
        parameter.data = parameter.data.to(dtype)
    return skipper, about
