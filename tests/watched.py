"""Run a package's command and note every text that somebody else's code writes.

    python tests/watched.py NOTES PACKAGE VERB ...

Standard output and error say that they are a terminal, so that bars are drawn. A text is ours when the first frame
below the libraries that only carry texts (rich, click, logging, ...) is in our sources. NOTES gets one line of json a
foreign text: who wrote it, and what.
"""

from __future__ import annotations

import io
import json
import os
import runpy
import sys
import threading
from pathlib import Path
from types import FrameType

CARRIERS = {"rich", "typer", "click", "logging", "codecs", "contextlib", "threading", "warnings", "concurrent"}
# wandb, once imported, passes on what anybody writes.
CARRYING_MODULES = {"wandb.sdk.lib.console_capture", "wandb.sdk.lib.redirect"}
OURS = {"tenfold", "__main__", "runpy"}


class Watched(io.TextIOWrapper):
    """A standard stream that looks at who writes."""

    def __init__(self, descriptor: int, notes: io.TextIOBase, ours: set[str]) -> None:
        encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
        super().__init__(io.FileIO(descriptor, "w", closefd=False), encoding=encoding, write_through=True)
        self.notes, self.ours = notes, ours

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        writer = _writer(sys._getframe(1))
        if text.strip() and writer not in self.ours:
            self.notes.write(json.dumps([writer, text]) + "\n")
            self.notes.flush()
        return super().write(text)


def _writer(frame: FrameType | None) -> str:
    """The package of the first frame that does more than carry; of a thread that only draws, the one that made it."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "?"))
        name = module.partition(".")[0]
        if name not in CARRIERS and module not in CARRYING_MODULES:
            return name
        frame = frame.f_back
    return "__main__" if threading.current_thread() is not threading.main_thread() else "?"


def main() -> None:
    notes, package, *arguments = sys.argv[1:]
    with Path(notes).open("w", encoding="utf-8") as file:
        ours = {*OURS, package}
        sys.stdout = sys.__stdout__ = Watched(1, file, ours)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = Watched(2, file, ours)  # type: ignore[misc]
        sys.argv = [package, *arguments]
        runpy.run_module(package, run_name="__main__")


if __name__ == "__main__":
    main()
