"""`python tests/types_ceiling.py`: mypy over all packages, against a ceiling of errors for each that only falls.

The ceilings stand in pyproject.toml, `[tool.tenfold.types]`; a package that is not named there has 0. With `--update`
those that are too high are lowered to what mypy finds; none is ever raised.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
ERROR = re.compile(r"^(?:shared|packages/\w+)/src/(\w+)/.*: error: ", re.M)


def counted(report: str) -> Counter[str]:
    """Package -> errors in a report of mypy's."""
    return Counter(ERROR.findall(report))


def judged(found: Counter[str], ceilings: dict[str, int]) -> tuple[list[str], dict[str, int]]:
    """What is above its ceiling, as lines; and the ceilings that can fall, with what they fall to."""
    above = [
        f"{package}: {count} errors, at most {ceilings.get(package, 0)}"
        for package, count in sorted(found.items())
        if count > ceilings.get(package, 0)
    ]
    return above, {package: found[package] for package, most in ceilings.items() if found[package] < most}


def main() -> int:
    settings = ROOT / "pyproject.toml"
    text = settings.read_text(encoding="utf-8")
    ceilings = tomllib.loads(text)["tool"]["tenfold"]["types"]
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1) or done.stderr:
        print(done.stdout + done.stderr, file=sys.stderr)
        return 2
    above, lower = judged(counted(done.stdout), ceilings)
    if above:
        names = {line.partition(":")[0] for line in above}
        shown = [line for line in done.stdout.splitlines() if (match := ERROR.match(line)) and match[1] in names]
        print("\n".join([*shown, *above]), file=sys.stderr)
        return 1
    if lower and "--update" in sys.argv:
        for package, count in lower.items():
            text = re.sub(rf"^{package} = \d+$", f"{package} = {count}", text, flags=re.M)
        settings.write_text(text, encoding="utf-8")
    elif lower:
        fallen = ", ".join(f"{package} {count}" for package, count in sorted(lower.items()))
        print(f"types: fewer errors than the ceiling ({fallen}): python tests/types_ceiling.py --update")
    return 0


if __name__ == "__main__":
    sys.exit(main())
