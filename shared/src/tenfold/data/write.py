"""Write the mini world as a data set in an official format.

    python -m tenfold.data.write --format vqav2 --count 100 --seed 0 --output data/vqav2

The folder appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tenfold.cli import main as run_app
from tenfold.data import formats, mini_sets
from tenfold.runs import atomic_directory


class Format(StrEnum):
    """The formats by name."""

    llava_instruct = "llava_instruct"
    calibration = "calibration"
    vqav2 = "vqav2"
    pope = "pope"
    scienceqa = "scienceqa"
    textvqa = "textvqa"
    gqa = "gqa"
    vizwiz = "vizwiz"
    mme = "mme"
    mmbench = "mmbench"
    seed = "seed"
    mmvet = "mmvet"


def write_llava_instruct(folder: Path, seed: int, count: int, size: int) -> None:
    """llava_instruct.json and images/."""
    samples = mini_sets.llava_instruct(seed, count, size)
    formats.write_llava_instruct(folder / "llava_instruct.json", folder / "images", samples)


def write_calibration(folder: Path, seed: int, count: int, size: int) -> None:
    """calibration.jsonl and images/."""
    samples = mini_sets.calibration(seed, count, size)
    formats.write_calibration(folder / "calibration.jsonl", folder / "images", samples)


def write_vqav2(folder: Path, seed: int, count: int, size: int) -> None:
    """The subset val2014: questions, annotations, images."""
    formats.write_vqav2(folder, mini_sets.vqav2(seed, count, size))


def write_pope(folder: Path, seed: int, count: int, size: int) -> None:
    """coco/coco_pope_{random,popular,adversarial}.json and val2014/."""
    for subset, samples in mini_sets.pope(seed, count, size).items():
        formats.write_pope(folder, subset, samples)


def write_scienceqa(folder: Path, seed: int, count: int, size: int) -> None:
    """problems.json, pid_splits.json and images/."""
    formats.write_scienceqa(folder, mini_sets.scienceqa(seed, count, size))


def write_textvqa(folder: Path, seed: int, count: int, size: int) -> None:
    """TextVQA_0.5.1_val.json and train_images/."""
    formats.write_textvqa(folder, mini_sets.textvqa(seed, count, size))


def write_gqa(folder: Path, seed: int, count: int, size: int) -> None:
    """testdev_balanced_questions.json and images/."""
    formats.write_gqa(folder, mini_sets.gqa(seed, count, size))


def write_vizwiz(folder: Path, seed: int, count: int, size: int) -> None:
    """Annotations/val.json and val/."""
    formats.write_vizwiz(folder, mini_sets.vizwiz(seed, count, size))


def write_mme(folder: Path, seed: int, count: int, size: int) -> None:
    """MME_Benchmark_release_version/{existence,count,position,color}/."""
    formats.write_mme(folder, mini_sets.mme(seed, count, size))


def write_mmbench(folder: Path, seed: int, count: int, size: int) -> None:
    """mmbench_dev_20230712.tsv, images inside."""
    formats.write_mmbench(folder, mini_sets.mmbench(seed, count, size))


def write_seed(folder: Path, seed: int, count: int, size: int) -> None:
    """SEED-Bench.json and SEED-Bench-image/."""
    formats.write_seed(folder, mini_sets.seed(seed, count, size))


def write_mmvet(folder: Path, seed: int, count: int, size: int) -> None:
    """mm-vet.json and images/."""
    formats.write_mmvet(folder, mini_sets.mmvet(seed, count, size))


WRITERS: dict[Format, Callable[[Path, int, int, int], None]] = {
    Format.llava_instruct: write_llava_instruct,
    Format.calibration: write_calibration,
    Format.vqav2: write_vqav2,
    Format.pope: write_pope,
    Format.scienceqa: write_scienceqa,
    Format.textvqa: write_textvqa,
    Format.gqa: write_gqa,
    Format.vizwiz: write_vizwiz,
    Format.mme: write_mme,
    Format.mmbench: write_mmbench,
    Format.seed: write_seed,
    Format.mmvet: write_mmvet,
}

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: python -m tenfold.data.write --format pope --count 50 --output data/pope")
def write(
    format: Annotated[Format, typer.Option(help="The layout to write.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="A folder that does not exist yet.")],
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Same seed: same scenes, questions and answers.")] = 0,
    size: Annotated[int, typer.Option(min=8, max=2048, help="Edge of the images in pixels.")] = 336,
) -> None:
    """Write the mini world in an official data format."""
    with atomic_directory(output) as folder:
        WRITERS[format](folder, seed, count, size)


if __name__ == "__main__":
    run_app(app)
