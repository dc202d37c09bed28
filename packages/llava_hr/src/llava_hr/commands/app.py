"""The command `llava-hr`: verbs and where they are; the work is imported when a verb needs it."""

from __future__ import annotations

from importlib import import_module

from llava_hr.commands import bench, convert, evaluate, train
from llava_hr.commands.verify import TOLERANCES, VERIFIERS
from llava_hr.evidence import arms
from tenfold.cli import Package, build_app
from tenfold.cli import main as run_app

package = Package(
    name="llava-hr",
    module="llava_hr",
    distribution="llava-hr",
    tolerances=TOLERANCES,
)
app = build_app(
    package,
    lambda: import_module("llava_hr.evidence.claims").checks(),
    VERIFIERS,
    arms.experiments(),
)

app.command(epilog=train.EPILOG)(train.train)
evaluate.add_to(app)
app.command(epilog=convert.CONVERT_EPILOG)(convert.convert)
app.command(epilog=bench.BENCH_EPILOG)(bench.bench)


def main() -> None:
    run_app(app)
