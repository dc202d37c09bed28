"""The command `eas`: verbs and where they are; the work is imported when a verb needs it."""

from __future__ import annotations

from importlib import import_module

from eas.commands import bench, convert, evaluate, train
from eas.commands.verify import TOLERANCES, VERIFIERS
from eas.evidence import findings
from tenfold.cli import Package, build_app
from tenfold.cli import main as run_app

package = Package(name="eas", module="eas", distribution="eas", tolerances=TOLERANCES)
app = build_app(package, lambda: import_module("eas.evidence.claims").checks(), VERIFIERS, findings.experiments())

train.add_to(app)
evaluate.add_to(app)
app.command(epilog=convert.EPILOG)(convert.convert)
app.command(epilog=bench.EPILOG)(bench.bench)


def main() -> None:
    run_app(app)
