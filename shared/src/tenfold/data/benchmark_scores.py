"""From samples and the model's texts to the metrics of a benchmark, as one flat dictionary each.

Ratios are in [0, 1], MME's "perception", "cognition" and ".../points" in points, COUNTS are numbers of questions. The
dictionary is empty when a split comes without answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tenfold.data.formats import (
    BoxSample,
    CaptionSample,
    GQASample,
    MMBenchSample,
    MMESample,
    OCRVQASample,
    OKVQASample,
    PopeSample,
    ScienceQASample,
    SeedFrameSample,
    SeedSample,
    TextVQASample,
    VizWizSample,
    VQAv2Sample,
)
from tenfold.metrics import (
    ChoiceAnswer,
    GQAAnswer,
    MMBenchAnswer,
    MMEAnswer,
    box_scores,
    choice_letter,
    choice_scores,
    gqa_scores,
    mmbench_scores,
    mme_scores,
    normalise_evalai,
    ocrvqa_accuracy,
    option_letter,
    pope_scores,
    textvqa_accuracy,
    vqa_accuracy,
)
from tenfold.metrics.captions import check_metrics
from tenfold.metrics.captions import score_captions as coco_table

Scores = dict[str, float]

# Of `score_captions`.
CAPTION_METRICS = ("bleu", "rouge", "cider")
# Entries that count instead of measuring.
COUNTS = ("count", "questions", "unread", "subsets", "subtasks", "neither yes nor no")


def score_textvqa(samples: Sequence[TextVQASample], texts: Sequence[str]) -> Scores:
    """The mean of the M4C evaluator's accuracy."""
    if not all(sample.answers for sample in samples):
        return {}
    accuracies = [textvqa_accuracy(text, sample.answers) for sample, text in zip(samples, texts, strict=True)]
    return {"accuracy": _mean(accuracies), "count": len(samples)}


def score_vqav2(samples: Sequence[VQAv2Sample], texts: Sequence[str]) -> Scores:
    """VQA accuracy of the texts as they would be submitted, in total and by answer type."""
    groups: dict[str, list[float]] = defaultdict(list)
    for sample, text in zip(samples, texts, strict=True):
        if sample.annotation is None:
            return {}
        groups[sample.annotation.answer_type].append(vqa_accuracy(normalise_evalai(text), sample.annotation.answers))
    by_type = {name: _mean(found) for name, found in sorted(groups.items())}
    return {"accuracy": _mean([one for found in groups.values() for one in found]), **by_type, "count": len(samples)}


def score_gqa(samples: Sequence[GQASample], texts: Sequence[str]) -> Scores:
    """Exact match, in total and for open and binary questions."""
    answers = [
        GQAAnswer(text, sample.answer, sample.structural)
        for sample, text in zip(samples, texts, strict=True)
        if sample.answer is not None
    ]
    if len(answers) < len(samples):
        return {}
    scores = gqa_scores(answers)
    split = {"open": scores.open, "binary": scores.binary}
    return {"accuracy": scores.accuracy, **_known(split), "count": scores.count}


def score_vizwiz(samples: Sequence[VizWizSample], texts: Sequence[str]) -> Scores:
    """VQA accuracy of the texts as they would be submitted, in total and by answer type."""
    groups: dict[str, list[float]] = defaultdict(list)
    for sample, text in zip(samples, texts, strict=True):
        if not sample.answers:
            return {}
        groups[sample.answer_type or "other"].append(vqa_accuracy(normalise_evalai(text), sample.answers))
    by_type = {name: _mean(found) for name, found in sorted(groups.items())}
    return {"accuracy": _mean([one for found in groups.values() for one in found]), **by_type, "count": len(samples)}


def score_mme(samples: Sequence[MMESample], texts: Sequence[str]) -> Scores:
    """Perception and cognition in points, then every subtask's points, accuracy and accuracy+."""
    scores = mme_scores(
        MMEAnswer(sample.subtask, sample.image_name, text, sample.label)
        for sample, text in zip(samples, texts, strict=True)
    )
    found = _known({"perception": scores.perception, "cognition": scores.cognition})
    for subtask, points in scores.points.items():
        found[f"{subtask}/points"] = points
        found[f"{subtask}/accuracy"] = scores.accuracy[subtask]
        found[f"{subtask}/accuracy_plus"] = scores.accuracy_plus[subtask]
    return {**found, "neither yes nor no": scores.other, "subtasks": len(scores.points), "count": scores.count}


def score_mmbench(samples: Sequence[MMBenchSample], texts: Sequence[str]) -> Scores:
    """CircularEval and plain accuracy, then CircularEval by type."""
    answers = [
        MMBenchAnswer(
            sample.index, choice_letter(text, sample.options), sample.answer, sample.category, sample.l2_category
        )
        for sample, text in zip(samples, texts, strict=True)
        if sample.answer is not None
    ]
    if len(answers) < len(samples):
        return {}
    scores = mmbench_scores(answers)
    by_type = {f"l2/{name}": value for name, value in scores.by_l2.items() if name}
    by_type |= {f"category/{name}": value for name, value in scores.by_category.items() if name}
    counts = {"unread": scores.unread, "questions": scores.questions, "count": scores.rows}
    return {"circular": scores.circular, **_known({"vanilla": scores.vanilla}), **by_type, **counts}


def score_seed(samples: Sequence[SeedSample], texts: Sequence[str]) -> Scores:
    """Accuracy in total (over questions) and by type."""
    scores = choice_scores(
        ChoiceAnswer(choice_letter(text, sample.choices), sample.answer, sample.question_type)
        for sample, text in zip(samples, texts, strict=True)
    )
    return {"accuracy": scores.accuracy, **scores.by_kind, "unread": scores.unread, "count": scores.count}


def score_pope(samples: Sequence[tuple[str, PopeSample]], texts: Sequence[str]) -> Scores:
    """The mean F1 of the subsets that were asked (all three: the published figure), and each subset's scores."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for (subset, sample), text in zip(samples, texts, strict=True):
        groups[subset].append((text, sample.label))
    found: Scores = {}
    f1s = []
    for subset, pairs in groups.items():
        scores = pope_scores([text for text, _ in pairs], [label for _, label in pairs])
        f1s.append(scores.f1)
        for name in ("f1", "accuracy", "precision", "recall", "yes_ratio"):
            found[f"{subset}/{name}"] = getattr(scores, name)
    return {"f1": _mean(f1s), **found, "subsets": len(groups), "count": len(samples)}


def score_scienceqa(samples: Sequence[ScienceQASample], texts: Sequence[str]) -> Scores:
    """Accuracy of the option letter, by LLaVA's reading of it."""
    chosen = [option_letter(text, len(sample.choices)) for sample, text in zip(samples, texts, strict=True)]
    hits = [letter == sample.answer for letter, sample in zip(chosen, samples, strict=True)]
    return {"accuracy": _mean(hits), "unread": sum(letter is None for letter in chosen), "count": len(samples)}


def score_okvqa(samples: Sequence[OKVQASample], texts: Sequence[str]) -> Scores:
    """The mean of the official tool's VQA accuracy."""
    found = [vqa_accuracy(text, sample.answers) for sample, text in zip(samples, texts, strict=True)]
    return {"accuracy": sum(found) / len(found), "count": len(found)}


def score_ocrvqa(samples: Sequence[OCRVQASample], texts: Sequence[str]) -> Scores:
    """The share of exact matches."""
    return {"accuracy": ocrvqa_accuracy(texts, [sample.answer for sample in samples]), "count": len(samples)}


def score_refcoco(samples: Sequence[BoxSample], texts: Sequence[str]) -> Scores:
    """The share of boxes with an IoU above 0.5."""
    scores = box_scores(texts, [sample.box for sample in samples])
    return {
        "accuracy": scores.accuracy, "mean_iou": scores.mean_iou, "unread": scores.unread, "count": scores.count,
    }  # fmt: skip


def score_seed_frames(samples: Sequence[SeedFrameSample], texts: Sequence[str]) -> Scores:
    """Accuracy of all questions, of those about images and about videos, and by type."""
    answers = [
        ChoiceAnswer(choice_letter(text, sample.choices), sample.answer, sample.question_type)
        for sample, text in zip(samples, texts, strict=True)
    ]
    scores = choice_scores(answers)
    by_kind: Scores = {}
    for kind in ("image", "video"):
        some = [one for one, sample in zip(answers, samples, strict=True) if sample.kind == kind]
        if some:
            by_kind[kind] = choice_scores(some).accuracy
    return {
        "accuracy": scores.accuracy, **by_kind, **scores.by_kind, "unread": scores.unread, "count": scores.count,
    }  # fmt: skip


def score_captions(samples: Sequence[CaptionSample], texts: Sequence[str]) -> Scores:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr of one caption for each image.

    Ratios in [0, 1], CIDEr in [0, 10], as the official tool prints them. CIDEr counts words in the references of these
    images: of a part of the set it is another number.

    Raises:
        UserError: no pycocoevalcap or no Java; the tokeniser fails.
    """
    references = {number: sample.references for number, sample in enumerate(samples)}
    table = coco_table(dict(enumerate(texts)), references, CAPTION_METRICS).table
    found = {name: score / 100 for name, score in table.items()}
    return {"CIDEr": found.pop("CIDEr-D"), **found, "count": len(samples)}


def check_captions() -> None:
    """Refuse, before any work is done, to score captions without what it needs.

    Raises:
        UserError: no pycocoevalcap or no Java; says what to install.
    """
    check_metrics(CAPTION_METRICS)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _known(values: dict[str, float | None]) -> Scores:
    return {name: value for name, value in values.items() if value is not None}
