"""Converted tiny hosts: routers sharp enough that thresholds divide the tokens."""

import torch

from gamma_mod import convert
from tenfold.hosts import structure
from tenfold.testing.hosts import Prompts, build

LAYERS = (1, 2)


def converted(host="llava", layers=LAYERS, attention="sdpa", sharpness=6.0, **knobs):
    """A tiny host with converted layers; about half of its tokens lie below a probability of 0.5."""
    model = convert(build(host, attention), layers, **knobs)
    model.gamma_mod.router.weight.data *= sharpness
    return model


def prompts(host="llava", rows=None, padding="left"):
    return Prompts(host).batch(rows or [[("image", 4), 6], [("image", 4), 3], [("image", 4), 9]], padding)


def labels_of(inputs, answers=2):
    """The last real tokens of every row are its answer."""
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        columns = mask.nonzero()[-answers:, 0]
        labels[row, columns] = inputs["input_ids"][row, columns]
    return labels


def layers_of(model):
    return structure.decoder_layers(model)


@torch.no_grad()
def generate(model, inputs, steps=6, **kwargs):
    return model.generate(**inputs, do_sample=False, max_new_tokens=steps, pad_token_id=0, **kwargs)
