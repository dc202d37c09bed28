"""`dtnet score`: captions that somebody made, scored as `dtnet eval` scores its own. No model takes part.

found = run_score(ScoreSettings(results="captions_test_results.json", data="data/coco"))
found.scores.table
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtnet.data.captions import read_captions
from dtnet.evaluation.run import Evaluation, caption_files, find_captions, is_papers, published, write_scores
from dtnet.evaluation.settings import ScoreSettings
from tenfold import UserError
from tenfold.cli.settings import checked
from tenfold.data.formats.coco_captions import read_caption_results
from tenfold.metrics.captions.coco import check_metrics, lacks_spice, score_captions
from tenfold.runs import RunRecord, run


def run_score(settings: ScoreSettings, output: Path | None = None) -> Evaluation:
    """Score a results file.

    Args:
        settings: which file, and the captions that people wrote.
        output: for the scores, those of every image, and ``run.json``; None: nothing is written.

    Raises:
        UserError: a broken or missing file, images that are not exactly those of the split, captions that cannot be
            found, Java or pycocoevalcap is missing.
    """
    check_metrics(settings.metrics, settings.tokens)
    if "spice" in settings.metrics and settings.spice is not None and (lack := lacks_spice(settings.spice)):
        raise UserError(lack, "--spice")
    captions = read_caption_results(settings.results)
    source = find_captions(settings, None if settings.data is None else Path(settings.data))
    references = read_captions(source).references(settings.split)
    if unknown := sorted(set(captions) - set(references)):
        what = f"{len(unknown)} images are not in {settings.split}, the first is {unknown[0]}"
        raise UserError(what, settings.results, f"the {len(references):,} images of {settings.split} in {source}")
    files = caption_files(source)
    data = {"results": Path(settings.results), **files}
    with run("dtnet", "score", config=settings.model_dump(), seed=0, output=output, data=data) as current:
        scores = score_captions(captions, references, settings.metrics, spice=settings.spice, tokens=settings.tokens)
        current.metrics |= {"images": len(captions), "scores": scores.table}
        paper = published() if is_papers(settings.split, captions, files) else {}
        names = []
        if output is not None:
            predictions = {image: {"caption": captions[image]} for image in references}
            place = current.file("metrics.json").parent
            names = write_scores(settings.split, predictions, scores, paper, place)
    written = [] if output is None else [output / name for name in names]
    return Evaluation(current.metrics, written, scores, paper, len(captions), settings.split)


def score_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """For `dtnet verify`: the metrics of the same scoring, made in a new folder."""
    return run_score(checked(ScoreSettings, record.config, record.id), folder).metrics
