"""`dtnet score`: a results file and the captions that people wrote, into a table."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import typer

from dtnet.evaluation.settings import DATA_TREE, ScoreSettings
from tenfold.cli.app import console
from tenfold.cli.settings import checked

EPILOG = (
    "Examples: [bold]dtnet score captions_test_dtnet_results.json --data data/coco[/bold] · [bold]dtnet score "
    "mine.json --captions dataset_flickr8k.json --split val --metrics cider --tokens whitespace[/bold]"
)
RESULTS = 'Captions of any model in COCO\'s layout: \\[{"image_id": 42, "caption": "..."}, ...].'


def score(
    results: Annotated[Path, typer.Argument(metavar="RESULTS.json", help=RESULTS)],
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA_TREE)] = None,
    captions: Annotated[Path | None, typer.Option(metavar="PATH", help="Instead of those in --data.")] = None,
    split: Annotated[str | None, typer.Option(help="test (default), val or train.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Of bleu,meteor,rouge,cider,spice; default: all.")] = None,
    tokens: Annotated[str | None, typer.Option(help="ptb (default, needs Java) or whitespace.")] = None,
    spice: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The jars of Stanford CoreNLP 3.6.0.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Also write the scores there.")] = None,
) -> None:
    """Score captions that are there already, whoever made them. No model is needed."""
    paths = {"results": results, "data": data, "captions": captions, "spice": spice}
    given: dict[str, Any] = {name: None if path is None else str(path.resolve()) for name, path in paths.items()}
    given |= {"split": split, "tokens": tokens}
    given |= {"metrics": metrics and tuple(name.strip() for name in metrics.split(","))}
    chosen = checked(ScoreSettings, given, "dtnet score")

    from dtnet.evaluation.scoring import run_score

    console().print(run_score(chosen, output))
