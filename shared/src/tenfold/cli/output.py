"""What reaches a terminal or a log: text from files never steers it, and no encoding breaks it."""

from __future__ import annotations

import codecs
import logging
import os
import sys
import warnings
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.text import Text

from tenfold.errors import printable

# What our own tables hold beyond ASCII, for an output that is ASCII.
_PLAIN = {
    "–": "-", "—": "-", "−": "-", "·": "*", "…": "...", "±": "+-", "×": "x", "≤": "<=", "≥": ">=", "→": "->",
    "α": "alpha", "β": "beta", "γ": "gamma", "λ": "lambda", "≈": "~", "²": "^2", "°": " degrees", "’": "'",
}  # fmt: skip

# What other libraries read when they are imported. A user's own setting wins.
_QUIET = {
    "TQDM_DISABLE": "1",  # bars of loading and writing; huggingface_hub's of downloads stay on a terminal
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",  # in processes that this one starts
}


def echo(text: object = "", *, err: bool = False) -> None:
    """A line or several on standard output; control characters from files are shown as escapes."""
    lines = "\n".join(printable(line) for line in str(text).split("\n"))
    # Not click's: to an output that says it is ASCII that one writes UTF-8.
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{lines}\n")
    stream.flush()


class _Console(Console):
    """Reads no markup in texts, which may be anybody's, and shows control characters as escapes."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(printable(line) for line in text.split("\n")), **options)


def console() -> Console:
    """Standard output; where that is no terminal, wide enough for a table in a log."""
    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    terminal = _Console(**plain)
    return terminal if terminal.is_terminal else _Console(width=140, **plain)


class LogLines(logging.Formatter):
    """Log messages on one line each, with control characters as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(" ".join(super().format(record).split()))


def quiet_libraries() -> None:
    """Other libraries' bars and notices reach no user of a command: what matters of them becomes a line of ours.

    Before they are imported. ``TRANSFORMERS_VERBOSITY=info``, ``-W default`` and the like bring them back.
    """
    if not (sys.warnoptions or os.environ.get("PYTHONWARNINGS")):
        warnings.simplefilter("ignore")
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        # A log is no place for bars of downloads; ours stay silent there by themselves.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # It says on standard output, with a handler and a level of its own, that there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def take_any_text() -> None:
    """Let standard output and error take every character, whatever their encoding."""
    codecs.register_error("tenfold", _instead)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="tenfold")


def _instead(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(one) or one.encode("ascii", "backslashreplace").decode() for one in letters), error.end
