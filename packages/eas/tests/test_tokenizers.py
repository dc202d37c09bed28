"""Labels of the LLaVA host's samples under every kind of tokenizer that its folder may hold."""

import pytest
from PIL import Image

from eas.data.records import Record
from eas.data.samples import Encoder
from tenfold.testing.tokenizers import TOKENIZERS, VISUAL, host_processor, learnt


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_labels_are_the_answer_with_its_end(kind, tmp_path):
    """Fails if the mask is off by a token, or an image is another number of placeholders than it has visual tokens."""
    Image.effect_noise((24, 24), 60).convert("RGB").save(tmp_path / "a.png")
    encoder = Encoder(host_processor(kind, tmp_path))
    words = encoder.processor.tokenizer
    for image, count in ((tmp_path / "a.png", VISUAL), (None, 0)):
        sample = encoder.sample(Record("1", "what shape is the object?", "a large red square", image))
        assert int((sample["input_ids"] == words.convert_tokens_to_ids("<image>")).sum()) == count
        assert bool(((sample["labels"] == sample["input_ids"]) | (sample["labels"] == -100)).all())
        assert learnt(words, sample["labels"]) == ["alargeredsquare</s>"]
