"""A tiny host under a plan whose modules are drawn at random, large enough to matter."""

import torch

from eas.plan import Plan
from eas.skipper import Skipper
from tenfold.testing.hosts import HOSTS, IMAGE, PAD, SCENARIOS, Prompts, build

__all__ = ["HOSTS", "IMAGE_IDS", "PAD", "SCENARIOS", "Prompts", "build", "greedy", "plan", "randomise", "skipper"]

IMAGE_IDS = IMAGE


def plan(skip=(1, 3), layers=4, **options):
    return Plan(**{"layers": layers, "skip": tuple(skip), "adapter_rank": 4, "pia_rank": 8, "dropout": 0.0} | options)


def randomise(skipper, scale=0.3, seed=5):
    """Adapters far from the identity, so that a mistake in them shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in skipper.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return skipper


def skipper(skip=(1, 3), width=32, **options):
    made = Skipper(plan(skip, **options))
    made.build(width)
    return randomise(made)


def greedy(model, inputs, steps=4, **options):
    """New tokens and the logits of every step."""
    marks = [3, 4, 7, 8, 9]  # placeholders of pictures, which only a prompt may hold
    out = model.generate(
        **inputs,
        suppress_tokens=marks,
        max_new_tokens=steps,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)
