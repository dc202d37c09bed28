"""The command `dit-sam`: verbs and where they are; the work is imported when a verb needs it."""

from __future__ import annotations

from importlib import import_module

from dit_sam.commands import bench, convert, demo, evaluate, segment, train
from dit_sam.commands.verify import TOLERANCES, VERIFIERS
from dit_sam.evidence.experiments import experiments
from tenfold.cli import Package, build_app
from tenfold.cli import main as run_app

package = Package(name="dit-sam", module="dit_sam", distribution="dit-sam", tolerances=TOLERANCES)
app = build_app(package, lambda: import_module("dit_sam.evidence.claims").checks(), VERIFIERS, experiments())

app.command(epilog=segment.EPILOG)(segment.segment)
app.command(epilog=train.EPILOG)(train.train)
app.command(name="eval", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(epilog=convert.EPILOG)(convert.convert)
app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=bench.EPILOG)(bench.bench)


def main() -> None:
    """The entry point."""
    run_app(app)
