"""`llava-hr bench`: what an image of 1024 pixels costs LLaVA-HR, beside LLaVA-1.5 at equal resolution.

LLaVA-HR-7B at 1024 pixels (1,024 visual tokens), LLaVA-1.5-7B at 1022 (5,329) and at 336 (576), at full width with
random weights (time does not depend on what the weights say): whole on CUDA, of fewer layers on the CPU. LLaVA-1.5 is
transformers' own, with CLIP's position embeddings at that size. All share one decoder, so that they fit side by side,
and run in turn within each round, so that a change of the machine's speed meets all of them. Timed apart:

- vision: pixels to visual tokens, projector included;
- prefill: the prompt with its visual tokens, to the first token;
- decode: each further token, from the cache;
- answer: all three together, as the official speed script has it: one image, 10 new tokens, batch 1 (without warm-up).

Besides, for LLaVA-HR: a further question on an image whose visual tokens were kept. FLOPs and bytes are of exactly what
runs; a speed-up that is predicted from them stands beside the measured one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from llava_hr import bench_towers, costs
from llava_hr.configuration import LlavaHrConfig
from llava_hr.evidence.settings import BenchSettings
from llava_hr.modeling import LlavaHrForConditionalGeneration
from tenfold import UserError
from tenfold.runs import atomic_write_json, run, track
from tenfold.runs.clock import Clock, spread
from tenfold.runs.ranks import choose_device

Result = TypeVar("Result")

CPU_LAYERS, CPU_VIT_LAYERS, CPU_CONV_DEPTHS = 2, 4, (1, 1, 3, 1)
# LLaVA's prompt: tokens before the image, the rest behind it.
PREFIX = 35
PARTS = ("vision", "prefill", "decode", "answer")


@dataclass
class Subject:
    """A model that is measured, on one image and its prompt.

    Attributes:
        name: as it is shown. shape: its dimensions, as they run. image_size: in pixels.
        model: with `lm_head`. encode: pixels `[1, 3, R, R]` -> visual tokens `[1, N, D]`.
        prefill: visual tokens -> the model's output for the whole prompt, with a cache.
        pixels: of the image.
    """

    name: str
    shape: costs.Shape
    image_size: int
    model: Any
    encode: Callable[[Tensor], Tensor]
    prefill: Callable[[Tensor], Any]
    pixels: Tensor

    @property
    def tokens(self) -> int:
        """Visual tokens."""
        return costs.visual_tokens(self.shape, self.image_size)


def run_bench(
    settings: BenchSettings, seed: int, output: Path | None, config: LlavaHrConfig | None = None
) -> dict[str, Any]:
    """Measure, and write the run's record with all figures to the file ``output``.

    Args:
        config: dimensions other than LLaVA-HR-7B's.

    Raises:
        UserError: no CUDA device when asked for, or sizes that do not fit the model.
    """
    device = choose_device(settings.device)
    config = reduced_config(config or LlavaHrConfig.named("7b", settings.image_size), settings, device)
    name = settings.dtype if settings.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    with run("llava_hr", "bench", config=settings.model_dump(), seed=seed, output=None) as current:
        bench = Bench(settings, config, getattr(torch, name), device, seed)
        current.metrics |= bench.facts() | bench.measure()
    if output is not None and current.record is not None:
        atomic_write_json(output, current.record.model_dump(mode="json"))
    return current.metrics


def reduced_config(config: LlavaHrConfig, settings: BenchSettings, device: torch.device) -> LlavaHrConfig:
    """A config of the same widths, with the depths that the settings or the device ask for."""
    small = device.type != "cuda"
    values = config.to_dict()
    text, vision = values["text_config"], values["vision_config"]
    low = vision["low_res_config"]
    text["num_hidden_layers"] = settings.layers or (
        min(CPU_LAYERS, text["num_hidden_layers"]) if small else text["num_hidden_layers"]
    )
    low["num_hidden_layers"] = settings.vit_layers or (
        min(CPU_VIT_LAYERS, low["num_hidden_layers"]) if small else low["num_hidden_layers"]
    )
    depths = settings.conv_depths or (CPU_CONV_DEPTHS if small else vision["high_res_depths"])
    vision["high_res_depths"] = [min(pair) for pair in zip(depths, vision["high_res_depths"], strict=True)]
    vision["image_size"] = settings.image_size
    longest = max(settings.llava_sizes) // low["patch_size"]
    text["max_position_embeddings"] = max(
        text["max_position_embeddings"], longest**2 + settings.text_tokens + settings.new_tokens
    )
    return LlavaHrConfig.from_dict(values)


def llava_config(config: LlavaHrConfig, image_size: int) -> LlavaConfig:
    """LLaVA-1.5 with the same language model and the same ViT, at another resolution."""
    low = config.vision_config.low_res_config
    if image_size % low.patch_size:
        raise UserError(f"LLaVA-1.5 at {image_size} pixels", "llava_sizes", f"a multiple of {low.patch_size}")
    return LlavaConfig(
        text_config=config.text_config,
        vision_config=CLIPVisionConfig(**low.to_dict() | {"image_size": image_size}),
        # Any id: images come as embeddings.
        image_token_index=config.text_config.vocab_size - 1,
        vision_feature_layer=-2,
    )


class Bench:
    """The models, and what is measured on them."""

    def __init__(
        self, settings: BenchSettings, config: LlavaHrConfig, dtype: torch.dtype, device: torch.device, seed: int
    ) -> None:
        self.settings, self.config, self.dtype, self.device = settings, config, dtype, device
        self.clock = Clock(device)
        # The device's own generator is drawn from, and left as it was.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            with device:
                self.hr = LlavaHrForConditionalGeneration._from_config(config, dtype=dtype).eval()
                words = torch.randint(3, config.text_config.vocab_size, (1, settings.text_tokens))
                self.words = words
                self.baseline, *others = [self._llava(size) for size in settings.llava_sizes]
                self.subjects = [self._llava_hr(), self.baseline, *others]

    @property
    def generates(self) -> bool:
        return self.device.type == "cuda" if self.settings.generate is None else self.settings.generate

    @property
    def overlaps(self) -> bool:
        return self.device.type == "cuda" if self.settings.overlap is None else self.settings.overlap

    def _llava_hr(self) -> Subject:
        size = self.config.vision_config.image_size
        placeholders = torch.full((1, self.config.num_image_tokens), self.config.image_token_id)
        before, behind = self._split_words()
        self.input_ids = torch.cat((before, placeholders, behind), dim=1)

        def prefill(visual: Tensor) -> Any:
            return self.hr(input_ids=self.input_ids, visual_tokens=visual, use_cache=True, logits_to_keep=1)

        pixels = torch.randn(1, 3, size, size, dtype=self.dtype)
        shape = costs.Shape.of(self.config)
        return Subject(f"LLaVA-HR {size} px", shape, size, self.hr, self.hr.encode_images, prefill, pixels)

    def _llava(self, size: int) -> Subject:
        config = llava_config(self.config, size)
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config).eval()
        model.model.vision_tower = CLIPVisionModel._from_config(config.vision_config, dtype=self.dtype).eval()
        model.model.multi_modal_projector = LlavaMultiModalProjector(config).to(self.dtype)
        model.model.language_model, model.lm_head = self.hr.model.language_model, self.hr.lm_head
        before, behind = (model.get_input_embeddings()(words).detach() for words in self._split_words())

        def encode(pixels: Tensor) -> Tensor:
            return torch.stack(list(model.get_image_features(pixels, output_hidden_states=True).pooler_output))

        def prefill(visual: Tensor) -> Any:
            embeds = torch.cat((before, visual, behind), dim=1)
            return model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)

        shape = costs.Shape.of(self.config)
        vit = replace(shape.vit, native=size, class_token=True)
        shape = costs.Shape(shape.decoder, None, vit, adapters=0)
        pixels = torch.randn(1, 3, size, size, dtype=self.dtype)
        return Subject(f"LLaVA-1.5 {size} px", shape, size, model, encode, prefill, pixels)

    def _split_words(self) -> tuple[Tensor, Tensor]:
        before = min(PREFIX, self.words.shape[1] - 1)
        return self.words[:, :before], self.words[:, before:]

    def facts(self) -> dict[str, Any]:
        """What is measured: dimensions, tokens and predicted costs of every model."""
        vision = self.config.vision_config
        models = {}
        for subject in self.subjects:
            predicted = costs.prefill(subject.shape, subject.image_size, self.settings.text_tokens)
            models[subject.name] = {
                "visual_tokens": subject.tokens,
                "flops": {
                    name: 2 * getattr(predicted, name)
                    for name in ("conv", "vit", "adapters", "align", "projector", "llm")
                },
                "kv_bytes": costs.kv_bytes(
                    subject.shape.decoder, subject.tokens + self.settings.text_tokens, self.dtype.itemsize
                ),
            }
        return {
            "dimensions": {
                "decoder_layers": self.config.text_config.num_hidden_layers,
                "vit_layers": vision.low_res_config.num_hidden_layers,
                "conv_depths": list(vision.high_res_depths),
                "hidden": self.config.text_config.hidden_size,
                "full": self._is_full(),
                "dtype": str(self.dtype).removeprefix("torch."),
                "text_tokens": self.settings.text_tokens,
                "new_tokens": self.settings.new_tokens,
            },
            "models": models,
        }

    def _is_full(self) -> bool:
        return costs.Shape.of(self.config) == costs.NAMED["7b"]

    @torch.inference_mode()
    def measure(self) -> dict[str, Any]:
        """Every model in turn within each round; the first round does not count."""
        parts = PARTS + (("generate",) if self.generates else ())
        seconds: dict[str, dict[str, list[float]]] = {
            part: {subject.name: [] for subject in self.subjects} for part in parts
        }
        peaks: dict[str, int | None] = {}
        again: dict[str, list[float]] = {"kept": [], "encoded again": []}
        towers: dict[str, list[float]] = {"plain": [], "two streams": [], "projected once": []}
        for number in track(range(1 + self.settings.repeats), "rounds"):
            for subject in self.subjects:
                once, peaks[subject.name] = self._once(subject)
                if number:
                    for part in parts:
                        seconds[part][subject.name].append(once[part])
            kept = self._further_question()
            towers_once = self._towers() if self.overlaps else {}
            if number:
                for name, value in kept.items():
                    again[name].append(value)
                for name, value in towers_once.items():
                    towers[name].append(value)
        figures = {part: self._figures(part, seconds[part]) for part in parts}
        for subject in self.subjects:
            figures["answer"][subject.name]["tokens_per_second"] = (
                self.settings.new_tokens / figures["answer"][subject.name]["seconds"]
            )
            figures["answer"][subject.name]["peak_bytes"] = peaks[subject.name]
        figures["further_question"] = self._reuse(again, seconds)
        if self.overlaps:
            plain = median(towers["plain"])
            figures["towers"] = {
                name: {**spread(values), "saved": 1 - median(values) / plain} for name, values in towers.items()
            }
        return figures

    def _once(self, subject: Subject) -> tuple[dict[str, float], int | None]:
        """Seconds of each part, and the peak memory of the model and of what it computed, without the other models."""
        steps = self.settings.new_tokens - 1
        others = self._bytes_of_others(subject)
        visual, vision, first_peak = self.clock.time(lambda: subject.encode(subject.pixels))
        output, prefill, second_peak = self.clock.time(lambda: subject.prefill(visual))
        cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
        del output

        def decode() -> Tensor:
            following = token
            for _ in range(steps):
                logits = subject.model(input_ids=following, past_key_values=cache, use_cache=True).logits
                following = logits[:, -1:].argmax(-1)
            return following

        _, decoding, third_peak = self.clock.time(decode)
        answer = vision + prefill + decoding
        once = {"vision": vision, "prefill": prefill, "decode": decoding / steps, "answer": answer}
        if self.generates:
            _, once["generate"], _ = self.clock.time(lambda: self._generate(subject))
        peaks = [peak - others for peak in (first_peak, second_peak, third_peak) if peak is not None]
        return once, max(peaks) if peaks else None

    def _generate(self, subject: Subject) -> Tensor:
        options = {"max_new_tokens": self.settings.new_tokens, "min_new_tokens": self.settings.new_tokens}
        options |= {"do_sample": False, "pad_token_id": 0}
        if subject.model is self.hr:
            return self.hr.generate(input_ids=self.input_ids, pixel_values=subject.pixels, **options)
        embedding: Any = self.hr.get_input_embeddings()
        before, behind = (embedding(words) for words in self._split_words())
        embeds = torch.cat((before, subject.encode(subject.pixels), behind), dim=1)
        return subject.model.generate(inputs_embeds=embeds, **options)

    def _further_question(self) -> dict[str, float]:
        """Seconds to the first token of a question on an image that was seen before."""
        subject = self.subjects[0]
        visual = subject.encode(subject.pixels)
        _, kept, _ = self.clock.time(lambda: subject.prefill(visual))
        whole = {"input_ids": self.input_ids, "pixel_values": subject.pixels, "use_cache": True, "logits_to_keep": 1}
        _, encoded, _ = self.clock.time(lambda: self.hr(**whole))
        return {"kept": kept, "encoded again": encoded}

    def _towers(self) -> dict[str, float]:
        tower, pixels = self.hr.model.vision_tower, self.subjects[0].pixels
        ways: dict[str, Callable[..., Tensor]] = {
            "plain": type(tower).forward,
            "two streams": bench_towers.overlapped,
            "projected once": bench_towers.projected_once,
        }
        return {name: self.clock.time(partial(way, tower, pixels))[1] for name, way in ways.items()}

    def _bytes_of_others(self, subject: Subject) -> int:
        """Bytes of parameters on the device that this model does not use."""
        every = {id(p): p for one in self.subjects for p in one.model.parameters()}
        own = {id(p) for p in subject.model.parameters()}
        return sum(p.numel() * p.element_size() for key, p in every.items() if key not in own)

    def _figures(self, part: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
        """Against LLaVA-1.5 at equal resolution: by the cost that is counted, as measured, and their ratio."""
        each = {subject.name: self._cost(part, subject) for subject in self.subjects}
        base = self.baseline.name
        figures = {}
        for name, values in seconds.items():
            predicted, realised = each[base] / each[name], median(seconds[base]) / median(values)
            figures[name] = spread(values) | {
                "bytes" if part == "decode" else "flops": each[name],
                "predicted": predicted,
                "realised": realised,
                "realised_over_predicted": realised / predicted,
            }
        return figures

    def _cost(self, part: str, subject: Subject) -> int:
        """FLOPs of the matrix products that run; of a decoding step the bytes read, which is what takes its time."""
        text, steps = self.settings.text_tokens, self.settings.new_tokens - 1
        prefill = costs.prefill(subject.shape, subject.image_size, text)
        decoder, tokens = subject.shape.decoder, subject.tokens + text
        head = decoder.width * decoder.vocabulary
        if part == "vision":
            return 2 * prefill.vision
        if part == "prefill":
            return 2 * (prefill.llm + head)
        if part == "decode":
            layers = costs.parameters(subject.shape).llm - head
            cache = costs.kv_bytes(decoder, tokens + (steps + 1) // 2, self.dtype.itemsize)
            return layers * self.dtype.itemsize + cache
        decoding = sum(costs.decode_macs(decoder, tokens + step + 1) + head for step in range(steps))
        return 2 * (prefill.total + head + decoding)

    def _reuse(self, again: dict[str, list[float]], seconds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
        subject = self.subjects[0]
        vision, prefill = self._cost("vision", subject), self._cost("prefill", subject)
        kept, encoded = median(again["kept"]), median(again["encoded again"])
        rest = median(seconds["decode"][subject.name]) * (self.settings.new_tokens - 1)
        return {
            "kept": spread(again["kept"]),
            "encoded_again": spread(again["encoded again"]),
            "predicted": (vision + prefill) / prefill,
            "realised": encoded / kept,
            "realised_over_predicted": encoded / kept / ((vision + prefill) / prefill),
            # With the other tokens of the answer.
            "answer": (encoded + rest) / (kept + rest),
        }
