"""COCO's caption metrics: BLEU-1..4, METEOR 1.5, ROUGE-L, CIDEr-D, and SPICE where its models are.

    scores = score_captions({42: "a red kite"}, {42: ["A red kite over a beach.", "a kite"]})
    scores.table                       # {"BLEU-1": ..., "CIDEr-D": ...}, times 100 as papers print them

Both sides are tokenised by the PTB tokeniser first. This needs pycocoevalcap, for its jars and its BLEU and ROUGE-L in
Python, and a Java. The jars are run by path, in a temporary folder; nothing is written beside them and nothing is
downloaded.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from tenfold import UserError
from tenfold.metrics.captions.cider import CiderD
from tenfold.metrics.captions.ptb import (
    EXTRA,
    JAVA_OPTIONS,
    JavaProcess,
    PtbTokeniser,
    find_jar,
    find_java,
    split_words,
)

logger = logging.getLogger(__name__)

Id = TypeVar("Id", bound=Hashable)
# Image id -> one text for each caption, words separated by spaces.
Texts = Mapping[Any, Sequence[str]]

METRICS = ("bleu", "meteor", "rouge", "cider", "spice")
METEOR_JAR = "meteor/meteor-1.5.jar"
SPICE_JAR = "spice/spice-1.0.jar"
# SPICE parses with these; pycocoevalcap does not bring them.
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
SPICE_SOURCE = "both jars of the release stanford-corenlp-full-2015-12-09 there"
# SPICE's serialiser reaches into Java's own classes, which Java 16 and later forbid unless told otherwise.
SPICE_OPENS = [
    f"--add-opens=java.base/java.{name}=ALL-UNNAMED"
    for name in ("lang", "math", "net", "text", "util", "util.concurrent")
]
# It loads 60 MB of paraphrases: seconds on an idle machine, minutes on one that others keep busy.
METEOR_PATIENCE = 1200.0
SPICE_LIMIT = 3 * 3600.0


@dataclass(frozen=True)
class Scores:
    """What `score_captions` found; all scores times 100.

    Attributes:
        ids: of the images.
        table: "BLEU-1" ... "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D", "SPICE" -> the score of the whole set. BLEU and
            METEOR are computed from the counts of all images, the others are means.
        per_image: the same names -> the score of each image, in the order of `ids`.
        missing: metric -> one line saying what it lacks here.
    """

    ids: list[Any]
    table: dict[str, float] = field(default_factory=dict)
    per_image: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def _add(self, name: str, score: float, each: Iterable[float]) -> None:
        self.table[name] = 100.0 * float(score)
        self.per_image[name] = [100.0 * float(one) for one in each]


def score_captions(
    predictions: Mapping[Id, Any],
    references: Mapping[Id, Sequence[Any]],
    metrics: Sequence[str] = METRICS,
    *,
    spice: str | Path | None = None,
    tokens: str = "ptb",
    meteor: Meteor | None = None,
) -> Scores:
    """Score one caption for each image against its references.

    Args:
        predictions: image id -> caption, or a list that holds it, as pycocoevalcap wants it; a caption is a text, or
            `{"caption": text}`.
        references: image id -> list of captions; the same ids.
        metrics: some of `METRICS`.
        spice: a folder with the jars of Stanford CoreNLP 3.6.0 and its models; without it SPICE is left out.
        tokens: "ptb" as COCO's evaluation does, or "whitespace" for captions that are words already (no Java).
        meteor: one that runs already, and stays open; None: one is started, if it is asked for.

    Raises:
        UserError: ids that do not match, no captions, an image without references, an unknown metric, no Java, no
            pycocoevalcap, or a Java program that fails; a caption that is no text, references that are no list.
    """
    check_metrics(metrics, tokens)
    predictions = {one: _only(caption, one) for one, caption in predictions.items()}
    references = {one: _listed(captions, one) for one, captions in references.items()}
    _check_ids(predictions, references)
    scores = Scores(ids=list(references))
    with ExitStack() as stack:
        if "meteor" in metrics and meteor is None:
            meteor = stack.enter_context(Meteor())  # its data take it seconds: they load while captions are tokenised
        if tokens == "ptb":
            with PtbTokeniser() as tokenise:
                candidate, reference = _texts(predictions, references, tokenise)
        else:
            candidate, reference = _texts(predictions, references, lambda texts: [split_words(text) for text in texts])
        if "bleu" in metrics:
            bleu, each = _python("bleu", "Bleu", 4).compute_score(reference, candidate, verbose=0)
            for n in range(4):
                scores._add(f"BLEU-{n + 1}", bleu[n], each[n])
        if "meteor" in metrics and meteor is not None:
            scores._add("METEOR", *meteor(candidate, reference))
    if "rouge" in metrics:
        scores._add("ROUGE-L", *_python("rouge", "Rouge").compute_score(reference, candidate))
    if "cider" in metrics:
        words = [[text.split() for text in reference[one]] for one in scores.ids]
        cider = CiderD.from_captions(words, "image")
        scores._add("CIDEr-D", *cider.score([candidate[one][0].split() for one in scores.ids], words))
    if "spice" in metrics:
        if (lack := lacks_spice(spice)) is not None:
            scores.missing["SPICE"] = lack
        else:
            assert spice is not None
            scores._add("SPICE", *score_spice(candidate, reference, spice))
    return scores


def check_metrics(metrics: Sequence[str], tokens: str = "ptb") -> None:
    """Refuse what is no metric, and what cannot be computed here, before any work is done.

    Raises:
        UserError: no metrics or an unknown one, unknown tokens; no Java or no pycocoevalcap for what needs them.
    """
    if tokens not in ("ptb", "whitespace"):
        raise UserError(f"unknown tokens {tokens!r}", "metrics", "ptb or whitespace")
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise UserError(f"unknown metric {unknown[0]}" if unknown else "no metrics", "metrics", ", ".join(METRICS))
    if "bleu" in metrics:
        _python("bleu", "Bleu", 4)
    if "rouge" in metrics:
        _python("rouge", "Rouge")
    if "meteor" in metrics:
        find_java()
        find_jar(METEOR_JAR)
    if tokens == "ptb":
        PtbTokeniser()


def _only(given: Any, image: Any) -> str:
    """The one caption of an image."""
    if isinstance(given, str | Mapping):
        return _text(given, image)
    captions = _listed(given, image)
    if len(captions) != 1:
        raise UserError(f"{len(captions)} captions to score", f"image {image}", "one")
    return captions[0]


def _listed(given: Any, image: Any) -> list[str]:
    """Several captions of an image."""
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise UserError(f"{type(given).__name__} instead of a list of captions", f"image {image}", "a list of texts")
    return [_text(one, image) for one in given]


def _text(given: Any, image: Any) -> str:
    text = given.get("caption") if isinstance(given, Mapping) else given
    if not isinstance(text, str):
        raise UserError(f"{type(text).__name__} as a caption", f"image {image}", "a text")
    return text


def _check_ids(predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]]) -> None:
    for kind, these, those in (("captions", references, predictions), ("references", predictions, references)):
        missing = [one for one in these if one not in those]
        if missing:
            raise UserError(f"{len(missing)} images without {kind}", f"image {missing[0]}", f"{len(these)} images")
    if not predictions:
        raise UserError("no captions to score", "predictions", "at least one")
    empty = [one for one, captions in references.items() if not captions]
    if empty:
        raise UserError(f"{len(empty)} images without references", f"image {empty[0]}", "at least one caption")


def _texts(
    predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]], tokenise: Callable[..., list[list[str]]]
) -> tuple[dict[Id, list[str]], dict[Id, list[str]]]:
    """Both sides tokenised in one call, as texts of words and spaces, in the order of the references."""
    captions = [predictions[one] for one in references]
    captions += [caption for group in references.values() for caption in group]
    words = iter(tokenise(captions))
    candidate = {one: [" ".join(next(words))] for one in references}
    reference = {one: [" ".join(next(words)) for _ in group] for one, group in references.items()}
    return candidate, reference


def _python(module: str, name: str, *arguments: Any) -> Any:
    """A scorer that pycocoevalcap has in Python."""
    try:
        found = importlib.import_module(f"pycocoevalcap.{module}.{module}")
    except ImportError as error:
        raise UserError("pycocoevalcap is not installed", name, EXTRA) from error
    return getattr(found, name)(*arguments)


class Meteor:
    """METEOR 1.5 for English (`-l en -norm`) as one Java process; it needs some seconds and up to 2 GB to start.

    Raises:
        UserError: no Java, no pycocoevalcap.
    """

    def __init__(self, patience: float = METEOR_PATIENCE) -> None:
        jar = find_jar(METEOR_JAR)
        self._java = JavaProcess(
            "METEOR", ["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"], patience
        )

    def __call__(self, candidates: Texts, references: Texts) -> tuple[float, list[float]]:
        """The score of the whole set (from the counts of all images), and each image's; 0 to 1.

        Args:
            candidates: id -> a list with one caption, tokenised.
            references: id -> captions, tokenised.

        Raises:
            UserError: METEOR ends, falls silent, or answers with something that is no score.
        """
        lines = self._java.lines()
        ids = list(references)
        asked = "".join(
            " ||| ".join(("SCORE", *map(_plain, references[one]), _plain(candidates[one][0]))) + "\n" for one in ids
        )
        self._java.send(asked.encode("utf-8", "replace"))
        statistics = [next(lines) for _ in ids]
        self._java.send((" ||| ".join(("EVAL", *statistics)) + "\n").encode())
        answers = [next(lines) for _ in range(len(ids) + 1)]
        try:
            *each, total = [float(answer) for answer in answers]
        except ValueError:
            raise self._java.failed("answered with something that is no score") from None
        return total, each

    def close(self) -> None:
        """End the process."""
        self._java.close()

    def __enter__(self) -> Meteor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()


def _plain(text: str) -> str:
    """A caption without what METEOR's lines are separated by."""
    return " ".join(text.replace("|||", "").split())


def lacks_spice(folder: str | Path | None) -> str | None:
    """One line saying what SPICE lacks; None: it can be run."""
    if folder is None:
        return f"SPICE needs a folder with {' and '.join(SPICE_MODELS)} (--spice FOLDER; put {SPICE_SOURCE})"
    missing = [name for name in SPICE_MODELS if not Path(folder, name).is_file()]
    return f"SPICE: {folder} lacks {' and '.join(missing)} (put {SPICE_SOURCE})" if missing else None


def score_spice(
    candidates: Texts, references: Texts, models: str | Path, limit: float = SPICE_LIMIT
) -> tuple[float, list[float]]:
    """SPICE: the F score of scene-graph tuples, its mean and each image's; 0 to 1. Needs up to 8 GB.

    Args:
        candidates: id -> a list with one caption, tokenised.
        references: id -> captions, tokenised.
        models: the folder of Stanford CoreNLP's jars.
        limit: seconds after which it counts as hung.

    Raises:
        UserError: no Java, no pycocoevalcap, or SPICE fails (with its last message).
    """
    jar = find_jar(SPICE_JAR)
    path = os.pathsep.join(map(str, (jar, jar.parent / "lib" / "*", *(Path(models, name) for name in SPICE_MODELS))))
    ids = list(references)
    asked = [
        {"image_id": number, "test": candidates[one][0], "refs": list(references[one])}
        for number, one in enumerate(ids)
    ]
    with tempfile.TemporaryDirectory(prefix="captions-spice-") as folder:
        given, made = Path(folder, "captions.json"), Path(folder, "scores.json")
        given.write_text(json.dumps(asked), encoding="utf-8")
        command = [find_java(), *JAVA_OPTIONS, "-Xmx8G", "-XX:+IgnoreUnrecognizedVMOptions", *SPICE_OPENS]
        command += ["-cp", path, "edu.anu.spice.SpiceScorer", str(given)]
        command += ["-out", str(made), "-cache", folder, "-subset", "-silent"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=limit)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"SPICE was not ready after {limit:g} s", models, "fewer captions") from error
        if done.returncode or not made.is_file():
            said = (done.stderr or done.stdout)[-4000:].decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise UserError(f"SPICE failed: {said}", models, SPICE_SOURCE)
        found = {int(row["image_id"]): row["scores"]["All"]["f"] for row in json.loads(made.read_text("utf-8"))}
    each = [_number(found.get(number)) for number in range(len(ids))]
    known = [score for score in each if not math.isnan(score)]
    if len(known) < len(each):
        logger.warning(
            "SPICE gives no score for %d of %d images; the mean is over the others", len(each) - len(known), len(each)
        )
    return (sum(known) / len(known) if known else math.nan), each


def _number(value: Any) -> float:
    """A score, or NaN where SPICE found no tuple to compare."""
    return float(value) if isinstance(value, int | float) else math.nan
