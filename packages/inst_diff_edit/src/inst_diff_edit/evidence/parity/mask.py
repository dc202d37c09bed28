"""Golden cases: the reference implementation's inputs, weights and outputs, against this package.

A case is a json file that names its ``computation`` and dimensions, with a safetensors file beside it. All dimensions
are read from the json, so that any folder of cases can be checked.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import LMSDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from inst_diff_edit.attention import AttentionRecorder
from inst_diff_edit.evaluation import baselines
from inst_diff_edit.evidence.parity.pipeline import write_tokenizer
from inst_diff_edit.masks import InstantMask, instant_mask
from inst_diff_edit.resize import resize
from inst_diff_edit.sampling import NoiseLevels, blend_outside, denoise, noise_seeds, noises, start_index
from inst_diff_edit.words import Words, split_words, stack_weights
from tenfold.data.formats.editing import read_edit_list
from tenfold.ledger.goldens import Comparison, Computation

Tensors = Mapping[str, Tensor]


class _Layers(nn.Module):
    """The attention modules of a case in a UNet's places; called one after the other."""

    def __init__(self, config: Mapping[str, Any], weights: Tensors) -> None:
        super().__init__()
        width, context, heads, head = (config[name] for name in ("query_dim", "context_dim", "heads", "dim_head"))
        self.order = config["order"]
        for name in sorted({key.rsplit(".to_", 1)[0] for key in weights}):
            cross = context if name.endswith("attn2") else None
            module: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.add_module(last, Attention(width, cross, heads=heads, dim_head=head))
        self.load_state_dict(weights, strict=True)

    def layer(self, label: str) -> Attention:
        """ "down cross" -> the attention module of that place and kind."""
        place, kind = label.split()
        suffix = "attn2" if kind == "cross" else "attn1"
        found = [m for n, m in self.named_modules() if n.startswith(place) and n.endswith(suffix)]
        return found[0]


def _attention_capture(case: Mapping[str, Any], tensors: Tensors, compare: Comparison) -> None:
    config = case["config"]
    batch, heads, pixels = config["batch"], config["heads"], config["pixels"]
    layers = _Layers(config, _part(tensors, "weights/"))
    edge = math.isqrt(pixels)
    averages = {}
    for wanted in [label for label in config["order"] if label.endswith("cross")]:
        # One layer at a time: golden averages are per layer, and the middle block is never recorded by the method.
        place = wanted.split()[0]
        recorder = AttentionRecorder(_only(layers, wanted), stride=1)
        recorder.expect(edge, pixels // edge, rows=slice(batch, None))
        with recorder:
            step = 0
            while f"in/step{step}/hidden" in tensors:
                _run_layers(layers, tensors, step, compare if wanted == config["order"][1] else None)
                recorder.finish_step()
                if step == 0 and f"out/stored_step0/{place}_cross" in tensors:
                    stored = tensors[f"out/stored_step0/{place}_cross"].view(batch, heads, pixels, -1).mean(1)
                    compare.close(f"stored {wanted}", recorder.mean().flatten(1, 2), stored, 1e-5)
                step += 1
        averages[wanted] = recorder.mean().flatten(1, 2)
    for wanted, ours in averages.items():
        golden = tensors[f"out/average/{wanted.replace(' ', '_')}"].view(batch, heads, pixels, -1).mean(1)
        compare.close(f"average {wanted}", ours, golden, 1e-5)


def _run_layers(layers: _Layers, tensors: Tensors, step: int, compare: Comparison | None) -> None:
    hidden, context = tensors[f"in/step{step}/hidden"], tensors[f"in/step{step}/context"]
    for label in layers.order:
        layer = layers.layer(label)
        hidden = layer(hidden, context) if label.endswith("cross") else layer(hidden)
        if compare is not None:
            compare.close(f"step {step} {label}", hidden, tensors[f"out/step{step}/{label.replace(' ', '_')}"], 1e-5)


def _only(layers: _Layers, label: str) -> nn.Module:
    """A model whose down blocks hold just that layer, shared with `layers`."""
    outer, inner = nn.Module(), nn.Module()
    inner.add_module("attn2", layers.layer(label))
    outer.add_module("down_blocks", inner)
    return outer


def _steps_of_given_maps(case: Mapping[str, Any], tensors: Tensors, conditional: bool) -> Iterator[Tensor]:
    """The mean map ``[batch, rows, columns, words]`` after each step, from a case's given maps of named layers."""
    config = case["config"]
    heads, edge = config["heads"], config["resolution"]
    model, numbers = nn.Module(), {}
    for number, layer in enumerate(config["layers"]):
        place = "mid_block" if layer["place"] == "mid" else f"{layer['place']}_blocks"
        if not hasattr(model, place):
            model.add_module(place, nn.Module())
        block, kind = nn.Module(), "attn2" if layer["kind"] == "cross" else "attn1"
        block.add_module(kind, nn.Identity())
        getattr(model, place).add_module(str(number), block)
        numbers[f"{place}.{number}.{kind}"] = number
    recorder = AttentionRecorder(model, stride=1)
    recorder.expect(edge, edge)
    for step in range(config["steps"]):
        for name in recorder.layers:
            maps = tensors[f"in/step{step}/layer{numbers[name]}"].unflatten(0, (-1, heads))
            if recorder.wants(maps.shape[2]):
                recorder.add(maps if conditional else maps[config["batch"] :])
        recorder.finish_step()
        yield recorder.mean()


def _aggregate_attention(case: Mapping[str, Any], tensors: Tensors, compare: Comparison) -> None:
    for step, mean in enumerate(_steps_of_given_maps(case, tensors, conditional=False)):
        compare.close(f"step {step}", mean.mean(0), tensors[f"out/aggregated_step{step}"], 1e-6)


def _instant_mask(case: Mapping[str, Any], tensors: Tensors, compare: Comparison) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_tokenizer(Path(folder), case["tokenizer"])
    for number, sub in enumerate(case["config"]["cases"]):
        name, words = f"case{number}", split_words(tokenizer, sub["prompt"])
        compare.equal(f"{name} tokens", list(words.ids), tensors[f"in/{name}/token_ids"])
        compare.equal(f"{name} words", [list(group) for group in words.groups], sub["token_groups"])
        attention = tensors[f"in/{name}/attention"][None]
        size = (case["config"]["map_size"],) * 2
        found = instant_mask(attention, *stack_weights([words], attention.shape[-1]), size=size, **_thresholds(sub))
        golden = {key.split("/")[2]: value for key, value in tensors.items() if key.startswith(f"out/{name}/")}
        compare_pictures(name, compare, found, golden, words=len(words.text))


def compare_pictures(name: str, compare: Comparison, found: InstantMask, golden: Tensors, words: int) -> None:
    """What one step of one picture came to, against what the golden data hold of it."""
    compare.grey_levels(f"{name} pictures", found.pictures[0], golden["word_images"], 1, 0, 0.999)
    compare.close(f"{name} refined", found.refined[0], golden["refined"].float(), 0.01)
    compare.grey_levels(f"{name} soft mask", found.soft[0], golden["soft_mask"], 3, 1, 0.995)
    compare.grey_levels(f"{name} mask", found.mask[0], golden["mask"], 255, 0, 0.998)
    if "position" in golden:  # a prompt of one word has no roles
        start, reference = golden["start_similarity"], golden["reference_similarity"]
        compare.close(f"{name} likeness to start", found.start_similarity[0, : words + 1], start, 1e-3)
        compare.close(f"{name} likeness to reference", found.reference_similarity[0, 1 : words + 1], reference, 1e-3)
        compare.equal(f"{name} roles", found.roles[0].long(), golden["position"])


def _mask_sequence(case: Mapping[str, Any], tensors: Tensors, compare: Comparison) -> None:
    config = case["config"]
    words = Words(
        tuple(config["prompt"].split()), tuple(map(tuple, config["token_groups"])), tuple(config["token_ids"])
    )
    weights = stack_weights([words], len(words.ids))
    roles = None
    for step, mean in enumerate(_steps_of_given_maps(case, tensors, conditional=True)):
        attention = mean.mean(0, keepdim=True)
        size = tuple(tensors[f"out/mask_step{step}"].shape)
        found = instant_mask(attention, *weights, roles=roles, size=size, **_thresholds(config))
        roles = found.roles
        compare.equal(f"step {step} roles", roles[0].long(), tensors[f"out/position_step{step}"])
        compare.grey_levels(f"step {step} soft mask", found.soft[0], tensors[f"out/soft_mask_step{step}"], 3, 1, 0.995)
        compare.grey_levels(f"step {step} mask", found.mask[0], tensors[f"out/mask_step{step}"], 255, 0, 0.998)
        anew = instant_mask(attention, *weights, size=size, **_thresholds(config))
        control = tensors[f"out/mask_if_roles_were_recomputed_step{step}"]
        compare.grey_levels(f"step {step} mask of new roles", anew.mask[0], control, 255, 0, 0.998)


def _blend_loop(case: Mapping[str, Any], tensors: Tensors, compare: Comparison) -> None:
    config = case["config"]
    batch, steps = config["batch"], config["num_inference_steps"]
    latent = tensors["in/latent"]
    seeds = noise_seeds(torch.Generator().manual_seed(config["seed"]), batch)
    compare.equal("seeds", seeds, config["noise_seeds"])
    noise = noises(seeds, latent)
    compare.equal("noises", noise, tensors["out/noises"])
    scheduler = golden_scheduler(config["scheduler"])
    scheduler.set_timesteps(steps)
    levels, start = NoiseLevels(scheduler), start_index(steps, config["strength"])
    compare.close("timesteps", scheduler.timesteps[start:].double(), tensors["out/timesteps"], 1e-3)
    sigmas = torch.tensor([sigma for _, sigma in levels.levels[start:]])
    compare.close("sigmas", sigmas, tensors["out/sigmas"], 1e-4)
    unet = _GivenNoise([tensors[f"in/unet_output{number}"] for number in range(steps - start)])
    compare.close("first latents", levels.noised(latent, noise, start), tensors["out/init_latents"], 1e-4)

    def blend(index: int, latents: Tensor) -> Tensor:
        number = index - start
        compare.close(f"denoised {number}", latents, tensors[f"out/denoised{number}"], 1e-4)
        mask = resize(tensors[f"in/mask{number}"], *latents.shape[2:]) / 255
        original = levels.noised(latent, noise, index)
        compare.close(f"original {number}", original[-1:], tensors[f"out/noised_original{number}"], 1e-4)
        blended = blend_outside(latents, original, mask[None, None])
        compare.close(f"blended {number}", blended, tensors[f"out/blended{number}"], 1e-4)
        return blended

    embeddings = torch.zeros(2 * batch, 1, 1)
    denoise(unet, scheduler, levels.noised(latent, noise, start), start, embeddings, config["guidance_scale"], blend)
    for number, seen in enumerate(unet.inputs):
        compare.close(f"UNet input {number}", seen[:1], tensors[f"out/unet_input{number}"], 1e-4)


class _GivenNoise(nn.Module):
    """A UNet whose outputs are given; keeps its inputs."""

    def __init__(self, outputs: list[Tensor]) -> None:
        super().__init__()
        self.outputs = list(outputs)
        self.inputs: list[Tensor] = []

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> UNet2DConditionOutput:
        self.inputs.append(sample)
        return UNet2DConditionOutput(sample=self.outputs[len(self.inputs) - 1])


def _diffedit_mask(case: Mapping[str, Any], tensors: Tensors, compare: Comparison) -> None:
    config = case["config"]
    (list_seed,) = noise_seeds(torch.Generator().manual_seed(config["seed"]), 1)
    compare.equal("list seed", list_seed, config["list_seed"])
    seeds = noise_seeds(torch.Generator().manual_seed(list_seed), config["n"])
    compare.equal("seeds", seeds, config["noise_seeds"])
    compare.equal("noises", noises(seeds, tensors["in/latent"]), tensors["in/noises"])
    unet = UNet2DConditionModel(**config["unet"])
    unet.load_state_dict(_part(tensors, "weights/"), strict=True)
    steps = config["num_inference_steps"]
    distances, ours, theirs = baselines.diffedit_distances(
        unet.eval(),
        golden_scheduler(config["scheduler"]),
        tensors["in/latent"],
        tensors["in/noises"],
        *(tensors[f"in/{name}_embedding"] for name in ("source", "target", "uncond")),
        steps,
        start_index(steps, config["strength"]),
        config["guidance_scale"],
        batch=config["n"],
    )
    soft, mask = baselines.diffedit_mask(distances, config["threshold"])
    compare.close_as_a_whole("last noise, source", ours, tensors["out/last_noise_source"], 1e-3)
    compare.close_as_a_whole("last noise, target", theirs, tensors["out/last_noise_target"], 1e-3)
    compare.close_as_a_whole("distances", distances, tensors["out/distance_maps"], 1e-3)
    compare.grey_levels("soft mask", soft, tensors["out/soft_mask"], 2, 2, 1.0)
    compare.grey_levels("mask", mask, tensors["out/mask"], 255, 0, 0.99)


def _list_formats(case: Mapping[str, Any], tensors: Tensors, compare: Comparison) -> None:
    for name, golden in case["records"].items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "list.txt"
            (written,) = (value for key, value in tensors.items() if key.startswith("in/") and name in key)
            path.write_bytes(bytes(written.tolist()))
            records = read_edit_list(path)
        compare.equal(f"{name} records", len(records), len(golden))
        for number, (ours, theirs) in enumerate(zip(records, golden, strict=True)):
            where = f"{name} {number}"
            compare.equal(f"{where} id", ours.id, theirs["id"])
            # The authors join paths as text; the golden dataset path is "D/".
            compare.equal(f"{where} picture", f"D/{ours.file_name}", theirs["image_path"])
            compare.equal(f"{where} prompt", ours.edit_prompt, theirs["edit_prompt"])
            compare.equal(f"{where} source", ours.source, theirs["source_prompt"])


def golden_scheduler(config: Mapping[str, Any]) -> LMSDiscreteScheduler:
    """The scheduler that a case names."""
    settings = {name: value for name, value in config.items() if name not in ("_class_name", "order")}
    return LMSDiscreteScheduler(**settings)


def _thresholds(settings: Mapping[str, Any]) -> dict[str, float]:
    return {
        "threshold": settings["threshold"],
        "object_threshold": settings["th_object"],
        "background_threshold": settings["th_background"],
    }


def _part(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


COMPUTATIONS: dict[str, Computation] = {
    "attention_capture": _attention_capture,
    "aggregate_attention": _aggregate_attention,
    "instant_mask": _instant_mask,
    "mask_sequence": _mask_sequence,
    "blend_loop": _blend_loop,
    "diffedit_mask": _diffedit_mask,
    "list_formats": _list_formats,
}
