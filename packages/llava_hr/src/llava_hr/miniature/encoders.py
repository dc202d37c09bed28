"""What the miniature starts from: encoders that classify shapes, and a language model that knows the words for them.

They stand for CLIP, ConvNeXt and Vicuna; every variant starts from the same ones. `llava_hr.miniature.pretraining` made
them, and `initialise(model)` puts them into a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llava_hr.data.mini_world import MiniScene, render_array
from llava_hr.image_processing import IMAGE_MEAN, IMAGE_STD
from tenfold import UserError

if TYPE_CHECKING:
    from llava_hr.modeling import LlavaHrForConditionalGeneration

# A file each. `vit_double` is the ViT for pictures of 168 pixels; the language model comes with its output matrix.
PARTS = ("convnext", "vit", "vit_double", "language_model")


def path() -> Path:
    """The folder of the pre-trained parts that ship."""
    return Path(__file__).parents[1] / "assets" / "mini_encoders"


def initialise(model: LlavaHrForConditionalGeneration, folder: str | Path | None = None) -> None:
    """Put the pre-trained encoders and language model into a miniature; projector, align and adapters stay as they are.

    Args:
        model: of `mini.mini_config`, with or without adapters.
        folder: what `pretrain` wrote; by default what ships.

    Raises:
        UserError: no such folder, or weights of another shape.
    """
    from llava_hr.vision import LlavaHrVisionTower

    state = weights(folder)
    tower = model.model.vision_tower
    if not isinstance(tower, LlavaHrVisionTower):
        raise UserError("cannot hold the pre-trained encoders", type(tower).__name__, "a LlavaHrVisionTower")
    for name, part in (("vit", tower.vit), ("convnext", tower.convnext)):
        load_part(part, state, name)
    load_language_model(model, state)


def load_language_model(model: LlavaHrForConditionalGeneration, state: dict[str, Tensor]) -> None:
    """The pre-trained decoder and its output matrix into a model."""
    load_part(model.model.language_model, state, "language_model")
    load_part(model.lm_head, state, "lm_head")


def weights(folder: str | Path | None = None) -> dict[str, Tensor]:
    """All pre-trained weights, float32, names with a part in front (`vit.`, `vit_double.`, `convnext.`, ...).

    Raises:
        UserError: a file is missing.
    """
    found: dict[str, Tensor] = {}
    for part in PARTS:
        file = Path(folder or path()) / f"{part}.safetensors"
        if not file.is_file():
            raise UserError("no such file", file, "a part of the miniature (python -m llava_hr.miniature.pretraining)")
        found |= {name: tensor.float() for name, tensor in load_file(file).items()}
    return found


def model_weights(folder: str | Path | None = None) -> dict[str, Tensor]:
    """The pre-trained weights of a whole model under its own names: all but projector, align and adapters."""
    places = {part: f"model.vision_tower.{part}" for part in ("vit", "convnext")}
    places |= {"language_model": "model.language_model", "lm_head": "lm_head"}
    named = [(name.partition("."), tensor) for name, tensor in weights(folder).items()]
    return {f"{places[part]}.{rest}": tensor for (part, _, rest), tensor in named if part in places}


def load_part(module: nn.Module, state: dict[str, Tensor], part: str) -> None:
    """Copy one part's weights into a module.

    Raises:
        UserError: other names or shapes.
    """
    own = {name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")}
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if {name: tensor.shape for name, tensor in own.items()} != expected:
        raise UserError(
            f"pre-trained weights of {part} do not fit", type(module).__name__, "the model of mini_config()"
        )
    with torch.no_grad():
        for name, parameter in module.state_dict().items():
            parameter.copy_(own[name])


def pixels(scenes: list[MiniScene]) -> Tensor:
    """Normalised pictures `[scenes, 3, 192, 192]`, as the processor makes them."""
    return normalise(torch.from_numpy(np.stack([render_array(one) for one in scenes])))


def normalise(images: Tensor) -> Tensor:
    """uint8 `[images, R, R, 3]` -> float32 `[images, 3, R, R]`."""
    values = images.permute(0, 3, 1, 2).float().div_(255)
    return values.sub_(torch.tensor(IMAGE_MEAN)[:, None, None]).div_(torch.tensor(IMAGE_STD)[:, None, None])
