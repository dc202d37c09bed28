"""What vision-language models of this repository do alike around their language model.

embeds = place_visual_tokens(embeds, ids == image_token_id, visual_tokens)
position_ids = own_positions(position_ids, attention_mask, embeds.shape[1])
loss, logits = head_outputs(self, hidden, labels, logits_to_keep, [image_token_id])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import InputError


def require_one_input(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, pixel_values: Tensor | None, features: Any, name: str
) -> None:
    """Refuse inputs that exclude each other.

    Args:
        features: what the tower gave, instead of pixels. name: of that argument.

    Raises:
        InputError: both or none of ids and embeddings, or images given twice.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("one of two inputs is needed", "forward", "either input_ids or inputs_embeds")
    if pixel_values is not None and features is not None:
        raise InputError("images are given twice", "forward", f"either pixel_values or {name}")


def require_placeholders(wanted: int, available: int, per_image: int) -> None:
    """Refuse another number of placeholders than of visual tokens.

    Args:
        wanted: placeholders. available: visual tokens. per_image: of one image, for the message.

    Raises:
        InputError: says both numbers.
    """
    if wanted != available:
        raise InputError(
            "image placeholders and visual tokens differ in number",
            f"{wanted} placeholders in input_ids, {available} visual tokens",
            f"{per_image} placeholders for each image",
        )


def place_visual_tokens(embeds: Tensor, is_image: Tensor, visual_tokens: Tensor | None) -> Tensor:
    """Visual tokens ``[images, N, D]`` in the places ``is_image`` ``[batch, tokens]``, in reading order."""
    if visual_tokens is None or not visual_tokens.shape[0]:
        return embeds
    visual_tokens = visual_tokens.to(embeds.device, embeds.dtype)
    is_image = is_image[..., None].to(embeds.device)
    return embeds.masked_scatter(is_image.expand_as(embeds), visual_tokens)


def own_positions(position_ids: Tensor | None, attention_mask: Any, length: int) -> Tensor | None:
    """Plain 0..n-1 over each row's own tokens, wherever its padding is; those that are given stay.

    Args:
        attention_mask: ``[batch, past + tokens]``, 0 at padding; another kind of mask says nothing of positions.
        length: tokens of this pass.
    """
    if position_ids is None and isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
    return position_ids


def head_outputs(
    model: Any,
    hidden: Tensor,
    labels: Tensor | None,
    logits_to_keep: int | Tensor,
    placeholders: Sequence[int],
    **kwargs: Any,
) -> tuple[Tensor | None, Tensor]:
    """Loss, where there are labels, and logits ``[batch, kept tokens, vocabulary]``.

    Args:
        model: with `lm_head`, `loss_function` and a config with `text_config`.
        hidden: ``[batch, tokens, D]``.
        logits_to_keep: how many of the last positions get logits (0: all), or their indices.
        placeholders: ids that no label may be: trainers copy input_ids.
        kwargs: for the loss, such as `num_items_in_batch`.
    """
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    logits = model.lm_head(hidden[:, kept])
    if labels is None:
        return None, logits
    for token in placeholders:
        labels = labels.masked_fill(labels == token, -100)
    vocabulary = model.config.text_config.vocab_size
    return model.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **kwargs), logits


def expanded_images(
    model: Any, name: str, expand_size: int, kwargs: dict[str, Any], images_of_rows: Callable[[Any], Sequence[int]]
) -> dict[str, Any]:
    """Take a batch's images out of `generate`'s arguments, copied for beams and several answers.

    transformers repeats each tensor entry by entry; but a row may have no image or several. The tower runs once for
    all of a row's copies.

    Args:
        model: with `encode_images`.
        name: of the argument that holds what the tower gave; indexed by images.
        kwargs: pixel_values and `name` are taken out.
        images_of_rows: what the tower gave -> how many images each row has.

    Returns:
        What goes back in, beside transformers' own.
    """
    pixel_values, features = kwargs.pop("pixel_values", None), kwargs.pop(name, None)
    if expand_size > 1 and pixel_values is not None:
        pixel_values, features = None, model.encode_images(pixel_values)
    if expand_size > 1 and features is not None:
        counts = list(images_of_rows(features))
        if sum(counts) != len(features):
            raise InputError(f"{len(features)} images", f"placeholders of {sum(counts)} in the rows", "as many of both")
        copies = torch.cat([row.repeat(expand_size) for row in torch.arange(sum(counts)).split(counts)])
        features = features[copies.to(getattr(features, "device", "cpu"))]
    images = {"pixel_values": pixel_values, name: features}
    return {key: value for key, value in images.items() if value is not None}


def encoded_once(model: Any, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`generate`'s options, with images encoded beforehand where every step would encode them again: without a cache.

    Args:
        model: with `encode_images`.
        name: of the argument that takes what it gives.
        options: of the call.
    """
    config = options.get("generation_config") or getattr(model, "generation_config", None)
    cached = options.get("use_cache")
    cached = getattr(config, "use_cache", True) if cached is None else cached
    if cached is not False or options.get("pixel_values") is None:
        return dict(options)
    rest = {key: value for key, value in options.items() if key != "pixel_values"}
    return rest | {name: model.encode_images(options["pixel_values"])}


def zero_of_weights(modules: Iterable[Any]) -> Tensor:
    """Zero, which gives every trained weight of some modules a gradient of zero without a pass through them."""
    trained = [one for module in modules for one in module.parameters() if one.requires_grad]
    return sum((0 * one.flatten()[0].float() for one in trained), torch.zeros(()))


def forwarded(inner: str, name: str) -> Any:
    """A property that reads and sets an attribute of an inner module, such as `dummy_image` of `model`."""

    def read(self: Any) -> Any:
        return getattr(getattr(self, inner), name)

    def write(self: Any, value: Any) -> None:
        setattr(getattr(self, inner), name, value)

    return property(read, write, doc=f"`{name}` of `{inner}`.")
