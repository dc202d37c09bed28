"""The real path once at full size, with random weights: an official pickle, a folder, five views at 512 pixels, an
edit, a mesh, and an evaluation on files in the official format.

    python benchmarks/rehearse.py e3_facenet --output rehearsal.json     # about two minutes of one core, below 8 GB

CLIP is of ViT-B/32's size with random weights and the mini world's tokenizer, since the real vocabulary is a download.
"""

# Annotations are not deferred: typer evaluates them.

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from e3_facenet.camera import five_views
from e3_facenet.checkpoints.convert import convert
from e3_facenet.checkpoints.keys import to_official
from e3_facenet.config import DiscriminatorConfig, GeneratorConfig
from e3_facenet.data.settings import DataSettings
from e3_facenet.discriminator import Discriminator
from e3_facenet.evaluation.run import run_eval
from e3_facenet.evaluation.settings import EvalSettings
from e3_facenet.evidence.speed import random_generator
from e3_facenet.facenet import E3FaceNet
from e3_facenet.mesh import extract_mesh
from e3_facenet.miniature.model import mini_tokenizer
from tenfold.cli import main as run_app
from tenfold.runs import atomic_write_json
from tenfold.runs.rehearsal import Steps, rehearsed

BUFFERS = ("alpha", "w_avg", "resample_filter")


def write_official_pickle(path: Path, networks: Mapping[str, Mapping[str, Tensor]], source: str = "") -> None:
    """Write networks (official names) as the official code persists them; its modules exist only meanwhile."""
    persistence = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise RuntimeError("the official code is not here")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]

    class Stored:
        def __init__(self, state: Mapping[str, Tensor]) -> None:
            children: dict[str, dict[str, Tensor]] = {}
            own: dict[str, Tensor] = {}
            for name, tensor in state.items():
                head, _, rest = name.partition(".")
                (children.setdefault(head, {}) if rest else own)[rest or head] = tensor
            self.state = {
                "_parameters": OrderedDict((n, torch.nn.Parameter(t)) for n, t in own.items() if n not in BUFFERS),
                "_buffers": OrderedDict((n, t) for n, t in own.items() if n in BUFFERS),
                "_modules": OrderedDict((n, Stored(one)) for n, one in children.items()),
                "_non_persistent_buffers_set": set(),
            }

        def __reduce__(self) -> Any:
            meta = {"type": "class", "version": 6, "module_src": source, "class_name": "Net", "state": self.state}
            return _reconstruct_persistent_obj, (meta,)

    modules = {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": persistence}
    sys.modules.update(modules)
    try:
        with path.open("wb") as file:
            pickle.dump({name: Stored(state) for name, state in networks.items()}, file)
    finally:
        for name in modules:
            del sys.modules[name]


app = typer.Typer(add_completion=False)


@app.command()
def rehearsal(
    output: Annotated[Path, typer.Option(metavar="FILE", help="For the record, as JSON.")],
    folder: Annotated[Path | None, typer.Option(help="For files in between; default: a temporary one.")] = None,
) -> None:
    """Convert, generate, edit, mesh and evaluate at 512 pixels with random weights."""
    with rehearsed("e3_facenet", {"resolution": 512}, output, folder) as (steps, place, _):
        rehearse(place, steps)


def rehearse(
    output: Path,
    steps: Steps,
    config: GeneratorConfig | None = None,
    discriminator: DiscriminatorConfig | None = None,
) -> None:
    """All steps, in a folder.

    Args:
        config, discriminator: smaller dimensions than the paper's, for tests.
    """
    config, discriminator = config or GeneratorConfig(), discriminator or DiscriminatorConfig()
    clip = output / "clip"

    def release() -> None:
        generator = random_generator(config, 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            opponent = Discriminator(discriminator)
        networks = {"G_ema": to_official(generator.state_dict(), "generator"),
                    "D": to_official(opponent.state_dict(), "discriminator")}  # fmt: skip
        write_official_pickle(output / "release.pkl", networks)

    def write_clip() -> None:
        from transformers import CLIPConfig, CLIPModel

        tokenizer = mini_tokenizer()
        full = config.t_dim == 512
        text = {"hidden_size": config.token_dim, "max_position_embeddings": 77, "vocab_size": 49408 if full else 64,
                "num_attention_heads": 8, "num_hidden_layers": 12 if full else 1,
                "intermediate_size": 4 * config.token_dim,
                "pad_token_id": 0, "bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1}  # fmt: skip
        vision = {} if full else {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1,
                                  "num_hidden_layers": 1}  # fmt: skip
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.t_dim)).save_pretrained(clip)
        tokenizer.save_pretrained(clip)

    def data() -> None:
        folder = output / "data" / f"images_{config.resolution}"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for name in ("1", "2"):
            picture = rng.integers(0, 255, (config.resolution, config.resolution, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / f"{name}.jpg")
        pairs = {"filenames": ["1", "2"], "captions": ["a face with black hair", "a person with glasses"]}
        atomic_write_json(output / "data" / "dataset.json", {"train": {"filenames": [], "captions": []}, "test": pairs})

    steps.do("write an official pickle", release)
    steps.do("write CLIP", write_clip)
    steps.do("convert", lambda: convert(output / "release.pkl", output / "model", str(clip), config.heads))
    face = steps.do("load", lambda: E3FaceNet.from_pretrained(output / "model", dtype=torch.bfloat16))
    face.generator.use_dtype(torch.float32)
    portrait = steps.do("five views", lambda: face.generate("a face with black hair", five_views(), seed=2))
    steps.do("five edited views", lambda: face.edit(portrait, "a person with glasses", 0.5))
    steps.do("mesh of 64 points a side", lambda: extract_mesh(face, portrait, 64).save(output / "face.glb"))
    steps.do("write a data set", data)
    settings = EvalSettings(
        model=str(output / "model"),
        data=DataSettings(folder=str(output / "data"), flip=False),
        multiview=1,
        device="cpu",
    )
    steps.do("evaluate two faces", lambda: run_eval(settings, 0, output / "eval"))


if __name__ == "__main__":
    run_app(app)
