"""LLaVA-1.5-7B's dimensions with random weights: time and cost do not depend on what the weights say.

Every method runs at the knob that its paper speaks of first; what is trained elsewhere is drawn here, so an answer says
nothing. DyVTE's gates are made to leave in the middle of the decoder, gamma-MoD's routers keep half of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from dyvte.evidence.speed import deciding_gates
from efficiency import arms as made
from efficiency.arms import Arm, Found, Needs
from fitprune.evidence.speed import resample
from fitprune.recipe import Recipe

LAYERS, VISUAL, PREFIX, TEXT = 32, 576, 35, 65
WORDS = 32000
RELEASED = ("llava-1.5-7b", 60)
# EAS skips 12 of 32 attentions on ScienceQA; gamma-MoD converts all layers but some and skips half.
SKIPPED, KEPT = 12 / 32, 0.5
DRAWN = Needs("drawn here", seconds=None, source="random weights")


def build(layers: int, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    """LLaVA-1.5-7B with its tower, so many decoder layers deep, without ever holding it twice."""
    text = LlamaConfig(
        vocab_size=WORDS + 64, hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=WORDS, image_seq_length=VISUAL)
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.uniform_(-0.03, 0.03, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    # Buffers follow from the configuration: they were left empty with the weights.
    decoder, embeddings = model.model.language_model, model.model.vision_tower.embeddings
    decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config).to(device)
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=device)[None]
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def prompt(model: Any, seed: int) -> dict[str, Tensor]:
    """LLaVA's prompt: a prefix, the picture, a question; drawn."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(10, WORDS, (PREFIX + TEXT,), generator=generator)
    ids = torch.cat([words[:PREFIX], torch.full((VISUAL,), WORDS), words[PREFIX:]])[None]
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels.to(model.dtype)}
    return {name: value.to(model.device) for name, value in inputs.items()}


def arms(model: Any, seed: int) -> Found:
    """Every method on such a host."""
    layers = made.depth(model)
    released = Recipe.released(*RELEASED)
    recipe = Recipe(
        f"{RELEASED[0]}, {layers} layers", layers, released.visual_tokens, resample(released.remove, layers)
    )
    found = Found([made.unpruned()])
    pruned = made.pruners(model, {RELEASED[1] / 100: recipe}, (seed,), made.NOTHING)
    found.arms += pruned.arms
    found.left_out |= pruned.left_out
    found.arms += [_exit(model, layers), _skip(layers, seed)]
    found.attempt("γ-MoD", lambda: [_routed(model)])
    by = {arm.method: arm for arm in found.arms}
    found.attempt("FitPrune + DyVTE", lambda: made.together(model, by["FitPrune"], by["DyVTE"]))
    plan = by["EAS"].attach.plan  # type: ignore[attr-defined]
    found.attempt(
        "EAS + FitPrune",
        lambda: made.together(model, by["EAS"], made.around(by["FitPrune"], recipe, plan.skip)),
    )
    return found


def _exit(model: Any, layers: int) -> Arm:
    import dyvte

    gates = dyvte.GateConfig(layers, model.config.text_config.hidden_size)
    deciding = deciding_gates(gates, layers // 2, model.device, model.dtype)
    return Arm("DyVTE", f"exit after layer {layers // 2}", "paper", dyvte.VisualExit(deciding), DRAWN)


def _skip(layers: int, seed: int) -> Arm:
    import eas

    count = max(1, round(SKIPPED * layers))
    # Spread over the second half and a little before it, as the released lists are; never the last one.
    skip = tuple(sorted({layers - 2 - number * max(1, layers // 20) for number in range(count)} & set(range(layers))))
    return made.skipped(eas.Skipper(eas.Plan(layers=layers, skip=skip), seed=seed), DRAWN, "")


def _routed(model: Any) -> Arm:
    import gamma_mod

    def half(layer: int, keep_prob: Tensor, running: Any) -> tuple[Tensor, tuple[int, ...]]:
        batch, tokens = keep_prob.shape
        count = max(1, round(KEPT * tokens))
        chosen = keep_prob.argsort(dim=1, descending=True, stable=True)[:, :count]
        return torch.zeros_like(keep_prob, dtype=torch.bool).scatter(1, chosen, True), (count,) * batch

    @contextmanager
    def attach(host: Any) -> Iterator[None]:
        gamma_mod.convert(host, "arank_mod", decode_skip=False)
        try:
            with gamma_mod.choosing(half):
                yield
        finally:
            host.gamma_mod.remove()

    with attach(model):  # says whether a decoder is deep enough
        pass
    knobs = f"placement arank_mod, {KEPT:.0%} of the tokens, decoding whole"
    return Arm("γ-MoD", "half of the tokens", "paper", attach, DRAWN, knobs=knobs)


def shown(model: Any, prompts: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    """The host, for the record."""
    text = model.config.text_config
    return {
        "model": "llava-1.5-7b, random weights",
        "layers": made.depth(model),
        "of": LAYERS,
        "hidden": text.hidden_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokens": {"prefix": PREFIX, "visual": VISUAL, "text": TEXT},
        "prompts": len(prompts),
    }
