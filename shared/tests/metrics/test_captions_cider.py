"""CIDEr-D in this process: the metric's own definition, the reference implementation, and the authors' reward."""

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from tenfold import UserError
from tenfold.metrics.captions.cider import CiderD


def corpus(seed, images=9, words=6):
    """References with few words, so that they repeat within and between captions, and candidates."""
    rng = random.Random(seed)

    def caption():
        return [rng.choice("abcdefgh"[:words]) for _ in range(rng.randint(1, 12))]

    return [[caption() for _ in range(rng.randint(1, 6))] for _ in range(images)], [caption() for _ in range(images)]


@pytest.mark.parametrize("seed", range(8))
def test_scores_equal_pycocoevalcap(seed):
    """Fails if counts are not clipped, or if a norm leaves out rare n-grams."""
    references, candidates = corpus(seed)
    theirs = Cider().compute_score(
        {i: [" ".join(words) for words in group] for i, group in enumerate(references)},
        {i: [" ".join(words)] for i, words in enumerate(candidates)},
    )
    mean, each = CiderD.from_captions(references, "image").score(candidates, references)
    assert mean == pytest.approx(theirs[0], abs=1e-9)
    np.testing.assert_allclose(each, theirs[1], atol=1e-9)


def test_a_score_worked_out_by_hand():
    """Two images, one reference each. "a" is in both documents and weighs nothing, "b" weighs ln 2.

    Candidate "b a" against reference "a b": of the four n, n = 1 has cosine 1 ("b" alone counts), n = 2 has none in
    common ("b a", "a b"), n = 3 and 4 have none at all. Both have one bigram: no length penalty. 10 * 1/4.
    """
    cider = CiderD.from_captions([[["a", "b"]], [["a"]]], "image")
    assert cider.score([["b", "a"]], [[["a", "b"]]])[0] == pytest.approx(2.5)
    # Twice as many "b" do not help: the product is clipped to the reference's ln 2 * ln 2, the candidate's norm is not.
    # One bigram more than the reference: exp(-1/72).
    assert cider.score([["b", "b", "a"]], [[["a", "b"]]])[0] == pytest.approx(2.5 / 2 * math.exp(-1 / 72))


def test_captions_as_documents_are_the_authors_reward():
    """Fails if the caption's frequencies count images: N and the document frequencies both differ."""
    references = [[["a", "dog"]] * 3 + [["a", "cat"]], [["a", "bird"]]]
    by_caption = CiderD.from_captions(references, "caption")
    by_image = CiderD.from_captions(references, "image")
    assert (by_caption.num_documents, by_image.num_documents) == (5, 2)
    counted = {("a",): 5, ("dog",): 3, ("a", "dog"): 3, ("cat",): 1, ("bird",): 1, ("a", "cat"): 1, ("a", "bird"): 1}
    candidates, given = [["a", "dog"], ["a", "cat", "dog"]], [references[0], references[0]]
    scores = by_caption.score(candidates, given)[1]
    np.testing.assert_array_equal(scores, CiderD(counted, 5).score(candidates, given)[1])
    assert abs(scores - by_image.score(candidates, given)[1]).max() > 0.1


def test_prepared_references_score_alike():
    references, candidates = corpus(3)
    cider = CiderD.from_captions(references)
    prepared = [cider.prepare(group) for group in references]
    np.testing.assert_array_equal(cider.score(candidates, prepared)[1], cider.score(candidates, references)[1])


SCORE = """
from test_captions_cider import corpus
from tenfold.metrics.captions.cider import CiderD
references, candidates = corpus(5, images=60)
print([score.hex() for score in CiderD.from_captions(references).score(candidates, references)[1].tolist()])
"""


def test_scores_do_not_depend_on_the_hash_seed():
    """A resumed training must see the same rewards, bit for bit. Fails if n-grams are summed in a set's order."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    outputs = set()
    for seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", SCORE], env=environment, capture_output=True, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_an_empty_caption_scores_nothing_and_breaks_nothing():
    references, _ = corpus(1)
    mean, each = CiderD.from_captions(references).score([[]], references[:1])
    assert mean == 0.0 and each.tolist() == [0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CiderD.from_captions([]), "no documents"),
        (lambda: CiderD.from_captions([[["a"]]], "word"), "unknown frequencies 'word'"),
        (lambda: CiderD.from_captions([[["a"]]]).score([["a"]], []), "1 captions with 0 sets"),
        (lambda: CiderD.from_captions([[["a"]]]).score([], []), "0 captions"),
        (lambda: CiderD.from_captions([[["a"]]]).score([["a"]], [[]]), "without references"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_texts_are_no_lists_of_words():
    """Fails if a text is counted letter by letter."""
    scorer = CiderD.from_captions([[["a", "dog"]]])
    for call in (
        lambda: CiderD.from_captions([["a dog"]]),
        lambda: CiderD.from_captions(["a dog"]),
        lambda: scorer.score(["a dog"], [[["a", "dog"]]]),
        lambda: scorer.prepare(["a dog"]),
    ):
        with pytest.raises(UserError, match="a text"):
            call()
