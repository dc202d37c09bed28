"""A release of the authors: {epoch, state_dict, optimizer, scheduler, lr}, as torch.save wrote it (section 4).

`state_dict` is the average of the weights (EMA); `optimizer` belongs to the raw ones and is not read. Of several GPUs
every name begins with `module.`. A plain state dict, as .pth or .safetensors, is read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dit_sam.checkpoints.keys import from_official, ours, possible_variants
from dit_sam.config import SIZES, DITConfig, Variant, sized
from tenfold import UserError
from tenfold.weights import read_weights


class Release(NamedTuple):
    """What is in a release.

    Attributes:
        state: official names without `module.` -> tensors; those that nothing uses included.
        variants: what it can be: one, or layer_wise and e2e, which look alike.
    """

    state: dict[str, Tensor]
    variants: tuple[Variant, ...]

    @property
    def used(self) -> dict[str, Tensor]:
        """Under our names, without what nothing uses."""
        return from_official(self.state)

    @property
    def unused(self) -> dict[str, Tensor]:
        """Official name -> what nothing uses."""
        return {name: value for name, value in self.state.items() if ours(name) is None}


def read_release(path: str | Path) -> Release:
    """Read a release's weights; nothing in the file is run.

    Raises:
        UserError: no such file, broken, or no weights of a DIT model.
    """
    content = read_weights(path)
    inner = content.get("state_dict", content)
    if not isinstance(inner, Mapping) or not all(isinstance(value, Tensor) for value in inner.values()):
        raise UserError("no state dict", path, "weight name -> tensor, or {state_dict: ...}")
    state = {str(name).removeprefix("module."): value for name, value in inner.items()}
    if not any(name.startswith("visual_encoder.") for name in state):
        raise UserError("no weights of a DIT model", path, "names such as visual_encoder.pos_embed")
    return Release(state, possible_variants(state))


def release_config(release: Release, variant: str | None, where: str | Path) -> DITConfig:
    """The dimensions of a release, from its shapes.

    Args:
        variant: which one, where the weights cannot tell.

    Raises:
        UserError: a variant that its weights are not, none where it must be said, or shapes of no known model.
    """
    if variant is None and len(release.variants) > 1:
        options = " or ".join(release.variants)
        raise UserError(f"weights of {options}: they look alike", where, f"--variant {release.variants[0]}, say")
    chosen = variant or release.variants[0]
    if chosen not in release.variants:
        raise UserError(f"no weights of {chosen}", where, " or ".join(release.variants))
    shapes = {name: tuple(value.shape) for name, value in release.used.items()}
    try:
        return _measured(shapes, chosen)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"weights missing ({error})", where, "a whole release") from error


def _measured(shapes: Mapping[str, tuple[int, ...]], variant: str) -> DITConfig:
    """Dimensions that shapes tell; heads, which they do not, are those of the size, or one for 64 numbers."""
    _, native, _, width = shapes["image_encoder.pos_embed"]
    patch = shapes["image_encoder.patch_embed.proj.weight"][2]
    depth = _count(shapes, "image_encoder.blocks.")
    tables = [shapes[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
    spans = [(rows + 1) // 2 for rows, _ in tables]
    prompt = shapes["text_proj.weight"][0]
    words, text_width = shapes["text_encoder.embeddings.word_embeddings.weight"]
    crosses = [
        shape
        for name, shape in shapes.items()
        if name.endswith("cross.0.linear_q.weight") or name.endswith("cross.0.mhatt.linear_q.weight")
    ]
    known = [name for name, numbers in SIZES.items() if numbers["width"] == width and numbers["depth"] == depth]
    heads = SIZES[known[0]]["heads"] if known else width // tables[0][1]
    values: dict[str, Any] = {
        "width": width,
        "depth": depth,
        "heads": heads,
        "patch_size": patch,
        "native_size": native * patch,
        "window_size": min(spans),
        "global_blocks": tuple(i for i, span in enumerate(spans) if span == native),
        "mlp_ratio": shapes["image_encoder.blocks.0.mlp.lin1.weight"][0] / width,
        "prompt_width": prompt,
        "mask_channels": shapes["prompt_encoder.mask_downscaling.3.weight"][0],
        "decoder_depth": _count(shapes, "mask_decoder.transformer.layers."),
        "decoder_heads": 8,
        "decoder_mlp": shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        "decoder_downsample": prompt // shapes["mask_decoder.transformer.final_attn_token_to_image.q_proj.weight"][0],
        "mask_outputs": shapes["mask_decoder.mask_tokens.weight"][0] - 1,
        "iou_depth": _count(shapes, "mask_decoder.iou_prediction_head.layers."),
        "iou_width": shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
        "words": words,
        "text_width": text_width,
        "text_depth": _count(shapes, "text_encoder.encoder.layer."),
        "text_heads": max(1, text_width // 64),
        "text_mlp": shapes["text_encoder.encoder.layer.0.intermediate.dense.weight"][0],
        "text_positions": shapes["text_encoder.embeddings.position_embeddings.weight"][0],
    }
    if crosses:
        values |= {"cross_width": crosses[0][0], "cross_heads": max(1, crosses[0][0] // 64)}
        inner = [shape[0] for name, shape in shapes.items() if name.endswith("cross.0.ffn.mlp.fc.linear.weight")]
        values |= {"cross_mlp": inner[0]} if inner else {}
    if known:
        own = sized(known[0], variant)  # type: ignore[arg-type]
        values = {**own.to_dict(), **values, "global_blocks": own.global_blocks}
        values["input_size"] = own.input_size
        return DITConfig(**{**values, "variant": own.variant})
    return DITConfig(variant=variant, **{**values, "input_size": native * patch})  # type: ignore[arg-type]


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """How many numbered modules lie below a prefix."""
    return 1 + max(int(name.removeprefix(prefix).partition(".")[0]) for name in shapes if name.startswith(prefix))
