"""The one exception for what a user can put right."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text from elsewhere for a terminal: control characters and half characters as escapes."""
    return "".join(
        letter if letter.isprintable() or letter == " " else letter.encode("unicode_escape").decode("ascii")
        for letter in text.encode("utf-8", "backslashreplace").decode("utf-8")
    )


#: Of each part of a message: texts from files may be of any length.
MOST_LETTERS = 600


def _short(text: object) -> str:
    """One line of a text, without its middle where that is long."""
    line = printable(" ".join(str(text).split()))
    half = MOST_LETTERS // 2
    return line if len(line) <= MOST_LETTERS else f"{line[:half]} ... {line[-half:]}"


class UserError(Exception):
    """Something outside the program is wrong: a path, a file, an option, a configuration.

    Raised at the borders (command line, loaders, public constructors), caught in one place
    (`tenfold.cli.main`), printed as one line, exit code 2. Everything else is a bug and keeps its traceback.

    Args:
        what: what is wrong, without a trailing full stop.
        where: the file, option, record or field it was found in.
        expected: what should have been there.
    """

    def __init__(self, what: str, where: object = None, expected: str | None = None) -> None:
        super().__init__(what, where, expected)
        self.what = what
        self.where = where
        self.expected = expected

    def __str__(self) -> str:
        # Texts of other libraries (yaml, pydantic, the OS) may span lines; a message never does.
        line = _short(self.what)
        if self.where is not None:
            line += f": {_short(self.where)}"
        if self.expected is not None:
            line += f" (expected {_short(self.expected)})"
        return line


class InputError(UserError, ValueError):
    """What a caller handed to a model, a processor or a pipeline cannot be used.

    Also a ValueError, which is what transformers and diffusers raise there, and what their users catch.
    """
