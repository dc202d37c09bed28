"""Golden cases of the network: the image encoder of every variant, and whole nets with their first training steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dit_sam.checkpoints.keys import from_official, official, ours, unused_shapes, without_prefix
from dit_sam.config import DITConfig
from dit_sam.image_encoder import ImageEncoder
from dit_sam.model import DITSam, mask_loss
from dit_sam.training.schedule import Average, warm_cosine_rate
from tenfold import UserError
from tenfold.ledger.goldens import Comparison

Case = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


def _weights(tensors: Tensors) -> dict[str, Tensor]:
    return without_prefix(tensors, "weights/")


def _load(module: nn.Module, state: Mapping[str, Tensor], case: Case) -> None:
    """All golden weights into a module, none missing and none left."""
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise UserError(f"golden weights do not fit: {error}", case["case"], "those of this model") from error


def encoder_config(case: Case, weights: Tensors) -> DITConfig:
    """The dimensions of an encoder case; those of cross attention stand in its weights and its description."""
    given = case["config"]
    variant = given["variant"].lower()
    values = {
        "variant": "default" if variant.startswith("default") else variant,
        "width": given["embed_dim"],
        "depth": given["depth"],
        "heads": given["num_heads"],
        "mlp_ratio": float(given["mlp_ratio"]),
        "patch_size": given["patch_size"],
        "native_size": given["img_size"],
        "window_size": given["window_size"],
        "global_blocks": tuple(given["global_attn_indexes"]),
        "input_size": given["patch_size"],
        "prompt_width": given["out_chans"],
        "text_width": given["embed_dim"],
        "text_heads": 1,
        "text_length": given["text_len"],
    }
    queries = next((w for name, w in weights.items() if name.endswith("linear_q.weight")), None)
    if queries is not None:
        inner = next((w for name, w in weights.items() if name.endswith("mlp.fc.linear.weight")), queries)
        values |= {"cross_width": len(queries), "cross_heads": _cross_heads(case), "cross_mlp": len(inner)}
    if "prob_text.weight" in weights:
        values["text_width"] = weights["prob_text.weight"].shape[1]
    return DITConfig(**values)


def _cross_heads(case: Case) -> int:
    """Heads of the cross attention: in the config, or in "widths ... were replaced by WIDTH / INNER / HEADS"."""
    for name in ("cross_heads", "mha_heads", "multi_head"):
        if name in case["config"]:
            return int(case["config"][name])
    found = re.search(r"replaced by \d+ / \d+ / (\d+)", case["what"])
    if found is None:
        raise UserError("does not say its heads of cross attention", case["case"], "cross_heads in its config")
    return int(found.group(1))


def _encoder(case: Case, tensors: Tensors, compare: Comparison) -> None:
    """Text slots and tokens at every block, and the neck; the way without text outputs too, where it exists."""
    weights = _weights(tensors)
    encoder = ImageEncoder(encoder_config(case, weights)).eval()
    named = from_official({f"visual_encoder.{name}": w for name, w in weights.items()})
    _load(encoder, without_prefix(named, "image_encoder."), case)
    text = tensors.get("in/text")
    patches = encoder.patches(tensors["in/image"])

    def trace(block: int, entering: Tensor, left: Tensor) -> None:
        golden = tensors[f"out/block{block}_out"]
        if text is not None:
            compare.close(f"text into block {block}", entering, tensors[f"out/block{block}_text_in"], "encoder")
        compare.close(f"block {block}", left.reshape(golden.shape), golden, "encoder")

    compare.close(
        "neck, every token computed", encoder.encode(patches, text, trace=trace), tensors["out/neck"], "encoder"
    )
    compare.close("neck", encoder(tensors["in/image"], text), tensors["out/neck"], "encoder")
    with torch.enable_grad():  # the other way of attention
        compare.close("neck, with gradients", encoder(tensors["in/image"], text), tensors["out/neck"], "encoder")


def net_config(case: Case) -> DITConfig:
    """The dimensions of a net case."""
    given = case["config"]
    decoder, bert = given["decoder"], given["bert"]
    variant = given["net"].lower()
    return DITConfig(
        variant="default" if variant.startswith("default") else variant,
        width=given["embed_dim"],
        depth=given["depth"],
        heads=given["num_heads"],
        mlp_ratio=float(given.get("mlp_ratio", 4)),
        patch_size=given["patch_size"],
        native_size=given["img_size"],
        window_size=given["window_size"],
        global_blocks=tuple(given["global_attn_indexes"]),
        input_size=given["input_size"],
        prompt_width=given["prompt_dim"],
        mask_channels=given["mask_in_chans"],
        decoder_depth=decoder["depth"],
        decoder_heads=decoder["heads"],
        decoder_mlp=decoder["mlp_dim"],
        decoder_downsample=decoder["attention_downsample_rate"],
        mask_outputs=decoder["num_multimask_outputs"],
        iou_depth=decoder["iou_head_depth"],
        iou_width=decoder["iou_head_hidden_dim"],
        words=bert["vocab"],
        text_width=bert["hidden"],
        text_depth=bert["layers"],
        text_heads=bert["heads"],
        text_mlp=bert["inter"],
        text_positions=bert["maxpos"],
        text_norm_eps=bert["layer_norm_eps"],
        text_layer=bert["used_layer_output"],
        text_length=given["text_len"],
        dropout=given["dropout"],
    )


def golden_net(case: Case, tensors: Tensors) -> DITSam:
    """The net of a case with its weights; what nothing uses must be there in its shape."""
    model = DITSam(net_config(case))
    weights = _weights(tensors)
    unused = {name: tuple(w.shape) for name, w in weights.items() if ours(name) is None}
    if unused != unused_shapes(model.config):
        raise UserError("other unused weights than expected", case["case"], str(unused_shapes(model.config)))
    _load(model, from_official(weights), case)
    return model


def _net(case: Case, tensors: Tensors, compare: Comparison) -> None:
    model = golden_net(case, tensors).eval()
    _net_forward(model, tensors, compare)
    if "training" in case:
        with torch.enable_grad():
            _net_training(model.train(), case, tensors, compare)


def _net_forward(model: DITSam, tensors: Tensors, compare: Comparison) -> None:
    ids, mask, image = tensors["in/input_ids"], tensors["in/attention_mask"], tensors["in/image"]
    text = model.encode_text(ids, mask)
    embedding = model.encode_image(model.image_encoder.patches(image), text)
    output = model(image, ids, mask)
    grid = (embedding.shape[2], embedding.shape[3])
    for name, ours_, key in (
        ("text", text.features, "text"),
        ("sparse prompts", text.prompts, "sparse"),
        ("image embedding", embedding, "image_embedding"),
        ("dense positions", model.prompt_encoder.dense_positions(grid), "dense_pe"),
        ("low-res logits", output.low_res, "low_res_logits"),
        ("logits", output.logits, "logits"),
        ("IoU head", output.iou_head, "iou_pred"),
    ):
        compare.close(name, ours_, tensors[f"out/{key}"], "forward")
    # The mask may differ only where the golden probability lies on the threshold.
    threshold = model.config.threshold
    clear = (tensors["out/logits"][:, 0].sigmoid() - threshold).abs() >= 1e-4
    predicted = output.logits[:, 0].sigmoid() > threshold
    compare.equal("mask", predicted[clear], tensors["out/mask_eval"].bool()[clear])
    # The text mask marks padding.
    compare.equal("padding", ~mask.bool(), tensors["out/text_mask"].bool().reshape(mask.shape))


def _net_training(model: DITSam, case: Case, tensors: Tensors, compare: Comparison) -> None:
    """The first steps in the authors' order: backward, clip, Adam, schedule, average."""
    rule = case["training"]
    rates = []
    optimizer = torch.optim.Adam(model.parameters(), lr=rule["lr"], betas=tuple(rule["betas"]), eps=rule["eps"])
    average = Average(model, rule["ema_alpha"])
    per_epoch = rule["iters_per_epoch"]
    for step in range(rule["steps"]):
        learning_rate = warm_cosine_rate(
            step,
            rule["epochs"] * per_epoch,
            rule["warmup_epochs"] * per_epoch,
            rule["lr"],
            rule["min_lr"],
            rule["warmup_lr"],
        )
        rates.append(learning_rate)
        optimizer.param_groups[0]["lr"] = learning_rate
        output = model(tensors["in/image"], tensors["in/input_ids"], tensors["in/attention_mask"])
        loss = mask_loss(output.logits, tensors["in/seg_label"])
        compare.close(f"loss of step {step}", loss, tensors["out/losses"][step], "losses")
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            _gradients(model, case, tensors, compare)
        norm = nn.utils.clip_grad_norm_(model.parameters(), rule["grad_norm_clip"])
        if step == 0:
            # The norm before clipping, of all gradients: within the tolerance of gradients.
            golden = tensors["out/grad_norm_before_clip"].flatten()[0]
            compare.close("gradient norm", norm, golden, (0.0, 5e-4))
        optimizer.step()
        average.update()
    compare.close("learning rates", torch.tensor(rates, dtype=torch.float64), tensors["out/lrs"], "rates")
    state = model.state_dict()
    for kind, values in (("after", state), ("ema", average.shadow)):
        for name, golden in without_prefix(tensors, f"out/{kind}/").items():
            own = ours(name)
            assert own is not None
            difference = (values[own].double() - golden.double()).abs()
            compare.within(f"{name} {kind}", values[own], golden, torch.full_like(difference, 3e-5), "3e-5")
            compare.equal(
                f"{name} {kind}, 99.5 % within 2e-6", bool((difference <= 2e-6).double().mean() >= 0.995), True
            )


def _gradients(model: DITSam, case: Case, tensors: Tensors, compare: Comparison) -> None:
    """Selected gradients entry by entry, the norms of all, and which weights get none."""
    gradients = {official(name): weight.grad for name, weight in model.named_parameters()}
    for name, golden in without_prefix(tensors, "out/grad/").items():
        allowed = torch.full_like(golden, 5e-4 * golden.abs().max().item(), dtype=torch.float64)
        compare.within(f"gradient of {name}", gradients[name], golden, allowed, "5e-4 of the largest")
    golden_norms = {name: norm or 0.0 for name, norm in case["grad_norms_step0"].items() if ours(name) is not None}
    largest = max(golden_norms.values())
    for name, golden_norm in golden_norms.items():
        gradient = gradients[name]
        norm = 0.0 if gradient is None else gradient.norm().item()
        # Gradients that are zero in theory are rounding noise here as there.
        noise = golden_norm < 1e-6 * largest
        compare.close(f"norm of the gradient of {name}", norm, golden_norm, (1e-6 * largest if noise else 0.0, 5e-4))
    # A weight that cannot change the mask has no gradient here; there it has none, or zeros.
    without = {name for name, gradient in gradients.items() if gradient is None or not gradient.any()}
    theirs = {*case["parameters_without_gradient"], *case["parameters_with_zero_gradient"]}
    compare.equal("weights without gradient", sorted(without), sorted(name for name in theirs if ours(name)))


COMPUTATIONS = {"encoder": _encoder, "net": _net}
