"""The mini host's decoder, layer by layer: what tokens see, keep, skip or lose on the way.

Plain pieces for gates and for the trainer; no method of any paper.

Needs the extra `tenfold[train]` (torch, transformers).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration


def embed(model: LlavaForConditionalGeneration, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
    """The decoder's input: words, and the picture's features in the places of its tokens.

    Args:
        model: the mini host.
        input_ids: `[batch, tokens]` int64, each row with one picture's tokens.
        pixel_values: `[batch, 3, 80, 80]` float32.

    Returns:
        `[batch, tokens, width]`.
    """
    hidden = model.model.language_model.embed_tokens(input_ids)
    features = torch.cat(tuple(model.get_image_features(pixel_values).pooler_output))
    visual = input_ids == model.config.image_token_id
    return hidden.masked_scatter(visual[..., None], features.to(hidden.dtype))


def walk(
    model: LlavaForConditionalGeneration,
    hidden: Tensor,
    positions: Tensor,
    sees: Tensor | Sequence[Tensor],
    *,
    layers: Sequence[int] | None = None,
    without_attention: Collection[int] = (),
    skipped: Mapping[int, Tensor] | None = None,
) -> list[Tensor]:
    """Hidden states before the first and after every layer.

    Args:
        model: the mini host.
        hidden: `[batch, tokens, width]`.
        positions: `[batch, tokens]` int64.
        sees: bool `[batch or 1, tokens, tokens]`, which token sees which; one for all layers, or one for each of them.
        layers: numbers of the layers to go through; default: all.
        without_attention: layers whose attention adds nothing.
        skipped: layer -> bool `[batch, tokens]`: tokens that pass it by, unchanged and unseen.

    Returns:
        One more than layers, each `[batch, tokens, width]`.
    """
    decoder = model.model.language_model
    numbers = range(len(decoder.layers)) if layers is None else layers
    turned = decoder.rotary_emb(hidden, positions)
    masks: dict[int, Tensor] = {}
    states = [hidden]
    for number in numbers:
        layer = decoder.layers[number]
        seen = sees if isinstance(sees, Tensor) else sees[number]
        passing = None if skipped is None else skipped.get(number)
        if number in without_attention:
            states.append(states[-1] + layer.mlp(layer.post_attention_layernorm(states[-1])))
            continue
        if passing is not None:
            # A token that passes by sees itself: a row without any key has no softmax.
            itself = torch.eye(seen.shape[-1], dtype=torch.bool)
            mask = _additive((seen & ~passing[:, None, :]) | itself, hidden.dtype)
        else:
            mask = masks.setdefault(id(seen), _additive(seen, hidden.dtype))
        output = layer(states[-1], attention_mask=mask, position_ids=positions, position_embeddings=turned)
        after = output[0] if isinstance(output, tuple) else output
        states.append(after if passing is None else torch.where(passing[..., None], states[-1], after))
    return states


def _additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """`[batch, 1, tokens, tokens]`: 0 where a token is seen, the least number where it is not."""
    return torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def words(model: LlavaForConditionalGeneration, hidden: Tensor) -> Tensor:
    """Logits over the vocabulary of hidden states `[..., width]`, by the model's last norm and output matrix."""
    return model.lm_head(model.model.language_model.norm(hidden))
