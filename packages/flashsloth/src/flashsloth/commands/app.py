"""The command `flashsloth`: verbs and where they are; the work is imported when a verb needs it."""

from __future__ import annotations

from importlib import import_module

from flashsloth.commands import bench, convert, evaluate, train
from flashsloth.commands.verify import TOLERANCES, VERIFIERS
from flashsloth.evidence import findings
from tenfold.cli import Package, build_app
from tenfold.cli import main as run_app

package = Package(name="flashsloth", module="flashsloth", distribution="flashsloth", tolerances=TOLERANCES)
app = build_app(
    package,
    lambda: import_module("flashsloth.evidence.claims").checks(),
    VERIFIERS,
    findings.experiments(),
)

app.command(epilog=train.EPILOG)(train.train)
evaluate.add_to(app)
convert.add_to(app)
app.command(epilog=bench.EPILOG)(bench.bench)


def main() -> None:
    run_app(app)
