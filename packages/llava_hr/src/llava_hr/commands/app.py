"""The command `llava-hr`: verbs and where they are; the work is imported when a verb needs it."""

from __future__ import annotations

from importlib import import_module

from llava_hr import verify_train
from llava_hr.commands import convert as cli_convert
from llava_hr.commands import evaluate as cli_eval
from llava_hr.commands import train as cli_train
from llava_hr.commands import verify as verify_eval
from llava_hr.evidence import findings
from tenfold.cli import Package, build_app
from tenfold.cli import main as run_app

package = Package(
    name="llava-hr",
    module="llava_hr",
    distribution="llava-hr",
    tolerances={**verify_eval.TOLERANCES, **verify_train.TOLERANCES},
)
app = build_app(
    package,
    lambda: import_module("llava_hr.evidence.claims").checks(),
    {**verify_eval.VERIFIERS, **verify_train.VERIFIERS},
    findings.experiments(),
)

app.command(epilog=cli_train.EPILOG)(cli_train.train)
cli_eval.add_to(app)
app.command(epilog=cli_convert.CONVERT_EPILOG)(cli_convert.convert)
app.command(epilog=cli_convert.BENCH_EPILOG)(cli_convert.bench)


def main() -> None:
    run_app(app)
