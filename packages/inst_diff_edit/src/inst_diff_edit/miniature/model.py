"""The mini model: a diffusion model of the mini world in pixel space, of half a million trained parameters.

Its parts are real ones (UNet2DConditionModel, CLIPTextModel, a byte-level CLIPTokenizer, DDIMScheduler) in diffusers'
layout, so that what works on it works on Stable Diffusion. Only the autoencoder is replaced by one that at most
rescales: latents are pixels. Words are attended to at 16 x 16, half the picture's edge, on the way up alone. The text
tower stands for a pre-trained one and is not trained: its words are orthogonal vectors, and its one layer mixes them.

    edit = scenes.edit(0, 7)
    mini.load()(edit.picture(), edit.prompt, final="latents", num_masks=1)
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from inst_diff_edit.attention import CROSS
from inst_diff_edit.data.scenes import EDGE, WORDS
from inst_diff_edit.pipeline import InstDiffEditPipeline
from inst_diff_edit.pixels import PixelAutoencoder as PixelAutoencoder
from tenfold.runs import atomic_write_json, atomic_write_text, read_json

# Latent edge over the edge of the attention maps: 32 pixels, words at 16 x 16.
STRIDE = 2
POSITIONS = 16
WIDTH = 64
# Of the model that ships and of every one that is trained.
TOKENIZER = Path(__file__).parents[1] / "assets" / "mini_model" / "tokenizer"


def path() -> Path:
    """The folder of the trained mini model that ships with the package."""
    return Path(__file__).parents[1] / "assets" / "mini_model"


def load(folder: str | Path | None = None) -> InstDiffEditPipeline:
    """The trained mini model (float32, CPU) as a pipeline; ``folder`` defaults to the one that ships."""
    pipe = InstDiffEditPipeline.from_pretrained(str(folder or path()), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build(seed: int, scaling_factor: float = 1.0) -> InstDiffEditPipeline:
    """The untrained model, its weights drawn from ``seed`` without touching torch's global generator.

    Args:
        scaling_factor: of the autoencoder.
    """
    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=EDGE,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=(16, 32, 48),
            down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"),
            mid_block_type="UNetMidBlock2D",
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=2,  # the number of heads, as in Stable Diffusion 1's configs
            norm_num_groups=8,
        )
        _sharpen(unet)
        text_encoder = _text_tower(words)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    coder = PixelAutoencoder(scaling_factor=scaling_factor)
    pipe = InstDiffEditPipeline(coder, text_encoder, words, unet, scheduler, attention_stride=STRIDE)
    pipe.unet.eval()
    pipe.text_encoder.eval()
    return pipe


def _sharpen(unet: UNet2DConditionModel) -> None:
    """Queries and keys of words begin twice as large: with the usual ones every word gets the same share at first."""
    for name, weight in unet.named_parameters():
        if f".{CROSS}.to_q." in name or f".{CROSS}.to_k." in name:
            weight.data.mul_(2)


def _text_tower(words: CLIPTokenizer) -> CLIPTextModel:
    """A text tower that stands for a pre-trained one: one layer of two heads, drawn and set, nothing in it trained.

    Start, end, every word and every position have directions of their own, all orthogonal. One head reads the token
    before, so that "striped lemon" says which of two lemons, as adjectives do in CLIP; the other one reads all that
    came before alike, so that end and padding know of the whole prompt. The start token sees itself alone: it says the
    same in every prompt. End and padding have no word of their own to read about: their first head rests on the start
    token, as heads of trained towers do, else "end" would be a second name of the last word.
    """
    tower = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=POSITIONS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    ).requires_grad_(False)
    # The first direction is taken up by ones: what is orthogonal to them has mean zero, and layer norm leaves it be.
    directions = torch.randn(WIDTH, WIDTH)
    directions[:, 0] = 1
    directions = torch.linalg.qr(directions).Q.T * WIDTH**0.5
    start, end, *others = directions[1:]
    table = tower.get_input_embeddings().weight
    table[words.bos_token_id], table[words.eos_token_id] = start, end
    for word, direction in zip(WORDS, others, strict=False):
        table[words(word).input_ids[1]] = direction
    places = torch.stack(others[-POSITIONS:])
    for name, weight in tower.named_parameters():
        if "position_embedding" in name:
            weight.copy_(0.35 * places)
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            weight.zero_()  # of the second head: all that came before counts alike
            is_query = "q_proj" in name
            for place in range(1, POSITIONS):  # the query at a place meets the key at the place before
                weight[place] = (9 if is_query else 3) / WIDTH**0.5 * places[place if is_query else place - 1]
            weight[0] = (3 * end if is_query else 2 * start) / WIDTH**0.5
        elif name.endswith(("v_proj.weight", "out_proj.weight")):
            weight.copy_(torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q * (0.8 if "out_proj" in name else 1))
        elif name.endswith("fc1.weight"):
            weight.copy_(torch.randn_like(weight) / WIDTH**0.5)
        elif name.endswith("fc2.weight"):
            weight.copy_(0.45 * torch.randn_like(weight) / (2 * WIDTH) ** 0.5)
        elif name.endswith("bias"):
            weight.zero_()
    return tower


def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with merges for the mini world's words: each is one token; others come in pieces.

    The one that ships. It was trained once on `WORDS` (tokenizers' ``BpeTrainer``, 2,000 entries at most), which breaks
    ties between equally frequent pairs another way in every run: weights belong to one vocabulary.
    """
    return CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True)


def write_vocabulary(folder: Path, size: int) -> None:
    """The tokenizer's vocab.json and merges.txt, with the number of words that a released one has.

    Args:
        size: fill up with made-up words that no text is split into, before the start and the end token, so that these
            have the ids of a vocabulary of this size.
    """
    shipped = read_json(TOKENIZER / "tokenizer.json")["model"]
    *vocabulary, start, end = sorted(shipped["vocab"], key=shipped["vocab"].__getitem__)
    vocabulary += [f"<made up {number}>" for number in range(len(vocabulary), size - 2)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in shipped["merges"]]
    atomic_write_json(folder / "vocab.json", {word: n for n, word in enumerate([*vocabulary, start, end])})
    atomic_write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]))
