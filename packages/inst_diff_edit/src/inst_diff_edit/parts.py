"""What the pipeline has from Stable Diffusion: its parts, how they are loaded and saved, adapters, and text as numbers.

Nothing here is of the paper. What diffusers' image-to-image pipeline does, does its own code: reading LoRA, textual
inversion, IP-Adapters and single files, encoding prompts and the pictures of IP-Adapters.

    pipe.load_lora_weights("lora.safetensors")  # of the mask stage; `pipe.inpaint` has a UNet of its own
    pipe.load_textual_inversion("cat-toy.safetensors", token="<cat-toy>")
    pipe.load_ip_adapter("IP-Adapter", subfolder="models", weight_name="ip-adapter_sd15.safetensors")
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import (
    DiffusionPipeline,
    LMSDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from diffusers.loaders import (
    FromSingleFileMixin,
    IPAdapterMixin,
    StableDiffusionLoraLoaderMixin,
    TextualInversionLoaderMixin,
)
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from torch import Tensor

from inst_diff_edit.attention import AttentionRecorder
from inst_diff_edit.inputs import to_tensor
from inst_diff_edit.pixels import PixelAutoencoder as PixelAutoencoder
from inst_diff_edit.sampling import lms_scheduler
from tenfold import InputError, UserError

# The inpainting model is the one that was saved with the pipeline, if there is one.
SAVED: Any = object()
# Options of loading that are of one repository, not of two.
_OF_ONE_REPOSITORY = ("revision", "custom_pipeline", "custom_revision", "config", "original_config", "subfolder")
_OF_THE_HUB = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")


class StableDiffusionParts(
    DiffusionPipeline,
    StableDiffusionMixin,
    TextualInversionLoaderMixin,
    IPAdapterMixin,
    StableDiffusionLoraLoaderMixin,
    FromSingleFileMixin,
):
    """The parts of Stable Diffusion 1 or 2, or of a model built alike, as diffusers' pipelines have them.

    Args:
        vae, text_encoder, tokenizer, unet: None where a call gets by without, as with `prompt_embeds`.
        scheduler: replaced by the authors' linear multistep scheduler on the same noise schedule; assign
            ``pipe.scheduler`` to use another one.
        attention_stride: edge of the latent over edge of the attention maps that are used; 4: 16 x 16 at 512 pixels.
        feature_extractor, image_encoder: of IP-Adapters.
        inpaint: the inpainting pipeline that finishes pictures; saved and loaded with the rest.

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
        maybe_free_model_hooks: Any
        _execution_device: Any
        register_modules: Any
        register_to_config: Any
        components: Any
        inpaint: Any
        _guidance_scale: float
        _clip_skip: int | None
        _cross_attention_kwargs: dict[str, Any] | None
        _num_timesteps: int
        _interrupt: bool

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components: ClassVar = ["feature_extractor", "image_encoder", "inpaint"]

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        attention_stride: int = 4,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        inpaint: Any = None,
    ) -> None:
        super().__init__()
        if scheduler is not None and not isinstance(scheduler, LMSDiscreteScheduler):
            scheduler = lms_scheduler(scheduler)
        if unet is not None:
            AttentionRecorder(unet, attention_stride)  # refuses what the method cannot serve
            if unet.config.in_channels != unet.config.out_channels:
                raise UserError(
                    f"a UNet of {unet.config.in_channels} input channels",
                    "unet",
                    "a base model, not one for inpainting",
                )
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            inpaint=inpaint,
        )
        self.register_to_config(attention_stride=attention_stride)
        self.vae_scale_factor = 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "inpaint" and value is not None and name in self.__dict__:
            # A part that was None stays out of diffusers' index when it is assigned; the right names follow below.
            self.register_to_config(inpaint=("diffusers", "DiffusionPipeline"))
            if hasattr(self, "_progress_bar_config") and not hasattr(value, "_progress_bar_config"):
                value._progress_bar_config = self._progress_bar_config
        super().__setattr__(name, value)

    @property
    def guidance_scale(self) -> float:
        """Of the call that runs; a callback may set `_guidance_scale` for the steps to come, as in diffusers' own."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the UNet sees every row under the negative prompt, too."""
        return self._guidance_scale > 1 and self.unet.config.time_cond_proj_dim is None

    @property
    def clip_skip(self) -> int | None:
        """Of the call that runs."""
        return self._clip_skip

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """Of the call that runs."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Steps of the mask stage."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the stage that runs, mask or inpainting, ends after its step: set `_interrupt`, as in diffusers."""
        return self._interrupt

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, inpaint: str | Path | Any = SAVED, **options: Any
    ) -> Any:
        """Load Stable Diffusion in diffusers' layout: a folder or a hub id.

        Args:
            inpaint: folder, hub id or pipeline of the inpainting model that finishes pictures; None: no one. By default
                the one that was saved with the pipeline.
            options: for diffusers, e.g. ``torch_dtype``. Parts such as ``unet=`` and ``revision=`` are of the base
                model alone; what else there is holds for the inpainting model too.
        """
        source = str(pretrained_model_name_or_path)
        index = cls.load_config(source, **{name: options[name] for name in _OF_THE_HUB if name in options})
        if _is_left_out(index.get("image_encoder")):
            # Releases have one for their safety checker; here it is of IP-Adapters, which bring their own.
            options.setdefault("feature_extractor", None)
        kept = {} if inpaint is SAVED else {"inpaint": None}
        pipe = super().from_pretrained(source, **(options | kept))
        if inpaint is not SAVED:
            pipe.inpaint = cls._opened(inpaint, options)
        elif pipe.inpaint is not None and isinstance(
            dtype := options.get("torch_dtype", options.get("dtype")), torch.dtype
        ):
            pipe.inpaint.to(dtype)  # diffusers hands it on to models only
        return pipe

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path: str | Path, inpaint: str | Path | Any = None, **options: Any
    ) -> Any:
        """Load Stable Diffusion from one file of the original layout, as diffusers does.

        Args:
            inpaint: as in `from_pretrained`; a folder, a hub id or a pipeline.
            options: for diffusers, e.g. ``config``, a folder or hub id of the same kind of model.
        """
        left_out = {} if "feature_extractor" in options else {"feature_extractor": None}
        pipe = super().from_single_file(str(pretrained_model_link_or_path), **options, **left_out)
        pipe.inpaint = cls._opened(inpaint, options)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **options: Any) -> Any:
        """The models of another pipeline of Stable Diffusion, shared with it; `options` replace some, as there."""
        parts = {name: part for name, part in pipeline.components.items() if name in cls._get_signature_keys(cls)[0]}
        return super().from_pipe(pipeline, **(parts | options))

    @classmethod
    def _opened(cls, inpaint: Any, options: dict[str, Any]) -> Any:
        """The inpainting pipeline, loaded if it is named; without what the options say of the base model."""
        if not isinstance(inpaint, str | Path):
            return inpaint
        modules, settings = cls._get_signature_keys(cls)
        of_the_base = {*modules, *settings, *_OF_ONE_REPOSITORY}
        return load_inpaint(inpaint, **{name: value for name, value in options.items() if name not in of_the_base})

    def set_progress_bar_config(self, **config: Any) -> None:
        """As diffusers' own, for the inpainting pipeline too."""
        super().set_progress_bar_config(**config)
        if self.inpaint is not None:
            self.inpaint.set_progress_bar_config(**config)

    def load_lora_weights(self, *args: Any, **options: Any) -> None:
        """As diffusers' own, into UNet and text encoder.

        Raises:
            UserError: peft is not installed.
        """
        if find_spec("peft") is None:
            raise UserError("peft is not installed", "load_lora_weights", "pip install peft")
        super().load_lora_weights(*args, **options)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As diffusers' `StableDiffusionImg2ImgPipeline.encode_prompt`, with multi-vector textual inversion.

        Returns:
            Embeddings ``[prompts * num_images_per_prompt, 77, width]`` of the prompt, and of the negative one (None
            without guidance).

        Raises:
            InputError: a layer to skip to that the text encoder does not have.
        """
        device = device or self._execution_device
        if clip_skip is not None and prompt_embeds is None:
            prompt_embeds = self._earlier_layer(prompt, device, clip_skip, lora_scale)
        prompt_embeds, negative_prompt_embeds = StableDiffusionImg2ImgPipeline.encode_prompt(
            self,  # type: ignore[arg-type]
            prompt,
            device,
            num_images_per_prompt,
            do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            lora_scale,
        )
        return prompt_embeds, negative_prompt_embeds

    def _earlier_layer(self, prompt: Any, device: Any, clip_skip: int, lora_scale: float | None) -> Tensor:
        """The prompt's embeddings ``[prompts, 77, width]`` of so many layers before the last, normed as the last is.

        diffusers' own looks for ``text_encoder.text_model``, which transformers 5 does not have.
        """
        layers = self.text_encoder.config.num_hidden_layers
        if isinstance(clip_skip, bool) or not isinstance(clip_skip, int) or not 0 <= clip_skip <= layers:
            raise InputError(f"clip_skip {clip_skip!r}", "clip_skip", f"0 to {layers}, the text encoder's layers")
        length = self.tokenizer.model_max_length
        texts = self.maybe_convert_prompt([prompt] if isinstance(prompt, str) else prompt, self.tokenizer)
        ids = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        if lora_scale is not None:
            scale_lora_layers(self.text_encoder, lora_scale)
        try:
            found = self.text_encoder(ids.input_ids.to(device), output_hidden_states=True).hidden_states
        finally:
            if lora_scale is not None:
                unscale_lora_layers(self.text_encoder, lora_scale)
        tower = getattr(self.text_encoder, "text_model", self.text_encoder)
        return tower.final_layer_norm(found[-(clip_skip + 1)])

    encode_image = StableDiffusionImg2ImgPipeline.encode_image
    prepare_ip_adapter_image_embeds = StableDiffusionImg2ImgPipeline.prepare_ip_adapter_image_embeds
    get_guidance_scale_embedding = StableDiffusionImg2ImgPipeline.get_guidance_scale_embedding

    def _adapter_pictures(self, image: Any, embeds: Any, rows: int, guided: bool) -> list[Tensor] | None:
        """What IP-Adapters see, one tensor an adapter: ``[rows or 2 * rows, pictures, ...]``; None without adapters.

        Raises:
            InputError: pictures without an adapter or an adapter without pictures; both pictures and embeddings; no
                image encoder for pictures; embeddings of another shape.
        """
        loaded = self.unet.config.encoder_hid_dim_type == "ip_image_proj"
        given = image is not None or embeds is not None
        if given and not loaded:
            raise InputError("no IP-Adapter is loaded", "ip_adapter_image", "load_ip_adapter(...) before")
        if not loaded:
            return None
        if not given or (image is not None and embeds is not None):
            what = "pictures and embeddings" if given else "no picture"
            raise InputError(f"{what} for the IP-Adapter", "ip_adapter_image", "it, or ip_adapter_image_embeds")
        if image is not None and self.image_encoder is None:
            raise InputError(
                "no image encoder", "ip_adapter_image", "load_ip_adapter's own, or ip_adapter_image_embeds"
            )
        count = len(self.unet.encoder_hid_proj.image_projection_layers)
        if image is not None and len(image if isinstance(image, list) else [image]) != count:
            raise InputError("another number of pictures than IP-Adapters", "ip_adapter_image", f"a list of {count}")
        if embeds is not None:
            sizes = {tuple(one.shape[:1]) if torch.is_tensor(one) and one.ndim in (3, 4) else None for one in embeds}
            if len(embeds) != count or sizes != {(1 + guided,)}:
                expected = f"{count} of [{1 + guided}, pictures, width]" + ", the negative one first" * guided
                raise InputError("embeddings of another shape", "ip_adapter_image_embeds", expected)
        found = self.prepare_ip_adapter_image_embeds(image, embeds, self._execution_device, rows, guided)
        return [one.to(self.unet.dtype) for one in found]

    def _originals(self, images: list[Any], given: Tensor | None, height: int, width: int, generators: Any) -> Tensor:
        """The latents of every edit's picture: the caller's own, if of the right shape, or the VAE's."""
        if given is None:
            return self._encode_images(images, height, width, generators)
        factor = self.vae_scale_factor
        expected = [len(images), self.unet.config.in_channels, height // factor, width // factor]
        if not torch.is_tensor(given) or list(given.shape) != expected:
            what = f"of shape {list(given.shape)}" if torch.is_tensor(given) else f"of type {type(given).__name__}"
            raise InputError(f"image_latents {what}", "image_latents", f"{expected}")
        return given.repeat_interleave(len(generators) // len(images), 0)

    def _encode_images(
        self, images: Sequence[Any], height: int, width: int, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """A sample of a picture's latent for each of its generators, scaled: ``[generators, channels, rows, columns]``.

        An autoencoder that says no distribution, as AutoencoderTiny, has one sample.
        """
        device, edits = self._execution_device, len(generators) // len(images)
        pixels = to_tensor(images, height, width).to(device, self.vae.dtype)
        encoded = self.vae.encode(pixels)
        if not hasattr(encoded, "latent_dist"):
            return encoded.latents.repeat_interleave(edits, 0) * self.vae.config.scaling_factor
        mean, std = (part.repeat_interleave(edits, 0) for part in (encoded.latent_dist.mean, encoded.latent_dist.std))
        noise = torch.cat([torch.randn(mean[:1].shape, generator=own) for own in generators])
        return (mean + std * noise.to(device, self.vae.dtype)) * self.vae.config.scaling_factor

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample


def _is_left_out(entry: Any) -> bool:
    """Whether an index has no such part."""
    return not isinstance(entry, list | tuple) or entry[0] is None


def load_inpaint(source: str | Path, **options: Any) -> StableDiffusionInpaintPipeline:
    """The inpainting model from a folder or a hub id, without what checks its pictures."""
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionInpaintPipeline.from_pretrained(str(source), **(nothing | options))
