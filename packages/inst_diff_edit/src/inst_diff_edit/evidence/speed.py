"""`inst-diff-edit bench`: what an edit takes by each method, beside what counting FLOPs promises.

Stable Diffusion 1.4's architecture with random weights (time does not depend on what the weights say), one picture, the
same UNet for all. On CUDA at full size; on the CPU at a quarter of the width, 256 pixels and 20 steps, with the same
ratios of work. All methods run in one process, in turn within each round.

- official: three noises, then the inpainting model, the paper's setting;
- direct: one noise, latents decoded;
- repository: the repository's DiffEdit, one noise at a time as its script runs, then the inpainting model;
- diffusers: DiffEdit as diffusers has it, with its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    StableDiffusionDiffEditPipeline,
    StableDiffusionInpaintPipeline,
)
from PIL import Image

from inst_diff_edit import costs
from inst_diff_edit.costs import Cost
from inst_diff_edit.evaluation import baselines
from inst_diff_edit.evidence.settings import BenchSettings
from inst_diff_edit.inputs import masks_as, to_tensor
from inst_diff_edit.miniature import model as mini
from inst_diff_edit.pipeline import InstDiffEditPipeline
from inst_diff_edit.resize import resize
from inst_diff_edit.sampling import lms_scheduler, noise_seeds, noises, start_index
from tenfold.runs import atomic_write_json, run
from tenfold.runs.clock import Clock
from tenfold.runs.ranks import choose_device

OFFICIAL, DIRECT, REPOSITORY, DIFFUSERS = "official", "direct", "repository", "diffusers"
METHODS = (OFFICIAL, DIRECT, REPOSITORY, DIFFUSERS)
# (ours, baseline): what the speed-ups compare.
PAIRS = ((OFFICIAL, REPOSITORY), (DIRECT, DIFFUSERS), (DIRECT, REPOSITORY), (OFFICIAL, DIFFUSERS))
PROMPT, SOURCE = "a tomato", "a lemon"
# As in Stable Diffusion 1.4's folder.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
INPAINT_STRENGTH = 0.8  # of diffusers' DiffEdit
NOISES = 10  # of both DiffEdits


@dataclass(frozen=True)
class Size:
    """Dimensions of the measured models and of the edit."""

    unet: tuple[int, ...]
    vae: tuple[int, ...]
    context: int
    groups: int
    edge: int
    steps: int


FULL = Size((320, 640, 1280, 1280), (128, 256, 512, 512), 768, 32, 512, 50)
QUARTER = Size((80, 160, 320, 320), (32, 64, 128, 128), 192, 16, 256, 20)


class Bench:
    """The models, and one function per method.

    Args:
        size: dimensions. device, dtype: of all models. seed: of weights and picture.
    """

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self.size = size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            latent = size.edge // 8
            widths = {"block_out_channels": size.unet, "cross_attention_dim": size.context, "sample_size": latent}
            groups = {"norm_num_groups": size.groups}
            unet = costs.unet(device="cpu", **widths, **groups)
            nine = costs.unet(inpainting=True, device="cpu", **widths, **groups)
            vae = costs.vae(device="cpu", block_out_channels=size.vae, sample_size=size.edge, **groups)
            words = mini.tokenizer()
            words.model_max_length = costs.TEXT_POSITIONS
            text = costs.text_encoder(
                device="cpu", vocab_size=len(words), hidden_size=size.context, intermediate_size=4 * size.context,
                bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
            )  # fmt: skip
        parts = {"vae": vae, "text_encoder": text, "tokenizer": words}
        ddim = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)
        self.pipe = InstDiffEditPipeline(**parts, unet=unet, scheduler=ddim)
        checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        self.pipe.inpaint = StableDiffusionInpaintPipeline(**parts, unet=nine, scheduler=ddim, **checker)
        self.peer = StableDiffusionDiffEditPipeline(
            **parts, unet=unet, scheduler=ddim, inverse_scheduler=DDIMInverseScheduler(**BETAS), **checker
        )
        for pipe in (self.pipe, self.pipe.inpaint, self.peer):
            pipe.to(device, dtype)
            pipe.set_progress_bar_config(disable=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size.edge, size.edge, 3), dtype=np.uint8)
        self.picture = Image.fromarray(pixels)
        self.seen = {"samples": 0, "calls": 0}
        for model in (unet, nine):
            model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        sample = args[0] if args else kwargs["sample"]
        self.seen["samples"] += len(sample)
        self.seen["calls"] += 1

    def edit(self, method: str) -> Any:
        """One edited picture by a method."""
        return {
            OFFICIAL: lambda: self._ours(3, "inpaint"),
            DIRECT: lambda: self._ours(1, "latents"),
            REPOSITORY: self._repository,
            DIFFUSERS: self._diffusers,
        }[method]()

    def cost(self, method: str) -> Cost:
        """What the method takes by count."""
        steps = self.size.steps
        return {
            OFFICIAL: costs.inst_diff_edit_cost(3, steps, inpaint_steps=steps),
            DIRECT: costs.inst_diff_edit_cost(1, steps, final="latents"),
            REPOSITORY: costs.repository_diffedit_cost(NOISES, steps, inpaint_steps=steps),
            DIFFUSERS: costs.diffusers_diffedit_cost(NOISES, steps, INPAINT_STRENGTH),
        }[method]

    def _ours(self, num_masks: int, final: str) -> Any:
        return self.pipe(
            self.picture,
            PROMPT,
            num_inference_steps=self.size.steps,
            num_masks=num_masks,
            final=final,
            inpaint_options={"num_inference_steps": self.size.steps},
        ).images

    @torch.no_grad()
    def _repository(self) -> Any:
        pipe, size = self.pipe, self.size
        pixels = to_tensor([self.picture], size.edge, size.edge).to(pipe.device, pipe.vae.dtype)
        latents = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
        noise = noises(noise_seeds(torch.Generator().manual_seed(0), NOISES), latents)
        embeddings = pipe._encode_prompts([SOURCE, PROMPT], None, guided=True)
        unconditional, source, target = embeddings[:1], embeddings[2:3], embeddings[3:4]
        begin = start_index(size.steps, 0.5)
        distances, _, _ = baselines.diffedit_distances(
            pipe.unet, lms_scheduler(pipe.scheduler), latents, noise, source, target, unconditional, size.steps, begin
        )
        for _ in range(2 * NOISES):  # the script decodes every run's latents and throws the picture away
            pipe._decode(latents)
        _, mask = baselines.diffedit_mask(distances.float())
        painted = masks_as(resize(mask[None], size.edge, size.edge), "pil")
        return self.pipe.inpaint(
            PROMPT, image=self.picture, mask_image=painted, height=size.edge, width=size.edge,
            num_inference_steps=size.steps, generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    def _diffusers(self) -> Any:
        options = {"num_inference_steps": self.size.steps, "generator": torch.Generator().manual_seed(0)}
        mask = self.peer.generate_mask(
            self.picture, target_prompt=PROMPT, source_prompt=SOURCE, num_maps_per_mask=NOISES, **options
        )
        inverted = self.peer.invert(SOURCE, self.picture, inpaint_strength=INPAINT_STRENGTH, **options).latents
        return self.peer(
            PROMPT, mask_image=mask, image_latents=inverted, inpaint_strength=INPAINT_STRENGTH, **options
        ).images

    def forward_flops(self) -> costs.Forward:
        """FLOPs of one sample through each model, counted at these dimensions without weights."""
        size = self.size
        widths = {"block_out_channels": size.unet, "cross_attention_dim": size.context, "norm_num_groups": size.groups}
        latents = torch.zeros(1, 4, size.edge // 8, size.edge // 8, device="meta")
        nine = torch.zeros(1, costs.INPAINT_CHANNELS, size.edge // 8, size.edge // 8, device="meta")
        context = torch.zeros(1, costs.TEXT_POSITIONS, size.context, device="meta")
        moment = torch.zeros(1, device="meta")
        unet, inpainting = costs.eager(costs.unet(**widths)), costs.eager(costs.unet(inpainting=True, **widths))
        vae = costs.eager(costs.vae(block_out_channels=size.vae, norm_num_groups=size.groups))
        pixels = torch.zeros(1, 3, size.edge, size.edge, device="meta")
        return costs.Forward(
            unet=costs.count(lambda: unet(latents, moment, encoder_hidden_states=context)),
            unet_inpainting=costs.count(lambda: inpainting(nine, moment, encoder_hidden_states=context)),
            vae_encode=costs.count(lambda: vae.encode(pixels)),
            vae_decode=costs.count(lambda: vae.decode(latents)),
            text_encoder=0,
        )


def run_bench(settings: BenchSettings, seed: int, output: Path | None, size: Size | None = None) -> dict[str, Any]:
    """Measure every method, and write the run's record to the file ``output``.

    Args:
        size: other dimensions than the device's own.

    Raises:
        UserError: no CUDA device when asked for.
    """
    device = choose_device(settings.device)
    size = size or (FULL if device.type == "cuda" else QUARTER)
    bench = Bench(size, device, getattr(torch, settings.dtype), seed)
    timings: dict[str, list[float]] = {method: [] for method in METHODS}
    memory: dict[str, int] = {}
    clock = Clock(device)
    counted: dict[str, dict[str, int]] = {}
    with run("inst_diff_edit", "bench", config=settings.model_dump(), seed=seed, output=None) as current:
        for round_ in range(settings.repeats + 1):  # the first one warms up
            for method in METHODS:
                bench.seen = {"samples": 0, "calls": 0}
                _, seconds, peak = clock.time(partial(bench.edit, method))
                counted[method] = dict(bench.seen)
                if round_:
                    timings[method].append(seconds)
                if peak is not None:
                    memory[method] = peak
        forward = bench.forward_flops()
        current.metrics |= {
            "size": {"unet": list(size.unet), "edge": size.edge, "steps": size.steps, "dtype": settings.dtype},
            "methods": {
                method: {
                    "seconds": median(timings[method]),
                    "all_seconds": timings[method],
                    "tflops": bench.cost(method).flops(forward) / 1e12,
                    **counted[method],
                    "counted_as_expected": counted[method]
                    == {"samples": bench.cost(method).samples, "calls": bench.cost(method).calls},
                    "peak_bytes": memory.get(method),
                }
                for method in METHODS
            },
        }
        current.metrics["speed_ups"] = speed_ups(current.metrics["methods"])
    if output is not None:
        assert current.record is not None
        atomic_write_json(output, current.record.model_dump(mode="json"))
    return current.metrics


def speed_ups(methods: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every pair: realised and predicted speed-up, and their ratio."""
    rows = []
    for ours, baseline in PAIRS:
        realised = methods[baseline]["seconds"] / methods[ours]["seconds"]
        predicted = methods[baseline]["tflops"] / methods[ours]["tflops"]
        rows.append(
            {"ours": ours, "baseline": baseline, "realised": realised, "predicted": predicted,
             "realised_over_predicted": realised / predicted}
        )  # fmt: skip
    return rows
