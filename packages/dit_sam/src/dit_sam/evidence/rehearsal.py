"""The real path once, at full size, with random weights in the official layout (D13).

    python -m dit_sam.evidence.rehearsal --output rehearsal.json --size vit_h

Writes a release as the authors' trainer does (names with `module.`, EMA, optimiser), converts it, loads it in bfloat16,
segments a picture, and evaluates a few sentences from REFER's files; every step with its seconds and peak memory. A
release of random weights says nothing of quality: what is rehearsed are files, sizes, memory and time.
"""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from dit_sam.checkpoints.convert import convert
from dit_sam.checkpoints.keys import to_official, unused_shapes
from dit_sam.config import sized
from dit_sam.data.mini import write_mini
from dit_sam.data.settings import MiniSettings
from dit_sam.evaluation.run import run_eval
from dit_sam.evaluation.settings import EvalSettings
from dit_sam.model import DITSam
from dit_sam.predictor import DitPredictor
from dit_sam.text_encoder import SPECIAL
from tenfold.cli import main as run_app
from tenfold.runs.rehearsal import Steps, rehearsed

app = typer.Typer(add_completion=False)
# BERT's own words stand for themselves; the others are numbered.
WORDS = (*SPECIAL, "the", "object", "circle", "square", "triangle", "red", "green", "blue", "yellow", "top", "bottom")


@app.command()
def rehearse(
    output: Annotated[Path, typer.Option(metavar="FILE", help="For the record, as JSON.")],
    size: Annotated[str, typer.Option(help="vit_b, vit_l or vit_h.")] = "vit_h",
    folder: Annotated[Path | None, typer.Option(help="For files in between; default: a temporary one.")] = None,
    sentences: Annotated[int, typer.Option(min=1, help="To evaluate.")] = 2,
) -> None:
    """Write, convert, load, segment and evaluate a model of random weights at full size."""
    with rehearsed("dit_sam", {"size": size, "sentences": sentences}, output, folder) as (steps, place, metrics):
        metrics |= walk(place, steps, size, sentences)


def walk(place: Path, steps: Steps, size: str, sentences: int) -> dict[str, Any]:
    """All steps in a folder; what the record says beside them."""
    with steps.step("write a release"):
        write_release(place, size)
    with steps.step("convert"):
        convert(place / "seg_best.pth", place / "model", bert=place / "vocab.txt", variant=_variant(size))
    (place / "seg_best.pth").unlink()
    with steps.step("load in bfloat16"):
        model = DITSam.from_pretrained(place / "model", dtype=torch.bfloat16)
    with steps.step("segment a picture"):
        predictor = DitPredictor(model)
        predictor.set_image(torch.randint(0, 256, (480, 640, 3), dtype=torch.uint8).numpy())
        shape = predictor.predict(text="the top red circle").masks.shape
    del model, predictor
    write_mini(place / "data", MiniSettings(train=1, val=sentences, test=1, size=480, seed=3))
    with steps.step(f"evaluate {sentences} sentences"):
        chosen = EvalSettings(model=str(place / "model"), data=str(place / "data"), limit=sentences, batch=1)
        found = run_eval(chosen, place / "eval")
    return {"masks": list(shape), "scores": found.metrics["scores"] if found else {}}


def _variant(size: str) -> str:
    return "layer_wise" if size == "vit_b" else "layer_wise_vith"


def write_release(place: Path, size: str) -> None:
    """seg_best.pth and vocab.txt, random, as the authors' trainer and BERT have them."""
    config = sized(size)
    torch.manual_seed(0)
    model = DITSam(config)
    state = {f"module.{name}": value for name, value in to_official(model.state_dict()).items()}
    state |= {f"module.{name}": torch.zeros(shape) for name, shape in unused_shapes(config).items()}
    rest = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-6}]}, "scheduler": {"last_epoch": 1}}
    torch.save({"epoch": 25, "state_dict": state, "lr": 1e-6, **rest}, place / "seg_best.pth")
    words = [*WORDS, *(f"[unused{i}]" for i in range(config.words - len(WORDS)))]
    (place / "vocab.txt").write_text("".join(word + "\n" for word in words), encoding="utf-8")


if __name__ == "__main__":
    run_app(app)
