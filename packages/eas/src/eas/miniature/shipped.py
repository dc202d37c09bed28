"""The miniature's tuned adapters that ship with the package."""

from __future__ import annotations

from pathlib import Path

from tenfold import UserError


def adapters_path() -> Path:
    """Their folder.

    Raises:
        UserError: none ship with this installation.
    """
    path = Path(__file__).parent / "adapters"
    if not (path / "eas.json").is_file():
        raise UserError("no adapters of the miniature", path, "eas train --config mini, then --adapters FOLDER")
    return path
