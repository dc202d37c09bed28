"""A tiny LaVIN whose weights are drawn at random, with prompts of several lengths; its parts and data on disk."""

import json
from dataclasses import replace

import torch
from safetensors.torch import save_file

from eas.checkpoints import lavin_keys
from eas.commands.app import main
from eas.lavin import Lavin, LavinConfig
from eas.lavin_decoding import Prompt
from tenfold.data import formats, mini_sets
from tenfold.testing import commands
from tenfold.testing.tokenizers import sentencepiece_model

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


def frozen(model):
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if not lavin_keys.is_method(name) and not name.startswith(lavin_keys.VISUAL)
    }


AXES = {"tok_embeddings": 1, "wo": 1, "w2": 1, "wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0}


def meta(model, folder, parts):
    folder.mkdir()
    sizes = {"dim": 16, "n_layers": 4, "n_heads": 2, "norm_eps": 1e-6, "multiple_of": 16, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(sizes))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    for part in range(parts):
        state = {}
        for name, value in frozen(model).items():
            axis = AXES.get(name.split(".")[-2])
            state[name] = value if axis is None else value.chunk(parts, axis)[part].clone()
        torch.save(state | {"rope.freqs": torch.ones(4)}, folder / f"consolidated.{part:02}.pth")
    return folder


def clip(model, folder):
    folder.mkdir()
    state = {}
    for name, value in model.backbone.visual.state_dict().items():
        if ".adapter." not in name:
            state["visual." + name] = value.clone()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text('{"vision_config": {"num_attention_heads": 2}}')
    return folder


def base(folder):
    """The frozen parts alone, by the command as typed."""
    folder.mkdir()
    model = lavin(both=True, skip=())
    llama, tower = meta(model, folder / "llama", 1), clip(model, folder / "clip")
    told = commands.run(main, "convert", str(llama), str(folder / "lavin"), "--tower", str(tower))
    assert told.code == 0 and "0 parameters of" in told.out, told
    return folder / "lavin"


def scienceqa(folder, count=30):
    """Questions with lecture and solution, half of them with a picture, in the official layout."""
    samples = mini_sets.scienceqa(0, count, 16)
    told = [replace(one, lecture=f"On {one.topic}.", solution=f"It is {one.answer}.") for one in samples]
    formats.write_scienceqa(folder, told)
    return folder
