"""The miniature's tuned adapters that ship with the package, one folder for each depth of mini host."""

from __future__ import annotations

from pathlib import Path

from tenfold import UserError
from tenfold.data import mini_host


def adapters_path() -> Path:
    """The folder for the mini host that is installed.

    Raises:
        UserError: none ship for a host of its depth.
    """
    layers = mini_host.config().get_text_config().num_hidden_layers
    path = Path(__file__).parent / "adapters" / f"layers-{layers}"
    if not (path / "eas.json").is_file():
        raise UserError(f"no adapters for a mini host of {layers} layers", path, "eas train --config mini")
    return path
