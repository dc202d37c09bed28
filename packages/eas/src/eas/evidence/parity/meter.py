"""Golden cases: a cross-modal block in its four states, and whole tiny METERs for the three tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from eas.evidence.parity.model import PREFIX
from eas.meter import CrossLayer, Meter, MeterConfig, MeterInputs, merge, task_loss
from tenfold.ledger.goldens import Comparison


def _state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}


def meter_cross_layer(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """The block as kept and skipped attentions make it, and the branches of PIA and adapter alone."""
    config = case["config"]
    layer = CrossLayer(
        MeterConfig(
            width=config["hidden"],
            heads=config["heads"],
            ffn=config["hidden"] * config["mlp_ratio"],
            adapter_rank=config["ffn_adapter_dim"],
            pia_rank=config["attn_adapter_dim"],
            groups=config.get("groups", 2),
            scale=config.get("scale", 1.0),
        )
    ).eval()
    layer.load_state_dict(_state(tensors), strict=True)
    tokens, other = tensors["in/hidden"], tensors["in/other"]
    masks = [tensors[name] > -1 for name in ("in/mask_hidden", "in/mask_other")]
    compare.close("adapter", layer.intermediate.adapter(tokens), tensors["out/ffn_adapter"], "model")
    compare.close("PIA of itself", layer.adapter_self_attn(tokens, tokens), tensors["out/pia_self"], "model")
    compare.close("PIA of the other", layer.adapter_cross_attn(tokens, other), tensors["out/pia_cross"], "model")
    for own in (0, 1):
        for cross in (0, 1):
            layer.skip_self, layer.skip_cross = bool(own), bool(cross)
            name = f"out/self_skip{own}_cross_skip{cross}"
            compare.close(name, layer(tokens, other, *masks), tensors[name], "model")


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Meter:
    """The golden model, all of its weights loaded by name."""
    weights = _state(tensors)
    made = MeterConfig(
        task=config["task"],
        size=config["vit_res"],
        answers=config["n_answers"],
        max_text=config["text_len"],
        width=config["hidden"],
        heads=config["heads"],
        ffn=config["hidden"] * config["mlp_ratio"],
        vocabulary=config["vocab"],
        text_positions=len(weights["text_transformer.embeddings.position_embeddings.weight"]),
        text_width=config["text_width"],
        text_layers=config["text_layers"],
        vit_width=config["vit_width"],
        vit_layers=config["vit_layers"],
        vit_heads=config["vit_heads"],
        vit_patch=config["vit_patch"],
        adapter_rank=config["ffn_adapter_dim"],
        pia_rank=config["attn_adapter_dim"],
        groups=config.get("groups", 2),
        scale=config.get("scale", 1.0),
    )
    model = Meter(made)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def meter_task(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """Flags, features, logits, loss and gradient norm under every list of the case, by the authors' map of sites."""
    model = build(case["config"], tensors)
    for tag in sorted({key.split("/")[1] for key in tensors if key.startswith("in/") and key.endswith("/select")}):
        model.set_skip(tuple(tensors[f"in/{tag}/select"].tolist()), as_released=True)
        compare.equal(f"{tag} flags", model.flags().long(), tensors[f"out/{tag}/flags"].long())
        inputs, targets = _inputs(model, tensors)
        model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = task_loss(model, inputs, targets)
            loss.backward()
        compare.close(f"{tag} loss", loss, tensors[f"out/{tag}/loss"], "model")
        norms = [value.grad.norm() for _, value in model.trained() if value.grad is not None]
        compare.close(f"{tag} gradient", torch.stack(norms).norm(), tensors[f"out/{tag}/grad_norm_trainable"], "model")
        logits = model(inputs)
        name = "scores" if model.config.task == "irtr" else "logits"
        golden = tensors[f"out/{tag}/{name}"]
        compare.close(f"{tag} {name}", logits.view(golden.shape), golden, "model")
        if model.config.task != "irtr":
            _features(model, inputs, tag, tensors, compare)
    model.set_skip(())
    before = model(inputs)
    merge(model)
    compare.close("folded", model(inputs), before, "model")


def _features(model: Meter, inputs: MeterInputs, tag: str, tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    text = model.encode_text(inputs.ids, inputs.mask)
    found = model.fuse(text, model.encode_image(inputs.pixels[0]))
    for name, value in zip(("text_feats", "image_feats", "cls_feats"), found, strict=True):
        compare.close(f"{tag} {name}", value, tensors[f"out/{tag}/{name}"], "model")


def _inputs(model: Meter, tensors: Mapping[str, Tensor]) -> tuple[MeterInputs, Tensor]:
    ids, mask = tensors["in/text_ids"], tensors["in/text_masks"]
    if model.config.task == "vqa":
        return MeterInputs(ids, mask, (tensors["in/image"],)), tensors["out/vqa_targets"]
    if model.config.task == "nlvr2":
        return MeterInputs(ids, mask, (tensors["in/image_0"], tensors["in/image_1"])), tensors["in/answers"]
    false = sorted(cast(Any, {key.split("_")[2] for key in tensors if key.startswith("in/false_text_")}), key=int)
    texts = torch.stack([ids, *(tensors[f"in/false_text_{number}_ids"] for number in false)], 1)  # [batch, captions, T]
    masks = torch.stack([mask, *(tensors[f"in/false_text_{number}_masks"] for number in false)], 1)
    images = tensors["in/image"].repeat_interleave(texts.shape[1], dim=0)
    inputs = MeterInputs(texts.flatten(0, 1), masks.flatten(0, 1), (images,))
    return inputs, torch.zeros(len(ids), dtype=torch.long)
