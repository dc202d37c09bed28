"""Multiply-accumulates, parameters and map sizes from closed formulas (section 9 of the notes in claims.yaml).

With T = N + L tokens, N = h w of the image and L of the text, width C, depth d, one picture and one sentence:

    encoder = d (12 T C^2 + 2 T^2 C + 2 N h C) + 768 N C + 256 N C + 9 256^2 N + P

where 12 T C^2 are the linear layers, 2 T^2 C scores and mixing, 2 N h C the relative positions (h = w), then patch
embedding, neck, and P = L C^2 d the projections of the text (L-DIT and E-DIT). That is the encoder as released, every
token a query; `encoder_macs(..., text_queries=False)` counts what this package computes for L-DIT. FLOPs are twice
that.
"""

from __future__ import annotations

from dit_sam.config import DITConfig

# Variants with one projection of the text for every block.
_PROJECTED = ("layer_wise", "e2e", "layer_wise_vith")


def encoder_macs(config: DITConfig, size: int | None = None, *, text_queries: bool = True) -> int:
    """Of the image encoder, at an input of `size` pixels (default: the config's).

    Args:
        text_queries: False: text takes part as keys and values alone, as L-DIT allows.
    """
    edge = (size or config.input_size) // config.patch_size
    image, width, out = edge * edge, config.width, config.prompt_width
    text = 0 if config.variant == "default" else config.text_length
    tokens = image + text
    mlp = round(2 * config.mlp_ratio)
    full = tokens if text_queries else image
    linear = (3 * tokens + (1 + mlp) * full) * width * width  # q, k, v; then projection and MLP of what is read
    if not text_queries:
        linear -= text * width * width  # no queries of text
    block = linear + 2 * full * tokens * width + 2 * image * edge * width
    frame = 3 * config.patch_size**2 * image * width + out * image * width + 9 * out * out * image
    projections = text * width * width * config.depth if config.variant in _PROJECTED else 0
    if config.variant == "layer_wise_vith":
        projections += text * width * config.text_width  # W, counted once
    return config.depth * block + frame + projections


def text_macs(config: DITConfig, layers: int | None = None) -> int:
    """Of BERT; `layers` defaults to those whose output is used. The released code runs all of them."""
    width, length = config.text_width, config.text_length
    per_layer = length * (4 * width * width + 2 * width * config.text_mlp) + 2 * length * length * width
    return (layers or config.text_layer) * per_layer


def decoder_macs(config: DITConfig, size: int | None = None) -> int:
    """Of mask decoder and text_proj, as released: four hyper-networks and the IoU head included."""
    edge = (size or config.input_size) // config.patch_size
    image, width = edge * edge, config.prompt_width
    tokens = 2 + config.mask_outputs + config.text_length
    inner = width // config.decoder_downsample
    cross = 2 * (tokens + image) * width * inner + 2 * tokens * image * inner  # q, out of one side; k, v of the other
    own = 4 * tokens * width * width + 2 * tokens * tokens * width
    mlp = 2 * tokens * width * config.decoder_mlp
    layers = config.decoder_depth * (own + mlp + 2 * cross) + cross
    upscale = image * width * width // 4 * 4 + 4 * image * (width // 4) * (width // 8) * 4
    masks = config.mask_outputs + 1
    hyper = masks * (2 * width * width + width * width // 8)
    product = masks * (width // 8) * 16 * image
    iou = width * config.iou_width + (config.iou_depth - 2) * config.iou_width**2 + config.iou_width * masks
    project = config.text_length * config.text_width * width
    return layers + upscale + hyper + product + iou + project


def map_bytes(config: DITConfig, size: int | None = None, item: int = 4) -> int:
    """One picture's map of all pairs in one block, which the released code keeps for every block while it trains."""
    edge = (size or config.input_size) // config.patch_size
    tokens = edge * edge + (0 if config.variant == "default" else config.text_length)
    return config.heads * tokens * tokens * item


def used_parameters(config: DITConfig) -> int:
    """Those that can change a mask: BERT up to its used layer, one hyper-network, no IoU head, no other prompts."""
    from dit_sam.model import DITSam

    return sum(count for name, count in parameter_counts(DITSam, config).items() if is_used(name, config))


def is_used(name: str, config: DITConfig) -> bool:
    """Whether a weight, by our name, takes part in a mask."""
    if name.startswith("text_encoder."):
        layer = name.removeprefix("text_encoder.encoder.layer.").partition(".")[0]
        return "embeddings" in name or (layer.isdigit() and int(layer) < config.text_layer)
    if name.startswith("prompt_encoder."):
        return "no_mask_embed" in name
    if name.startswith("mask_decoder.output_hypernetworks_mlps."):
        return name.split(".")[2] == "0"
    return not name.startswith("mask_decoder.iou_prediction_head.")


def parameter_counts(build: type, config: DITConfig) -> dict[str, int]:
    """Name -> numbers of a model that is built without memory."""
    import torch

    with torch.device("meta"):
        model = build(config)
    return {name: weight.numel() for name, weight in model.named_parameters()}
