"""What rehearsals are made of: weights that are drawn when they are read, and a vocabulary of a release's size."""

import pytest
import torch

from tenfold.data.sentencepieces import sentencepiece_model
from tenfold.random_weights import random_weight, random_weights
from tenfold.weights import WeightFiles, write_pickled_weights, write_weights

SHAPES = {"embed.weight": (3000, 32), "norm.weight": (32,), "head.weight": (3000, 32), "head.bias": (3000,)}
WRITERS = {"model.safetensors": write_weights, "pytorch_model.bin": write_pickled_weights}


@pytest.mark.parametrize("name", WRITERS)
def test_random_weights_come_back_from_their_shards(tmp_path, name):
    """Fails if a file holds more than its tensors, the index is another format's, or a second reading differs."""
    stored = random_weights(SHAPES, torch.float16)
    files = WRITERS[name](tmp_path, stored, 200_000)
    stem, _, ending = name.rpartition(".")
    assert [file.name for file in files] == [f"{stem}-0000{number}-of-00002.{ending}" for number in (1, 2)]
    assert all(file.stat().st_size < 210_000 for file in files)
    with WeightFiles(tmp_path) as weights:
        assert {name: tensor.shape for name, tensor in weights.tensors.items()} == SHAPES
        for name, tensor in weights.tensors.items():
            assert torch.equal(tensor.read(), stored[name].read())


def test_every_name_has_weights_of_its_own_and_norms_scale_by_about_one():
    """Fails if the name does not enter (two layers changed for each other would pass for the same), or if what is done
    to one tensor changes the next."""
    random_weight("layers.0.weight", (64, 64)).zero_()
    one, other = (random_weight(name, (64, 64)) for name in ("layers.0.weight", "layers.1.weight"))
    assert not torch.equal(one, other) and abs(one.float().std() - 0.02) < 0.002
    assert abs(random_weight("norm.weight", (64,)).float().mean() - 1) < 0.02
    assert abs(random_weight("norm.bias", (64,)).float().mean()) < 0.02


def test_a_filled_vocabulary_splits_text_as_before():
    """Fails if made-up pieces are merged into a text, or their number is not what a release's embedding has."""
    import sentencepiece

    small, full = (
        sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(words)) for words in (None, 1000)
    )
    text = "USER: what shape is ⟨7⟩? ASSISTANT:"
    assert full.vocab_size() == 1000 > small.vocab_size()
    assert full.encode(text) == small.encode(text)
    with pytest.raises(ValueError, match="only 100"):
        sentencepiece_model(100)
