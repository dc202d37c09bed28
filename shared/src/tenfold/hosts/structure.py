"""How a method that attaches to a host finds its way in it: the decoder layers, the blocks, the visual tokens.

All is read off the model's structure, so any transformers vision-language model whose text decoder is a stack of
causal full-attention layers over one sequence of text and visual tokens can be served; there is no list of classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tenfold import UserError

# Configuration fields that name the placeholder of a visual token in the input ids.
VISUAL_TOKEN_FIELDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
# What the forward of a plain pre-norm block names, in order.
PRE_NORM = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


def unwrap(model: Any) -> Any:
    """The transformers model itself: PEFT adapters are looked through; a compiled model is refused.

    Raises:
        UserError: ``model`` is the result of ``torch.compile``, under prompt tuning, or no transformers model.
    """
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise UserError("a compiled model cannot be changed", type(model).__name__, "the model before torch.compile")
    if hasattr(model, "get_base_model"):
        adapter: Any = getattr(model, "active_peft_config", None)
        if getattr(adapter, "is_prompt_learning", False):
            raise UserError(
                f"{adapter.peft_type.value} puts virtual tokens into inputs_embeds, where visual tokens cannot be told",
                type(model).__name__,
                "adapters inside the layers, such as LoRA",
            )
        model = model.get_base_model()
    if not hasattr(model, "get_input_embeddings") or not hasattr(model, "config"):
        raise UserError("no host model", type(model).__name__, "a transformers vision-language model")
    return model


def decoder_layers(model: Any) -> nn.ModuleList:
    """The text decoder's layers: the list of blocks beside the input embedding.

    Raises:
        UserError: no such list, or a decoder in which tokens cannot leave (sliding windows, a second copy of
            the image added in deeper layers, bidirectional image prefixes), with the reason.
    """
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings()
    for module in model.modules():
        children = list(module.children())
        if not any(child is embedding for child in children):
            continue
        for child in children:
            if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers:
                _refuse_unsupported(model, config, child)
                return child
    raise UserError(
        "no decoder layers found", type(model).__name__, "a list of decoder layers beside the input embedding"
    )


def is_plain_pre_norm(module: nn.Module) -> bool:
    """Whether a decoder block is ``x += attention(norm(x)); x += mlp(norm(x))`` and nothing else.

    Read off the attributes that its forward uses, in order: a block with scaled residuals, parallel branches or
    further norms names other ones.
    """
    names = inspect.unwrap(type(module).forward).__code__.co_names
    return tuple(name for name in names if hasattr(module, name)) == PRE_NORM


def visual_mask(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Which positions of the present input hold a visual token, read off the placeholders in the input ids.

    Args:
        model: the host.
        inputs: arguments of its forward by name.

    Returns:
        ``[batch, tokens]`` bool.

    Raises:
        UserError: only ``inputs_embeds`` was given (the caller must then say which tokens are visual), or the
            model's configuration names no visual token.
    """
    input_ids = inputs.get("input_ids")
    if input_ids is None:
        raise UserError(
            "visual tokens cannot be told from inputs_embeds",
            type(model).__name__,
            "input_ids, or visual_mask=[batch, tokens] at attachment",
        )
    ids = [getattr(model.config, field, None) for field in VISUAL_TOKEN_FIELDS]
    ids = [token for token in ids if token is not None]
    if not ids:
        raise UserError(
            "the model's configuration names no visual token",
            type(model).__name__,
            " or ".join(VISUAL_TOKEN_FIELDS[:2]),
        )
    # Compared one by one: a list of them would have to be copied to the device, which makes the host wait.
    found = input_ids == ids[0]
    for token in ids[1:]:
        found = found | (input_ids == token)
    return found


def _slides(decoder: nn.Module, layer: nn.Module) -> bool:
    """Whether a decoder or its attention asks for a sliding window: a Llama's configuration may name one that nothing
    reads."""
    parts = (decoder, getattr(layer, "self_attn", decoder))
    codes = [inspect.unwrap(type(part).forward).__code__ for part in parts]
    names = [name for code in codes for name in (*code.co_names, *code.co_consts) if isinstance(name, str)]
    return any("sliding_window" in name for name in names)


def _refuse_unsupported(model: Any, config: Any, layers: nn.ModuleList) -> None:
    decoder = next(module for module in model.modules() if layers in module.children())
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    # Of models that do not say it by layer.
    slides = not hasattr(config, "layer_types") and getattr(config, "use_sliding_window", True)
    slides = slides and getattr(config, "sliding_window", None) and _slides(decoder, layers[0])
    reasons = {
        "sliding-window attention counts its window in positions, which leaving tokens make uneven": (
            kinds != {"full_attention"} or bool(slides)
        ),
        "deepstack adds image features again in deeper layers, at full length": (
            any("deepstack" in attribute for attribute in dir(decoder))
        ),
        "bidirectional attention over the image lets later visual tokens feed earlier ones": (
            bool(getattr(config, "use_bidirectional_attention", None))
        ),
        "a decoder layer has no self_attn": not all(hasattr(layer, "self_attn") for layer in layers),
    }
    for reason, applies in reasons.items():
        if applies:
            expected = "causal full attention over text and visual tokens in every layer"
            raise UserError(f"this decoder cannot be served: {reason}", type(model).__name__, expected)
