"""The whole way once at full size with random weights: from an official LLaVA-1.5-7B to answered questions.

    python benchmarks/rehearse.py fitprune --output rehearsal.json      # or: python -m fitprune.evidence.rehearsal

1. writes a release as the authors publish it: two pickled shards in float16 under official names, a `tokenizer.model`,
   and CLIP ViT-L/14-336, which it lacks, in a folder of its own,
2. converts it to transformers' layout (`fitprune convert`),
3. fits a 60 % recipe in bfloat16 on a few samples from a file in LLaVA's form (`fitprune fit`),
4. loads the model, answers a question unpruned and pruned,
5. answers ten of POPE's questions under the recipe, from its official files (`fitprune eval`).

Random weights say nothing of quality: the record is of files, sizes, memory and time. They also hardly ever end an
answer, so that every question is answered at the full length that LLaVA-1.5's evaluation allows.
"""

# Annotations are not deferred: typer evaluates them.

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import CLIPConfig, CLIPModel

from fitprune.checkpoints import release as llava
from fitprune.checkpoints.keys import convert, official_shapes
from fitprune.evaluation.run import run_eval
from fitprune.evaluation.settings import EvalSettings
from fitprune.pruner import Pruner
from fitprune.recipe import Recipe
from fitprune.training.run import run_fit
from fitprune.training.settings import FitSettings
from tenfold.cli import main as run_app
from tenfold.cli.settings import HostSettings
from tenfold.data import mini_sets, write
from tenfold.data.sentencepieces import write_llama_tokenizer
from tenfold.hosts.answers import Answer, Protocol, generate
from tenfold.hosts.loading import load_host
from tenfold.random_weights import random_weights
from tenfold.runs import atomic_write_json
from tenfold.runs.rehearsal import Steps, rehearsed
from tenfold.weights import write_pickled_weights

# config.json of LLaVA-1.5-7B.
LLAVA_7B: dict[str, Any] = {
    "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "torch_dtype": "float16",
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "hidden_act": "silu",
    "initializer_range": 0.02, "rms_norm_eps": 1e-5, "rope_scaling": None, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "pretraining_tp": 1, "use_cache": True,
    "image_aspect_ratio": "pad", "image_grid_pinpoints": None, "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_vision_tower": llava.CLIP_L_336,
    "use_mm_proj": True,
}  # fmt: skip
# CLIP's text half, which nothing uses.
CLIP_TEXT: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
}  # fmt: skip
SHARD_BYTES = 10**10  # transformers' in 2023, with which the release was written
RATIO, SAMPLES, QUESTIONS, NEW_TOKENS = 0.6, 3, 10, 4
app = typer.Typer(add_completion=False)


@app.command()
def rehearsal(
    output: Annotated[Path, typer.Option(metavar="FILE", help="For the record, as JSON.")],
    folder: Annotated[Path | None, typer.Option(help="For files in between, 30 GB; default: a temporary one.")] = None,
) -> None:
    """Write, convert, fit, prune, answer and evaluate LLaVA-1.5-7B with random weights at full size."""
    config = {"release": "llava-1.5-7b", "ratio": RATIO, "samples": SAMPLES, "questions": QUESTIONS}
    with rehearsed("fitprune", config, output, folder) as (steps, place, metrics):
        metrics |= rehearse(place, steps)


def rehearse(
    folder: Path,
    steps: Steps,
    settings: Mapping[str, Any] = LLAVA_7B,
    tower: llava.TowerConfig = llava.CLIP_L_336_DIMENSIONS,
    text: Mapping[str, Any] = CLIP_TEXT,
) -> dict[str, Any]:
    """All steps, in a folder that is emptied on the way; what the record says beside them.

    Args:
        settings: the release's config.json.
        tower: dimensions of its vision tower. text: of CLIP's text half.

    Raises:
        UserError: whatever a step refuses.
    """
    step, host, pixels = steps.do, folder / "llava-hf", tower.image_size
    written = step("write a release", lambda: write_release(folder / "llava", settings, tower))
    step("write CLIP", lambda: write_clip(folder / "clip", tower, text))
    made = step("convert", lambda: convert(folder / "llava", host, to="hf", vision_tower=folder / "clip"))
    shutil.rmtree(folder / "llava")
    shutil.rmtree(folder / "clip")

    write.write_calibration(folder / "samples", 0, SAMPLES, pixels)
    chosen: dict[str, Any] = {"model": str(host), "dtype": "bfloat16", "device": "cpu"}
    lines = str(folder / "samples" / "calibration.jsonl")
    fit = FitSettings(**chosen, samples=lines, image_folder=str(folder / "samples" / "images"), ratios=(RATIO,))
    fitted = step(f"fit on {SAMPLES} samples", lambda: run_fit(fit, 0, folder / "fit"))
    (recipe,) = fitted.recipes

    answered = answer(HostSettings(**chosen), recipe, steps, pixels)
    write.write_pope(folder / "pope", 1, -(-QUESTIONS // 2), pixels)
    asked = EvalSettings(
        **chosen, recipe=str(fitted.files[0]), benchmark="pope", data=str(folder / "pope"), limit=QUESTIONS, batch=10
    )
    (found,) = step(f"evaluate {QUESTIONS} questions", lambda: run_eval(asked, 0, folder / "eval"))
    return {
        "layers": recipe.num_layers,
        "parameters": made.language_model + made.projector + made.vision_tower,
        "written": written,
        "words": list(made.words),
        "recipe": fitted.metrics["recipes"][f"{RATIO:g}"],
        **answered,
        "evaluated": {
            name: found.metrics[name] for name in ("benchmark", "questions", "new_tokens", "visual_reduction")
        },
    }


def answer(settings: HostSettings, recipe: Recipe, steps: Steps, pixels: int) -> dict[str, Any]:
    """One question about one picture, unpruned and pruned."""
    host = steps.do("load in bfloat16", lambda: load_host(settings))
    (sample,) = mini_sets.calibration(0, 1, pixels)
    prompt = Protocol.of(host.model, host.processor).prompt(host.processor, sample.image(), sample.text)

    def ask() -> Answer:
        (said,) = generate(host.model, host.processor, [prompt], max_new_tokens=NEW_TOKENS)
        return said

    whole = steps.do("answer unpruned", ask)
    with Pruner(recipe)(host.model) as pruner:
        steps.do("answer pruned", ask)
    (left,) = pruner.visual_tokens()[-1]
    prompted = {"visual_tokens": whole.visual_tokens, "text_tokens": whole.text_tokens}
    return {**prompted, "visual_tokens_left": left, "new_tokens": whole.new_tokens}


def write_release(folder: Path, settings: Mapping[str, Any], tower: llava.TowerConfig) -> int:
    """A release of random weights without its vision tower, a shard in memory at a time; how many numbers."""
    folder.mkdir(parents=True)
    atomic_write_json(folder / "config.json", dict(settings))
    official, words = llava.read_official_config(folder), settings["vocab_size"]
    write_llama_tokenizer(folder, words)
    shapes = {
        name: shape
        for name, shape in official_shapes(llava.transformers_config(official, tower, words, words + 1), words).items()
        if not name.startswith("model.vision_tower.")
    }
    # Frequencies of the rotary embedding: a buffer that releases of 2023 carry and that is computed anew.
    half = settings["hidden_size"] // settings["num_attention_heads"] // 2
    shapes |= {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (half,) for layer in range(settings["num_hidden_layers"])
    }
    stored = random_weights(shapes, torch.float16)
    write_pickled_weights(folder, stored, SHARD_BYTES)
    return sum(tensor.numbers for tensor in stored.values())


def write_clip(folder: Path, tower: llava.TowerConfig, text: Mapping[str, Any]) -> None:
    """A whole CLIP of random weights in float32, one pickle, as its authors publish it."""
    config = CLIPConfig(vision_config=tower.model_dump(), text_config=dict(text), projection_dim=tower.projection_dim)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = CLIPModel(config)
    stored = random_weights({name: value.shape for name, value in model.state_dict().items()}, torch.float32)
    write_pickled_weights(folder, stored, SHARD_BYTES)


if __name__ == "__main__":
    run_app(app)
