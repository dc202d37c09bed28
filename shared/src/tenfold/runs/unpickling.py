"""Pickles from elsewhere, read as data: nothing in one is executed, and none takes more than its size warrants.

    words = unpickle(read_bytes(path), path, {("data.vocab", "Vocab"): Stub}, what="a vocabulary")
    refs = unpickle(read_bytes(path), path, what="the refs of RefCOCO", latin1=True)      # plain values only
    state = unpickle(data, path, TENSORS, persistent=storage, skipped=skipped)            # classes unknown: left out

A pickle is a program of opcodes that names classes and calls them. `allowed` says which names it may use and what each
stands for; any other is refused. Before anything is built the opcodes are read once, without being followed, for what
would take memory or time out of proportion: values nested too deep, a memo with holes, and tuples that share their
parts, which are small in the file and endless to whoever hashes them.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping, MutableSequence
from pathlib import Path
from typing import Any

from tenfold.errors import UserError

Allowed = Mapping[tuple[str, str], Any]

MAX_DEPTH = 100
MAX_OPCODES = 100_000_000
# How much may be hashed: so much for every opcode, and this much in any file.
_WORK_PER_OPCODE, _WORK = 10, 1_000_000
# What the pickle machinery raises on bytes that are no pickle, or on a pickle that fills the wrong thing.
_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    MemoryError, RecursionError,
)  # fmt: skip


class Skipped:
    """Stands for an object of a class that was not allowed: takes whatever it is given, and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Skipped:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, *_: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def add(self, _: Any) -> None: ...


def unpickle(
    data: bytes,
    where: str | Path,
    allowed: Allowed | None = None,
    *,
    what: str = "a pickle",
    expected: str = "plain values",
    latin1: bool = False,
    persistent: Callable[[Any], Any] | None = None,
    skipped: MutableSequence[str] | None = None,
) -> Any:
    """The value of a pickle.

    Args:
        data: the pickle.
        where: its file, for messages.
        allowed: (module, name) -> what stands for it, exactly these pairs. A pickle may set attributes of whatever it
            is given: hand in classes made for this one reading, not those that the rest of the program uses.
        what, expected: for messages: "refused as {what} (names os.system): file (expected {expected})".
        latin1: read byte strings of Python 2 as Latin-1 where they are no ASCII.
        persistent: what a persistent id stands for (the storages of a checkpoint); None: there must be none.
        skipped: where the names of classes that are not allowed are put; their objects become `Skipped`. None: such a
            name is refused.

    Raises:
        UserError: a name that is not allowed, a broken pickle, or one that would take too much; one line, which names
            the class.
    """
    try:
        check_opcodes(data, persistent is not None)
        try:
            return _Unpickler(data, allowed or {}, persistent, skipped, "ASCII").load()
        except UnicodeDecodeError:
            if not latin1:
                raise
            if skipped is not None:
                skipped.clear()
            return _Unpickler(data, allowed or {}, persistent, skipped, "latin1").load()
    except _BROKEN as error:
        raise UserError(
            f"refused as {what} ({_printable(str(error) or type(error).__name__)})", where, expected
        ) from error


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        data: bytes,
        allowed: Allowed,
        persistent: Callable[[Any], Any] | None,
        skipped: MutableSequence[str] | None,
        encoding: str,
    ) -> None:
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._allowed, self._persistent, self._skipped = allowed, persistent, skipped
        self._stubs: dict[tuple[str, str], type[Skipped]] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Exact pairs: a dotted name such as "Counter.__init__" is not among them.
        if (module, name) in self._allowed:
            return self._allowed[module, name]
        if self._skipped is None:
            raise pickle.UnpicklingError(f"names {module}.{name}")
        if (module, name) not in self._stubs:
            self._skipped.append(_printable(f"{module}.{name}"))
            self._stubs[module, name] = type("Skipped", (Skipped,), {})
        return self._stubs[module, name]

    def persistent_load(self, identifier: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("holds a persistent id")
        return self._persistent(identifier)


def check_opcodes(data: bytes, persistent: bool = False, start: int = 0) -> int:
    """Read a pickle's opcodes without following them, and refuse what would take too much.

    Each value is known by (depth, weight): how deep it nests, and how much a hash of it has to walk through, where a
    part that occurs twice counts twice.

    Args:
        data: the pickle.
        persistent: whether persistent ids may occur.
        start: where in `data` it begins.

    Returns:
        Where in `data` it ends.

    Raises:
        pickle.UnpicklingError: it is too deep or too entangled, its memo has holes, or an opcode is not for files.
        IndexError, ValueError: no pickle.
    """
    stack: list[list[int]] = []
    marked: list[list[list[int]]] = []
    memo: dict[int, list[int]] = {}
    at, opcodes, work = start, 0, 0
    while True:
        code = data[at : at + 1]
        if code not in _CODES:
            raise pickle.UnpicklingError(f"no opcode at byte {at}")
        kind, size = _CODES[code]
        begin = at = at + 1
        if size >= 0:
            at += size
        elif size == _LINE:
            at = data.index(b"\n", at) + 1
        elif size == _LINES:
            at = data.index(b"\n", data.index(b"\n", at) + 1) + 1
        else:
            length = int.from_bytes(data[at : at - size], "little")
            at += length - size
        if at > len(data):
            raise pickle.UnpicklingError(f"ends within the opcode at byte {begin - 1}")
        opcodes += 1
        if kind == "atom":
            stack.append(_ATOM)
        elif kind == "integer":
            # Beyond 8 bytes one can choose integers of equal hashes, which as keys take quadratic time.
            stack.append([0, 1 if at - begin <= (9 if code in (b"\x8a", b"\x8b") else 20) else 1000])
        elif kind == "get":
            stack.append(memo[_number(code, data[begin:at])])
        elif kind == "put":
            number = len(memo) if code == b"\x94" else _number(code, data[begin:at])
            if number > 2 * opcodes:
                raise pickle.UnpicklingError(f"its memo has number {number} after {opcodes} opcodes")
            memo[number] = stack[-1]
        elif kind == "mark":
            marked.append(stack)
            stack = []
        elif kind in ("set items", "extend", "add"):
            items, stack = (stack, marked.pop()) if code not in (b"s", b"a") else _taken(stack, 1 + (code == b"s"))
            work += sum(one[1] for one in (items[::2] if kind == "set items" else items if kind == "add" else ()))
            _hold(stack[-1], items)
        elif kind == "hashable":
            items, stack = (stack, marked.pop()) if code in (b"t", b"\x91") else _taken(stack, _TUPLES[code])
            work += sum(one[1] for one in items) if code == b"\x91" else 0
            stack.append([_depth(items), 1 + sum(one[1] for one in items)])
        elif kind == "own":
            stack.append([1, 1])
        elif kind == "container":
            items, stack = stack, marked.pop()
            work += sum(one[1] for one in items[::2]) if code == b"d" else 0
            stack.append([_depth(items), 1])
        elif kind == "call":
            items, stack = (stack, marked.pop()) if code in (b"o", b"i") else _taken(stack, _CALLS[code])
            work += sum(one[1] for one in items)
            stack.append([_depth(items), 1])
        elif kind == "build":
            items, stack = _taken(stack, 1)
            _hold(stack[-1], items)
        elif kind == "pop":
            if not stack and marked:
                stack = marked.pop()
            else:
                stack.pop()
        elif kind == "pop mark":
            stack = marked.pop()
        elif kind == "copy":
            stack.append(stack[-1])
        elif kind == "persistent":
            if not persistent:
                raise pickle.UnpicklingError("holds a persistent id")
            if code == b"Q":
                work += stack.pop()[1]
            stack.append(_ATOM)
        elif kind == "stop":
            return at
        elif kind == "refused":
            raise pickle.UnpicklingError(f"has an opcode that no file needs, at byte {begin - 1}")
        if stack and stack[-1][0] > MAX_DEPTH:
            raise pickle.UnpicklingError(f"nests deeper than {MAX_DEPTH}")
        if opcodes > MAX_OPCODES:
            raise pickle.UnpicklingError(f"has more than {MAX_OPCODES} opcodes")
        limit = _WORK + _WORK_PER_OPCODE * opcodes
        if work > limit or (stack and stack[-1][1] > limit):
            raise pickle.UnpicklingError("its tuples share their parts beyond measure")


_ATOM = [0, 1]
_LINE, _LINES = -100, -200
_TUPLES = {b")": 0, b"\x85": 1, b"\x86": 2, b"\x87": 3}
# How many values a call takes: the callable, its arguments, its keywords.
_CALLS = {b"R": 2, b"\x81": 2, b"\x92": 3, b"\x93": 2}
_KINDS = {
    "put": "PUT BINPUT LONG_BINPUT MEMOIZE",
    "get": "GET BINGET LONG_BINGET",
    "mark": "MARK",
    "integer": "LONG LONG1 LONG4 INT",
    "set items": "SETITEM SETITEMS",
    "extend": "APPEND APPENDS",
    "add": "ADDITEMS",
    "hashable": "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 FROZENSET",
    "container": "LIST DICT",
    "own": "EMPTY_LIST EMPTY_DICT EMPTY_SET",
    "call": "REDUCE NEWOBJ NEWOBJ_EX STACK_GLOBAL INST OBJ",
    "build": "BUILD",
    "pop": "POP",
    "pop mark": "POP_MARK",
    "copy": "DUP",
    "persistent": "PERSID BINPERSID",
    "stop": "STOP",
    "nothing": "PROTO FRAME",
    "refused": "EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER",
}


def _codes() -> dict[bytes, tuple[str, int]]:
    """Opcode -> what it does, and the bytes of its argument (negative: how many bytes give its length)."""
    kinds = {name: kind for kind, names in _KINDS.items() for name in names.split()}
    lengths = {
        pickletools.UP_TO_NEWLINE: _LINE,
        pickletools.TAKEN_FROM_ARGUMENT1: -1,
        pickletools.TAKEN_FROM_ARGUMENT4: -4,
        pickletools.TAKEN_FROM_ARGUMENT4U: -4,
        pickletools.TAKEN_FROM_ARGUMENT8U: -8,
    }
    found = {}
    for one in pickletools.opcodes:
        size = 0 if one.arg is None else lengths.get(one.arg.n, one.arg.n)
        if one.name in ("GLOBAL", "INST"):
            size = _LINES
        found[one.code.encode("latin1")] = (kinds.get(one.name, "atom"), size)
    return found


_CODES = _codes()


def _number(code: bytes, argument: bytes) -> int:
    """The memo's number: text, or little-endian."""
    return int(argument) if code in (b"p", b"g") else int.from_bytes(argument, "little")


def _taken(stack: list[list[int]], count: int) -> tuple[list[list[int]], list[list[int]]]:
    if len(stack) < count:
        raise pickle.UnpicklingError("takes more values than there are")
    items = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return items, stack


def _depth(items: list[list[int]]) -> int:
    return 1 + max((one[0] for one in items), default=0)


def _hold(holder: list[int], items: list[list[int]]) -> None:
    """A list, a dictionary or an object has been given more."""
    if holder is not _ATOM:
        holder[0] = max(holder[0], _depth(items))


def _printable(text: str) -> str:
    """One line of at most 200 characters, without control characters."""
    return "".join(one if one.isprintable() else "?" for one in text)[:200]
