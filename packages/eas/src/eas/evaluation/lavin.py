"""ScienceQA on LaVIN, and the score of a file of predictions.

The authors decode prompt and answer together, take the first letter that anything follows where they find no "The
answer is X.", and draw a letter at random where they find none at all, from a generator that is never seeded: their
accuracy cannot be reproduced to the digit even with equal weights. Here the answer alone is read, and one that cannot
be read is wrong and counted apart; what their rule would have read is counted beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from eas import costs
from eas.checkpoints.lavin import TOKENIZER, LavinAbout, open_lavin, read_lavin_about
from eas.data.lavin import (
    LETTERS,
    Problem,
    SentencePiece,
    official_answer,
    prepare_square,
    prompt_ids,
    prompt_of,
    read_predictions,
)
from eas.data.scienceqa import read_problems
from eas.evaluation import scores
from eas.evaluation.benchmarks import LAVIN_SCIENCEQA, Evaluation
from eas.evaluation.settings import SHIPPED, EvalSettings
from eas.lavin import Lavin
from eas.lavin_decoding import NAMED, Prompt, generate
from tenfold import UserError
from tenfold.data.formats.scienceqa import ScienceQASample
from tenfold.runs import RunRecord, fingerprint
from tenfold.runs.context import Run
from tenfold.runs.evaluation import answer_left, evaluate, write_predictions
from tenfold.runs.predictions import PredictionLog
from tenfold.runs.progress import Progress
from tenfold.runs.ranks import choose_device, ranks
from tenfold.runs.record import RECORD_NAME


def run_lavin(
    settings: EvalSettings, seed: int, output: Path, progress: Progress, say: Callable[[str], None]
) -> Evaluation | None:
    """Evaluate a folder of LaVIN, or adapters on its frozen parts, on ScienceQA; as `eas.evaluation.run.run_eval`.

    Raises:
        UserError: a broken folder, no tokenizer, data that are missing, or `--folded` with several prompts at a time.
    """
    folder = Path(settings.model)
    adapters = None if settings.adapters in (None, "none", SHIPPED) else Path(settings.adapters)
    _, about = read_lavin_about(adapters or folder)
    samples = _samples(settings)
    tokenizer = SentencePiece(folder / TOKENIZER)
    if settings.folded and settings.batch != 1:
        raise UserError(f"--batch {settings.batch}, folded", "LaVIN", "--batch 1: a fold is one prompt's")
    with ranks() as group:
        device = choose_device(settings.device)
        dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
        if dtype is None and device.type == "cpu":
            dtype = torch.float32  # half precision has no kernels there worth using
        model = open_lavin(folder, dtype=dtype, adapters=adapters)[0].to(device)
        data = {"model": fingerprint(folder / "lavin.json"), "questions": _print(settings)}
        data |= {} if adapters is None else {"adapters": fingerprint(adapters)}
        by_id = {one.id: one for one in samples}

        def answered(ids: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
            asked = [by_id[one] for one in ids]
            found = answer(model, tokenizer, asked, about.prompt_format, settings)
            return ((name, value) for name, value in zip(ids, found, strict=True))

        def work(log: PredictionLog) -> None:
            answer_left(
                group, log, list(by_id), answered, batch=settings.batch, title="ScienceQA", progress=progress, say=say
            )

        def finish(log: PredictionLog, current: Run) -> None:
            answers: Mapping[Any, Any] = log.merged(list(by_id))
            current.metrics.update(_metrics(settings, model, about, samples, answers))
            rows = ({"id": one.id, "question": one.question, **answers[one.id]} for one in samples)
            write_predictions(current, rows)

        record = evaluate(
            group,
            "eas",
            output,
            config=settings.model_dump(),
            seed=seed,
            data=data,
            header={**settings.model_dump(), **data, "device": None},
            title=LAVIN_SCIENCEQA.title,
            answer=work,
            finish=finish,
            say=say,
            again=True,
        )
    return None if record is None else _evaluation(record, output)


def answer(
    model: Lavin,
    tokenizer: SentencePiece,
    samples: Sequence[ScienceQASample],
    prompt_format: str,
    settings: EvalSettings,
) -> list[dict[str, Any]]:
    """What LaVIN writes to each question: its text, the authors' reading of prompt and text, and tokens."""
    config, prompts, pictures = model.config, [], []
    texts = [prompt_of(Problem.of(one), prompt_format) for one in samples]
    for one, text in zip(samples, texts, strict=True):
        picture = one.image()
        ids, at = prompt_ids(tokenizer, text, config.features, picture is not None)
        prompts.append(Prompt(torch.tensor(ids), at))
        empty = torch.zeros(3, config.size, config.size)
        pictures.append(empty if picture is None else prepare_square(picture, config.size))
    dtype = model.backbone.visual.class_embedding.dtype
    found = generate(
        model,
        prompts,
        torch.stack(pictures).to(model.tok_embeddings.weight.device, dtype),
        LAVIN_SCIENCEQA.new_tokens,
        semantics=NAMED[settings.semantics],
        end=tokenizer.end,
        fold="exact" if settings.folded else None,
    )
    rows = []
    for text, prompt, tokens in zip(texts, prompts, found.tokens, strict=True):
        written = tokenizer.decode(tokens).strip()
        whole = official_answer(text + written)
        rows.append(
            {"text": written, "as_released": whole, "prompt_tokens": len(prompt.ids) + 1, "new_tokens": len(tokens)}
        )
    return rows


def _samples(settings: EvalSettings) -> list[ScienceQASample]:
    if settings.data is None or not Path(settings.data).is_dir():
        raise UserError("no data", "--benchmark scienceqa", f"--data FOLDER with {LAVIN_SCIENCEQA.tree}")
    split = settings.split or LAVIN_SCIENCEQA.split
    return [one.sample for one in read_problems(settings.data, split)][: settings.limit]


def _print(settings: EvalSettings) -> str:
    return fingerprint(Path(settings.data or "", "problems.json"))


def _metrics(
    settings: EvalSettings,
    model: Lavin,
    about: LavinAbout,
    samples: Sequence[ScienceQASample],
    answers: Mapping[Any, Any],
) -> dict[str, Any]:
    config = model.config
    chosen = {one.id: scores.option(answers[one.id]["text"], len(one.choices)) for one in samples}
    shape = costs.Shape(config.width, config.ffn, config.layers, config.vocabulary, config.heads, config.heads)
    sizes = costs.RankSizes(config.adapter_rank, config.pia_rank, config.groups)
    tokens, removed = round(fmean(one["prompt_tokens"] for one in answers.values())), len(config.skip)
    less = costs.prefill_macs(shape, tokens, removed, None if settings.folded else sizes)
    released = [LETTERS.find(answers[one.id]["as_released"]) == one.answer for one in samples]
    return {
        "benchmark": settings.benchmark,
        "split": settings.split or LAVIN_SCIENCEQA.split,
        "questions": len(samples),
        "scores": scores.scienceqa_table(samples, chosen) | {"as released": 100 * fmean(released)},
        "skip": list(config.skip),
        "semantics": settings.semantics,
        "search": about.search,
        "new_tokens": fmean(one["new_tokens"] for one in answers.values()),
        "prompt_tokens": tokens,
        "macs_saved": 1 - less / costs.prefill_macs(shape, tokens, 0, None),
        "cache_share": 1 - removed / config.layers,
    }


def score_file(settings: EvalSettings, seed: int, output: Path) -> Evaluation:
    """Score a file of predictions in the authors' form; nothing is loaded.

    Raises:
        UserError: data or predictions are missing or broken, or do not go together.
    """
    from tenfold.runs import run

    assert settings.predictions is not None
    samples = _samples(settings)
    chosen: Mapping[str, int | None] = read_predictions(settings.predictions, samples)
    data = {"questions": _print(settings), "predictions": fingerprint(Path(settings.predictions))}
    with run("eas", "eval", config=settings.model_dump(), seed=seed, output=output, data=data) as current:
        current.metrics.update(
            {
                "benchmark": settings.benchmark,
                "split": settings.split or LAVIN_SCIENCEQA.split,
                "questions": len(samples),
                "scores": scores.scienceqa_table(samples, chosen),
                "skip": [],
            }
        )
        rows = ({"id": one.id, "predicted": chosen[one.id], "answer": one.answer} for one in samples)
        write_predictions(current, rows)
    assert current.record is not None
    return _evaluation(current.record, output)


def _evaluation(record: RunRecord, output: Path) -> Evaluation:
    files = [output / name for name in (*record.outputs, RECORD_NAME)]
    return Evaluation(LAVIN_SCIENCEQA, record.metrics, files)
