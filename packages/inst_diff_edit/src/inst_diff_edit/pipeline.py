"""InstDiffEdit as a diffusers pipeline (Zou et al., AAAI 2024, arXiv 2401.07709).

The picture's latent is noised to half strength and denoised under the target prompt. After every step the attention
to the prompt's words becomes a mask at once (`masks.instant_mask`), and what lies outside of it is put back to the
noised original. How the picture is finished is a choice:

    pipe = InstDiffEditPipeline.from_pretrained("stable-diffusion-v1-4", inpaint="stable-diffusion-inpainting")
    edited = pipe(image, "a raccoon").images[0]  # the paper: the last mask goes to an inpainting model
    edited = pipe(image, "a raccoon", final="latents").images[0]  # the latents are decoded: one model, one stage
    mask = pipe.generate_mask(image, "a raccoon")[0]  # the mask alone
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import DiffusionPipeline, LMSDiscreteScheduler, StableDiffusionInpaintPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from inst_diff_edit.attention import AttentionRecorder
from inst_diff_edit.inputs import SEED as SEED
from inst_diff_edit.inputs import (
    Picture,
    as_generators,
    as_images,
    finished_as,
    from_tensor,
    masks_as,
    one_each,
    one_of,
    require_numbers,
    to_tensor,
)
from inst_diff_edit.resize import resize
from inst_diff_edit.sampling import NoiseLevels, denoise, lms_scheduler, noise_seeds, noises, start_index, step_options
from inst_diff_edit.stage import MaskOptions, MaskStage, Watch
from inst_diff_edit.words import Words, split_words, token_ids
from tenfold import UserError

OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class InstDiffEditOutput(BaseOutput):
    """What an edit gives back.

    Attributes:
        images: the edited pictures: PIL, ``[images, height, width, 3]`` or ``[images, 3, height, width]`` in [0, 1],
            or latents; None from a mask stage alone.
        masks: the last mask of every picture, at its size: PIL in mode L, or bool ``[images, height, width]``.
        step_masks: ``[images, steps, rows, columns]`` uint8 (0 or 255), the mask of every step at the size it was made;
            None unless asked for.
        soft_masks: ``[images, rows, columns]`` uint8, the last mask before its threshold.
        words: the words of every prompt.
        roles: ``[images, words + 2]`` int8: 1 object, -1 background, 0 neither; start token first, end token last.
    """

    images: Any
    masks: Any
    step_masks: Tensor | None
    soft_masks: Tensor
    words: list[Words]
    roles: Tensor


class InstDiffEditPipeline(DiffusionPipeline):
    """Edits pictures from a prompt alone; the mask is found while denoising.

    Args:
        vae, text_encoder, tokenizer, unet: of Stable Diffusion 1 or 2, or built alike.
        scheduler: replaced by the authors' linear multistep scheduler on the same noise schedule; assign
            ``pipe.scheduler`` to use another one.
        attention_stride: edge of the latent over edge of the attention maps that are used; 4: 16 x 16 at 512 pixels.

    Raises:
        UserError: a model without cross-attention in its down and up blocks, or one for inpainting.
    """

    if TYPE_CHECKING:  # diffusers sets them
        vae: Any
        text_encoder: Any
        tokenizer: Any
        unet: Any
        scheduler: Any
        config: Any
        progress_bar: Any
        set_progress_bar_config: Any
        maybe_free_model_hooks: Any
        _execution_device: Any

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ("latents", "mask", "attention", "soft_mask")

    def __init__(
        self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any, attention_stride: int = 4
    ) -> None:
        super().__init__()
        if not isinstance(scheduler, LMSDiscreteScheduler):
            scheduler = lms_scheduler(scheduler)
        AttentionRecorder(unet, attention_stride)  # refuses what the method cannot serve
        if unet.config.in_channels != unet.config.out_channels:
            raise UserError(
                f"a UNet of {unet.config.in_channels} input channels", "unet", "a base model, not one for inpainting"
            )
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_to_config(attention_stride=attention_stride)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.inpaint: StableDiffusionInpaintPipeline | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, inpaint: str | Path | Any = None, **options: Any
    ) -> InstDiffEditPipeline:
        """Load Stable Diffusion in diffusers' layout: a folder or a hub id.

        Args:
            inpaint: folder, hub id or pipeline of the inpainting model that finishes pictures.
            options: for diffusers, e.g. ``torch_dtype``.
        """
        pipe = super().from_pretrained(str(pretrained_model_name_or_path), **options)
        if isinstance(inpaint, str | Path):
            inpaint = load_inpaint(inpaint, **options)
        pipe.inpaint = inpaint
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **options: Any) -> InstDiffEditPipeline:
        """The models of another pipeline of Stable Diffusion, shared with it; `options` replace some, as there."""
        parts = {name: part for name, part in pipeline.components.items() if name in cls._get_signature_keys(cls)[0]}
        return super().from_pipe(pipeline, **(parts | options))

    @property
    def guidance_scale(self) -> float:
        """Of the call that runs; a callback may set `_guidance_scale` for the steps to come, as in diffusers' own."""
        return self._guidance_scale

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | Sequence[Picture],
        prompt: str | Sequence[str],
        strength: float = 0.5,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        num_masks: int = 3,
        mask_threshold: float = 0.2,
        *,
        object_threshold: float = 0.9,
        background_threshold: float = 0.6,
        roles: Literal["first", "every"] = "first",
        final: Literal["inpaint", "latents", "mask"] = "inpaint",
        matched_noise: bool | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        image_latents: Tensor | None = None,
        inpaint_options: dict[str, Any] | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_step_masks: bool = False,
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Edit pictures.

        Args:
            image: one picture or several (see `pictures.as_image`).
            prompt: what each shall show; one for all, or one a picture.
            strength: share of the schedule that is run; the paper's 0.5.
            num_inference_steps: steps of the whole schedule.
            guidance_scale: of classifier-free guidance; at most 1: none.
            num_masks: noises per picture over which attention is averaged (the authors' "batch size").
            mask_threshold: of the binary mask; the paper's 0.2.
            object_threshold, background_threshold: words at least or at most this similar to the reference word are
                object or background.
            roles: decide them in the first step (the paper), or in every step.
            final: "inpaint": the last mask goes to the inpainting model, the paper's setting; "latents": decode the
                latents of the first noise; "mask": no picture.
            matched_noise: blend with the original at the level that the latents have after the step. The authors blend
                with the level before it; the default follows them, but for "latents", which would keep that noise.
            negative_prompt: for the unconditional half, of the inpainting model too; one for all, or one a picture.
            height, width: pictures are squashed to this size; default: what the model was trained for.
            generator: of noises and the VAE's sample, on the CPU; one, or one a picture. Default: the authors' seed
                anew for every picture, so that a picture's edit does not depend on its batch.
            image_latents: ``[images, channels, height, width]``, scaled, in place of the VAE's sample.
            inpaint_options: for the inpainting pipeline, e.g. ``num_inference_steps``.
            output_type: of images and masks; "latent": latents of all noises, no decoding.
            return_step_masks: keep the mask of every step.
            return_dict: False: a tuple of images and masks.
            callback_on_step_end: called with (pipeline, step, timestep, tensors) before blending; tensors that it
                returns replace "latents" ``[images * num_masks, channels, rows, columns]`` or "mask"
                ``[images, rows, columns]`` in [0, 1]. It can also see "attention" and "soft_mask".

        Raises:
            UserError: pictures, prompts or numbers that cannot be used; no inpainting model to finish with.
        """
        images = as_images(image)
        prompts = one_each(prompt, len(images), "prompt")
        height, width = self._size(height, width)
        self._check(num_inference_steps, num_masks, mask_threshold, final, roles, output_type)
        for name in callback_on_step_end_tensor_inputs:
            one_of("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        words = [split_words(self.tokenizer, text) for text in prompts]
        negatives = one_each(negative_prompt or "", len(images), "negative_prompt")
        for text in negatives:
            token_ids(self.tokenizer, text, "negative_prompt")
        start = start_index(num_inference_steps, strength)
        generators = as_generators(generator, len(images))
        seeds = [noise_seeds(one, num_masks) for one in generators]
        originals = self._originals(images, image_latents, height, width, generators)
        originals = originals.to(self._execution_device, self.unet.dtype)
        noise = torch.cat([noises(own, row[None]) for own, row in zip(seeds, originals, strict=True)])
        embeddings = self._encode_prompts(prompts, negatives, guidance_scale > 1)
        self.scheduler.set_timesteps(num_inference_steps)
        stage = MaskStage(
            originals.repeat_interleave(num_masks, 0),
            noise,
            words,
            embeddings.shape[1],
            NoiseLevels(self.scheduler),
            MaskOptions(
                mask_threshold,
                object_threshold,
                background_threshold,
                roles_anew=roles == "every",
                matched_noise=final == "latents" if matched_noise is None else matched_noise,
                keep_masks=return_step_masks,
            ),
            self._watch(callback_on_step_end, callback_on_step_end_tensor_inputs, start),
        )
        options = step_options(self.scheduler, seeds, originals.device)
        self._guidance_scale, self.num_timesteps = guidance_scale, num_inference_steps - start
        latents = self._denoise(stage, start, embeddings.repeat_interleave(num_masks, 0), options)
        found = stage.found
        assert found is not None
        if not bool(stage.finite):
            raise UserError("attention or latents that are not finite", str(latents.dtype), "float32, or bfloat16")
        masks = resize(found.mask, height, width)
        if output_type == "latent":
            edited = latents
        elif final == "mask":
            edited = None
        elif final == "latents":
            edited = from_tensor(require_numbers(self._decode(latents[::num_masks]), "decoded pictures"), output_type)
        else:
            options = {"negative_prompt": negatives} | (inpaint_options or {})
            edited = self._inpaint(images, prompts, masks, height, width, generators, output_type, options)
        self.maybe_free_model_hooks()
        shown = masks_as(masks, "pt" if output_type == "latent" else output_type)
        if not return_dict:
            return edited, shown
        return InstDiffEditOutput(edited, shown, stage.step_masks, found.soft, words, found.roles)

    def generate_mask(self, image: Any, prompt: Any, *, output_type: str = "pil", **options: Any) -> Any:
        """The masks alone: PIL in mode L ("pil"), or bool ``[images, height, width]`` ("np", "pt").

        Arguments and errors as in a call.
        """
        return self(image, prompt, final="mask", output_type=output_type, **options).masks

    def _denoise(self, stage: MaskStage, start: int, embeddings: Tensor, options: dict[str, Any]) -> Tensor:
        """The latents after the last step, ``[rows, channels, height, width]``; a mask is made after every step.

        Args:
            start: index of the first step that is run.
            embeddings: ``[rows or 2 * rows, 77, width]``, the unconditional half first.
            options: for the scheduler's ``step``.
        """
        rows, _, height, width = stage.originals.shape
        recorder = AttentionRecorder(self.unet, self.config.attention_stride)
        recorder.expect(height, width, rows=slice(len(embeddings) - rows, None))
        bar = self.progress_bar(total=len(self.scheduler.timesteps) - start)

        def after_step(index: int, latents: Tensor) -> Tensor:
            recorder.finish_step()
            bar.update()
            return stage.after_step(index, latents, recorder.mean())

        with recorder, bar:
            return denoise(
                self.unet,
                self.scheduler,
                stage.start(start),
                start,
                embeddings,
                lambda: self.guidance_scale,
                after_step,
                step_options=options,
            )

    def _watch(self, callback: Callable[..., dict[str, Any]] | None, names: Sequence[str], start: int) -> Watch | None:
        """The caller's callback, as a stage calls it."""
        if callback is None:
            return None

        def watch(index: int, offered: dict[str, Tensor]) -> dict[str, Any]:
            chosen = {name: offered[name] for name in names}
            return callback(self, index - start, self.scheduler.timesteps[index], chosen) or {}

        return watch

    def _originals(self, images: list[Any], given: Tensor | None, height: int, width: int, generators: Any) -> Tensor:
        """The pictures' latents: the caller's own, if of the right shape, or the VAE's."""
        if given is None:
            return self._encode_images(images, height, width, generators)
        factor = self.vae_scale_factor
        expected = [len(images), self.unet.config.in_channels, height // factor, width // factor]
        if list(given.shape) != expected:
            raise UserError(f"image_latents of shape {list(given.shape)}", "image_latents", f"{expected}")
        return given

    def _encode_images(
        self, images: Sequence[Any], height: int, width: int, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """A sample of each picture's latent, scaled: ``[images, channels, height / 8, width / 8]``."""
        device = self._execution_device
        pixels = to_tensor(images, height, width).to(device, self.vae.dtype)
        encoded = self.vae.encode(pixels).latent_dist
        noise = torch.cat([torch.randn(encoded.mean[:1].shape, generator=own) for own in generators])
        sample = encoded.mean + encoded.std * noise.to(device, self.vae.dtype)
        return sample * self.vae.config.scaling_factor

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample

    def _encode_prompts(self, prompts: list[str], negative: Any, guided: bool) -> Tensor:
        """``[pictures, 77, width]``, with guidance ``[2 * pictures, 77, width]``, unconditional half first."""
        texts = [*one_each(negative or "", len(prompts), "negative_prompt"), *prompts] if guided else prompts
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        embeddings = self.text_encoder(ids.input_ids.to(self._execution_device))[0]
        # Through float16, as the authors' code does even where the models are float32.
        return embeddings.half().to(self.unet.dtype)

    def _inpaint(
        self,
        images: Sequence[Any],
        prompts: list[str],
        masks: Tensor,
        height: int,
        width: int,
        generators: list[torch.Generator],
        output_type: str,
        options: dict[str, Any] | None,
    ) -> Any:
        # As numbers: in a PIL image what is not finite is black.
        finished = self.inpaint(
            prompts,
            image=[image.resize((width, height)) for image in images],
            mask_image=masks_as(masks, "pil"),
            height=height,
            width=width,
            generator=generators,
            output_type="pt" if output_type == "pt" else "np",
            **(options or {}),
        ).images
        return finished_as(finished, output_type)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        trained = self.unet.config.sample_size
        edges = (trained, trained) if isinstance(trained, int) else tuple(trained)
        height, width = height or edges[0] * self.vae_scale_factor, width or edges[1] * self.vae_scale_factor
        if min(height, width) < 1 or height % self.vae_scale_factor or width % self.vae_scale_factor:
            raise UserError(f"size {height} x {width}", "height, width", f"multiples of {self.vae_scale_factor}")
        return height, width

    def _check(self, steps: int, num_masks: int, threshold: float, final: str, roles: str, output_type: str) -> None:
        for name, value in (("num_inference_steps", steps), ("num_masks", num_masks)):
            if value < 1:
                raise UserError(f"{name} {value}", name, "at least 1")
        if not 0 <= threshold < 1:
            raise UserError(f"mask_threshold {threshold}", "mask_threshold", "0 to 1")
        one_of("final", final, ("inpaint", "latents", "mask"))
        one_of("roles", roles, ("first", "every"))
        one_of("output_type", output_type, (*OUTPUT_TYPES, "latent"))
        if final == "inpaint" and output_type != "latent" and self.inpaint is None:
            raise UserError(
                "no inpainting model to finish with",
                "inpaint",
                'from_pretrained(..., inpaint=FOLDER), or final="latents"',
            )


def load_inpaint(source: str | Path, **options: Any) -> StableDiffusionInpaintPipeline:
    """The inpainting model from a folder or a hub id, without what checks its pictures."""
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionInpaintPipeline.from_pretrained(str(source), **(nothing | options))
