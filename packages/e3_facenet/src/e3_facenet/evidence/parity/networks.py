"""Parity of the whole generator in evaluation mode, and of the discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from e3_facenet.camera import list_poses
from e3_facenet.checkpoints.keys import renamed
from e3_facenet.discriminator import resize_real
from e3_facenet.evidence.parity.cases import discriminator, generator, gradients, part, tolerance
from e3_facenet.losses import R1_GAMMA, offset_loss, r1_penalty, virtual_normals
from tenfold.ledger.goldens import Comparison


def synthesis_eval(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    near = tolerance(case)
    model = generator(case["config"], part(tensors, "weights/"))
    z, t, tokens, z_bg = (tensors[f"in/{name}"] for name in ("z", "t", "tokens", "z_bg"))
    model.alpha.fill_(1.0)  # the case sets the progressive state itself; its weights are of a fresh model
    ws = model.styles(z, t, psi=0.7)
    compare.close("ws", ws, tensors["out/ws_psi0.7"], near)
    pose = list_poses(tensors["in/uvr"][None, :2], model.config).expand(len(z), -1, -1)
    compare.close("pose", pose, tensors["out/world_mat"], near)
    made = model(ws, tokens, pose, z_bg)
    compare.close("picture", made.image, tensors["out/img"], near)
    n = model.config.nerf_resolution
    seen = made.volume.features.transpose(1, 2).unflatten(-1, (n, n))
    compare.close("features", seen[:, 3:], tensors["out/nerf_feat"], near)
    compare.close("rendered RGB", made.rgb, tensors["out/nerf_rgb"], near)
    compare.close("weights", made.volume.weights, tensors["out/fg_weights"], near)
    assert made.volume.bg_weights is not None
    compare.close("outer weights", made.volume.bg_weights, tensors["out/bg_weights"], near)
    compare.close("light", made.volume.light, tensors["out/bg_lambda"], near)
    compare.close("depths", made.volume.depths, tensors["out/fg_depths"], near)
    compare.close("mean |dw|", offset_loss(made.offsets), tensors["out/norm_delta_loss"], near)
    edited = model(ws, tensors["in/assist_tokens"], pose, z_bg, tokens, kept=0.5)
    compare.close("edited picture", edited.image, tensors["out/img_edit_alpha0.5"], near)
    other = list_poses(tensors["in/uvr2"][None, :2], model.config).expand(len(z), -1, -1)
    second = model(ws, tokens, other, z_bg)
    compare.close("second view", second.image, tensors["out/img_view2"], near)
    for name, found in (("delta_w", made), ("edit_delta_w", edited), ("delta_w_view2", second)):
        for level, dw in enumerate(found.offsets):
            compare.close(f"{name} {level}", dw[:, None], tensors[f"out/{name}.{level}"], near)
    compare.close("points", made.points, tensors["out/early_depth_points"], near)
    # A direction has no scale: where neighbouring points nearly coincide, float noise turns it.
    compare.close("normals", virtual_normals(made.points), tensors["out/early_depth_normal"], near)
    alone = model(ws, tokens, pose, None)
    compare.close("without background", alone.image, tensors["out/img_no_background"], near)
    # Two views at once: those of one face stand together.
    both = torch.stack([pose, other], dim=1).flatten(0, 1)
    views = model(ws, tokens, both, z_bg.repeat_interleave(2, dim=0)).image.unflatten(0, (len(z), 2))
    golden = torch.stack([tensors["out/img"], tensors["out/img_view2"]], dim=1)
    compare.close("both views at once", views, golden, near)
    for alpha in (0.6, 0.0):
        model.alpha.fill_(alpha)
        faded = model(ws, tokens, pose, z_bg).image
        compare.close(f"progressive {alpha}", faded, tensors[f"out/img_alpha{alpha}"], near)


def discriminate(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    near = tolerance(case)
    model = discriminator(case["config"], part(tensors, "weights/"))
    with torch.enable_grad():
        image = tensors["in/img"].requires_grad_()
        logits = model(image, tensors["in/t"])
        (gradient,) = torch.autograd.grad(logits[0].sum() + logits[1].sum(), image, retain_graph=True)
        penalty = r1_penalty(image, logits)
        found = gradients(penalty.mean() * R1_GAMMA / 2, model)
    compare.close("real", logits[0], tensors["out/gen_logits"], near)
    compare.close("match", logits[1], tensors["out/match_logits"], near)
    compare.close("R1 gradient", gradient, tensors["out/r1_grad"], near)
    compare.close("R1", penalty, tensors["out/r1_penalty"], near)
    norms = gradient_norms(found, case["parameter_names"], "discriminator")
    compare.close("gradient norms", norms, tensors["out/r1_param_grad_norms"], near)
    model.alpha.fill_(0.0)
    low = resize_real(tensors["in/img"], model.config.nerf_resolution)
    real, match = model(low, tensors["in/t"])
    compare.close("real, progressive 0", real, tensors["out/gen_logits_alpha0"], near)
    compare.close("match, progressive 0", match, tensors["out/match_logits_alpha0"], near)


def gradient_norms(found: Mapping[str, Tensor | None], names: list[str], network: str) -> Tensor:
    """Norms of gradients in the order of official names; 0 where there is none."""
    norms = []
    for name in names:
        ours = renamed(name, network)
        assert ours is not None
        gradient = found[ours]
        norms.append(torch.zeros([]) if gradient is None else gradient.norm())
    return torch.stack(norms)


COMPUTATIONS = {"synthesis_eval": synthesis_eval, "discriminator": discriminate}
