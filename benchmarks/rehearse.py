"""A package's full-size rehearsal: its real path once, from files in the official layout, with random weights.

    python benchmarks/rehearse.py gamma_mod --output benchmarks/results/gamma-mod-rehearsal.json
    python benchmarks/rehearse.py dit_sam --size vit_h --output rehearsal.json

What follows the package's name goes to its own `evidence/rehearsal.py`; `--help` there says what it takes.
"""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = Path(__file__).parent.parent / "packages"


def rehearsed() -> list[str]:
    """The packages that have a rehearsal."""
    return sorted(path.parents[1].name for path in PACKAGES.glob("*/src/*/evidence/rehearsal.py"))


def main(arguments: list[str]) -> int:
    """Run one; 2 where there is none of that name."""
    name = arguments[0].replace("-", "_") if arguments else ""
    if name not in rehearsed():
        print(f"no rehearsal: {name or 'no package named'} (expected: {', '.join(rehearsed())})", file=sys.stderr)
        return 2
    if find_spec(name) is None:
        print(f"not installed: {name} (expected: make setup)", file=sys.stderr)
        return 2
    sys.argv = [f"{name}.evidence.rehearsal", *arguments[1:]]
    runpy.run_module(f"{name}.evidence.rehearsal", run_name="__main__", alter_sys=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
