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
from math import isfinite
from typing import Any, ClassVar, Literal

import diffusers
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from torch import Tensor

from inst_diff_edit.attention import AttentionRecorder
from inst_diff_edit.conditioning import Conditioning, Text, read_text
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
    require_number,
    require_numbers,
)
from inst_diff_edit.parts import StableDiffusionParts
from inst_diff_edit.parts import load_inpaint as load_inpaint
from inst_diff_edit.resize import resize
from inst_diff_edit.sampling import NoiseLevels, denoise, noise_seeds, noises, start_index, step_options
from inst_diff_edit.stage import MaskOptions, MaskStage, Watch
from inst_diff_edit.words import Words
from tenfold import InputError, UserError

OUTPUT_TYPES = ("pil", "np", "pt")
# What a callback can ask for; the first three by diffusers' names.
TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds", "denoised", "mask", "attention", "soft_mask")


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


class InstDiffEditPipeline(StableDiffusionParts):
    """Edits pictures from a prompt alone; the mask is found while denoising. Parts: see `StableDiffusionParts`."""

    _callback_tensor_inputs: ClassVar = [*TENSORS]

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | Sequence[Picture],
        prompt: str | Sequence[str] | None = None,
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
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        image_latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        words: Words | Sequence[Words] | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        inpaint_options: dict[str, Any] | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_step_masks: bool = False,
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Edit pictures.

        Args:
            image: one picture or several (see `inputs.as_image`); what a pipeline gave as "pil", "np" or "pt".
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
            num_images_per_prompt: edits of every picture, side by side, each with noises of its own.
            height, width: pictures are squashed to this size; default: what the model was trained for.
            generator: of noises and the VAE's sample, on the CPU; one, or one a picture or an edit. Default: the
                authors' seed anew for every picture (and the next number for its next edit), so that a picture's edit
                does not depend on its batch.
            image_latents: ``[images, channels, height, width]``, scaled, in place of the VAE's sample.
            prompt_embeds, negative_prompt_embeds: ``[1 or images, positions, width]``, in place of the encoded texts.
                The mask is found at the places of words: give the prompt that they were made from too, or `words`.
            words: with `prompt_embeds`, where the words are, in place of what the tokenizer says of the prompt.
            ip_adapter_image, ip_adapter_image_embeds: as in diffusers, for the IP-Adapters that were loaded.
            cross_attention_kwargs: for the attention processors; "scale" is LoRA's, of the text encoder too.
            clip_skip: layers of the text encoder that the prompt leaves out at its end.
            inpaint_options: for the inpainting pipeline, e.g. ``num_inference_steps``.
            output_type: of images and masks; "latent": latents of all noises, no decoding.
            return_step_masks: keep the mask of every step.
            return_dict: False: a tuple of images and masks.
            callback_on_step_end: called with (pipeline, step, timestep, tensors) after every step of the mask stage.
                Tensors that it returns replace "latents" ``[edits * num_masks, channels, rows, columns]``;
                "mask" ``[edits, rows, columns]`` in [0, 1], with which the step is blended anew; and for the steps to
                come "prompt_embeds" ``[edits or 2 * edits, positions, width]``, the negative ones first. It can also
                see "negative_prompt_embeds", "denoised" (the latents before blending), "attention" and "soft_mask".

        Raises:
            UserError: pictures, prompts or numbers that cannot be used; no inpainting model to finish with; another
                call that is at work on the same UNet.
        """
        images = as_images(image)
        height, width = self._size(height, width)
        self._check(num_inference_steps, num_masks, num_images_per_prompt, guidance_scale, final, roles, output_type)
        for name, value in (("object", object_threshold), ("background", background_threshold)):
            require_number(f"{name}_threshold", value, "a number", isfinite)
        require_number("mask_threshold", mask_threshold, "at least 0, below 1", lambda share: 0 <= share < 1)
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        for name in callback_on_step_end_tensor_inputs:
            one_of("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        start = start_index(num_inference_steps, strength)
        texts = (prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        text = read_text(self, len(images), *texts, words, guidance_scale > 1)
        for_inpainting = self._told_to_inpaint(text, num_images_per_prompt, inpaint_options or {}, final)
        each_words = [one for one in text.words for _ in range(num_images_per_prompt)]
        generators = as_generators(generator, len(images), num_images_per_prompt)
        # Before anything is changed: the UNet and this pipeline may be at work in another thread.
        with AttentionRecorder(self.unet, self.config.attention_stride) as recorder:
            self._guidance_scale, self._clip_skip, self._interrupt = guidance_scale, clip_skip, False
            self._cross_attention_kwargs, self._num_timesteps = cross_attention_kwargs, num_inference_steps - start
            told = self._conditioning(text, num_images_per_prompt, num_masks, ip_adapter_image, ip_adapter_image_embeds)
            seeds = [noise_seeds(one, num_masks) for one in generators]
            originals = self._originals(images, image_latents, height, width, generators)
            originals = originals.to(self._execution_device, self.unet.dtype)
            noise = torch.cat([noises(own, row[None]) for own, row in zip(seeds, originals, strict=True)])
            self.scheduler.set_timesteps(num_inference_steps)
            stage = MaskStage(
                originals.repeat_interleave(num_masks, 0),
                noise,
                each_words,
                told.embeddings.shape[1],
                NoiseLevels(self.scheduler),
                MaskOptions(
                    mask_threshold,
                    object_threshold,
                    background_threshold,
                    roles_anew=roles == "every",
                    matched_noise=final == "latents" if matched_noise is None else matched_noise,
                    keep_masks=return_step_masks,
                ),
                self._watch(callback_on_step_end, callback_on_step_end_tensor_inputs, start, told),
            )
            latents = self._denoise(stage, recorder, start, told, step_options(self.scheduler, seeds, originals.device))
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
            repeated = [one for one in images for _ in range(num_images_per_prompt)]
            edited = self._inpaint(repeated, None, masks, height, width, generators, output_type, for_inpainting)
        self.maybe_free_model_hooks()
        shown = masks_as(masks, "pt" if output_type == "latent" else output_type)
        if not return_dict:
            return edited, shown
        return InstDiffEditOutput(edited, shown, stage.step_masks, found.soft, each_words, found.roles)

    def generate_mask(self, image: Any, prompt: Any = None, *, output_type: str = "pil", **options: Any) -> Any:
        """The masks alone: PIL in mode L ("pil"), or bool ``[images, height, width]`` ("np", "pt").

        Arguments and errors as in a call.
        """
        return self(image, prompt, final="mask", output_type=output_type, **options).masks

    def _denoise(
        self, stage: MaskStage, recorder: AttentionRecorder, start: int, told: Conditioning, options: dict[str, Any]
    ) -> Tensor:
        """The latents after the last step, ``[rows, channels, height, width]``; a mask is made after every step.

        Args:
            start: index of the first step that is run.
            options: for the scheduler's ``step``.
        """
        rows, _, height, width = stage.originals.shape
        recorder.expect(height, width, rows=slice(-rows, None))  # the conditional half comes last
        with self.progress_bar(total=len(self.scheduler.timesteps) - start) as bar:

            def after_step(index: int, latents: Tensor) -> Tensor:
                recorder.finish_step()
                bar.update()
                return stage.after_step(index, latents, recorder.mean())

            return denoise(
                told.unet(self.unet),
                self.scheduler,
                stage.start(start),
                start,
                told.rows,
                lambda: self.guidance_scale,
                after_step,
                step_options=options,
                stop=lambda: self.interrupt,
            )

    def _watch(
        self, callback: Callable[..., dict[str, Any]] | None, names: Sequence[str], start: int, told: Conditioning
    ) -> Watch | None:
        """The caller's callback, as a stage calls it."""
        if callback is None:
            return None

        def watch(index: int, offered: dict[str, Tensor]) -> dict[str, Any]:
            every = {**offered, "prompt_embeds": told.embeddings, "negative_prompt_embeds": told.negative()}
            chosen = {name: every[name] for name in names}
            replaced = callback(self, index - start, self.scheduler.timesteps[index], chosen) or {}
            if "prompt_embeds" in replaced:
                told.change(replaced["prompt_embeds"])
            return replaced

        return watch

    def _conditioning(self, text: Text, edits: int, noises: int, image: Any, image_embeds: Any) -> Conditioning:
        """What the UNet is told in this call, for ``edits`` of every picture and ``noises`` of every edit."""
        guided, rows = self.do_classifier_free_guidance, len(text.words) * edits * noises
        attention = self.cross_attention_kwargs
        if attention is not None and not isinstance(attention, dict):
            raise InputError(f"a {type(attention).__name__}", "cross_attention_kwargs", "a dict of keywords")
        pictures = self._adapter_pictures(image, image_embeds, rows, guided)
        guidance = None
        if (width := self.unet.config.time_cond_proj_dim) is not None:
            scale = torch.full((rows,), self.guidance_scale - 1)
            guidance = self.get_guidance_scale_embedding(scale, width).to(self._execution_device, self.unet.dtype)
        embeddings = self._encode_prompts(
            text.prompts if text.embeddings is None else None,
            text.negatives,
            guided,
            prompt_embeds=text.embeddings,
            negative_prompt_embeds=text.negative_embeddings,
            lora_scale=(attention or {}).get("scale"),
            clip_skip=self.clip_skip,
        )
        embeddings = embeddings.repeat_interleave(edits, 0)
        return Conditioning(embeddings, len(text.words) * edits, noises, pictures, guidance, attention)

    def _encode_prompts(self, prompts: list[str] | None, negative: Any, guided: bool, **given: Any) -> Tensor:
        """``[pictures, 77, width]``, with guidance ``[2 * pictures, 77, width]``, unconditional half first.

        Args:
            given: embeddings that stand for a text, ``lora_scale``, ``clip_skip``.
        """
        if prompts is not None and given.get("negative_prompt_embeds") is None:
            negative = one_each(negative or "", len(prompts), "negative_prompt")
        positive, unconditional = self.encode_prompt(prompts, None, 1, guided, negative, **given)
        embeddings = torch.cat([unconditional, positive]) if guided else positive
        # Through float16, as the authors' code does even where the models are float32.
        return embeddings.half().to(self.unet.dtype)

    def _told_to_inpaint(self, text: Text, edits: int, options: dict[str, Any], final: str) -> dict[str, Any]:
        """What the inpainting pipeline gets besides pictures and masks; the caller's options win."""
        told = text.for_inpainting(edits)
        for name in ("prompt", "negative_prompt"):
            if name in options or f"{name}_embeds" in options:
                told = {key: value for key, value in told.items() if key not in (name, f"{name}_embeds")}
        told |= options
        if final == "inpaint" and (embeddings := told.get("prompt_embeds")) is not None:
            width = self.inpaint.unet.config.cross_attention_dim
            if embeddings.shape[-1] != width:
                expected = f"{width} for the inpainting model, by inpaint_options"
                raise InputError(f"embeddings of width {embeddings.shape[-1]}", "prompt_embeds", expected)
        return told

    def _inpaint(
        self,
        images: Sequence[Any],
        prompts: list[str] | None,
        masks: Tensor,
        height: int,
        width: int,
        generators: list[torch.Generator],
        output_type: str,
        options: dict[str, Any] | None,
    ) -> Any:
        def follow(inner: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            inner._interrupt = self._interrupt
            return tensors

        self._interrupt = False  # of the mask stage, which ended with the mask that it had
        told = {} if prompts is None else {"prompt": prompts}
        # As numbers: in a PIL image what is not finite is black.
        finished = self.inpaint(
            image=[image.resize((width, height)) for image in images],
            mask_image=masks_as(masks, "pil"),
            height=height,
            width=width,
            generator=generators,
            output_type="pt" if output_type == "pt" else "np",
            **({"callback_on_step_end": follow} | told | (options or {})),
        ).images
        return finished_as(finished, output_type)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        trained = self.unet.config.sample_size
        edges = (trained, trained) if isinstance(trained, int) else tuple(trained)
        factor = self.vae_scale_factor
        height = edges[0] * factor if height is None else height
        width = edges[1] * factor if width is None else width
        for name, value in (("height", height), ("width", width)):
            require_number(name, value, "a whole number of pixels", lambda pixels: True, whole=True)
        if min(height, width) < 1 or height % factor or width % factor:
            raise InputError(f"size {height} x {width}", "height, width", f"multiples of {factor}")
        return height, width

    def _check(
        self, steps: Any, noises: Any, edits: Any, guidance: Any, final: str, roles: str, output_type: str
    ) -> None:
        for name, value in (("num_inference_steps", steps), ("num_masks", noises), ("num_images_per_prompt", edits)):
            require_number(name, value, "a whole number, at least 1", lambda count: count >= 1, whole=True)
        require_number("guidance_scale", guidance, "a number", isfinite)
        one_of("final", final, ("inpaint", "latents", "mask"))
        one_of("roles", roles, ("first", "every"))
        one_of("output_type", output_type, (*OUTPUT_TYPES, "latent"))
        if final == "inpaint" and output_type != "latent" and self.inpaint is None:
            raise UserError(
                "no inpainting model to finish with",
                "inpaint",
                'from_pretrained(..., inpaint=FOLDER), or final="latents"',
            )


# DiffusionPipeline.from_pretrained looks the class that a saved folder names up there.
diffusers.InstDiffEditPipeline = InstDiffEditPipeline  # type: ignore[attr-defined]
