"""The frame of every package's command: the common verbs, and the one place that catches `UserError`."""

# Annotations are not deferred here: typer evaluates them, and cannot see names of an enclosing function.

import gc
import logging
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from tenfold.cli import bibtex
from tenfold.cli.experiments import RESULTS, Experiments, conduct
from tenfold.cli.files import package_file
from tenfold.cli.output import LogLines, console, echo, quiet_libraries, take_any_text
from tenfold.cli.outside import refused_writing
from tenfold.cli.verify import Verification, Verifier, verify_run
from tenfold.errors import UserError, printable
from tenfold.runs import RunRecord, atomic_write_json, run
from tenfold.runs.provenance import package_source, package_version

if TYPE_CHECKING:
    from tenfold.ledger import Ledger, Outcome, Result

# Importing torch and transformers makes nearly half a million objects that stay: with Python's 700 the collector goes
# over them a thousand times in vain, a quarter of the import's time.
OBJECTS_BETWEEN_COLLECTIONS = 50_000

Checks = Callable[[], "Mapping[str, Callable[[], Outcome]]"]


@dataclass(frozen=True)
class Package:
    """What the frame needs to know of a package.

    Attributes:
        name: its command, e.g. "inst-diff-edit".
        module: its import name, e.g. "inst_diff_edit".
        distribution: what pip installs, e.g. "inst-diff-edit".
        instead: verb without a meaning for this paper -> what to use, e.g. {"train": "fitprune fit"}.
        tolerances: metric pattern -> absolute tolerance of `verify` (see `tenfold.cli.verify.verify_run`).
    """

    name: str
    module: str
    distribution: str
    instead: Mapping[str, str] = field(default_factory=dict)
    tolerances: Mapping[str, float] = field(default_factory=dict)


def build_app(
    package: Package, checks: Checks, verify: Mapping[str, Verifier], experiments: Experiments | None = None
) -> typer.Typer:
    """The package's command, with `claims`, `cite`, `verify` and `report`.

    The package adds its own verbs by `@app.command()`.

    Args:
        checks: returns check name -> function; called (and so its imports made) only by verbs that need it.
        verify: verb -> function that runs a recorded run of it again.
        experiments: what `claims --train` does; None: the package has nothing to train for its claims.
    """
    app = typer.Typer(
        name=package.name,
        help=_title(package),
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        epilog=f"Example: [bold]{package.name} claims[/bold]",
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            echo(f"{package.distribution} {package_version(package.module)}")
            raise typer.Exit

    @app.callback()
    def common(
        version: Annotated[
            bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show it and exit.")
        ] = False,
    ) -> None:
        pass

    @app.command(epilog=f"Example: [bold]{package.name} claims --json claims.json[/bold]")
    def claims(
        json: Annotated[
            Path | None, typer.Option("--json", metavar="FILE", help="Also write the table to this file.")
        ] = None,
        output: Annotated[
            Path | None, typer.Option("--output", metavar="FOLDER", help="A new folder for a run record.")
        ] = None,
        everything: Annotated[
            bool, typer.Option("--all", help="List also what needs official weights and data.")
        ] = False,
        train: Annotated[
            bool,
            typer.Option("--train", help="Repeat the mini experiments, all seeds and variants, into --output: long."),
        ] = False,
    ) -> None:
        """Recompute what can be recomputed here, and show the paper's numbers beside ours.

        Exit code 1 when a parity or analytic claim that should hold does not.
        """
        if train:
            repeat_experiments(package, experiments, output)
            return
        from tenfold.ledger import failures
        from tenfold.ledger.terminal import claims_table

        ledger, results, _ = evaluate_claims(package, checks, output)
        if json is not None:
            rows = [result.model_dump(mode="json") for result in results]
            version = package_version(package.module)
            atomic_write_json(json, {"package": package.module, "version": version, "results": rows})
        console().print(claims_table(ledger, results, everything))
        failed = failures(ledger, results)
        if failed:
            echo(f"does not hold: {', '.join(failed)}", err=True)
            raise typer.Exit(1)

    @app.command(epilog=f"Example: [bold]{package.name} cite runs/eval[/bold]")
    def cite(
        run: Annotated[
            Path | None, typer.Argument(metavar="[RUN]", help="A run.json, or the folder that holds one.")
        ] = None,
    ) -> None:
        """Print BibTeX for the paper and the software, and for a run an entry that pins it."""
        echo("\n\n".join(citations(package, run)))

    @app.command(
        name="verify",
        epilog=f"Example: [bold]{package.name} verify runs/eval[/bold]. Exit code 0: it holds; "
        "1: it differs; 2: it cannot be run again here.",
    )
    def verify_command(
        run: Annotated[Path, typer.Argument(metavar="RUN", help="A run.json, or the folder that holds one.")],
    ) -> None:
        """Run a recorded run again and compare its numbers and files."""
        record = load_record(package, run)
        known = {
            "claims": lambda record, folder: evaluate_claims(package, checks, folder)[2],
            **verify,
        }
        verification = verify_run(record, known, package.tolerances)
        show_verification(record, verification)
        if not verification.holds:
            raise typer.Exit(1)

    @app.command(epilog=f"Example: [bold]{package.name} report --output report[/bold]")
    def report(
        output: Annotated[
            Path, typer.Option("--output", metavar="FOLDER", help="A new folder, or an earlier report.")
        ] = Path("report"),
    ) -> None:
        """Write the static page that shows each claim with its evidence."""
        from tenfold.ledger import collect_and_render

        echo(collect_and_render(output, [package.module]))

    for verb, use in package.instead.items():
        _add_refusal(app, package, verb, use)
    return app


def _title(package: Package) -> str:
    from tenfold.ledger import PAPERS

    paper = next((paper for paper in PAPERS if paper.package == package.module), None)
    return f"{paper.title} ({paper.venue}, arXiv {paper.arxiv})" if paper else package.distribution


def _add_refusal(app: typer.Typer, package: Package, verb: str, use: str) -> None:
    anything = {"allow_extra_args": True, "ignore_unknown_options": True}

    @app.command(name=verb, help=f"Not for this paper. Use {escape(use)}", context_settings=anything)
    def refuse() -> None:
        raise UserError(f"{package.name} has no verb {verb}, use {use}")


def repeat_experiments(package: Package, experiments: Experiments | None, output: Path | None) -> None:
    """`claims --train`.

    Raises:
        UserError: the package has no experiments, or no folder was named.
    """
    if experiments is None:
        raise UserError(f"{package.name} has nothing to train for its claims", "--train", f"{package.name} claims")
    if output is None:
        raise UserError("no folder for checkpoints and results", "--train", "--output FOLDER")
    echo(experiments.announcement)
    record = conduct(package.module, experiments, output)
    echo(f"wrote {len(record.metrics)} results to {output / RESULTS}")


def evaluate_claims(
    package: Package, checks: Checks, output: Path | None
) -> "tuple[Ledger, list[Result], dict[str, Any]]":
    """Evaluate the package's ledger as a run: the ledger, the results, the run's metrics.

    Raises:
        UserError: a broken ledger, or an unusable `output`.
    """
    from tenfold.ledger import claim_counts, evaluate_package

    with run(package.module, "claims", config={}, seed=0, output=output) as current:
        ledger, results = evaluate_package(package.module, checks())
        if output is not None:
            rows = [result.model_dump(mode="json") for result in results]
            atomic_write_json(current.file("claims.json"), rows)
        current.metrics.update(claim_counts(ledger, results))
    return ledger, results, current.metrics


def citations(package: Package, run_path: Path | None = None) -> list[str]:
    """BibTeX entries: paper, software, and (when given) the run.

    Raises:
        UserError: no such run, or a run of another package.
    """
    citation = bibtex.load_citation(package_file(package.module, "CITATION.cff"))
    source = package_source(package.module)
    entries = [
        bibtex.paper_bibtex(citation, package.module),
        bibtex.software_bibtex(citation, package.module, package_version(package.module), source),
    ]
    if run_path is not None:
        entries.append(bibtex.run_bibtex(citation, load_record(package, run_path)))
    return entries


def load_record(package: Package, path: Path) -> RunRecord:
    """Read a run record of this package.

    Raises:
        UserError: none there, broken, or of another package.
    """
    record = RunRecord.load(path)
    if record.package != package.module:
        raise UserError(f"a run of {record.package}", path, f"a run of {package.module}")
    return record


def show_verification(record: RunRecord, verification: Verification) -> None:
    """Print what was compared, and how strictly."""
    table = Table(title=f"{record.id}: {record.verb} again", title_justify="left")
    for column in ("metric or file", "recorded", "again", "verdict"):
        table.add_column(column, overflow="fold")
    for row in verification.comparisons:
        table.add_row(row.name, str(row.recorded), str(row.again), row.verdict)
    console().print(table)
    if verification.changes:
        console().print(f"Compared within tolerances, because: {'; '.join(verification.changes)}.")
    else:
        console().print("Same versions, device and threads: compared bit for bit.")
    console().print("It holds." if verification.holds else "It differs.")


def main(app: typer.Typer) -> None:
    """Run a command; a `UserError` becomes one line on stderr and exit code 2, anything else keeps its
    traceback.

    The entry point of a package is `def main(): tenfold.cli.main(app)`.
    """
    quiet_libraries()
    take_any_text()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    handler = logging.StreamHandler()
    handler.setFormatter(LogLines("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for number in (signal.SIGINT, signal.SIGTERM):
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, _interrupt)
    try:
        app()
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except Interrupted as error:
        kept = "what was finished is kept; the same command goes on where it stopped (train: with --resume)"
        print(f"interrupted by {error}: {kept}", file=sys.stderr)
        raise SystemExit(128 + error.number) from None
    except Exception as error:  # all else is raised again: a full disk has as many kinds as there are writers
        if (line := refused_writing(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None


class Interrupted(BaseException):
    """A signal asked the process to end; contexts close their files on the way."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
    raise Interrupted(number)
