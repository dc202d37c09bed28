"""A tiny LaVIN whose weights are drawn at random, with prompts of several lengths."""

import torch

from eas.lavin import Lavin, LavinConfig
from eas.lavin_decoding import Prompt

TINY = {
    "width": 16, "layers": 4, "heads": 2, "ffn": 32, "vocabulary": 400, "skip": (1, 3), "adapter_rank": 4,
    "pia_rank": 8, "tower_rank": 4, "dropout": 0.0, "hidden_proj": 8, "features": 2, "vision_width": 16,
    "vision_layers": 8, "vision_heads": 2, "size": 8, "patch": 4,
}  # fmt: skip


def lavin(both=False, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = Lavin(LavinConfig(**TINY | changes), both=both).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gain = name.endswith("norm.weight")
                parameter.copy_(torch.rand(parameter.shape) + 0.5 if gain else torch.randn(parameter.shape) * 0.4)
    return model


def prompts(count=64, seed=0):
    """Prompts of 4 to 12 tokens, every second with a picture, and their pictures."""
    generator = torch.Generator().manual_seed(seed)
    made, images = [], torch.zeros(count, 3, 8, 8)
    for number in range(count):
        words = torch.randint(3, 400, (2 + (5 * number) % 9,), generator=generator)
        if number % 2:
            made.append(Prompt(torch.cat((torch.tensor([1, 5, 0, 0]), words)), 2))
            images[number] = torch.randn(3, 8, 8, generator=generator)
        else:
            made.append(Prompt(torch.cat((torch.tensor([1, 6]), words))))
    return made, images
