"""The whole way once at full size with random weights: from an official LLaVA-HR-7B to answered questions.

    python benchmarks/rehearse.py llava_hr --output rehearsal.json      # or: python -m llava_hr.evidence.rehearsal

1. writes a release as the training script leaves it: three pickled shards in bfloat16 under official names, with what
   no computation uses (ConvNeXt's head, CLIP's last norm, rotary frequencies), and a `tokenizer.model`,
2. converts it (`llava-hr convert`),
3. loads it in bfloat16, answers a question about a picture at 1,024 pixels, and a further one from the kept visual
   tokens,
4. answers four questions of ScienceQA from its official files (`llava-hr eval`).

Random weights say nothing of quality: the record is of files, sizes, memory and time. They also hardly ever end an
answer, so that every question is answered at the full length that the paper's protocol allows.
"""

# Annotations are not deferred: typer evaluates them.

import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image

from llava_hr.checkpoints.convert import convert
from llava_hr.checkpoints.keys import TOWER_FOLDER, TowerConfig, config_to_official, to_official, unused_shapes
from llava_hr.checkpoints.load import load
from llava_hr.checkpoints.release import meta_state
from llava_hr.configuration import LlavaHrConfig
from llava_hr.evaluation.run import run_eval
from llava_hr.evaluation.settings import EvalSettings
from llava_hr.processing import LlavaHrProcessor
from tenfold.cli import main as run_app
from tenfold.data import write
from tenfold.data.miniworld import flags
from tenfold.data.sentencepieces import write_llama_tokenizer
from tenfold.random_weights import random_weights
from tenfold.runs import atomic_write_json
from tenfold.runs.rehearsal import Steps, rehearsed
from tenfold.weights import write_pickled_weights

SHARD_BYTES = 5 * 10**9  # three shards
BENCHMARK, QUESTIONS, NEW_TOKENS = "scienceqa", 4, 4
# Of the mini world: four of thirty problems show a picture and are of the split that the paper reports.
PROBLEMS, PIXELS = 30, 336
app = typer.Typer(add_completion=False)


@app.command()
def rehearsal(
    output: Annotated[Path, typer.Option(metavar="FILE", help="For the record, as JSON.")],
    folder: Annotated[Path | None, typer.Option(help="For files in between, 30 GB; default: a temporary one.")] = None,
) -> None:
    """Write, convert, load, answer and evaluate LLaVA-HR-7B with random weights at full size."""
    config = {"release": "llava-hr-7b-sft-1024", "benchmark": BENCHMARK, "questions": QUESTIONS}
    with rehearsed("llava_hr", config, output, folder) as (steps, place, metrics):
        metrics |= rehearse(place, steps, LlavaHrConfig.named("7b"))


def rehearse(folder: Path, steps: Steps, config: LlavaHrConfig, shard_bytes: int = SHARD_BYTES) -> dict[str, Any]:
    """All steps, in a folder that is emptied on the way; what the record says beside them.

    Args:
        config: of the model.
        shard_bytes: size of one of the release's shards.

    Raises:
        UserError: whatever a step refuses.
    """
    step, release, ours = steps.do, folder / "release", folder / "ours"
    shards = step("write a release", lambda: write_release(release, config, shard_bytes))
    made = step("convert", lambda: convert(release, ours))
    shutil.rmtree(release)

    model, processor = step("load in bfloat16", lambda: load(ours, dtype="bfloat16", device="cpu"))
    picture = flags.render(flags.scene(0, 0), config.vision_config.image_size)
    answered = answer(model, processor, picture, steps)
    del model, processor

    write.write_scienceqa(folder / BENCHMARK, 0, PROBLEMS, PIXELS)
    settings = EvalSettings(
        model=str(ours), device="cpu", dtype="bfloat16",
        benchmark=BENCHMARK, data=str(folder / BENCHMARK), limit=QUESTIONS, batch=QUESTIONS,
    )  # fmt: skip
    (found,) = step(f"evaluate {QUESTIONS} questions", lambda: run_eval(settings, 0, folder / "eval"))
    return {
        "shards": shards,
        "parameters": sum(made.parameters.values()),
        "kept_aside": len(made.kept_aside),
        **answered,
        "evaluated": {name: found.metrics[name] for name in ("benchmark", "questions", "new_tokens")},
    }


@torch.inference_mode()
def answer(model: Any, processor: LlavaHrProcessor, picture: Image.Image, steps: Steps) -> dict[str, Any]:
    """Two questions about one picture, both from the same visual tokens."""
    inputs = processor(images=picture, text=processor.prompt("What shape is the object?"), return_tensors="pt")
    pixels = inputs["pixel_values"].to(model.dtype)
    visual = steps.do("encode the picture", lambda: model.encode_images(pixels))

    def ask(question: str) -> int:
        asked = processor(images=picture, text=processor.prompt(question), return_tensors="pt")
        prompt: Any = {name: asked[name] for name in ("input_ids", "attention_mask")}
        written = model.generate(**prompt, visual_tokens=visual, max_new_tokens=NEW_TOKENS, do_sample=False)
        return int(written.shape[1] - prompt["input_ids"].shape[1])

    new = steps.do("answer", lambda: ask("What shape is the object?"))
    steps.do("answer a further question", lambda: ask("Is the object red?"))
    return {"visual_tokens": visual.shape[1], "prompt_tokens": inputs["input_ids"].shape[1], "new_tokens": new}


def write_release(folder: Path, config: LlavaHrConfig, shard_bytes: int) -> int:
    """A release of random weights, a shard in memory at a time; how many shards."""
    folder.mkdir(parents=True)
    settings, text, low = config_to_official(config), config.text_config, config.vision_config.low_res_config
    atomic_write_json(folder / "config.json", settings)
    if settings["mm_vision_tower"] == TOWER_FOLDER:
        tower = {name: getattr(low, name) for name in TowerConfig.model_fields}
        atomic_write_json(folder / TOWER_FOLDER / "config.json", tower)
    ids = {name: settings[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    atomic_write_json(folder / "generation_config.json", ids)
    write_llama_tokenizer(folder, text.vocab_size)
    shapes = {name: tuple(value.shape) for name, value in to_official(meta_state(config)).items()}
    shapes |= unused_shapes(config)
    half = text.hidden_size // text.num_attention_heads // 2
    shapes |= {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (half,) for layer in range(text.num_hidden_layers)
    }
    return len(write_pickled_weights(folder, random_weights(shapes, torch.bfloat16), shard_bytes))


if __name__ == "__main__":
    run_app(app)
