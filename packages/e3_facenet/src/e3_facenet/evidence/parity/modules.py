"""Parity of the parts: text encoder, mapping, enhancer, layers, cameras and rays, the two fields, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from e3_facenet.camera import gaussian_poses, list_poses, path_pixels, pixel_grid, pixel_rays
from e3_facenet.checkpoints.keys import clip_from_openai
from e3_facenet.config import GeneratorConfig
from e3_facenet.discriminator import Head
from e3_facenet.enhancer import StyleEnhancer
from e3_facenet.evaluation.scores import frechet_distance, kernel_distance
from e3_facenet.evidence.parity.cases import filled, generator_config, part, tolerance
from e3_facenet.generator import Mapping as MappingNetwork
from e3_facenet.layers import (
    EqualConv2d,
    EqualLinear,
    ModulatedConv,
    SynthesisConv,
    ToRGB,
    UpsamplingBlock,
    blur,
    blur_filter,
    downsample2d,
    lrelu,
    modulated_conv2d,
    upsample2d,
)
from e3_facenet.losses import offset_loss
from e3_facenet.nerf import Background, Foreground, outside_points, positional_encoding, resample, volume_weights
from e3_facenet.text import TextEncoder
from tenfold.ledger.goldens import Comparison

Case = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


def clip_model(weights: Mapping[str, Tensor], heads: int) -> TextEncoder:
    """A CLIP of the weights' own dimensions (one tower may be missing); vision heads by OpenAI's rule, width / 64."""
    from transformers import CLIPConfig, CLIPModel

    def layers(prefix: str) -> int:
        return len({name.split(".")[len(prefix.split(".")) - 1] for name in weights if name.startswith(prefix)})

    context, width = weights["positional_embedding"].shape
    vocabulary, projection = len(weights["token_embedding.weight"]), weights["text_projection"].shape[1]
    count = layers("transformer.resblocks.")
    text = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads,
            "num_hidden_layers": count, "max_position_embeddings": context, "vocab_size": vocabulary}  # fmt: skip
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1,
              "image_size": 8, "patch_size": 8}  # fmt: skip
    if "visual.proj" in weights:
        v_width, patch = weights["visual.conv1.weight"].shape[0], weights["visual.conv1.weight"].shape[-1]
        side = round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
        vision = {"hidden_size": v_width, "intermediate_size": 4 * v_width, "image_size": side * patch,
                  "num_attention_heads": max(v_width // 64, 1), "patch_size": patch,
                  "num_hidden_layers": layers("visual.transformer.resblocks.")}  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
    model = CLIPModel(config)
    missing, unexpected = model.load_state_dict(clip_from_openai(weights), strict=False)
    absent = [name for name in missing if "vision" not in name and "visual" not in name and "position_ids" not in name]
    if unexpected or absent or ("visual.proj" in weights and missing):
        raise RuntimeError(f"CLIP weights: {unexpected or absent or missing}")
    return TextEncoder(model)


def text_encoder(case: Case, tensors: Tensors, compare: Comparison) -> None:
    encoder = clip_model(part(tensors, "weights/"), case["config"]["heads"])
    text = encoder(tensors["in/token_ids"])
    compare.close("global vector", text.t, tensors["out/text_embeds"], tolerance(case))
    compare.close("token states", text.tokens, tensors["out/token_states"], tolerance(case))


def mapping(case: Case, tensors: Tensors, compare: Comparison) -> None:
    c, near = case["config"], tolerance(case)

    def network(prefix: str, z_dim: int | None, d_out: int) -> MappingNetwork:
        module = MappingNetwork(z_dim, c["t_dim"], d_out, c["map_layers"])
        weights = {name.replace("fc", "layers."): value for name, value in part(tensors, prefix).items()}
        return filled(module, weights)

    ours = network("weights/G.mapping.", c["z_dim"], c["w_dim"])
    z, t = tensors["in/z"], tensors["in/t"]
    w = ours(z, t)[:, None].repeat(1, c["num_ws"], 1)
    compare.close("ws", w, tensors["out/ws"], near)
    for name, cutoff in (("out/ws_psi0.7", None), ("out/ws_psi0.7_cutoff2", 2)):
        cut = w.clone()
        cut[:, :cutoff] = ours.w_avg + 0.7 * (cut[:, :cutoff] - ours.w_avg)
        compare.close(name, cut, tensors[name], near)
    compare.close("cmap", network("weights/D.mapping.", None, c["cmap"])(None, t), tensors["out/cmap"], near)
    ours.train()(z, t)
    compare.close("average", ours.w_avg, tensors["out/w_avg_after_one_train_step"], near)


def sce(case: Case, tensors: Tensors, compare: Comparison) -> None:
    c, near = case["config"], tolerance(case)
    config = GeneratorConfig(w_dim=c["w_dim"], token_dim=c["tok_dim"], heads=c["heads"], head_dim=c["dim_head"])
    names = {"attn.norm1.": "norm.", "attn.attn.to_out.0.": "to_out.", "attn.attn.": "", "offset.conv.": "squeeze.",
             "offset.mapping.": "offset."}  # fmt: skip
    weights = {}
    for name, value in part(tensors, "weights/b_").items():
        old = next(start for start in names if name.startswith(start))
        weights[names[old] + name.removeprefix(old)] = value
    enhancer = filled(StyleEnhancer(c["C"], c["r"], config), weights)
    x, tokens, other = tensors["in/x"].requires_grad_(), tensors["in/tokens"], tensors["in/assist_tokens"]
    compare.close("fused", enhancer.fuse(x, tokens), tensors["out/fused"], near)
    for folded in (False, True):
        with torch.enable_grad():
            dw, assist = enhancer(x, tokens, folded), enhancer(x, other, folded)
            loss = offset_loss((dw, assist))
            wanted = (x, enhancer.to_q.weight, enhancer.norm.weight, enhancer.offset.weight)
            found = torch.autograd.grad(loss, wanted)
        form = "folded" if folded else "plain"
        compare.close(f"{form} dw", dw[:, None], tensors["out/delta_w"], near)
        compare.close(f"{form} assist dw", assist[:, None], tensors["out/assist_delta_w"], near)
        compare.close(f"{form} mixture", (0.7 * dw + 0.3 * assist)[:, None], tensors["out/delta_w_alpha0.3"], near)
        compare.close(f"{form} loss", loss, tensors["out/norm_delta_loss"], near)
        for name, gradient in zip(("x", "to_q", "norm1_weight", "mapping_weight"), found, strict=True):
            compare.close(f"{form} grad {name}", gradient, tensors[f"out/grad_{name}"], near)


def layers(case: Case, tensors: Tensors, compare: Comparison) -> None:
    near, x, ws, w_dim = tolerance(case), tensors["in/x"], tensors["in/ws"], case["config"]["w_dim"]

    def weights(prefix: str) -> dict[str, Tensor]:
        return part(tensors, f"weights/{prefix}.")

    compare.close("filter", blur_filter(), tensors["out/filter_1331"], near)
    compare.close("filter2d", blur(x, 2, 1), tensors["out/filter2d"], near)
    compare.close("upsample2d", upsample2d(x), tensors["out/upsample2d"], near)
    compare.close("downsample2d", downsample2d(x), tensors["out/downsample2d"], near)
    biased = lrelu(x + tensors["in/b"][:, None, None], gain=2**0.5 * 0.5, clamp=0.4)
    compare.close("lrelu", biased, tensors["out/lrelu_clamp"], near)
    padding = tensors["in/w"].shape[-1] // 2
    fused = modulated_conv2d(x, tensors["in/w"], tensors["in/styles"], padding)
    compare.close("modulated, fused", fused, tensors["out/modconv_fused"], near)
    unfused = modulated_conv2d(x, tensors["in/w"], tensors["in/styles"], padding, fused=False)
    compare.close("modulated, unfused", unfused, tensors["out/modconv_unfused"], near)
    plain = modulated_conv2d(x, tensors["in/w"], tensors["in/styles"], padding, demodulate=False)
    compare.close("not demodulated", plain, tensors["out/modconv_nodemod"], near)

    d_out, d_in, kernel, _ = tensors["weights/conv_down.weight"].shape
    down = filled(EqualConv2d(d_in, d_out, kernel, down=True, activation="lrelu"), weights("conv_down"))
    compare.close("conv down", down(x), tensors["out/conv_down"], near)
    d_out, d_in = tensors["weights/style2.weight"].shape[:2]
    style2 = filled(ModulatedConv(d_in, d_out, w_dim), weights("style2"))
    compare.close("style layer", lrelu(style2(x, ws[:, 0])), tensors["out/style2"], near)
    torgb = filled(ToRGB(d_in, w_dim), weights("torgb"))
    compare.close("to RGB", torgb(x, ws[:, 1]), tensors["out/torgb"], near)
    fc = filled(EqualLinear(w_dim, len(tensors["weights/fc.bias"]), "lrelu", lr=0.01), weights("fc"))
    compare.close("fully connected", fc(ws[:, 0]), tensors["out/fc"], near)

    d_out, d_in = tensors["weights/synth.weight"].shape[:2]
    synth = filled(SynthesisConv(d_in, d_out, w_dim, up=True), weights("synth"))
    compare.close("pixel shuffle", synth(x, ws[:, 0]), tensors["out/synth_up2"], near)
    compare.close("without it", synth(x, ws[:, 0], skip_up=True), tensors["out/synth_skip_up"], near)
    synth.train()(x, ws[:, 0])
    compare.close("magnitude", synth.w_avg, tensors["out/synth_w_avg_after_train_fwd"], near)

    block = filled(UpsamplingBlock(d_in, d_out, w_dim), weights("block"))
    features, image = block(x, ws[:, :3])
    compare.close("block", features, tensors["out/block_x"], near)
    compare.close("block's picture", image, tensors["out/block_img"], near)
    skipped = upsample2d(x[:, :3]) + image
    compare.close("block's picture with a skip", skipped, tensors["out/block_img_with_residual"], near)
    features, image = block(x, ws[:, :3], skip_up=True)
    compare.close("block without up", features, tensors["out/block_x_skip_up"], near)
    compare.close("its picture", image, tensors["out/block_img_skip_up"], near)

    channels, d_out = tensors["in/epi_x"].shape[1], tensors["in/epi_cmap"].shape[1]
    head = filled(Head(channels, d_out, 2), weights("epilogue"))
    match = head(tensors["in/epi_x"], tensors["in/epi_img"], tensors["in/epi_cmap"])
    compare.close("matching head", match, tensors["out/epilogue_match"], near)


def camera(case: Case, tensors: Tensors, compare: Comparison) -> None:
    c, near = case["config"], tolerance(case)
    yaw, pitch = c["range_u"][1], (c["range_v"][1] - c["range_v"][0]) / 2
    near_plane, far = c["depth_range"]
    config = GeneratorConfig(
        resolution=c["img"], nerf_resolution=c["vol"], ray_samples=c["n"], bg_samples=c["nb"], path_rays=c["n_reg"],
        fov=c["fov"], yaw=yaw, pitch=pitch, near=near_plane, far=far, bg_start=c["bg_start"], channel_base=1 << 12,
    )  # fmt: skip
    listed = list_poses(tensors["in/uvr_list"][:, :2], config)
    compare.close("list", listed, tensors["out/world_mat_list"], near)
    units = tensors["in/mode_tensor"]
    compare.close("gaussian", gaussian_poses(units, config), tensors["out/world_mat_gaussian"], near)
    compare.close("uniform", list_poses(units, config), tensors["out/world_mat_force_uniform"], near)
    drawn = list_poses(tensors["out/random_mode"][:, :2], config)
    compare.close("random", drawn, tensors["out/random_world_mat"], near)

    pixels = pixel_grid(config.resolution, config.nerf_resolution)
    batch = len(tensors["out/vol_pixels"])
    compare.close("pixels", pixels.expand(batch, -1, -1), tensors["out/vol_pixels"], near)
    position, rays = pixel_rays(pixels, listed[2 : 2 + batch], config)
    compare.close("camera", position.expand_as(rays), tensors["out/camera_world"], near)
    compare.close("rays", rays, tensors["out/ray_vector"], near)
    compare.close("points at depth 1", position + rays, tensors["out/pixels_world"], near)
    depths = near_plane + (far - near_plane) * torch.linspace(0, 1, c["n"]).expand(*rays.shape[:2], -1)
    compare.close("depths", depths, tensors["out/di_trs"], near)
    points = (position[:, :, None] + depths[..., None] * rays[:, :, None]).flatten(1, 2)
    compare.close("points", points, tensors["out/fg_points"], near)
    inverse = -torch.linspace(-1, 0, c["nb"]).expand(*rays.shape[:2], -1) * c["bg_start"]
    outside = outside_points(position, rays, inverse).flatten(1, 2)
    compare.close("points outside", outside, tensors["out/bg_points"], near)

    lengths = rays.norm(dim=-1, keepdim=True)
    weights, light = volume_weights(tensors["in/sigma"].relu(), depths, lengths, open_end=False)
    compare.close("weights", weights, tensors["out/fg_weights"], near)
    compare.close("light", light, tensors["out/bg_lambda"], near)
    open_weights, _ = volume_weights(tensors["in/sigma"].relu(), depths, lengths, open_end=True)
    compare.close("open weights", open_weights, tensors["out/weights_inf_last"], near)
    one = torch.ones_like(lengths)
    outer, _ = volume_weights(tensors["in/sigma_bg"].relu(), -inverse, one, open_end=True)
    compare.close("outer weights", outer, tensors["out/bg_weights"], near)
    unit = torch.linspace(0, 1, c["n"]).expand_as(depths)
    compare.close("fine depths", resample(unit, weights, unit), tensors["out/di_fine"], near)
    encoded = positional_encoding(points[:, :5])
    compare.close("positions", encoded, tensors["out/posenc10"], near)
    chosen, places = path_pixels(tensors["in/reg_u"], config.resolution, config.path_rays)
    compare.close("path pixels", chosen, tensors["out/reg_pixels"], near)
    compare.equal("path places", places, tensors["out/reg_indices"])


def nerf_blocks(case: Case, tensors: Tensors, compare: Comparison) -> None:
    near, config = tolerance(case), generator_config(case["config"])
    names = {"fc_in.": "layers.0.", "sigma_out.": "sigma.", "feat_out.": "feature.", "to_rgb.": "to_rgb."}

    def renamed(prefix: str) -> dict[str, Tensor]:
        found = {}
        for name, value in part(tensors, prefix).items():
            if name.startswith("blocks."):
                number, _, rest = name.removeprefix("blocks.").partition(".")
                found[f"layers.{int(number) + 1}.{rest}"] = value
            else:
                old = next(start for start in names if name.startswith(start))
                found[names[old] + name.removeprefix(old)] = value
        return found

    samples = tensors["in/points"].shape[1] // 15
    assert samples * 15 == tensors["in/points"].shape[1]
    rows = (3, 5)
    ours = filled(Foreground(config), renamed("weights/fg_nerf."))
    rgb, feature, sigma = ours(tensors["in/points"], tensors["in/ws"], rows)
    compare.close("foreground", torch.cat([rgb, feature], -1), tensors["out/fg_feat"], near)
    compare.close("its density", sigma[..., None], tensors["out/fg_sigma_raw"], near)
    outer = filled(Background(config), renamed("weights/bg_nerf."))
    rgb, feature, sigma = outer(tensors["in/bg_points"], tensors["in/z_bg"], rows)
    compare.close("background", torch.cat([rgb, feature], -1), tensors["out/bg_feat"], near)
    compare.close("its density", sigma[..., None], tensors["out/bg_sigma_raw"], near)


def metrics(case: Case, tensors: Tensors, compare: Comparison) -> None:
    near = tolerance(case)
    real, made = tensors["in/real_features"].numpy(), tensors["in/gen_features"].numpy()
    compare.close("FID", frechet_distance(real, made), tensors["out/fid"], near)
    compare.close("KID", kernel_distance(real, made, subsets=10, size=40, seed=101), tensors["out/kid"], near)
    mean, covariance = torch.from_numpy(real).double().mean(0), torch.from_numpy(real).double().T.cov(correction=0)
    compare.close("mean", mean, tensors["out/real_mean"], near)
    compare.close("covariance", covariance, tensors["out/real_cov"], near)


COMPUTATIONS = {
    "text_encoder": text_encoder,
    "mapping": mapping,
    "sce": sce,
    "layers": layers,
    "camera": camera,
    "nerf_blocks": nerf_blocks,
    "metrics": metrics,
}
