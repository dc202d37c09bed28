"""CIDEr-D in this process: the reward of self-critical training, and the score of an evaluation.

A caption is a vector over its n-grams (n = 1..4), each weighing its count times its rarity, ln N - ln df, where df of N
documents hold the n-gram. Two captions compare by the cosine of their vectors, with the candidate's counts clipped to
the reference's, times exp(-d^2 / (2 * 6^2)) for captions that differ by d bigrams; the score is ten times the mean over
n and over the references (Vedantam, Zitnick, Parikh 2015; as a reward: self-critical sequence training).

    reward = CiderD.from_captions(references)                     # [image][caption][word]
    _, rewards = reward.score(beams, [references[image] for image in images_of_beams])
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tenfold import UserError

Words: TypeAlias = Sequence[str]
Ngram: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class _Vector:
    """A caption's weighted n-grams, the length of each n's part, and the number of its bigrams."""

    weights: dict[Ngram, float]
    norms: tuple[float, ...]
    bigrams: int


@dataclass(frozen=True)
class References:
    """The references of one image as vectors, made once by `CiderD.prepare` and used for any number of candidates."""

    vectors: tuple[_Vector, ...]


class CiderD:
    """CIDEr-D over fixed document frequencies.

    Args:
        document_frequencies: n-gram, as a tuple of words -> how many documents hold it. One that is missing counts as
            rare as one that a single document holds (so the latter need not be stored).
        num_documents: N.
        max_n: longest n-grams.
        sigma: of the length penalty, in bigrams.

    Raises:
        UserError: no documents.
    """

    def __init__(
        self, document_frequencies: Mapping[Ngram, int], num_documents: int, *, max_n: int = 4, sigma: float = 6.0
    ) -> None:
        if num_documents < 1:
            raise UserError("no documents to count words in", "CIDEr-D", "at least one caption")
        self.num_documents, self.max_n, self.sigma = num_documents, max_n, sigma
        self._rarest = math.log(num_documents)
        self._rarity = {ngram: self._rarest - math.log(count) for ngram, count in document_frequencies.items() if count}

    @classmethod
    def from_captions(
        cls,
        references: Iterable[Sequence[Words]],
        frequencies: Literal["caption", "image"] = "caption",
        *,
        max_n: int = 4,
        sigma: float = 6.0,
    ) -> CiderD:
        """Count documents in a set of captions.

        Args:
            references: for each image its captions, each a list of words.
            frequencies: "caption": every caption is a document of its own, as in the authors' reward (N = 566,747 on
                COCO); "image": the captions of an image are one document, as in the metric that papers report. The two
                are on different scales.

        Raises:
            UserError: no captions, or an unknown kind of frequencies.
        """
        if frequencies not in ("caption", "image"):
            raise UserError(f"unknown frequencies {frequencies!r}", "CIDEr-D", "caption or image")
        counts: Counter[Ngram] = Counter()
        documents = 0
        for captions in references:
            _refuse_text(captions)
            for words in captions:
                _refuse_text(words)
            found = [set(_ngrams(words, max_n)) for words in captions]
            if frequencies == "image":
                found = [set().union(*found)]
            for ngrams in found:
                counts.update(ngrams)
            documents += len(found)
        # ln 1 = ln max(1, 0): most n-grams occur once and can be left out.
        repeated = {ngram: count for ngram, count in counts.items() if count > 1}
        return cls(repeated, documents, max_n=max_n, sigma=sigma)

    def rarity(self, ngram: Ngram) -> float:
        """How much an n-gram weighs: ln N - ln max(1, df)."""
        return self._rarity.get(ngram, self._rarest)

    def prepare(self, captions: Iterable[Words]) -> References:
        """The references of one image as vectors.

        Raises:
            UserError: no captions.
        """
        vectors = tuple(self._vector(words) for words in captions)
        if not vectors:
            raise UserError("an image without references", "CIDEr-D", "at least one")
        return References(vectors)

    def score(
        self, candidates: Sequence[Words], references: Sequence[References | Sequence[Words]]
    ) -> tuple[float, NDArray[np.float64]]:
        """Score captions against their references.

        Args:
            candidates: captions as lists of words.
            references: for each candidate the captions of its image, as lists of words or as made by `prepare`. Where
                several candidates are given the same object, it is prepared once.

        Returns:
            The mean, and the score of each candidate, float64 `[candidates]`, from 0 to 10. Papers print 100 times
            the mean.

        Raises:
            UserError: not one set of references for each candidate, no candidates, or a set without captions.
        """
        if len(candidates) != len(references) or not candidates:
            raise UserError(
                f"{len(candidates)} captions with {len(references)} sets of references", "CIDEr-D", "equally many"
            )
        prepared: dict[int, References] = {}
        scores = np.empty(len(candidates))
        for number, (words, captions) in enumerate(zip(candidates, references, strict=True)):
            if isinstance(captions, References):
                known = captions
            elif id(captions) in prepared:
                known = prepared[id(captions)]
            else:
                known = prepared[id(captions)] = self.prepare(captions)
            candidate = self._vector(words)
            total = sum(self._similarity(candidate, vector) for vector in known.vectors)
            scores[number] = 10.0 * total / (self.max_n * len(known.vectors))
        return float(scores.mean()), scores

    def _vector(self, words: Words) -> _Vector:
        _refuse_text(words)
        weights: dict[Ngram, float] = {}
        squares = [0.0] * self.max_n
        for ngram, count in Counter(_ngrams(words, self.max_n)).items():
            weight = weights[ngram] = count * self.rarity(ngram)
            squares[len(ngram) - 1] += weight * weight
        return _Vector(weights, tuple(map(math.sqrt, squares)), max(len(words) - 1, 0))

    def _similarity(self, candidate: _Vector, reference: _Vector) -> float:
        """The sum over n of the clipped cosines, after the length penalty."""
        products = [0.0] * self.max_n
        # In the order of the caption, not of a set: sums of floats must not depend on the hash seed of the process.
        for ngram, weight in candidate.weights.items():
            other = reference.weights.get(ngram)
            if other is not None:
                products[len(ngram) - 1] += min(weight, other) * other
        total = 0.0
        for product, ours, theirs in zip(products, candidate.norms, reference.norms, strict=True):
            total += product / (ours * theirs) if ours and theirs else product
        difference = candidate.bigrams - reference.bigrams
        return total * math.exp(-(difference**2) / (2 * self.sigma**2))


def _refuse_text(words: object) -> None:
    """A text would be taken letter by letter."""
    if isinstance(words, str):
        raise UserError("a text", "CIDEr-D", "captions as lists of words")


def _ngrams(words: Words, max_n: int) -> Iterable[Ngram]:
    words = tuple(words)
    for n in range(1, max_n + 1):
        for start in range(len(words) - n + 1):
            yield words[start : start + n]
