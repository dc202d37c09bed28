"""Seeds and fingerprints are the same everywhere and tell different things apart."""

import random

import numpy as np
import pytest
import torch

from tenfold import UserError
from tenfold.runs import fingerprint, sample_generator, sample_rng, seed_everything


def test_a_sample_s_stream_is_pinned():
    """Fails if the key or the counter of the stream changes: published runs could not be repeated."""
    assert sample_rng(7, 3, 11).integers(0, 1000, 5).tolist() == [255, 728, 574, 877, 185]
    assert sample_generator(7, 3, 11).initial_seed() == 6717750054639480028


def test_streams_of_different_samples_differ():
    triples = [(s, e, i) for s in range(3) for e in range(3) for i in range(3)]
    draws = {tuple(sample_rng(*triple).integers(0, 2**63, 4)) for triple in triples}
    assert len(draws) == len(triples)


def test_a_stream_does_not_depend_on_what_was_drawn_before():
    first = sample_rng(0, 0, 5).random(3)
    sample_rng(0, 0, 4).random(100)
    np.random.seed(1)
    assert (sample_rng(0, 0, 5).random(3) == first).all()
    again = torch.rand(3, generator=sample_generator(0, 0, 5))
    assert torch.equal(torch.rand(3, generator=sample_generator(0, 0, 5)), again)


def test_a_negative_seed_is_refused():
    with pytest.raises(OverflowError):
        sample_rng(-1, 0, 0)


def test_seed_everything_fixes_all_three_generators():
    def draw():
        return random.random(), np.random.random(), torch.rand(1).item()

    seed_everything(3)
    first = draw()
    assert draw() != first
    seed_everything(3)
    assert draw() == first


def test_fingerprints_are_pinned():
    """Fails if the way of hashing changes: old records would no longer match their data."""
    empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert fingerprint({}) == empty
    assert fingerprint({"b": 1, "a": [1.5, "γ"]}) == fingerprint({"a": [1.5, "γ"], "b": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.0})


def test_a_file_s_fingerprint_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint(tmp_path / "a") == fingerprint(str(tmp_path / "a")) == f"sha256:{digest}"


def test_a_folder_s_fingerprint_sees_names_and_contents_only(tmp_path):
    def folder(name, files):
        for relative, content in files.items():
            path = tmp_path / name / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return fingerprint(tmp_path / name)

    one = folder("one", {"a": "1", "b/c": "2"})
    assert folder("two", {"b/c": "2", "a": "1"}) == one
    assert folder("renamed", {"a": "1", "b/d": "2"}) != one
    assert folder("changed", {"a": "1", "b/c": "3"}) != one
    assert folder("swapped", {"a": "2", "b/c": "1"}) != one


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no such file or folder: .*gone"):
        fingerprint(tmp_path / "gone")
