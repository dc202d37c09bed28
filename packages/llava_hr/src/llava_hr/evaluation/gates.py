"""How far the MR-Adapters open their gates: the cheapest picture of how much high resolution is used (section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llava_hr.vision import LlavaHrVisionTower
from tenfold import UserError


@dataclass(frozen=True)
class GateReport:
    """Gates of a batch of images.

    Attributes:
        layers: ViT layers, counted from one, after which an adapter stands: (6, 12, 18) in the published models.
        gates: signed gates in (-1, 1), ``[images, adapters]`` float32 on the CPU.
    """

    layers: tuple[int, ...]
    gates: Tensor

    @property
    def by_layer(self) -> dict[int, float]:
        """Mean |gate| over the images, per layer."""
        return dict(zip(self.layers, self.gates.abs().mean(dim=0).tolist(), strict=True))

    @property
    def by_image(self) -> list[float]:
        """Mean |gate| over the adapters, per image."""
        return self.gates.abs().mean(dim=1).tolist()


@torch.no_grad()
def gate_report(model: nn.Module, pixel_values: Tensor) -> GateReport:
    """Run the vision tower and report its gates.

    Args:
        model: a LLaVA-HR model, or its tower.
        pixel_values: normalised images, ``[images, 3, R, R]``.

    Raises:
        UserError: no tower with MR-Adapters in ``model``, or no image.
    """
    tower = next((module for module in model.modules() if isinstance(module, LlavaHrVisionTower)), None)
    if tower is None or not len(tower.adapters):
        raise UserError("no gates to report", type(model).__name__, "a LLaVA-HR model with MR-Adapters")
    if not len(pixel_values):
        raise UserError("no gates to report", "pixel_values", "at least one image")
    _, gates = tower(pixel_values.to(tower.align.fast_proj.weight.device), output_gates=True)
    per_group = len(tower.vit.encoder.layers) // tower.config.num_groups
    layers = tuple(per_group * (number + 1) for number in range(len(tower.adapters)))
    return GateReport(layers, gates.float().cpu())
