"""A small untrained model, and pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from inst_diff_edit.data import scenes
from inst_diff_edit.evidence.parity.pipeline import write_model
from inst_diff_edit.miniature import model as mini
from tenfold.cli import find_package_file


@pytest.fixture(scope="session")
def pipe():
    """The mini model before training: attention is noise, and whatever must hold for any weights must hold for it."""
    pipe = mini.build(0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def double():
    """The same in float64, for comparisons of batches: an untrained model blows float32's rounding up."""
    pipe = mini.build(0).to(torch.float64)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def edits():
    return [scenes.edit(0, index) for index in range(3)]


@pytest.fixture
def settings():
    """Four steps of eight, one noise: as little as shows everything."""
    return {"num_inference_steps": 8, "num_masks": 1, "final": "latents"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A tiny Stable Diffusion and its inpainting model, with the index and the scheduler of the real folders."""
    folder = tmp_path_factory.mktemp("models")
    golden = find_package_file("inst_diff_edit", "tests/goldens")
    case = json.loads((golden / "tiny_pipeline.json").read_text())
    tensors = dict(load_file(golden / "tiny_pipeline.safetensors"))
    pndm = {
        **{"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        **{"num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1},
    }
    for name, channels in (("sd", 4), ("inpainting", 9)):
        case["config"]["unet"]["in_channels"] = channels
        if channels == 9:
            first = tensors["weights/unet.conv_in.weight"]
            generator = torch.Generator().manual_seed(0)
            more = 0.1 * torch.randn(first.shape[0], 5, *first.shape[2:], generator=generator)
            tensors["weights/unet.conv_in.weight"] = torch.cat([first, more], 1)
        (folder / name).mkdir()
        write_model(folder / name, {**case, "scheduler": pndm}, tensors)
        index = json.loads((folder / name / "model_index.json").read_text())
        kind = "StableDiffusionPipeline" if channels == 4 else "StableDiffusionInpaintPipeline"
        nothing = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
        nothing["_diffusers_version"] = "0.6.0"
        index |= {"_class_name": kind, "scheduler": ["diffusers", "PNDMScheduler"], **nothing}
        (folder / name / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(autouse=True)
def global_random_state_is_left_alone():
    """Fails if anything draws from torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)
