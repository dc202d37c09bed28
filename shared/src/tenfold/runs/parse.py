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
    """Refuse nesting without end, integers beyond any use, lone surrogates and, where asked, what is not finite.

    Raises:
        UserError: names what is wrong.
    """
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.keys()
                inner += one.values()
            elif isinstance(one, list | tuple):
                inner += one
            elif isinstance(one, float) and finite and not math.isfinite(one):
                raise UserError(f"a number that is not finite ({one})", where, "finite numbers")
            elif isinstance(one, int) and one.bit_length() > 1024:
                raise UserError(f"an integer of {one.bit_length()} bits", where, "numbers of ordinary size")
            elif isinstance(one, str) and not _is_text(one):
                raise UserError("half a character (a lone surrogate)", where, "text")
        if not inner:
            return
        level = inner
    raise UserError("nested too deeply", where, f"at most {DEEPEST} levels")


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
