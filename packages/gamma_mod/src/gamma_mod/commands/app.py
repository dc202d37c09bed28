"""The command `gamma-mod`: verbs and where they are; the work is imported when a verb needs it."""

from __future__ import annotations

from importlib import import_module

from gamma_mod.commands import bench, convert, evaluate, train
from gamma_mod.commands.verify import TOLERANCES, VERIFIERS
from gamma_mod.evidence import experiments
from tenfold.cli import Package, build_app
from tenfold.cli import main as run_app

package = Package(name="gamma-mod", module="gamma_mod", distribution="gamma-mod", tolerances=TOLERANCES)
app = build_app(
    package,
    lambda: import_module("gamma_mod.evidence.claims").checks(),
    VERIFIERS,
    experiments.experiments(),
)
app.command(epilog=train.EPILOG)(train.train)
evaluate.add_to(app)
app.command(epilog=convert.EPILOG)(convert.convert)
app.command(epilog=bench.EPILOG)(bench.bench)


def main() -> None:
    run_app(app)
