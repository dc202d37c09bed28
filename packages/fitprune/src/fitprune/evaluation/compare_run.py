"""`fitprune compare`: what is compared on what, with the run's record.

Every batch of answers is kept in `<output>/checkpoint-answers` until all are there: a run that was killed goes on where
it stopped when the same command is given again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fitprune.data.calibration import MINI_SAMPLES, Prompts, mini_calibration
from fitprune.evaluation.compare import ALL_KINDS, Comparison, Item, Row, check_methods, check_ratio, compare
from fitprune.evaluation.demo import SCENE
from fitprune.evaluation.questions import find_benchmark, paper_split
from fitprune.evaluation.settings import CompareSettings
from fitprune.fitting import Calibration, model_name
from fitprune.recipe import ALIASES, Recipe, open_recipe
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.data.benchmarks import Benchmark, Question
from tenfold.data.formats import Picture, read_calibration
from tenfold.data.mini_sets import SHORT_ANSWER
from tenfold.data.miniworld import flag_questions, flags
from tenfold.hosts.answers import Protocol
from tenfold.hosts.loading import Host, load_host
from tenfold.runs import atomic_write_json, atomic_write_text, fingerprint, read_jsonl, run, track
from tenfold.runs.predictions import PredictionLog
from tenfold.runs.progress import Progress

MINI_QUESTIONS = 96
QUESTIONS_A_SCENE = 4
# Those that the mini host learns, and two-hop questions.
MINI_KINDS = flag_questions.KINDS
RATIO = 0.6
PROGRESS = "checkpoint-answers"  # by its name no part of a run's outcome
PREDICTIONS, ROWS = "predictions.jsonl", "comparison.json"


def run_compare(settings: CompareSettings, seed: int, output: Path, progress: Progress = track) -> Comparison:
    """Compare, and write answers, rows, recipes and ``run.json`` into ``output``.

    Raises:
        UserError: model, questions, recipe, method or folder cannot be used.
    """
    check_methods(settings.methods)
    for ratio in settings.ratios:
        check_ratio(ratio)
    items = find_items(settings, seed)
    host = load_host(settings)
    data = {"model": host.fingerprint, "questions": items_fingerprint(items)}
    with run("fitprune", "compare", config=settings.model_dump(), seed=seed, output=output, data=data) as current:
        recipes = find_recipes(settings, host, seed, progress)
        for recipe in recipes.values():
            recipe.validate(host.model)
        protocol = Protocol.of(host.model, host.processor)
        header = {
            **data,
            "recipes": {f"{ratio:g}": list(recipe.remove) for ratio, recipe in recipes.items()},
            "settings": settings.model_dump(exclude={"recipes", "device"}),
            "seed": seed,
            "protocol": protocol,
            "dtype": str(host.model.dtype),
            "device": host.model.device.type,
        }
        log = PredictionLog(output / PROGRESS, header)
        found = compare(
            host.model,
            host.processor,
            items,
            recipes=recipes,
            methods=settings.methods,
            seeds=range(seed, seed + settings.seeds),
            batch=settings.batch,
            max_new_tokens=settings.max_new_tokens,
            protocol=protocol,
            log=log,
            progress=progress,
        )
        current.metrics |= metrics(found)
        lines = [
            json.dumps({"id": item.id, "text": item.text, "answer": item.answer, "kind": item.kind, **given})
            for item, given in zip(items, found.answers, strict=True)
        ]
        atomic_write_text(current.file(PREDICTIONS), "\n".join(lines) + "\n")
        rows = [asdict(row) for row in found.rows()]
        atomic_write_json(current.file(ROWS), {"rows": rows, "left_out": dict(found.left_out)})
        for ratio, recipe in recipes.items():
            recipe.save(current.file(f"recipe-{ratio:g}.json"))
    shutil.rmtree(log.folder)
    return found


def metrics(found: Comparison) -> dict[str, Any]:
    """The comparison as a run's metrics: budget -> method -> figures over all questions."""
    figures: dict[str, Any] = {"questions": len(found.items), "left_out": dict(found.left_out)}
    for row in found.summary():
        if row.kind == ALL_KINDS:
            figures.setdefault(f"{row.ratio:g}", {})[row.method] = _figures(row)
    return figures


def _figures(row: Row) -> dict[str, Any]:
    names = ("knobs", "visual_reduction", "prompt_reduction", "accuracy")
    change = None if row.change is None else asdict(row.change)
    return {name: getattr(row, name) for name in names} | {"change": change, "agreement": asdict(row.agreement)}


def find_recipes(settings: CompareSettings, host: Host, seed: int, progress: Progress) -> dict[float, Recipe]:
    """Share of the visual FLOPs to save -> the recipe for it.

    Recipes that were named come first: one for each ratio, or one for all; without ratios each stands for what it
    saves. Without recipes: the released one that is nearest, or for the mini host a fit to scenes of the mini world.

    Raises:
        UserError: numbers of recipes and ratios that do not fit, a recipe without costs and no ratio, or no recipe for
            this model.
    """
    given = [open_recipe(text) for text in settings.recipes]
    ratios = settings.ratios
    if given and not ratios:
        saved = [recipe.reduction for recipe in given]
        if None in saved:
            raise UserError("a recipe that does not say what it saves", settings.recipes[saved.index(None)], "--ratio")
        return {share: recipe for share, recipe in zip(saved, given, strict=True) if share is not None}
    ratios = ratios or (RATIO,)
    if len(given) == 1:
        return {ratio: given[0] for ratio in ratios}
    if given:
        if len(given) != len(ratios):
            raise UserError(f"{len(given)} recipes", f"{len(ratios)} ratios", "one recipe, or one for each ratio")
        return dict(zip(ratios, given, strict=True))
    if settings.model == MINI:
        prompts = Prompts(host, mini_calibration(seed, MINI_SAMPLES))
        calibration = Calibration(host.model, host.processor, prompts, progress=progress)
        return {ratio: calibration.recipe(ratio) for ratio in ratios}
    name = model_name(host.model)
    for released, others in ALIASES.items():
        if any(other == name or other.endswith(f"/{name}") for other in others):
            labels = [percent for model, percent in Recipe.released_names() if model == released and percent]
            nearest = {ratio: min(labels, key=lambda label: abs(label - 100 * ratio)) for ratio in ratios}
            return {ratio: Recipe.released(released, label) for ratio, label in nearest.items()}
    raise UserError("no recipe was released for this model", name, "--recipe FILE, which fitprune fit makes")


def find_items(settings: CompareSettings, seed: int) -> list[Item]:
    """The questions that were named; for the mini host those of the mini world.

    Raises:
        UserError: a broken file, or no questions for a model other than the mini host.
    """
    if settings.samples is not None:
        items = _from_file(Path(settings.samples), settings.image_folder)
    elif settings.benchmark is not None:
        if settings.data is None:
            raise UserError("no data", f"--benchmark {settings.benchmark}", "--data FOLDER with its files")
        bench = find_benchmark(settings.benchmark)
        questions = bench.read(Path(settings.data), settings.split or paper_split(bench))
        items = [_of_benchmark(bench, question) for question in questions if question.picture is not None]
        if not items:
            raise UserError("no questions with an image", settings.data, bench.title)
    elif settings.model == MINI:
        return mini_items(seed, settings.limit or MINI_QUESTIONS)
    else:
        raise UserError("no questions", settings.model, "--samples FILE.jsonl, or --benchmark NAME --data FOLDER")
    return items[: settings.limit]


def mini_items(
    seed: int, count: int, kinds: Sequence[str] = MINI_KINDS, first_scene: int = SCENE, pixels: int | None = None
) -> list[Item]:
    """Questions with answers about scenes of the mini world that no fit looks at.

    Args:
        seed: of the world.
        count: how many questions.
        kinds: of `flag_questions.KINDS`.
        first_scene: where the scenes begin.
        pixels: edge of the pictures, by default the mini host's own.
    """
    from tenfold.data import mini_host

    items: list[Item] = []
    index = first_scene
    while len(items) < count:
        scene = flags.scene(seed, index)
        picture = flags.render(scene, pixels or mini_host.IMAGE_SIZE)
        for number, question in enumerate(flag_questions.questions(scene, seed, index, QUESTIONS_A_SCENE, kinds)):
            text = f"{question.text}\n{SHORT_ANSWER}"
            items.append(Item(f"{index}-{number}", picture, text, question.answer, question.kind))
        index += 1
    return items[:count]


def items_fingerprint(items: Sequence[Item]) -> str:
    """Of what is asked and of every image's content."""

    def content(image: Any) -> Any:
        source = image.source if isinstance(image, Picture) else image
        return fingerprint(source) if isinstance(source, Path) else fingerprint([*source.size, source.tobytes().hex()])

    return fingerprint([[item.id, item.text, item.answer, item.kind, content(item.image)] for item in items])


def _from_file(path: Path, image_folder: str | None) -> list[Item]:
    samples = read_calibration(path, image_folder or path.parent)
    answers: Mapping[Any, Any] = {
        row["question_id"]: row.get("answer", row.get("label")) for row in read_jsonl(path)
    }  # POPE calls it a label
    for name, answer in answers.items():
        if answer is not None and not isinstance(answer, str):
            raise UserError(f"answer {answer!r}", f"{path}, question {name}", "a text")
    return [
        Item(str(one.question_id), one.picture, one.text, answers[one.question_id], one.category) for one in samples
    ]


def _of_benchmark(bench: Benchmark, question: Question) -> Item:
    def judge(text: str) -> float | None:
        scores = bench.score([question], {question.id: text})
        # POPE's are by subset: "random/accuracy".
        return next((value for name, value in scores.items() if name.rpartition("/")[2] == "accuracy"), None)

    assert question.picture is not None
    kind = question.id.partition("/")[0] if "/" in question.id else bench.title
    return Item(question.id, question.picture, question.prompt, None, kind, judge)
