"""Labels of a training sample under every kind of tokenizer that a host's folder may hold."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dyvte.data.prompts import encode_answers
from dyvte.data.samples import TrainingSample
from tenfold.data.formats import Picture
from tenfold.hosts.answers import Protocol
from tenfold.testing.tokenizers import TOKENIZERS, VISUAL, host_processor, learnt

MODEL = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
PICTURE = Picture(Image.effect_noise((24, 24), 60).convert("RGB"))
SAMPLES = [
    TrainingSample("0", "what shape is the object?", "circle", PICTURE),
    TrainingSample("1", "what is there on the left?", "a large red square", PICTURE),
]


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_labels_are_the_answer_with_its_end(kind, protocol, tmp_path):
    """Fails if the mask is off by a token, or an image is another number of placeholders than it has visual tokens."""
    processor = host_processor(kind, tmp_path)
    inputs, labels = encode_answers(processor, MODEL, protocol, SAMPLES)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (inputs["input_ids"] == image).sum(1).tolist() == [VISUAL, VISUAL]
    assert bool(((labels == inputs["input_ids"]) | (labels == -100)).all())
    told = [learnt(processor.tokenizer, row) for row in labels]
    assert told == [["circle</s>"], ["alargeredsquare</s>"]]
