"""The real path once at full width with random weights: from pictures and official files to captions and their scores.

    python benchmarks/rehearse.py dtnet --output rehearsal.json      # or: python -m dtnet.evidence.rehearsal

1. writes a data set in COCO's layout (Karpathy's json, annotations, pictures), the authors' pickled vocabulary with
   10,201 words, a backbone's .pth as torchvision publishes it, and an official checkpoint,
2. extracts grid features, 49 x 2,048 an image, with ResNeXt-101 at 448 pixels (`dtnet extract`),
3. converts the checkpoint (`dtnet convert`), and captions and scores the test images with it (`dtnet eval`),
4. trains one step with cross entropy, 50 captions, and one self-critical step, 20 images of 5 beams, each followed by
   the validation, by the paper's config (`dtnet train`),
5. captions a picture with what was trained.

The mini world gives pictures and captions. Random weights say nothing of quality: the record is of files, sizes, memory
and time.
"""

# Annotations are not deferred: typer evaluates them.

import pickle
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
import typer

from dtnet.checkpoints.keys import convert, export_state
from dtnet.data.extract import ExtractSettings, run_extract
from dtnet.data.mini import FEATURES, VOCABULARY, write_mini_coco
from dtnet.evaluation.run import run_eval
from dtnet.evaluation.settings import EvalSettings
from dtnet.model import DTNet
from dtnet.training.plan import model_config
from dtnet.training.run import run_train
from dtnet.training.settings import ModelSettings, TrainSettings
from dtnet.vocabulary import OFFICIAL_SIZE, Vocabulary
from tenfold.cli import load_config
from tenfold.cli import main as run_app
from tenfold.data.pictures import open_picture
from tenfold.random_weights import random_weights
from tenfold.runs.rehearsal import Steps, rehearsed

# The names of the authors' files.
OFFICIAL_FEATURES, OFFICIAL_WORDS, OFFICIAL_MODEL = (
    "coco_grid_feats2.hdf5", "vocab_transformer_grid.pkl", "dtnet_best.pth",
)  # fmt: skip
TRAIN, VAL, TEST = 20, 4, 4  # images: one self-critical step; of 100 captions one step of 50
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Size:
    """The paper's dimensions, and how its captions are scored.

    Attributes:
        model: DTNet's. words: of the vocabulary. arch, pixels: of the backbone.
        tokens: how captions become words. metrics: of the evaluation.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    words: int = OFFICIAL_SIZE
    arch: str = "resnext101_32x8d"
    pixels: int = 448
    tokens: Literal["ptb", "whitespace"] = "ptb"
    metrics: tuple[str, ...] = ("bleu", "meteor", "rouge", "cider")


@app.command()
def rehearsal(
    output: Annotated[Path, typer.Option(metavar="FILE", help="For the record, as JSON.")],
    folder: Annotated[Path | None, typer.Option(help="For files in between, 3 GB; default: a temporary one.")] = None,
) -> None:
    """Extract, convert, evaluate, train a step of each stage and caption at full width with random weights."""
    size = Size()
    config = {"arch": size.arch, "words": size.words, "train": TRAIN, "val": VAL, "test": TEST}
    with rehearsed("dtnet", config, output, folder) as (steps, place, metrics):
        metrics |= rehearse(place, steps, size)


def rehearse(folder: Path, steps: Steps, size: Size) -> dict[str, Any]:
    """All steps, in a folder; what the record says beside them.

    Raises:
        UserError: whatever a step refuses.
    """
    step, data = steps.do, folder / "coco"
    step("write a data set", lambda: write_data(data, size.words))
    step("write the backbone", lambda: write_backbone(folder / "backbone.pth", size.arch))
    numbers = step("write a checkpoint", lambda: write_checkpoint(folder / OFFICIAL_MODEL, size))

    extractor = {"name": "backbone", "arch": size.arch, "weights": str(folder / "backbone.pth"), "size": size.pixels}
    asked = ExtractSettings(data / "images", data / OFFICIAL_FEATURES, extractor, batch_size=4)
    extracted = step(f"extract {TRAIN + VAL + TEST} images", lambda: run_extract(asked))

    step("convert", lambda: convert(folder / OFFICIAL_MODEL, folder / "converted", vocabulary=data / OFFICIAL_WORDS))
    settings = EvalSettings(
        model=(str(folder / "converted"),), data=str(data), features=str(data / OFFICIAL_FEATURES),
        metrics=size.metrics, tokens=size.tokens, device="cpu",
    )  # fmt: skip
    scored = step(f"evaluate {TEST} images", lambda: run_eval(settings, folder / "eval"))
    assert scored is not None  # there is one rank

    xe = training(size, data, extractor, stages=("xe",))
    step("a step of cross entropy, and validation", lambda: run_train(xe, 0, folder / "xe"))
    scst = training(size, data, extractor, stages=("scst",), start=str(folder / "xe" / "model"))
    trained = step("a self-critical step, and validation", lambda: run_train(scst, 0, folder / "scst"))

    picture = open_picture(next((data / "images").rglob("*.png")))
    model = step("load what was trained", lambda: DTNet.from_pretrained(folder / "scst" / "model"))
    (found,) = step("caption a picture", lambda: model.caption([picture], return_paths=True))
    return {
        "parameters": numbers,
        "features": [extracted["images"], size.model.grid**2, extracted["d_in"]],
        "caption_words": len(found.tokens),
        "steps_trained": trained.metrics["steps"],
        "evaluated": scored.metrics["images"],
    }


def training(size: Size, data: Path, extractor: dict[str, Any], **changes: Any) -> TrainSettings:
    """The paper's config, one step of one stage on a data set."""
    values = load_config(TrainSettings, "coco", ()).model_dump() | changes
    values["model"] = size.model.model_dump()
    values["data"] |= {"folder": str(data), "extractor": extractor, "workers": 0}
    for stage in ("xe", "scst"):
        values[stage] |= {"epochs": 1, "steps": 1}
    values["scst"]["tokens"] = values["validation"]["tokens"] = size.tokens
    return TrainSettings.model_validate(values | {"device": "cpu", "log_steps": 1})


def write_data(folder: Path, words: int) -> None:
    """Pictures and captions of the mini world in COCO's layout, and the authors' vocabulary of so many words."""
    write_mini_coco(folder, 0, TRAIN, VAL, TEST)
    known = Vocabulary.load(folder / VOCABULARY).words
    made_up = (f"word{number}" for number in range(words - len(known)))
    (folder / OFFICIAL_WORDS).write_bytes(official_pickle([*known, *made_up]))
    for name in (FEATURES, VOCABULARY):  # the mini world's own
        (folder / name).unlink()


def official_pickle(words: list[str], **extra: Any) -> bytes:
    """A vocabulary as the authors' code pickles it: class path `data.vocab.Vocab`, protocol 3.

    Args:
        words: in the order of their ids.
        extra: further attributes.
    """
    module = ModuleType("data.vocab")

    class Vocab:
        pass

    def _default_unk_index() -> int:
        return 0

    for one in (Vocab, _default_unk_index):
        one.__module__, one.__qualname__ = "data.vocab", one.__name__
        setattr(module, one.__name__, one)
    made = Vocab()
    made.__dict__ |= {"freqs": Counter(words), "itos": words, "vectors": None, **extra}
    made.__dict__["stoi"] = defaultdict(_default_unk_index, {word: number for number, word in enumerate(words)})
    before = {name: sys.modules.get(name) for name in ("data", "data.vocab")}
    sys.modules["data"], sys.modules["data.vocab"] = ModuleType("data"), module
    try:
        return pickle.dumps(made, protocol=3)
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old


def write_backbone(path: Path, arch: str) -> None:
    """A torchvision network's state dict of random weights."""
    from torchvision import models

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in models.get_model(arch, weights=None).state_dict().items()}
    stored = random_weights(shapes, torch.float32)
    torch.save({name: tensor.read().clone() for name, tensor in stored.items()}, path)


def write_checkpoint(path: Path, size: Size) -> int:
    """An official checkpoint as the authors' training writes it; the model's parameters."""
    model = DTNet(model_config(size.model, size.words), seed=0)
    rest = {"epoch": 25, "best_cider": 0.0, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}}
    torch.save({"state_dict": export_state(model.state_dict()), **rest}, path)
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    run_app(app)
