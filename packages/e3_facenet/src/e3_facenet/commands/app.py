"""The command `e3-facenet`: verbs and where they are; the work is imported when a verb needs it."""

from __future__ import annotations

from importlib import import_module

from e3_facenet.commands import evaluate, generate, train
from e3_facenet.commands.verify import TOLERANCES, VERIFIERS
from e3_facenet.evidence.findings import experiments
from tenfold.cli import Package, build_app
from tenfold.cli import main as run_app

package = Package(name="e3-facenet", module="e3_facenet", distribution="e3-facenet", tolerances=TOLERANCES)
app = build_app(package, lambda: import_module("e3_facenet.evidence.claims").checks(), VERIFIERS, experiments())
app.command(epilog=generate.GENERATE_EPILOG)(generate.generate)
app.command(epilog=generate.EDIT_EPILOG)(generate.edit)
app.command(epilog=generate.TURNTABLE_EPILOG)(generate.turntable)
app.command(epilog=generate.MESH_EPILOG)(generate.mesh)
app.command(epilog="Example: [bold]e3-facenet demo --output runs/demo[/bold]")(generate.demo)
app.command(epilog=train.TRAIN_EPILOG)(train.train)
app.command(epilog=train.CONVERT_EPILOG)(train.convert)
app.command(name="eval", epilog=evaluate.EVAL_EPILOG)(evaluate.evaluate)
app.command(epilog=evaluate.BENCH_EPILOG)(evaluate.bench)
app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(generate.invert)


def main() -> None:
    run_app(app)
