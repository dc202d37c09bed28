"""A tiny training and a tiny evaluation of the miniature, for several tests."""

from __future__ import annotations

from pathlib import Path

from flashsloth.checkpoints.release import generation_config
from flashsloth.evaluation.benchmarks import write_mini_set
from flashsloth.evaluation.settings import EvalSettings
from flashsloth.miniature.model import mini_processor, new_model
from flashsloth.training.settings import TrainSettings
from tenfold.cli import load_config


def train_settings(steps: int = 2, **changes) -> TrainSettings:
    """The shipped mini config, on 16 scenes, with a checkpoint after every step."""
    words = {
        "data.mini.train": 16,
        "pretrain.steps": steps,
        "finetune.steps": steps,
        "pretrain.batch": 4,
        "pretrain.per_device": 2,
        "finetune.batch": 4,
        "finetune.per_device": 2,
        "checkpoint_steps": 1,
        **changes,
    }
    return load_config(TrainSettings, "mini", [f"{name}={value}" for name, value in words.items()])


def mini_folder(folder: Path) -> Path:
    """An untrained miniature, saved."""
    model = new_model(0).eval()
    model.generation_config = generation_config(model.config)
    model.save_pretrained(folder)
    mini_processor().save_pretrained(folder)
    return folder


def eval_settings(folder: Path, **changes) -> EvalSettings:
    """That model on six questions in the official format."""
    if not (folder / "questions").exists():
        mini_folder(folder / "model")
        write_mini_set(folder / "questions", seed=0, per_kind=2)
    values = {"model": str(folder / "model"), "benchmark": "mini", "data": str(folder / "questions"), "batch": 2}
    return EvalSettings(**values | {"limit": 6, "dtype": "float32", "device": "cpu"} | changes)
