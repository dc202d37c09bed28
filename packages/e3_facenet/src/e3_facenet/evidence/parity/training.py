"""Parity of a training pass and of the four phases, with the reference's random numbers replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from e3_facenet.camera import gaussian_poses
from e3_facenet.evidence.parity.cases import discriminator, generator, gradients, part, tolerance
from e3_facenet.evidence.parity.modules import clip_model
from e3_facenet.evidence.parity.networks import gradient_norms
from e3_facenet.losses import (
    depth_loss,
    location_loss,
    offset_loss,
    released_regulariser,
)
from e3_facenet.training.phases import Faces, Step
from tenfold.ledger.goldens import Comparison

# What each of our draws is called in the recorded ones.
CONSUMERS = {
    "path pixels": "prepare_pixels_regularization",
    "foreground depths": "add_noise_to_interval",
    "foreground quantiles": "sample_pdf",
    "foreground density": "get_density",
    "background depths": "add_noise_to_interval",
    "background density": "get_density",
    "path-length picture": "accumulate_gradients",
}


class Replay:
    """Recorded draws of one phase, in order; the rolls that are drawn and multiplied by zero are passed over."""

    def __init__(self, tensors: Mapping[str, Tensor], phase: str) -> None:
        names = sorted(name for name in tensors if name.startswith(f"in/rng/{phase}."))
        self.left = [(name, tensors[name]) for name in names if ".get_roll." not in name]

    def _next(self, what: str, shape: Sequence[int]) -> Tensor:
        name, value = self.left.pop(0)
        if f".{CONSUMERS[what]}." not in name or value.shape != torch.Size(shape):
            raise RuntimeError(f"drew {what} {list(shape)}, recorded is {name} {list(value.shape)}")
        return value

    uniform = normal = _next


def train_step(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    near, c = tolerance(case), case["config"]
    encoder = clip_model(part(tensors, "weights/clip."), c["heads"])
    made_text, real_text = encoder(tensors["in/gen_token_ids"]), encoder(tensors["in/real_token_ids"])

    def step(phase: str) -> Step:
        return Step(
            generator(c, part(tensors, "weights/G.")).train(),
            discriminator(c, part(tensors, "weights/D.")).train(),
            encoder,
            regulariser="released",
            draws=Replay(tensors, phase),
        )

    def faces(model: nn.Module, count: int) -> Faces:
        pose = gaussian_poses(tensors["in/camera_mode_gaussian_uv"][:count], model.config)  # type: ignore[arg-type]
        text = type(made_text)(made_text.t[:count], made_text.tokens[:count])
        return Faces(tensors["in/z"][:count], text, pose, tensors["in/z_bg"][:count])

    batch = c["batch"]
    with torch.enable_grad():
        _forward(step("fwd"), faces, batch, tensors, compare, near)
        _generator_phases(case, step, faces, tensors, compare, near)
        _discriminator_phases(case, step, faces, tensors, real_text, compare, near)


def _forward(
    work: Step, faces: Any, batch: int, tensors: Mapping[str, Tensor], compare: Comparison, near: tuple[float, float]
) -> None:
    assert isinstance(work.draws, Replay)
    draws = work.draws.left
    recorded = list(draws)
    for _ in range(3):  # the reference's buffers moved three times
        draws[:] = recorded
        made = work.make(faces(work.generator, batch), train_mapping=False)
    compare.close("picture", made.image, tensors["out/train_fwd_img"], near)
    assert made.path_loss is not None
    compare.close("path", made.path_loss, tensors["out/nerf_path_reg_loss"], near)
    compare.close("offset", offset_loss(made.offsets), tensors["out/norm_delta_loss"], near)
    compare.close("regulariser v1", location_loss(made.points), tensors["out/smooth_loss_v1"], near)
    compare.close("regulariser v2", depth_loss(made.depth), tensors["out/smooth_loss_v2"], near)
    compare.close("regulariser v3", released_regulariser(made.points), tensors["out/smooth_loss_v3"], near)
    buffers = [value for name, value in work.generator.named_buffers() if name.endswith(".w_avg") and "conv" in name]
    compare.close("magnitudes", torch.stack(buffers), tensors["out/train_fwd_w_avg_after_3_fwds"], near)


def _generator_phases(
    case: Mapping[str, Any], step: Any, faces: Any, tensors: Mapping[str, Tensor], compare: Comparison,
    near: tuple[float, float],
) -> None:  # fmt: skip
    work, batch, names = step("Gmain"), case["config"]["batch"], case["parameter_names"]
    found = work.generator_main(faces(work.generator, batch))
    compare.close("Gmain", found.loss, tensors["out/Gmain.loss.Gmain"], near)
    parts = found.parts
    compare.close("Gmain regulariser", parts["regulariser"], tensors["out/Gmain.parts.G_smooth_loss"], near)
    compare.close("Gmain path", parts["path"], tensors["out/Gmain.parts.G_reg_loss"], near)
    compare.close("Gmain offset", parts["offset"], tensors["out/Gmain.parts.G_norm_delta_loss"], near)
    compare.close("Gmain clip", parts["clip"], tensors["out/Gmain.parts.clip_loss"], near)
    compare.close("Gmain real", found.logits[0][0], tensors["out/Gmain.parts.call0_gen_logits"], near)
    compare.close("Gmain match", found.logits[0][1], tensors["out/Gmain.parts.call0_match_logits"], near)
    gradient = gradients(found.loss, work.generator)
    norms = gradient_norms(gradient, names["Gmain"], "generator")
    compare.close("Gmain gradient norms", norms, tensors["out/Gmain.param_grad_norms"], near)
    for name, golden in part(tensors, "out/Gmain.grad.").items():
        from e3_facenet.checkpoints.keys import renamed

        ours = renamed(name, "generator")
        assert ours is not None
        value = gradient[ours]
        assert value is not None
        compare.close(f"Gmain gradient {name}", value, golden, near)
    average = work.generator.mapping.w_avg
    compare.close("average", average, tensors["out/Gmain.mapping_w_avg_after"], near)

    work = step("Greg")
    found = work.generator_path_length(faces(work.generator, batch // 2))
    compare.close("Greg", found.loss, tensors["out/Greg.loss.Gpl"], near)
    compare.close("Greg mean", work.path_length_mean, tensors["out/Greg.pl_mean_after"], near)
    norms = gradient_norms(gradients(found.loss, work.generator), names["Greg"], "generator")
    compare.close("Greg gradient norms", norms, tensors["out/Greg.param_grad_norms"], near)


def _discriminator_phases(
    case: Mapping[str, Any], step: Any, faces: Any, tensors: Mapping[str, Tensor], real_text: Any,
    compare: Comparison, near: tuple[float, float],
) -> None:  # fmt: skip
    work, batch, names = step("Dmain"), case["config"]["batch"], case["parameter_names"]
    found = work.discriminator_main(faces(work.generator, batch), tensors["in/real_img"], real_text)
    compare.close("Dgen", found.parts["made"].mean(), tensors["out/Dmain.loss.Dgen"], near)
    compare.close("Dreal", found.parts["real"].mean(), tensors["out/Dmain.loss.Dr1"], near)
    for call, logits in enumerate(found.logits):
        compare.close(f"Dmain real {call}", logits[0], tensors[f"out/Dmain.parts.call{call}_gen_logits"], near)
        compare.close(f"Dmain match {call}", logits[1], tensors[f"out/Dmain.parts.call{call}_match_logits"], near)
    norms = gradient_norms(gradients(found.loss, work.discriminator), names["Dmain"], "discriminator")
    compare.close("Dmain gradient norms", norms, tensors["out/Dmain.param_grad_norms"], near)

    work = step("Dreg")
    found = work.discriminator_r1(tensors["in/real_img"], real_text)
    compare.close("Dreg", found.loss, tensors["out/Dreg.loss.Dr1"], near)
    compare.close("Dreg real", found.logits[0][0], tensors["out/Dreg.parts.call0_gen_logits"], near)
    compare.close("Dreg match", found.logits[0][1], tensors["out/Dreg.parts.call0_match_logits"], near)
    norms = gradient_norms(gradients(found.loss, work.discriminator), names["Dreg"], "discriminator")
    compare.close("Dreg gradient norms", norms, tensors["out/Dreg.param_grad_norms"], near)


COMPUTATIONS = {"train_step": train_step}
