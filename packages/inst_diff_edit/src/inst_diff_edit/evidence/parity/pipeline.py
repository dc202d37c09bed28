"""The golden case of the whole mask stage: a tiny Stable Diffusion, written as a folder and loaded as a real one is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from inst_diff_edit.evaluation.baselines import sdedit
from inst_diff_edit.inputs import to_tensor
from inst_diff_edit.masks import instant_mask
from inst_diff_edit.pipeline import InstDiffEditPipeline
from inst_diff_edit.resize import resize
from inst_diff_edit.sampling import noise_seeds, noises, start_index
from inst_diff_edit.words import split_words, stack_weights

if TYPE_CHECKING:
    from tenfold.ledger.goldens import Comparison, Computation

CLASSES = {
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "scheduler": ("diffusers", "LMSDiscreteScheduler"),
}


def compare_pipeline(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """Run the mask stage and SDEdit on the case's models and compare every step."""
    settings = case["settings"]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), case, tensors)
        pipe = InstDiffEditPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    image, prompt = Image.fromarray(tensors["in/image"].numpy()), settings["prompt"]
    edge = settings["image_size"]
    mean = pipe.vae.encode(to_tensor([image], edge, edge)).latent_dist.mean
    compare.close("VAE mean", mean[..., ::4, ::4], tensors["out/vae_mean"], 1e-4)

    words = split_words(pipe.tokenizer, prompt)
    count = len(words.ids)
    compare.equal("tokens", list(words.ids), tensors["in/token_ids"])
    embeddings = pipe._encode_prompts([prompt], None, guided=True)
    golden = tensors["out/text_embeddings"]
    compare.close("text embeddings", embeddings[:, : golden.shape[1]], golden, 1e-3)

    seen: list[dict[str, Tensor]] = []

    def keep(pipe: Any, step: int, timestep: Tensor, offered: dict[str, Tensor]) -> None:
        seen.append({**offered, "timestep": timestep.double()})

    found = pipe(
        image,
        prompt,
        settings["strength"],
        settings["num_inference_steps"],
        settings["guidance_scale"],
        settings["batch_size"],
        settings["threshold"],
        object_threshold=settings["th_object"],
        background_threshold=settings["th_background"],
        height=edge,
        width=edge,
        generator=torch.Generator().manual_seed(settings["seed"]),
        image_latents=tensors["in/latent"],
        output_type="latent",
        return_step_masks=True,
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=("denoised", "attention", "soft_mask"),
    )
    compare.close("timesteps", torch.stack([step["timestep"] for step in seen]), tensors["out/timesteps"], 1e-3)
    first, last = seen[0]["attention"][..., :count], seen[-1]["attention"][0, ..., :count]
    compare.close("attention, first step", first[0], tensors["out/aggregated_step0"], 1e-4)
    compare.close("attention, last step", last, tensors["out/aggregated_last"], 1e-4)
    roles = instant_mask(first, *stack_weights([words], count), **_thresholds(settings))
    compare.grey_levels("pictures", roles.pictures[0], tensors["out/word_images_step0"], 255, 2, 0.999)
    start, reference = tensors["out/start_similarity"], tensors["out/reference_similarity"]
    compare.close("likeness to start", roles.start_similarity[0, : len(start)], start, 2e-3)
    compare.close("likeness to reference", roles.reference_similarity[0, 1 : 1 + len(reference)], reference, 2e-3)
    compare.equal("roles", found.roles[0].long(), tensors["out/position"])
    soft = torch.cat([step["soft_mask"] for step in seen])
    compare.grey_levels("soft masks", soft, tensors["out/soft_masks"], 255, 3, 0.995)
    for step, (mask, theirs) in enumerate(zip(found.step_masks[0], tensors["out/masks"], strict=True)):
        compare.grey_levels(f"mask {step}", mask, theirs, 255, 0, 0.995)
    denoised = seen[0]["denoised"][:1, :, ::2, ::2]
    compare.close("denoised, first step", denoised, tensors["out/denoised_step0_sample0"], 1e-3)
    compare.close_as_a_whole("latents", found.images[:1, :, ::2, ::2], tensors["out/final_latents"], 2e-2)
    handed = resize(found.step_masks[0, -1], edge, edge) >= 128
    golden_bits = torch.from_numpy(np.unpackbits(tensors["out/inpaint_mask_packed"].numpy(), axis=-1))
    compare.grey_levels("mask for inpainting", handed.byte(), golden_bits, 1, 0, 0.99)

    seeds = noise_seeds(torch.Generator().manual_seed(settings["seed"]), 1)
    compare.equal("seed of SDEdit", seeds, settings["sdedit_noise_seed"])
    steps, latent = settings["num_inference_steps"], tensors["in/latent"]
    begin, scale = start_index(steps, settings["strength"]), settings["guidance_scale"]
    edited = sdedit(pipe.unet, pipe.scheduler, latent, noises(seeds, latent), embeddings, steps, begin, scale)
    compare.close("SDEdit", edited[..., ::2, ::2], tensors["out/sdedit_latents"], 1e-3)


def write_model(folder: Path, case: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """The case's models in diffusers' layout, weights under the keys of the SD v1 releases."""
    index = {"_class_name": "StableDiffusionPipeline", **{name: list(origin) for name, origin in CLASSES.items()}}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    files = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    for part, file in files.items():
        (folder / part).mkdir()
        config = {"_class_name": CLASSES[part][1], **case["config"][part]}
        if part == "text_encoder":
            config |= {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
        (folder / part / "config.json").write_text(json.dumps(config), encoding="utf-8")
        prefix = f"weights/{part}."
        weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        save_file(weights, folder / part / f"{file}.safetensors", metadata={"format": "pt"})
    for part, settings in (("scheduler", case["scheduler"]), ("tokenizer", case["tokenizer"])):
        (folder / part).mkdir()
        if part == "tokenizer":
            write_tokenizer(folder / part, settings)
        else:
            # Of the steps, not of the scheduler: it would be reported as unknown.
            known = {name: value for name, value in settings.items() if name != "order"}
            (folder / part / "scheduler_config.json").write_text(json.dumps(known), encoding="utf-8")


def write_tokenizer(folder: Path, settings: Mapping[str, Any]) -> CLIPTokenizer:
    """A case's tokenizer, by way of the two files that a real one has."""
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in settings["merges"]]
    (folder / "vocab.json").write_text(json.dumps(settings["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    options = {"model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, **options)


def _thresholds(settings: Mapping[str, Any]) -> dict[str, float]:
    return {"object_threshold": settings["th_object"], "background_threshold": settings["th_background"]}


COMPUTATIONS: dict[str, Computation] = {"tiny_pipeline": compare_pipeline}
