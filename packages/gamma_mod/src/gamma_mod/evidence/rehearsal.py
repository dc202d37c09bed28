"""A full-size rehearsal without real weights: the way of a released model from its files to an evaluated question.

    python benchmarks/rehearse.py gamma_mod --output rehearsal.json      # or: python -m gamma_mod.evidence.rehearsal

1. writes a release of random weights in the official layout (LLaVA-HR-7B's with its router, in shards),
2. splits it (`gamma-mod convert`), a shard in memory at a time,
3. joins it again and compares every tensor with the original,
4. loads it in bfloat16 and restores the conversion,
5. calibrates, and answers a prompt of 1,400 tokens given as embeddings,
6. evaluates questions from the files of a benchmark in its official format.

LLaVA-HR itself is `llava-hr`'s; here its language model, projector and CLIP tower run as a LLaVA-1.5, at 336 pixels,
and its ConvNeXt and adapters are written and carried along only. `--layers` below 32 is for machines that cannot hold
14 GB: what was rehearsed is in the record. Random weights say nothing of quality: the record is of files, sizes, memory
and time.
"""

# Annotations are not deferred: typer evaluates them.

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import (
    CLIPVisionConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from gamma_mod.checkpoints.convert import convert_back, convert_release
from gamma_mod.checkpoints.keys import RELEASES, ReleaseShape, Shapes, router_key, vision_shapes
from gamma_mod.checkpoints.load import restore
from gamma_mod.checkpoints.official import llama_config
from gamma_mod.evaluation.answers import Host
from gamma_mod.evaluation.questions import benchmark_folders, find_benchmark
from gamma_mod.evaluation.run import Task
from gamma_mod.evaluation.settings import EvalSettings
from gamma_mod.report import calibrate, measure_skips
from tenfold.cli import main as run_app
from tenfold.data import mini_host
from tenfold.random_weights import random_weight
from tenfold.runs import atomic_write_json, fingerprint, track
from tenfold.runs.ranks import ranks
from tenfold.runs.rehearsal import Steps, rehearsed
from tenfold.weights import StoredTensor, WeightFiles, write_weights

SHARD_BYTES = 2 * 10**9
PROMPT, NEW = 1400, 4
BENCHMARK, QUESTIONS, ANSWER = "gqa", 2, 6  # as many tokens as the released loader lets an answer have
_TOWER = "model.vision_tower.fast_vision_tower.vision_tower.vision_model."
_PROJECTOR = {"linear_1": "model.mm_projector.0", "linear_2": "model.mm_projector.2"}
app = typer.Typer(add_completion=False)


@app.command()
def rehearsal(
    output: Annotated[Path, typer.Option(metavar="FILE", help="For the record, as JSON.")],
    layers: Annotated[int | None, typer.Option(min=5, help="Of the decoder; default: all 32.")] = None,
    folder: Annotated[Path | None, typer.Option(help="For files in between, 41 GB; default: a temporary one.")] = None,
) -> None:
    """Write, split, join, load, answer and evaluate LLaVA-HR-7B with random weights at full size."""
    config = {"release": "llava_hr_7b", "layers": layers, "tokens": PROMPT}
    with rehearsed("gamma_mod", config, output, folder) as (steps, place, metrics):
        metrics |= rehearse(place, steps, layers)


def rehearse(
    folder: Path, steps: Steps, layers: int | None = None, shape: ReleaseShape | None = None, tokens: int = PROMPT
) -> dict[str, Any]:
    """All steps, in a folder that is emptied on the way; what the record says beside them.

    Args:
        layers: of the decoder; None: all.
        shape: dimensions other than LLaVA-HR-7B's.
        tokens: of the prompt.

    Raises:
        UserError: whatever a step refuses. AssertionError: a tensor changed on the way.
    """
    full = shape or RELEASES["llava_hr_7b"]
    small = replace(full, layers=layers or full.layers)
    step = steps.do
    release, host, again = folder / "release", folder / "host", folder / "again"
    numbers = step("write a release of random weights", lambda: write_release(release, small))
    made = step("split it", lambda: convert_release(release, host, shard_bytes=SHARD_BYTES))
    step("join it again", lambda: convert_back(host, again, shard_bytes=SHARD_BYTES))
    step("compare", lambda: _compare(release, again))
    shutil.rmtree(release)
    shutil.rmtree(again)
    model = step("load in bfloat16 and restore", lambda: _load(host, small))
    shutil.rmtree(host)
    found = step("calibrate, answer", lambda: _answer(model, small, tokens))
    found |= step(f"evaluate {QUESTIONS} questions", lambda: _evaluate(model, small, folder / "eval"))
    return {
        "layers": small.layers,
        "of": full.layers,
        "parameters": made.parameters,
        "written": numbers,
        "tokens": tokens,
        **found,
    }


def release_shapes(shape: ReleaseShape) -> Shapes:
    """Official names and shapes of a release at these dimensions, router keys of every converted layer included."""
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(shape))
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} | vision_shapes(shape)
    return own | {router_key(layer): (2, shape.hidden) for layer in shape.converted}


def write_release(folder: Path, shape: ReleaseShape) -> int:
    """Random weights in float16, in shards with their index; how many numbers."""
    folder.mkdir(parents=True)
    stored = {}
    for name, size in release_shapes(shape).items():
        own = "router" if "router" in name else name  # a release has one router, under the name of every layer
        stored[name] = StoredTensor(size, torch.float16, partial(random_weight, own, size, torch.float16))
    write_weights(folder, stored, SHARD_BYTES)
    mod = {"mod_enable": True, "mod_mode": "arank_mod", "mod_layers_idx": list(shape.converted)}
    settings: dict[str, Any] = {
        "model_type": "mod_llava_llama",
        "architectures": ["MoDLlavaLlamaForCausalLM"],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "vocab_size": shape.vocabulary,
        "vision_tower_slow": "convnext_large_mlp.clip_laion2b_ft_320",
        "mod": mod | {"capacity_factor": 0.5, "router_aux_loss_coef": 0.01},
    }
    atomic_write_json(folder / "config.json", settings)
    return sum(tensor.numbers for tensor in stored.values())


def _compare(one: Path, other: Path) -> None:
    with WeightFiles(one) as before, WeightFiles(other) as after:
        assert before.tensors.keys() == after.tensors.keys()
        for name in track(list(before.tensors), "compare"):
            assert torch.equal(before.tensors[name].read(), after.tensors[name].read()), name


def _load(folder: Path, shape: ReleaseShape) -> LlavaForConditionalGeneration:
    """Language model, projector and CLIP tower, tensor by tensor into an empty model, and the conversion."""
    side = round(shape.fast_patches**0.5)
    clip = CLIPVisionConfig(
        hidden_size=shape.fast,
        intermediate_size=shape.fast_intermediate,
        num_hidden_layers=shape.fast_layers,
        num_attention_heads=max(1, shape.fast // 64),
        image_size=14 * side,
        patch_size=14,
    )
    image_token = mini_host.config().image_token_id
    config = LlavaConfig(text_config=llama_config(shape), vision_config=clip, image_token_index=image_token)
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
        model.to(torch.bfloat16)
    model.to_empty(device="cpu")
    text, vision = model.model.language_model, model.model.vision_tower.embeddings
    text.rotary_emb = type(text.rotary_emb)(text.config)
    vision.position_ids = torch.arange(vision.num_positions)[None]
    with WeightFiles(folder) as weights, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.tensors[official_name(name)].read())
    restore(model.eval(), folder)
    return model


def official_name(name: str) -> str:
    """A weight of transformers' LLaVA under its name in a release of LLaVA-HR."""
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return "model." + name.removeprefix("language_model.")
    if name.startswith("vision_tower."):
        return _TOWER + name.removeprefix("vision_tower.").removeprefix("vision_model.")
    for ours, theirs in _PROJECTOR.items():
        name = name.replace(f"multi_modal_projector.{ours}", theirs)
    return name


@torch.inference_mode()
def _answer(model: Any, shape: ReleaseShape, tokens: int) -> dict[str, Any]:
    embeds = torch.randn(1, tokens, shape.hidden, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    mask = torch.ones(1, tokens, dtype=torch.long)
    calibrate(model, [{"inputs_embeds": embeds[:, :64], "attention_mask": mask[:, :64]}], 0.5, rounds=3)
    with measure_skips() as skips:
        written = model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
    return {"new_tokens": written.shape[1], "skip_prefill": skips.prefill, "skip_decode": skips.decode}


def _evaluate(model: LlavaForConditionalGeneration, shape: ReleaseShape, output: Path) -> dict[str, Any]:
    """The first questions of a benchmark's mini set, written and read in its official format."""
    processor = mini_host.processor(14 * round(shape.fast_patches**0.5), 14, longest=4096)
    benchmark = replace(find_benchmark(BENCHMARK), max_new_tokens=ANSWER)
    settings = EvalSettings(benchmark=BENCHMARK, split=benchmark.splits[0], limit=QUESTIONS, batch=1)
    digest = fingerprint({"random weights": release_shapes(shape)})
    with ranks() as group, benchmark_folders(settings, 0) as places:
        questions = benchmark.read(places[benchmark.name], benchmark.splits[0])[:QUESTIONS]
        task = Task(Host(model, processor, digest), settings, 0, output, benchmark, group)
        (found,) = task.run(questions, track, typer.echo, again=False)
    return {"evaluated": {name: found.metrics[name] for name in ("benchmark", "questions", "tokens", "skip")}}


if __name__ == "__main__":
    run_app(app)
