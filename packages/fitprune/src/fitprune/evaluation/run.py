"""`fitprune eval`: a benchmark's questions in, answers, scores and delivered FLOPs out.

Greedy decoding, in batches that give what single prompts give. Several ranks share the questions. Every batch of
answers is kept in `<output>/checkpoint-predictions` until all are there: a run that was killed goes on where it stopped
when the same command is given again, and ends with the same files, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fitprune import costs
from fitprune.costs import DecoderShape
from fitprune.evaluation.demo import find_recipe
from fitprune.evaluation.questions import ALL, benchmark_folders, paper_split
from fitprune.evaluation.settings import DemoSettings, EvalSettings
from fitprune.fitting import model_name
from fitprune.pruner import Pruner
from fitprune.recipe import Recipe
from fitprune.rules import RULES, Random, Rule
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.data.benchmark_answers import spread
from tenfold.data.benchmarks import Benchmark, Question, benchmark
from tenfold.data.question_sets import questions_fingerprint
from tenfold.hosts.answers import Protocol, generate
from tenfold.hosts.loading import Host, load_host
from tenfold.hosts.structure import unwrap
from tenfold.runs import Run, RunRecord, fingerprint, track
from tenfold.runs.evaluation import (
    PROGRESS,
    answer_left,
    finished_before,
    forget,
    open_log,
    shared_run,
    write_predictions,
)
from tenfold.runs.predictions import PredictionLog
from tenfold.runs.progress import Progress
from tenfold.runs.ranks import Ranks, choose_device, ranks
from tenfold.runs.record import RECORD_NAME

logger = logging.getLogger(__name__)

NONE = "none"
PACKAGE = "fitprune"


@dataclass(frozen=True)
class Evaluation:
    """What one benchmark gave.

    Attributes:
        benchmark: which.
        model: its name.
        recipe: what pruned it; None without pruning.
        metrics: as in the run's record.
        files: what was written.
        limited: only a part of the questions was asked.
    """

    benchmark: Benchmark
    model: str
    recipe: Recipe | None
    metrics: Mapping[str, Any]
    files: Sequence[Path]
    limited: bool


@dataclass(frozen=True)
class Evaluator:
    """A host, ready to answer questions.

    Attributes:
        host: the model.
        recipe, rule: how many visual tokens leave, and which; without a recipe none do.
        protocol: how questions become prompts.
        batch: prompts at a time.
    """

    host: Host
    recipe: Recipe | None
    rule: Rule
    protocol: Protocol
    batch: int

    def answers(self, questions: Sequence[Question], max_new_tokens: int) -> list[tuple[str, dict[str, Any]]]:
        """Id and answer of a batch of questions: text and numbers of tokens.

        Raises:
            UserError: a broken image.
        """
        model, processor = self.host.model, self.host.processor
        prompts = [self.protocol.prompt(processor, question.image(), question.prompt) for question in questions]
        pruned = nullcontext() if self.recipe is None else Pruner(self.recipe, self.rule)(model)
        with pruned:
            found = generate(model, processor, prompts, max_new_tokens=max_new_tokens)
        return [(question.id, asdict(answer)) for question, answer in zip(questions, found, strict=True)]


@dataclass(frozen=True)
class Task:
    """One benchmark to evaluate on, into one folder.

    Attributes:
        settings: with the benchmark's own name, split and data folder.
        output: the run's folder.
    """

    evaluator: Evaluator
    settings: EvalSettings
    seed: int
    output: Path
    benchmark: Benchmark
    group: Ranks

    def run(
        self, questions: Sequence[Question], progress: Progress, say: Callable[[str], None], *, again: bool
    ) -> list[Evaluation]:
        """The evaluation, on rank 0.

        Args:
            again: a finished run of the same settings and data is not an error, but the result.
        """
        digest = self.group.from_lead(lambda: questions_fingerprint(questions))
        data = {"model": self.evaluator.host.fingerprint, "questions": digest}
        config = self.settings.model_dump()
        if again and (record := finished_before(self.group, self.output, "eval", config, self.seed, data)):
            say(f"{self.benchmark.title}: done before, in {self.output}")
            return [self._evaluation(record)] if self.group.leads else []
        with shared_run(
            self.group, PACKAGE, "eval", config=config, seed=self.seed, output=self.output, data=data
        ) as current:
            log = open_log(self.group, self.output / PROGRESS, self._header(digest))
            self._answer(questions, log, progress, say)
            if current is not None:
                answers = log.merged(question.id for question in questions)
                current.metrics.update(self._metrics(questions, answers))
                self._write(questions, answers, current)
        forget(self.group, log)
        if current is None:
            return []
        assert current.record is not None
        return [self._evaluation(current.record)]

    def _header(self, questions: str) -> dict[str, Any]:
        evaluator, settings = self.evaluator, self.settings
        return {
            "benchmark": self.benchmark.name,
            "model": evaluator.host.fingerprint,
            "recipe": NONE if evaluator.recipe is None else fingerprint(asdict(evaluator.recipe)),
            "rule": settings.rule,
            "seed": self.seed,
            "questions": questions,
            "split": settings.split,
            "limit": settings.limit,
            "protocol": evaluator.protocol,
            "max_new_tokens": self.benchmark.max_new_tokens,
            "batch": evaluator.batch,
            "dtype": str(evaluator.host.model.dtype),
            "device": evaluator.host.model.device.type,
            "attention": settings.attention,
        }

    def _answer(
        self, questions: Sequence[Question], log: PredictionLog, progress: Progress, say: Callable[[str], None]
    ) -> None:
        by_id: dict[Any, Question] = {question.id: question for question in questions}

        def answer(ids: Sequence[Any]) -> list[tuple[Any, Any]]:
            return self.evaluator.answers([by_id[one] for one in ids], self.benchmark.max_new_tokens)

        batch, title = self.evaluator.batch, self.benchmark.title
        answer_left(self.group, log, list(by_id), answer, batch=batch, title=title, progress=progress, say=say)

    def _metrics(self, questions: Sequence[Question], answers: Mapping[Any, Any]) -> dict[str, Any]:
        texts = {name: answer["text"] for name, answer in answers.items()}
        shape = DecoderShape.of(unwrap(self.evaluator.host.model).config)
        return {
            "benchmark": self.benchmark.name,
            "split": self.settings.split,
            "questions": len(questions),
            "scores": self.benchmark.score(questions, texts),
            "new_tokens": fmean(answer["new_tokens"] for answer in answers.values()),
            **delivered(list(answers.values()), self.evaluator.recipe, shape),
        }

    def _write(self, questions: Sequence[Question], answers: Mapping[Any, Any], current: Run) -> None:
        rows = [{"id": question.id, "prompt": question.prompt, **answers[question.id]} for question in questions]
        write_predictions(current, rows)
        if self.evaluator.recipe is not None:
            self.evaluator.recipe.save(current.file("recipe.json"))
        texts = {name: answer["text"] for name, answer in answers.items()}
        self.benchmark.write_submission(questions, texts, current.file("submission"))

    def _evaluation(self, record: RunRecord) -> Evaluation:
        files = [self.output / name for name in (*record.outputs, RECORD_NAME)]
        name, limited = model_name(self.evaluator.host.model), self.settings.limit is not None
        return Evaluation(self.benchmark, name, self.evaluator.recipe, record.metrics, files, limited)


def run_eval(
    settings: EvalSettings,
    seed: int,
    output: Path,
    progress: Progress = track,
    say: Callable[[str], None] = logger.info,
) -> list[Evaluation]:
    """Evaluate on one benchmark, or on all that the data folder holds.

    Each benchmark is a run of its own: `run.json`, `metrics.json`, `predictions.jsonl` and, where a server or a judge
    scores, the submission files, in `output`, for "all" in `output/<benchmark>`.

    Args:
        say: told when a run goes on, or was done before.

    Returns:
        One evaluation for each benchmark, on rank 0; nothing on the others.

    Raises:
        UserError: model, recipe, rule, benchmark, split or data cannot be used; a broken image; `output` holds a
            finished run, or one of another model, recipe, benchmark, data set or other settings.
    """
    rule = find_rule(settings.rule, seed)
    if settings.split is not None and settings.benchmark == ALL:
        raise UserError("a split for all benchmarks", settings.split, "--benchmark NAME beside --split")
    several = settings.benchmark == ALL
    with ranks() as group, benchmark_folders(settings, seed) as places:
        asked = []  # before the model, whose loading takes longest
        for name, place in places.items():
            one = benchmark(name)
            own: dict[str, Any] = {"benchmark": name, "data": None if settings.data is None else str(place)}
            # The mini world comes with answers, so it is written as the splits that have them.
            own["split"] = settings.split or (one.splits[0] if settings.data is None else paper_split(one))
            questions = spread(one.read(place, own["split"]), settings.limit)
            asked.append((one, settings.model_copy(update=own), questions))
        host = load_host(settings.model_copy(update={"device": str(choose_device(settings.device))}))
        recipe = choose_recipe(settings, host, seed, progress)
        evaluator = Evaluator(host, recipe, rule, choose_protocol(settings, host), settings.batch)
        found = []
        for one, chosen, questions in asked:
            task = Task(evaluator, chosen, seed, output / one.name if several else output, one, group)
            found += task.run(questions, progress, say, again=several)
    return found


def find_rule(name: str, seed: int) -> Rule:
    """The rule of that name; "random" draws by the seed. Raises UserError listing the names."""
    if name not in RULES:
        raise UserError("unknown rule", name, ", ".join(RULES))
    return Random(seed) if isinstance(RULES[name], Random) else RULES[name]


def choose_protocol(settings: EvalSettings, host: Host) -> Protocol:
    """The protocol that was named, or the host's own."""
    return Protocol.of(host.model, host.processor) if settings.protocol == "auto" else Protocol(settings.protocol)


def choose_recipe(settings: EvalSettings, host: Host, seed: int, progress: Progress) -> Recipe | None:
    """The recipe that was named, or None for "none".

    Raises:
        UserError: it cannot be read, is for a model of another depth, or would have to be fitted to a real model.
    """
    if settings.recipe == NONE:
        return None
    asked = DemoSettings(model=settings.model, recipe=settings.recipe)
    ratio = (settings.recipe or "").replace(".", "", 1).isdigit()
    if ratio and settings.model != MINI:
        raise UserError("no recipe to fit in passing", f"--recipe {settings.recipe}", "fitprune fit, then its file")
    recipe = find_recipe(asked, host, seed, progress)
    recipe.validate(host.model)
    return recipe


def delivered(answers: Sequence[Mapping[str, Any]], recipe: Recipe | None, shape: DecoderShape) -> dict[str, Any]:
    """What the prompts cost, means over them, with and without the recipe; FLOPs (2 x MACs) by the official formula.

    Args:
        answers: each with its prompt's ``visual_tokens`` and ``text_tokens``.

    Returns:
        Mean tokens; GFLOPs of the visual tokens and of whole prompts, pruned and unpruned; the shares saved (None
        where nothing is visual).
    """
    sums = dict.fromkeys(("visual", "visual_unpruned", "prompt", "prompt_unpruned"), 0)
    for answer in answers:
        visual, text = answer["visual_tokens"], answer["text_tokens"]
        whole = [0] * shape.layers
        remove = whole if recipe is None else recipe.counts_for(visual)
        sums["visual"] += 2 * costs.recipe_macs(remove, visual, shape)
        sums["visual_unpruned"] += 2 * costs.base_macs(visual, shape)
        sums["prompt"] += costs.prompt_flops(remove, visual, text, shape)
        sums["prompt_unpruned"] += costs.prompt_flops(whole, visual, text, shape)
    means = {f"{name}_gflops": total / len(answers) / 1e9 for name, total in sums.items()}
    return {
        "visual_tokens": fmean(answer["visual_tokens"] for answer in answers),
        "text_tokens": fmean(answer["text_tokens"] for answer in answers),
        **means,
        "visual_reduction": 1 - sums["visual"] / sums["visual_unpruned"] if sums["visual_unpruned"] else None,
        "prompt_reduction": 1 - sums["prompt"] / sums["prompt_unpruned"],
    }
