"""Labels and prompts under every kind of tokenizer that a host's folder may hold."""

import pytest
from PIL import Image

from gamma_mod.data.prompts import batch_prompts, encode_conversation
from tenfold import UserError
from tenfold.data.formats import Turn
from tenfold.testing.tokenizers import TOKENIZERS, VISUAL, host_processor, learnt

IMAGE = Image.effect_noise((24, 24), 60).convert("RGB")
TURNS = [
    Turn("human", "<image>\nwhat shape is the object?"), Turn("gpt", "circle"),
    Turn("human", "what is there on the left?"), Turn("gpt", "a large red square"),
]  # fmt: skip


@pytest.mark.parametrize("protocol", ["template", "vicuna"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_labels_are_the_answers_with_their_ends(kind, protocol, tmp_path):
    """Without character offsets it is one line. Fails if a mask is off by a token in any turn, or an image is another
    number of placeholders than it has visual tokens."""
    processor = host_processor(kind, tmp_path)
    if kind.startswith("slow"):
        with pytest.raises(UserError, match="a tokenizer without character offsets"):
            encode_conversation(processor, TURNS, IMAGE, max_length=None, protocol=protocol)
        return
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    for picture, count in ((IMAGE, VISUAL), (None, 0)):
        sample = encode_conversation(processor, TURNS, picture, max_length=None, protocol=protocol)
        assert int((sample["input_ids"] == image).sum()) == count
        assert bool(((sample["labels"] == sample["input_ids"]) | (sample["labels"] == -100)).all())
        assert learnt(processor.tokenizer, sample["labels"]) == ["circle</s>", "alargeredsquare</s>"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_prompts_have_their_placeholders_and_their_padding_in_front(kind, tmp_path):
    """Fails if a row's padding stands behind it: its answer would follow padding."""
    processor = host_processor(kind, tmp_path)
    inputs = batch_prompts(processor, [IMAGE, None], ["what shape is the object?", "what is there?"], "vicuna")
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (inputs["input_ids"] == image).sum(1).tolist() == [VISUAL, 0]
    assert bool(inputs["attention_mask"][:, -1].all()) and not bool(inputs["attention_mask"].all())
