"""The one border at which text from files becomes values: every failure is a `UserError` with file and place.

Nesting without end, integers of thousands of digits, odd scalars, NaN and infinity: Python's and PyYAML's parsers raise
a dozen kinds of errors for them, or take them in silence; here each is one line.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from tenfold.errors import UserError

DEEPEST = 200
# Of an integer: the states of random generators have 128.
MOST_BITS = 128
# How often parts may be shared: so many values for every container that is there, and this many in any file.
_SHARED, _ANYHOW = 1000, 1_000_000
_CONTAINERS = (dict, list, tuple, set, frozenset)


def parse_json(text: str | bytes, where: str | Path, *, finite: bool = True) -> Any:
    """A JSON text as a value.

    Args:
        where: the file, with the line where it is one of many.
        finite: refuse NaN and infinity, which are no JSON, and numbers too large for a float.

    Raises:
        UserError: anything else than JSON; names the line.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant if finite else None)
    except json.JSONDecodeError as error:
        line = "" if re.search(r", (line|record) \d+$", str(where)) else f", line {error.lineno}"
        raise UserError(f"broken JSON ({error.msg})", f"{where}{line}", "valid JSON") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"broken JSON ({_first(error)})", where, "valid JSON") from error
    except RecursionError as error:
        raise UserError("broken JSON (nested too deeply)", where, f"at most {DEEPEST} levels") from error
    require_plain(value, where, finite=finite)
    return value


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys in silence; a setting that is written twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str | Path) -> Any:
    """A YAML text as a value.

    Raises:
        UserError: anything else than YAML; scalars that are no value of their type, such as the date 2024-13-45.
    """
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}, line {mark.line + 1}" if mark else str(where)
        raise UserError(f"broken YAML ({error.problem})", place, "valid YAML") from error
    except yaml.YAMLError as error:
        raise UserError(f"broken YAML ({_first(error)})", where, "valid YAML") from error
    except RecursionError as error:
        raise UserError("broken YAML (nested too deeply)", where, f"at most {DEEPEST} levels") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:  # of a scalar's constructor
        raise UserError(f"broken YAML ({_first(error)})", where, "values of their types") from error
    require_plain(value, where, finite=False)
    return value


def require_plain(value: Any, where: str | Path, *, finite: bool = True) -> None:
    """Refuse nesting without end, parts that are shared beyond measure, values that hold themselves, integers beyond
    any use, lone surrogates and, where asked, what is not finite.

    Shared parts (YAML's aliases, a pickle's memo) are visited once, but counted as often as they occur: whoever walks
    through or prints the value meets them that often.

    Raises:
        UserError: names what is wrong.
    """
    if not isinstance(value, _CONTAINERS):
        _require_scalar(value, where, finite)
        return
    measured: dict[int, tuple[int, int]] = {}  # id -> levels and values below it
    inside: set[int] = set()
    stack = [value]
    while stack:
        one = stack[-1]
        number = id(one)
        if number in measured:
            stack.pop()
            continue
        parts = [*one.keys(), *one.values()] if isinstance(one, dict) else one
        if number not in inside:
            inside.add(number)
            if len(inside) > DEEPEST:
                raise UserError("nested too deeply", where, f"at most {DEEPEST} levels")
            for part in parts:
                if not isinstance(part, _CONTAINERS):
                    _require_scalar(part, where, finite)
                elif id(part) in inside:
                    raise UserError("a value that holds itself", where, "plain values")
                elif id(part) not in measured:
                    stack.append(part)
            if stack[-1] is not one:
                continue
        levels, count = 1, 1 + len(parts)
        for part in parts:
            if isinstance(part, _CONTAINERS):
                below = measured[id(part)]
                levels, count = max(levels, 1 + below[0]), count + below[1]
        if levels > DEEPEST:
            raise UserError("nested too deeply", where, f"at most {DEEPEST} levels")
        if count > _SHARED * len(measured) + _ANYHOW:
            raise UserError("parts that are shared beyond measure", where, "plain values")
        measured[number] = levels, count
        inside.discard(number)
        stack.pop()


def _require_scalar(one: Any, where: str | Path, finite: bool) -> None:
    if isinstance(one, float):
        if finite and not math.isfinite(one):
            raise UserError(f"a number that is not finite ({one})", where, "finite numbers")
    elif isinstance(one, str):
        if not one.isascii() and not _is_text(one):
            raise UserError("half a character (a lone surrogate)", where, "text")
    elif isinstance(one, int) and one.bit_length() > MOST_BITS:
        raise UserError(f"an integer of {one.bit_length()} bits", where, "numbers of ordinary size")


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
