"""`python -m tenfold.testing.contracts`: which test holds which line of the definition of done, for every package.

Tests are named by the line: ``test_d04_resumes_to_the_same_bits`` in ``packages/<paper>/tests/test_contract.py``; one
that holds two lines names both, ``test_d05_d12_every_verb_can_be_verified``.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import typer

LINES = {
    1: "installs alone",
    2: "same numbers as the reference",
    3: "official checkpoints load",
    4: "trains",
    5: "evaluates",
    6: "behaves",
    7: "shows its claim",
    8: "recomputes what is computable",
    9: "is fast",
    10: "says what is wrong",
    11: "reads well",
    12: "can be cited",
    13: "rehearsed at full size",
    14: "works with its users' tools",
    15: "at home on the hub",
}
NAMED = re.compile(r"test_((?:d\d+_)(?:(?:and_)?d\d+_)*)(\w+)")


def contracts(root: Path) -> dict[str, dict[int, list[str]]]:
    """Package -> line -> the names of its tests, read from the files below `root`/packages."""
    found: dict[str, dict[int, list[str]]] = {}
    for file in sorted(root.glob("packages/*/tests/test_contract.py")):
        lines: dict[int, list[str]] = {}
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (match := NAMED.fullmatch(node.name)):
                for number in re.findall(r"\d+", match[1]):
                    lines.setdefault(int(number), []).append(match[2].replace("_", " "))
        found[file.parents[1].name] = lines
    return found


def main(root: Path = typer.Argument(Path(), help="The repository.")) -> None:  # noqa: B008
    """Print every line with its tests, package by package."""
    for package, lines in contracts(root).items():
        typer.echo(package)
        for number, what in LINES.items():
            tests = "; ".join(lines.get(number, ())) or "-"
            typer.echo(f"  D{number:<2} {what:<30} {tests}")


if __name__ == "__main__":
    typer.run(main)
