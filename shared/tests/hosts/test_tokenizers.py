"""Prompts of a host under every kind of tokenizer that its folder may hold."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tenfold.hosts.answers import Protocol, encode_batch
from tenfold.hosts.prompts import encode
from tenfold.testing.tokenizers import TOKENIZERS, VISUAL, host_processor

MODEL = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
IMAGE = Image.effect_noise((24, 24), 60).convert("RGB")
QUESTIONS = ("what shape is the object?", "what is there on the left?")


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_image_is_as_many_placeholders_as_it_has_visual_tokens(kind, protocol, tmp_path):
    """Fails if `<image>` is taken for words, one BOS becomes two, or padding stands behind a prompt. A text about
    nothing has no placeholder."""
    processor = host_processor(kind, tmp_path)
    words = processor.tokenizer
    image = words.convert_tokens_to_ids("<image>")
    prompts = [protocol.prompt(processor, *one) for one in ((IMAGE, QUESTIONS[0]), (None, QUESTIONS[1]))]
    inputs = encode_batch(processor, MODEL, prompts)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert (ids == image).sum(1).tolist() == [VISUAL, 0] and bool(mask[:, -1].all())
    assert not (ids[mask == 0] != words.pad_token_id).any() and (ids == words.bos_token_id).sum(1).max() <= 1
    for row, prompt in enumerate(prompts):
        alone = encode_batch(processor, MODEL, [prompt])["input_ids"][0]
        assert torch.equal(alone, ids[row][mask[row].bool()])
    calibration = encode(processor, MODEL, IMAGE, QUESTIONS[0])
    assert int((calibration["input_ids"] == image).sum()) == VISUAL
