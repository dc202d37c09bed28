"""Placeholders and labels under every kind of tokenizer that a folder may hold."""

import pytest
from PIL import Image

from flashsloth.image_processing import FlashSlothImageProcessor
from flashsloth.processing import FlashSlothProcessor
from tenfold.data.formats import Turn
from tenfold.testing.tokenizers import TOKENIZERS, learnt, tokenizer

IMAGE = Image.effect_noise((24, 24), 60).convert("RGB")
TURNS = [
    Turn("human", "<image>\nwhat shape is the object?"), Turn("gpt", "circle"),
    Turn("human", "what is there on the left?"), Turn("gpt", "a large red square"),
]  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_images_and_queries_have_their_placeholders_and_answers_their_labels(kind, tmp_path):
    """Fails if a marker is taken for words or counted once, or a mask is off by a token in any turn."""
    words = tokenizer(kind, tmp_path)
    words.add_special_tokens({"additional_special_tokens": ["<learnable>"], "pad_token": "<pad>"})
    processor = FlashSlothProcessor(FlashSlothImageProcessor(24), words, num_image_tokens=4, num_queries=3)
    ids = processor(IMAGE, processor.prompt("what shape is the object?"))["input_ids"][0]
    assert (ids.count(processor.image_token_id), ids.count(processor.query_token_id)) == (4, 3)
    sample = processor.encode_conversation(TURNS, IMAGE)
    found = sample["input_ids"].tolist()
    assert (found.count(processor.image_token_id), found.count(processor.query_token_id)) == (4, 6)
    assert bool(((sample["labels"] == sample["input_ids"]) | (sample["labels"] == -100)).all())
    assert learnt(words, sample["labels"]) == ["circle</s>", "alargeredsquare</s>"]
