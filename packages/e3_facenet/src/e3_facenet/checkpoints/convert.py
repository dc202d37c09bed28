"""Official release to a folder of this package, and back to official names."""

from __future__ import annotations

from pathlib import Path

from e3_facenet.checkpoints.keys import to_official
from e3_facenet.checkpoints.load import DISCRIMINATOR, load_official
from e3_facenet.config import GeneratorConfig
from e3_facenet.facenet import (
    CONFIG,
    MODEL_TYPE,
    WEIGHTS,
    local_folder,
    read_state,
    save_state,
)
from e3_facenet.text import OFFICIAL_CLIP, model_card
from tenfold import UserError
from tenfold.runs import atomic_directory, atomic_write_json, atomic_write_text, read_json

OFFICIAL = "official.safetensors"


def convert(source: str | Path, output: str | Path, clip: str | None = None, heads: int = 8) -> GeneratorConfig:
    """An official release into a new folder that `E3FaceNet.from_pretrained` opens.

    Args:
        source: the official pickle, or safetensors with official names. clip: what config.json names as text encoder;
            default: OpenAI's ViT-B/32, which the release was trained with. heads: of the enhancers.

    Raises:
        UserError: as `load_official`; the folder exists.
    """
    generator, discriminator = load_official(source, heads)
    values = {"model_type": MODEL_TYPE, "generator": generator.config.to_json(), "clip": clip or OFFICIAL_CLIP}
    with atomic_directory(output) as folder:
        save_state(generator.state_dict(), folder / WEIGHTS)
        if discriminator is not None:
            save_state(discriminator.state_dict(), folder / DISCRIMINATOR)
            values["discriminator"] = discriminator.config.to_json()
        atomic_write_json(folder / CONFIG, values)
        atomic_write_text(folder / "README.md", model_card("Converted from the authors' release."))
    return generator.config


def convert_back(source: str | Path, output: str | Path) -> Path:
    """A folder of this package into a new folder with `official.safetensors`: official names, G_ema.* and D.*.

    The official code loads it by ``G.load_state_dict``; a pickle of its own holds its source, which is not ours to
    write.

    Raises:
        UserError: not a folder of this package; the output exists.
    """
    folder = local_folder(source)
    if (read_json(folder / CONFIG) or {}).get("model_type") != MODEL_TYPE:
        raise UserError("not an E3-FaceNet", folder / CONFIG, f'"model_type": "{MODEL_TYPE}"')
    state = {f"G_ema.{name}": t for name, t in to_official(read_state(folder / WEIGHTS), "generator").items()}
    if (folder / DISCRIMINATOR).is_file():
        second = to_official(read_state(folder / DISCRIMINATOR), "discriminator")
        state |= {f"D.{name}": tensor for name, tensor in second.items()}
    with atomic_directory(output) as made:
        save_state(state, made / OFFICIAL)
    return Path(output) / OFFICIAL
