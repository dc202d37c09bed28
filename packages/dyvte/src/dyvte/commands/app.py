"""The command `dyvte`: options are read here and beside it, the work is imported when a verb needs it."""

from __future__ import annotations

from importlib import import_module

from dyvte.commands import analyze, bench, convert, demo, evaluate, flops, train
from dyvte.commands.verify import TOLERANCES, VERIFIERS
from dyvte.evidence.experiments import experiments
from tenfold.cli import Package, build_app
from tenfold.cli import main as run_app

package = Package(name="dyvte", module="dyvte", distribution="dyvte", tolerances=TOLERANCES)
app = build_app(package, lambda: import_module("dyvte.evidence.claims").checks(), VERIFIERS, experiments())
for verb in (train, evaluate, demo, analyze, bench, convert, flops):
    verb.add_to(app)


def main() -> None:
    """The console script."""
    run_app(app)
