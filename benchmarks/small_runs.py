"""Every training, fit and evaluation of the ten papers at a size of seconds, for `kills.py` and `gpu.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """A verb at a small size.

    Attributes:
        package: import name. words: of the command; {out} is the run's folder, {train} the folder of the finished
            training before it.
        kills: (place, number of the call) one after the other, each of them in what the last one left.
        resume: what is added to go on.
    """

    package: str
    words: str
    kills: tuple[tuple[str, int], ...]
    resume: str = ""

    @property
    def verb(self) -> str:
        return self.words.split()[0]


def sets(**values: object) -> str:
    """``--set`` options; a double underscore stands for a point."""
    return " ".join(f"--set {name.replace('__', '.')}={value}" for name, value in values.items())


def stage(name: str, **values: object) -> dict[str, object]:
    return {f"{name}__{key}": value for key, value in values.items()}


TWO = (("step", 4), ("checkpoint", 2))
SMALL = {"batch": 8, "per_device": 4}
ANSWERS = (("answer", 2),)
RUNS = (
    Run("fitprune", "fit --config mini --set limit=6 --output {out}", (("sample", 3), ("sample", 8))),
    Run("fitprune", "eval --config mini --benchmark pope --limit 6 --batch 2 --output {out}", ANSWERS),
    Run("dyvte", "train --config mini --output {out} " + sets(limit=24, steps=8, batch=6, checkpoint_steps=2), TWO),
    Run("dyvte", "eval --config mini --benchmark pope --limit 6 --batch 2 --output {out}", ANSWERS),
    Run(
        "gamma_mod",
        "train --config mini --output {out} "
        + sets(
            data__mini__train=48,
            data__expected="[48,1]",
            stage__batch=8,
            stage__per_device=4,
            checkpoint_steps=2,
            conversion__calibration_samples=8,
        ),
        TWO,
        "--resume",
    ),
    Run("gamma_mod", "eval --config mini --benchmark pope --limit 6 --batch 2 --output {out}", ANSWERS),
    Run(
        "flashsloth",
        "train --config mini --output {out} "
        + sets(data__mini__train=32, checkpoint_steps=2)
        + " "
        + sets(**stage("pretrain", steps=3, **SMALL), **stage("finetune", steps=4, **SMALL)),
        TWO,
        "--resume",
    ),
    Run("flashsloth", "eval --config mini --limit 6 --batch 2 --output {out}", ANSWERS),
    Run(
        "llava_hr",
        "train --config mini --output {out} "
        + sets(data__mini__train=32, checkpoint_steps=2)
        + " "
        + sets(**stage("pretrain", steps=3, **SMALL), **stage("finetune", **SMALL)),
        TWO,
        "--resume",
    ),
    Run("llava_hr", "eval --config mini --limit 6 --batch 2 --output {out}", ANSWERS),
    Run(
        "dtnet",
        "train --config mini --output {out} "
        + sets(**stage("data__mini", train=40, val=6, test=4), **stage("data__expected", images=40, captions=200))
        + " "
        + sets(checkpoint_steps=2, **stage("xe", epochs=1, steps=5, batch=8, warmup=2))
        + " "
        + sets(**stage("scst", epochs=1, steps=3, images=4)),
        TWO,
        "--resume",
    ),
    Run(
        "dtnet",
        "eval {train}/model --data {train}/data --features {train}/data/grid_features.h5 --metrics cider "
        "--tokens whitespace --batch 1 --output {out}",
        ANSWERS,
    ),
    Run(
        "dit_sam",
        "train --config mini --output {out} "
        + sets(**stage("data__mini", train=12, val=3, test=3), **stage("validation", limit=6, batch=4))
        + " "
        + sets(start__point_steps=2, epochs=2, steps=3, batch=4, warmup_epochs=0.5, log_steps=1, checkpoint_steps=2),
        TWO,
        "--resume",
    ),
    Run("dit_sam", "eval {train}/model --data {train}/checkpoint-data --batch 1 --limit 6 --output {out}", ANSWERS),
    Run(
        "eas",
        "train --config mini --output {out} "
        + sets(data__samples=8, checkpoint_steps=2, adapters__dropout=0.1)
        + " "
        + sets(**stage("search", steps=5, batch=2, per_device=2, idle=2, warmup=1))
        + " "
        + sets(**stage("tune", steps=5, batch=2, per_device=2, warmup=1)),
        TWO,
        "--resume",
    ),
    Run("eas", "eval --config mini --adapters {train}/adapters --limit 6 --batch 2 --output {out}", ANSWERS),
    Run(
        "e3_facenet",
        "train --config mini --output {out} "
        + sets(**stage("data__mini", train=12, test=4, captions=2), data__expected="[12,2]")
        + " "
        + sets(iterations=6, batch=4, micro=2, log_steps=1, checkpoint_steps=2),
        TWO,
        "--resume",
    ),
    Run("e3_facenet", "eval --model {train}/model --data {train}/data --count 8 --output {out}", ANSWERS),
    Run("inst_diff_edit", "train --steps 8 --batch 2 --checkpoint-every 2 --output {out}", TWO, "--resume"),
    Run("inst_diff_edit", "eval --limit 6 --batch 1 --output {out}", ANSWERS),
)


def words_of(one: Run, place: Path, out: Path, more: str = "") -> list[str]:
    train = place / f"{one.package}-train" / "whole"
    return f"{one.words} {more}".replace("{out}", str(out)).replace("{train}", str(train)).split()
