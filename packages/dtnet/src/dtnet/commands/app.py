"""The command `dtnet`: verbs and where they are; the work is imported when a verb needs it."""

from __future__ import annotations

from importlib import import_module

from dtnet.commands import (
    caption as cli_caption,
)
from dtnet.commands import (
    data as cli_data,
)
from dtnet.commands import (
    demo as cli_more,
)
from dtnet.commands import (
    evaluate as cli_eval,
)
from dtnet.commands import (
    train as cli_train,
)
from dtnet.commands.verify import TOLERANCES, VERIFIERS
from tenfold.cli import Package, build_app
from tenfold.cli import main as run_app

package = Package(name="dtnet", module="dtnet", distribution="dtnet", tolerances=TOLERANCES)
app = build_app(
    package,
    lambda: import_module("dtnet.evidence.claims").checks(),
    {**VERIFIERS, **cli_more.VERIFIERS},
    cli_more.experiments(),
)

app.command(epilog=cli_train.EPILOG)(cli_train.train)
app.command(name="eval", epilog=cli_eval.EPILOG)(cli_eval.evaluate)
app.command(epilog=cli_caption.EPILOG)(cli_caption.caption)
app.command(epilog=cli_data.EXTRACT_EPILOG)(cli_data.extract)
app.command(epilog=cli_data.CONVERT_EPILOG)(cli_data.convert)
cli_more.register(app)


def main() -> None:
    run_app(app)
