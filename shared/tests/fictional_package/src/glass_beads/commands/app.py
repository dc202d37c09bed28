"""The fictional command: the common frame and one verb of its own."""

import importlib
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict

import tenfold.cli
from tenfold import UserError
from tenfold.cli import (
    ConfigOption,
    Experiments,
    Finding,
    OutputOption,
    Package,
    SeedOption,
    SetOption,
    build_app,
    load_config,
)
from tenfold.runs import RunRecord, run, sample_rng


class Light(BaseModel):
    model_config = ConfigDict(extra="forbid")

    angle: float = 45.0


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    beads: int = 8
    rate: float = 1e-3
    light: Light = Light()


def count(settings: Settings, seed: int, output: Path | None) -> RunRecord:
    """Draw bead sizes; every number follows from settings and seed."""
    with run("glass_beads", "count", config=settings.model_dump(), seed=seed, output=output) as current:
        sizes = sample_rng(seed, 0, 0).random(settings.beads)
        current.metrics |= {"mean": float(sizes.mean()), "beads": settings.beads}
        if output is not None:
            current.file("sizes.txt").write_text("\n".join(f"{size:.6f}" for size in sizes))
    return current.record


def count_again(record: RunRecord, folder: Path) -> dict:
    return count(Settings(**record.config), record.seed, folder).metrics


package = Package(
    name="glass-beads",
    module="glass_beads",
    distribution="glass-beads",
    instead={"train": "glass-beads count --config mini [--seed N]"},
    tolerances={"mean": 0.25},
)


def blow_glass(folder: Path) -> list[Finding]:
    """Two seeds; what one of them found is kept, as a killed experiment would."""
    means = []
    for seed in (0, 1):
        kept = folder / f"seed-{seed}.txt"
        if not kept.exists():
            kept.write_text(str(count(Settings(), seed, None).metrics["mean"]))
        means.append(float(kept.read_text()))
    mean = sum(means) / len(means)
    return [Finding("shadows-in-rain", mean, mean > 0.4, "2 seeds", {"means": means})]


app = build_app(
    package,
    lambda: importlib.import_module("glass_beads.evidence.claims").checks(),
    {"count": count_again},
    Experiments("blows glass with 2 seeds: no time at all", blow_glass),
)


@app.command(name="count", epilog="Example: [bold]glass-beads count --seed 1[/bold]")
def count_command(
    config: ConfigOption = "mini",
    settings: SetOption = None,
    seed: SeedOption = 0,
    output: OutputOption = None,
) -> None:
    """Count beads."""
    record = count(load_config(Settings, config, settings or []), seed, output)
    typer.echo(f"{record.metrics['beads']} beads, mean {record.metrics['mean']:.4f}")


@app.command()
def spill(how: Annotated[str, typer.Argument()]) -> None:
    """Fail."""
    if how == "bug":
        raise KeyError("a bug")
    raise UserError("the box is open", "lid", "a closed box")


def main() -> None:
    tenfold.cli.main(app)
