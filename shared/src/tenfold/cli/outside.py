"""What a disk, a quota or a file system refuses: no fault of the program, whichever library was writing."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from tenfold.errors import printable

_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.EROFS}
# How libraries in Rust (safetensors, tokenizers) and HDF5 tell the number.
_NUMBER = re.compile(r"\(os error (\d+)\)|\berrno = (\d+)")
# torch's two writers, the newer one at its first piece that did not get through and while it closes the file; numpy's.
_CUT_OFF = re.compile(
    r"PytorchStreamWriter failed writing|inline_container.*unexpected pos|^write\(\): fd \d+ failed"
    r"|^\d+ requested and \d+ written"
)


def refused_writing(error: BaseException) -> str | None:
    """One line about a file that could not be written for a reason outside of the program; None for all else.

    Only OSError carries the system's number. safetensors, tokenizers, HDF5, torch and numpy raise kinds of their own,
    with the number or the length in their words, or with the OSError as what came before.
    """
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in _REFUSED:
            return _line(one.errno, one.filename)
        if (found := _NUMBER.search(str(one))) and (number := int(found[1] or found[2])) in _REFUSED:
            return _line(number, None)
        if isinstance(one, OSError | RuntimeError) and _CUT_OFF.search(str(one)):
            return _line(errno.ENOSPC, None)
    return None


def _line(number: int, name: object) -> str:
    where = "" if name is None else f": {printable(str(name))}"
    return f"{os.strerror(number)}{where} (nothing was left half-written)"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what came before it."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
