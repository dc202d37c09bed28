"""Text to a face from any side, and a second sentence that changes it, in one pass each (sections 3.1 and 3.4).

    face = E3FaceNet.from_pretrained("e3-facenet-512")
    portrait = face.generate("The woman has wavy hair.", cameras=five_views(), seed=2)
    edited = face.edit(portrait, "This person has beard.", strength=0.5)
Editing changes the style codes of the upsampler alone: the radiance field, and with it depth, normals and mesh, is that
of the first caption at any strength.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from e3_facenet.camera import cameras_json, five_views
from e3_facenet.config import GeneratorConfig
from e3_facenet.generator import Generator
from e3_facenet.losses import virtual_normals
from e3_facenet.text import Text, TextEncoder, load_text_encoder, model_card
from tenfold import UserError
from tenfold.runs import atomic_directory, atomic_write_json, atomic_write_text, read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL_TYPE = "e3_facenet"
CONFIG, WEIGHTS, CLIP = "config.json", "model.safetensors", "clip"
# The official renderer's: of style codes and of the background code.
PSI, BG_TEMPERATURE = 0.7, 0.65


@dataclass(frozen=True)
class Face:
    """What a face is made from; edits keep it.

    Attributes:
        caption, seed: as given. ws: [1, num_ws, w_dim]. z_bg: [1, bg_dim], or None without background.
        text: the caption's encoding. edits: (caption, strength) of every edit so far.
    """

    caption: str
    seed: int
    ws: Tensor
    z_bg: Tensor | None
    text: Text
    edits: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Portrait:
    """One face from V cameras.

    Attributes:
        images: [V, 3, R, R] float32, nominally in [-1, 1]. cameras: [V, 4, 4].
        depth: [V, n, n] z-depth of the rendering's grid; open background goes to 0.
        points: [V, 3, n, n] world points at that depth. opacity: [V, n, n] light that the face keeps from the
            background. rgb: [V, 3, n, n], the field's own small picture.
        face: what it was made from. fov: degrees.
    """

    images: Tensor
    cameras: Tensor
    depth: Tensor
    points: Tensor
    opacity: Tensor
    rgb: Tensor
    face: Face
    fov: float = 12.0

    @property
    def normals(self) -> Tensor:
        """Virtual normals of the points: [V, 3, n - 2, n - 2] in world axes."""
        return virtual_normals(self.points)

    def uint8(self) -> NDArray[np.uint8]:
        """Pictures as the official script stores them, x 127.5 + 128 clamped: [V, R, R, 3]."""
        return (self.images * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def pil(self) -> list[Image.Image]:
        """Pictures."""
        return [Image.fromarray(picture) for picture in self.uint8()]

    def cameras_json(self) -> dict[str, Any]:
        """Intrinsics and poses in OpenGL and OpenCV axes (see `camera.cameras_json`)."""
        return cameras_json(self.cameras.cpu(), self.images.shape[-1], self.fov)

    def point_cloud(self, least: float = 0.5) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """World points [N, 3] and colours [N, 3] of all views where the face is at least so opaque."""
        n = self.depth.shape[-1]
        small = F.interpolate(self.images, size=(n, n), mode="nearest")
        colours = (small * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        seen = (self.opacity >= least).flatten()
        flat = [part.permute(0, 2, 3, 1).reshape(-1, 3)[seen].cpu().numpy() for part in (self.points, colours)]
        return flat[0].astype(np.float32), flat[1]

    def png_metadata(self) -> PngInfo:
        """What every saved picture says of itself: generated, from which words, and whether edited."""
        info = PngInfo()
        info.add_text("Software", "e3_facenet")
        info.add_text("AI-generated", "yes: this face is synthetic")
        info.add_text("Caption", self.face.caption)
        info.add_text("Seed", str(self.face.seed))
        if self.face.edits:
            info.add_text("Edited", json.dumps(self.face.edits))
        return info

    def save(self, folder: str | Path) -> list[Path]:
        """Write view-0.png, ... with metadata, depth.npy, normals.npy and cameras.json into a new folder."""
        folder = Path(folder)
        names = [f"view-{number}.png" for number in range(len(self.images))]
        with atomic_directory(folder) as temporary:
            for name, picture in zip(names, self.pil(), strict=True):
                picture.save(temporary / name, pnginfo=self.png_metadata())
            np.save(temporary / "depth.npy", self.depth.cpu().numpy())
            np.save(temporary / "normals.npy", self.normals.cpu().numpy())
            atomic_write_json(temporary / "cameras.json", self.cameras_json())
        return [folder / name for name in names]


def official_noise(seed: int, z_dim: int) -> Tensor:
    """The official script's noise of a seed: numpy's RandomState; [1, z_dim]."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed}", "seed", "0 to 2^32 - 1")
    return torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim)).float()


def official_background(seed: int, bg_dim: int, temperature: float = BG_TEMPERATURE, redraw: int = 0) -> Tensor:
    """The official script's background code of a seed: the second of every two draws counts; [1, bg_dim].

    Args:
        redraw: 0 of the first rendering; 1 of the edited one, whose background the official script draws anew.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(1, bg_dim, generator=generator) for _ in range(4 * redraw + 2)]
    return draws[-1] * temperature


class E3FaceNet(nn.Module):
    """The generator with its text encoder.

    Args:
        generator: with released or trained weights. encoder: CLIP and tokenizer.
        clip_name: where the encoder comes from, when it is not saved along.
    """

    def __init__(self, generator: Generator, encoder: TextEncoder, clip_name: str | None = None) -> None:
        super().__init__()
        self.generator = generator.eval()
        self.generator.channels_last()
        self.encoder = encoder
        self.clip_name = clip_name

    @property
    def config(self) -> GeneratorConfig:
        return self.generator.config

    @property
    def device(self) -> torch.device:
        return self.generator.alpha.device

    def train(self, mode: bool = True) -> E3FaceNet:
        """For inference only, stays in evaluation mode; `e3-facenet train` trains."""
        return super().train(False)

    def face(
        self,
        caption: str,
        seed: int = 0,
        psi: float = PSI,
        cutoff: int | None = None,
        temperature: float = BG_TEMPERATURE,
        background: bool = True,
    ) -> Face:
        """The codes of a face: everything but the cameras. Arguments as `generate`'s."""
        if not isinstance(psi, (int, float)) or not -2 <= psi <= 2:
            raise UserError(f"psi {psi}", "truncation", "a number from -2 to 2")
        with torch.no_grad():
            text = self.encoder([caption]).to(self.device)
            z = official_noise(seed, self.config.z_dim).to(self.device)
            ws = self.generator.styles(z, text.t, psi, cutoff)
        z_bg = official_background(seed, self.config.bg_dim, temperature).to(self.device) if background else None
        return Face(caption, seed, ws, z_bg, text)

    def generate(
        self,
        text: str,
        cameras: Tensor | None = None,
        seed: int = 0,
        psi: float = PSI,
        cutoff: int | None = None,
        temperature: float = BG_TEMPERATURE,
        background: bool = True,
    ) -> Portrait:
        """A face from its description; the text is encoded once for all views.

        Args:
            text: a caption of at most 77 CLIP tokens.
            cameras: [V, 4, 4], e.g. `five_views()` (the default), `turntable()` or `poses(yaws)`.
            seed: of noise and background, the official script's numbers on any device.
            psi: truncation of style codes towards their average; cutoff: of the first so many codes alone.
            temperature: of the background code. background: False renders the foreground alone.

        Raises:
            UserError: too many tokens, a seed or camera out of range.
        """
        return self.render(self.face(text, seed, psi, cutoff, temperature, background), cameras)

    def edit(
        self,
        face: Portrait | Face | str,
        text: str,
        strength: float = 0.5,
        cameras: Tensor | None = None,
        background: Literal["same", "official"] = "same",
        **options: Any,
    ) -> Portrait:
        """Change a face by a second sentence (section 3.4); its geometry stays.

        Args:
            face: a portrait of `generate` or `edit`, or a caption (then `options` are those of `face`). An edit of an
                edit takes the tokens of the last text and the style code of the first.
            strength: 0 gives back the face bit for bit, 1 follows the new text alone; the official script's default
                is 0.5.
            cameras: default: those of the portrait.
            background: "same" keeps it; "official" draws it anew, as the official script does.
        """
        if not isinstance(strength, (int, float)) or not 0 <= strength <= 1:
            raise UserError(f"strength {strength}", "edit", "a number from 0 to 1")
        if background not in ("same", "official"):
            raise UserError(f"background {background!r}", "edit", '"same" or "official"')
        cameras = face.cameras if cameras is None and isinstance(face, Portrait) else cameras
        start = (
            self.face(face, **options) if isinstance(face, str) else face.face if isinstance(face, Portrait) else face
        )
        edited = replace(start, edits=(*start.edits, (text, float(strength))))
        if background == "official" and start.z_bg is not None:
            code = official_background(start.seed, self.config.bg_dim, redraw=len(edited.edits))
            edited = replace(edited, z_bg=code.to(self.device))
        new = self.encoder([text]).to(self.device)
        return self.render(edited, cameras, new.tokens, kept=1.0 - strength)

    def render(
        self, face: Face, cameras: Tensor | None = None, tokens: Tensor | None = None, kept: float = 0.0
    ) -> Portrait:
        """Render a face's codes; `tokens` and `kept` as `Generator.forward` takes an edit."""
        cameras = five_views() if cameras is None else cameras
        if cameras.dim() != 3 or cameras.shape[1:] != (4, 4) or not len(cameras) or not bool(cameras.isfinite().all()):
            raise UserError(f"cameras of shape {list(cameras.shape)}", "cameras", "finite [views, 4, 4]")
        parts = []
        with torch.no_grad():
            for pose in cameras.float().to(self.device).split(8):
                z_bg = None if face.z_bg is None else face.z_bg.expand(len(pose), -1)
                edit = () if tokens is None else (face.text.tokens, kept)
                made = self.generator(face.ws, face.text.tokens if tokens is None else tokens, pose, z_bg, *edit)
                n = made.rgb.shape[-1]
                opacity = 1 - made.volume.light[:, : n * n].unflatten(-1, (n, n))
                parts.append((made.image, made.depth, made.points, opacity, made.rgb))
        images, depth, points, opacity, rgb = (torch.cat(part) for part in zip(*parts, strict=True))
        if not bool(images.isfinite().all()):
            raise UserError("the picture is not finite", face.caption[:60], "other weights, or float32")
        return Portrait(images, cameras, depth, points, opacity, rgb, face, self.config.fov)

    def save_pretrained(self, folder: str | Path, card: str = "", extra: dict[str, Any] | None = None) -> None:
        """Write the model into a new folder: config.json, model.safetensors, README.md, and CLIP unless it has a name.

        Args:
            card: text for the model card. extra: further fields of config.json.
        """
        with atomic_directory(folder) as temporary:
            self.write(temporary, card, extra)

    def write(self, folder: Path, card: str = "", extra: dict[str, Any] | None = None) -> None:
        """Like `save_pretrained`, into a folder that may be there."""
        folder.mkdir(parents=True, exist_ok=True)
        save_state(self.generator.state_dict(), folder / WEIGHTS)
        values = {"model_type": MODEL_TYPE, "generator": self.config.to_json(), "clip": self.clip_name or CLIP}
        atomic_write_json(folder / CONFIG, values | (extra or {}))
        atomic_write_text(folder / "README.md", model_card(card))
        if self.clip_name is None:
            self.encoder.clip.save_pretrained(folder / CLIP)
            self.encoder.tokenizer.save_pretrained(folder / CLIP)

    def push_to_hub(self, name: str, **options: Any) -> Any:
        """Upload what `save_pretrained` writes to a model repository (huggingface_hub's `upload_folder`)."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=options.pop("token", None))
        api.create_repo(name, exist_ok=True, private=options.pop("private", None))
        with tempfile.TemporaryDirectory() as temporary:
            self.save_pretrained(Path(temporary, "model"))
            return api.upload_folder(repo_id=name, folder_path=Path(temporary, "model"), **options)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: torch.device | str = "cpu", clip: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> E3FaceNet:  # fmt: skip
        """Open a folder of `save_pretrained`, `e3-facenet train` or `e3-facenet convert`, or such a hub repository.

        Args:
            clip: a CLIP instead of the one that the folder names. dtype: of the upsampling blocks above the first;
                field and enhancers compute in float32.

        Raises:
            UserError: no such folder, a file that is missing, broken, of another model, or not finite.
        """
        folder = local_folder(source)
        values = read_json(folder / CONFIG)
        if not isinstance(values, dict) or values.get("model_type") != MODEL_TYPE:
            raise UserError("not an E3-FaceNet", folder / CONFIG, f'"model_type": "{MODEL_TYPE}"')
        config = GeneratorConfig.from_json(values.get("generator"), folder / CONFIG)
        with torch.device("meta"):
            generator = Generator(config)
        load_state(generator, folder / WEIGHTS)
        name = values.get("clip", CLIP)
        if not isinstance(name, str):
            raise UserError(f"clip: {name!r}", folder / CONFIG, "a folder or a name")
        encoder = load_text_encoder(clip or (folder / CLIP if name == CLIP else name))
        widths = (encoder.clip.config.projection_dim, encoder.clip.config.text_config.hidden_size)
        if widths != (config.t_dim, config.token_dim):
            raise UserError(f"a CLIP of widths {widths}", clip or name, f"{(config.t_dim, config.token_dim)}")
        model = cls(generator, encoder, None if name == CLIP and clip is None else str(clip or name))
        model.to(device)
        generator.use_dtype(dtype)
        return model


def local_folder(source: str | Path) -> Path:
    """A local folder, or the downloaded snapshot of a hub repository. Raises UserError where neither is there."""
    folder = Path(source)
    if folder.is_dir():
        nested = folder / "model"
        return nested if not (folder / CONFIG).is_file() and (nested / CONFIG).is_file() else folder
    if folder.exists() or folder.is_absolute() or len(folder.parts) != 2:
        raise UserError("no such model", source, "a folder with config.json, or a hub repository owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "clip/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError("no such model", source, "a folder with config.json, or a hub repository") from error


def save_state(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, path)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read safetensors.

    Raises:
        UserError: no such file, not safetensors, or a number that is not finite (names the tensor).
    """
    if not path.is_file():
        raise UserError("no weights", path, "a safetensors file")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"not readable ({str(error).splitlines()[0][:120]})", path, "safetensors") from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{name} is not finite", path, "numbers")
    return state


def load_state(module: nn.Module, path: Path) -> None:
    """Fill a module (on the meta device or not) from safetensors, strictly.

    Raises:
        UserError: unreadable, or names and shapes that are not the module's (names the first).
    """
    fill(module, read_state(path), path)


def fill(module: nn.Module, state: dict[str, Tensor], where: object) -> None:
    """Assign a state dict to a module, strictly; UserError names the first that does not fit."""
    expected = module.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            raise UserError(f"no {name}", where, f"{list(expected[name].shape)}")
        if name not in expected:
            raise UserError(f"unknown {name}", where, "the names of this model")
        if state[name].shape != expected[name].shape or not state[name].is_floating_point():
            raise UserError(f"{name} is {list(state[name].shape)}", where, f"{list(expected[name].shape)}")
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
