"""The real path once at full size with random weights: Stable Diffusion 1.4 and its inpainting model, at 512 pixels.

    python benchmarks/rehearse.py inst_diff_edit --output rehearsal.json
    python -m inst_diff_edit.evidence.rehearsal --output rehearsal.json

1. writes both folders as they are released: diffusers' layout, float32, the autoencoder's attention under its old
   names, an index that names a safety checker which is not there, PNDM as the scheduler,
2. loads them in bfloat16,
3. makes a mask in the paper's setting (three noises), edits a picture with the inpainting model, edits it by decoding
   the latents,
4. edits two pictures of an Editing-Mask set in its official layout (`inst-diff-edit eval`).

Four steps instead of fifty: half of them are run. The vocabulary has CLIP's size and the mini world's words, as CLIP's
own is a download. Random weights say nothing of quality: the record is of files, sizes, memory and time.
"""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from inst_diff_edit import costs
from inst_diff_edit.checkpoints.load import load_pipeline
from inst_diff_edit.checkpoints.settings import ModelSettings
from inst_diff_edit.data import scenes
from inst_diff_edit.evaluation.run import run_eval, write_mini_set
from inst_diff_edit.evaluation.settings import EvalSettings
from inst_diff_edit.evidence.speed import BETAS, FULL, PROMPT, Size
from inst_diff_edit.miniature.model import write_vocabulary
from tenfold.cli import main as run_app
from tenfold.random_weights import random_weights
from tenfold.runs import atomic_write_json
from tenfold.runs.rehearsal import Steps, rehearsed
from tenfold.weights import StoredTensor, write_file

NOISES, STEPS, PICTURES = 3, 4, 2
PNDM = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", **BETAS} | {
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "trained_betas": None,
    "clip_sample": False,
}  # fmt: skip
PARTS = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
# The autoencoder's attention, as files from before diffusers 0.15 call it.
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
app = typer.Typer(add_completion=False)


@app.command()
def rehearsal(
    output: Annotated[Path, typer.Option(metavar="FILE", help="For the record, as JSON.")],
    folder: Annotated[Path | None, typer.Option(help="For files in between, 9 GB; default: a temporary one.")] = None,
) -> None:
    """Write, load, edit and evaluate with Stable Diffusion 1.4 and its inpainting model of random weights."""
    config = {"pixels": FULL.edge, "steps": STEPS, "noises": NOISES, "pictures": PICTURES}
    with rehearsed("inst_diff_edit", config, output, folder) as (steps, place, metrics):
        metrics |= rehearse(place, steps)


def rehearse(folder: Path, steps: Steps, size: Size = FULL) -> dict[str, Any]:
    """All steps, in a folder; what the record says beside them.

    Args:
        size: dimensions other than Stable Diffusion 1.4's, for tests.

    Raises:
        UserError: whatever a step refuses.
    """
    step, base, inpainting = steps.do, folder / "stable-diffusion-v1-4", folder / "stable-diffusion-inpainting"
    numbers = step("write Stable Diffusion", lambda: write_release(base, size))
    more = step("write the inpainting model", lambda: write_release(inpainting, size, inpainting=True))
    loaded: dict[str, Any] = {"model": str(base), "device": "cpu", "dtype": "bfloat16"}
    edited = edit(ModelSettings(**loaded, inpaint=str(inpainting)), steps, size.edge)
    write_mini_set(folder / "data", PICTURES)
    settings = EvalSettings(**loaded, data=str(folder / "data"), steps=STEPS, final="latents", batch=1)
    found = step(f"evaluate {PICTURES} pictures", lambda: run_eval(settings, 0, folder / "eval"))
    assert found is not None  # there is one rank
    return {
        "parameters": numbers,
        "parameters_inpainting": more,
        **edited,
        "evaluated": found.metrics["sets"],
    }


def edit(settings: ModelSettings, steps: Steps, edge: int) -> dict[str, Any]:
    """One picture: a mask in the paper's setting, and both ways to finish."""
    pipe = steps.do("load in bfloat16", lambda: load_pipeline(settings))
    picture = scenes.edit(0, 0).picture(edge)
    few: dict[str, Any] = {"num_inference_steps": STEPS}
    mask = steps.do(f"a mask, {NOISES} noises", lambda: pipe.generate_mask(picture, PROMPT, num_masks=NOISES, **few)[0])
    inpainted = steps.do(
        "an edit, then inpainted",
        lambda: pipe(picture, PROMPT, num_masks=NOISES, inpaint_options=few, **few).images[0],
    )
    steps.do("an edit, decoded directly", lambda: pipe(picture, PROMPT, num_masks=1, final="latents", **few))
    return {"mask": list(mask.size), "edited": list(inpainted.size)}


def write_release(folder: Path, size: Size, *, inpainting: bool = False) -> int:
    """A model's folder as it is released, one part in memory at a time; how many numbers."""
    groups: dict[str, Any] = {"norm_num_groups": size.groups}
    widths: dict[str, Any] = {"block_out_channels": size.unet, "cross_attention_dim": size.context}
    widths["sample_size"] = size.edge // 8
    kind = "StableDiffusionInpaintPipeline" if inpainting else "StableDiffusionPipeline"
    index = {"_class_name": kind, "_diffusers_version": "0.6.0"}
    atomic_write_json(folder / "model_index.json", index | PARTS)
    atomic_write_json(folder / "scheduler" / "scheduler_config.json", PNDM)
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"
    words = {"tokenizer_class": "CLIPTokenizer", "model_max_length": costs.TEXT_POSITIONS, "do_lower_case": True}
    atomic_write_json(folder / "tokenizer" / "tokenizer_config.json", words | special)
    atomic_write_json(folder / "tokenizer" / "special_tokens_map.json", special)
    write_vocabulary(folder / "tokenizer", costs.TEXT["vocab_size"])
    return (
        _write_part(folder / "unet", costs.unet(inpainting, **widths, **groups))
        + _write_part(folder / "vae", costs.vae(block_out_channels=size.vae, sample_size=size.edge, **groups))
        + _write_text_tower(folder / "text_encoder", size.context)
    )


def _write_part(folder: Path, model: Any) -> int:
    model.save_config(folder)
    stored = {_old_name(name): tensor for name, tensor in _drawn(model).items()}
    write_file(folder / "diffusion_pytorch_model.safetensors", stored)
    return costs.parameters(model)


def _write_text_tower(folder: Path, width: int) -> int:
    ids: dict[str, Any] = {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }  # as in the release, where nothing reads them
    model = costs.text_encoder(hidden_size=width, intermediate_size=4 * width, **ids)
    model.config.architectures = ["CLIPTextModel"]
    model.config.save_pretrained(folder)
    stored = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in _drawn(model).items()}
    # A buffer that releases of 2022 carry.
    stored["text_model.embeddings.position_ids"] = StoredTensor.of(torch.arange(costs.TEXT_POSITIONS)[None])
    write_file(folder / "model.safetensors", stored)
    return costs.parameters(model)


def _drawn(model: nn.Module) -> dict[str, StoredTensor]:
    return random_weights({name: value.shape for name, value in model.state_dict().items()}, torch.float32)


def _old_name(name: str) -> str:
    if ".mid_block.attentions." in name and name.startswith(("encoder.", "decoder.")):
        for new, old in OLD_NAMES.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


if __name__ == "__main__":
    run_app(app)
