"""A training so small that it takes a second, and processes that die or work in pairs: forks, so torch loads once."""

from __future__ import annotations

import atexit
import gc
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from llava_hr_fixtures import tiny_config
from safetensors.torch import load_file, save_file
from timm.models.convnext import ConvNeXt
from torch import Tensor
from transformers import AutoModelForCausalLM, CLIPVisionModel

from llava_hr.miniature import model as mini
from llava_hr.training import run as train
from llava_hr.training import stages
from llava_hr.training.settings import TrainSettings
from tenfold.testing.processes import fork as fork
from tenfold.testing.processes import in_ranks as in_ranks
from tenfold.testing.processes import killed as killed

# Three steps of stage 1, two epochs of three steps of stage 2; each of two forward passes.
SAMPLES, PRETRAIN_STEPS, STEPS = 24, 3, 9
STAGE: dict[str, Any] = {"images": "images", "batch": 8, "per_device": 4, "max_length": 200}
TINY: dict[str, Any] = {
    "pretrain": {
        **STAGE,
        "data": "captions.json",
        "image_size": 32,
        "image_aspect_ratio": "square",
        "conversation": "plain",
        "learning_rate": 1e-2,
        "sampler": "random",
    },
    "finetune": {
        **STAGE,
        "data": "instruct.json",
        "image_size": 64,
        "image_aspect_ratio": "pad",
        "conversation": "vicuna_v1",
        "epochs": 2,
        "learning_rate": 3e-3,
        "sampler": "modality",
    },
    "precision": "fp32",
    "gradient_checkpointing": False,
    "device": "cpu",
    "threads": 1,
    "checkpoint_steps": 2,
}

# The Trainer collects garbage several times; what is imported is none.
gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)


def write_tiny_data(folder: Path) -> Path:
    """Scenes with captions and conversations; every third conversation has no image."""
    return mini.write_mini_data(folder, train=SAMPLES, text_only_every=3)


def write_tiny_parts(folder: Path, seed: int = 0) -> dict[str, str]:
    """A language model with its tokenizer, a CLIP and a timm ConvNeXt, each in its own format."""
    config = tiny_config(vocab_size=len(mini.vocabulary()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config.text_config).save_pretrained(folder / "lm")
        CLIPVisionModel(config.vision_config.low_res_config).save_pretrained(folder / "clip")
        vision = config.vision_config
        trunk = ConvNeXt(num_classes=7, depths=vision.high_res_depths, dims=vision.high_res_dims)
    # Trained ones have a layer scale that shows.
    weights = {name: value * 1e5 if "gamma" in name else value for name, value in trunk.state_dict().items()}
    save_file(weights, folder / "convnext.safetensors")
    mini.mini_tokenizer().save_pretrained(folder / "lm")
    return {
        "language_model": str(folder / "lm"),
        "clip": str(folder / "clip"),
        "convnext": str(folder / "convnext.safetensors"),
    }


def tiny_settings(folder: Path, parts: dict[str, str], **changes: Any) -> TrainSettings:
    """TINY on the data in a folder; `finetune=dict(...)` changes settings within a group."""
    vision = tiny_config().vision_config
    sizes = {"min_low_size": 28, "high_res_dims": vision.high_res_dims, "high_res_depths": vision.high_res_depths}
    values = {
        **TINY,
        "data": {"folder": str(folder), "workers": 0, "expected": {"gpus": 1}},
        "model": {**parts, "config": {"vision_config": sizes}},
    }
    for name, change in changes.items():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    return TrainSettings.model_validate(values)


def weights(run: Path) -> dict[str, Tensor]:
    """A finished training's model."""
    return load_file(run / "model" / "model.safetensors")


def bits(run: Path, stage_1: bool = True) -> list[str]:
    """SHA-256 of what a finished training made, and of its curve."""
    names = ("model/model.safetensors", "metrics.jsonl", *(("mm_projector.bin",) if stage_1 else ()))
    return [hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names]


def lines(run: Path) -> list[dict[str, Any]]:
    """A training's curve."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def die_after(stage: str, step: int, settings: TrainSettings, folder: Path, resume: bool = False) -> bool:
    """Train in a fork that kills itself when so many steps of a stage are done, before they are logged or kept."""

    class Dies(stages.Curve):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if self.plan.name == stage and state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            super().on_step_end(args, state, control, **rest)

    def work() -> None:
        stages.Curve = Dies
        train.run_train(settings, 0, folder, resume)

    return killed(work)
