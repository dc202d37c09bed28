"""The command `dtnet`: verbs and where they are; the work is imported when a verb needs it."""

from __future__ import annotations

from importlib import import_module

from dtnet.commands import caption, data, evaluate, score, train
from dtnet.commands.analyze import ANALYZE_EPILOG, analyze
from dtnet.commands.bench import BENCH_EPILOG, bench
from dtnet.commands.demo import DEMO_EPILOG, demo
from dtnet.commands.verify import TOLERANCES, VERIFIERS
from dtnet.evidence.findings import experiments
from tenfold.cli import Package, build_app
from tenfold.cli import main as run_app

package = Package(name="dtnet", module="dtnet", distribution="dtnet", tolerances=TOLERANCES)
app = build_app(
    package,
    lambda: import_module("dtnet.evidence.claims").checks(),
    VERIFIERS,
    experiments(),
)

app.command(epilog=train.EPILOG)(train.train)
app.command(name="eval", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(epilog=score.EPILOG)(score.score)
app.command(epilog=caption.EPILOG)(caption.caption)
app.command(epilog=data.EXTRACT_EPILOG)(data.extract)
app.command(epilog=data.CONVERT_EPILOG)(data.convert)
app.command(epilog=ANALYZE_EPILOG)(analyze)
app.command(epilog=DEMO_EPILOG)(demo)
app.command(epilog=BENCH_EPILOG)(bench)


def main() -> None:
    run_app(app)
