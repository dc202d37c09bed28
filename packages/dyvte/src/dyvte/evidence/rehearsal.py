"""The real path once at full size, without real weights: from an official checkpoint to an answered sample.

    python benchmarks/rehearse.py dyvte --output rehearsal.json      # or: python -m dyvte.evidence.rehearsal

Writes LLaVA-1.5-7B with its 32 gates under official names (random weights, 16 bit, sharded), takes gates and host out
of it, loads both, answers a prompt of the paper's length with an exit, evaluates a question, and records seconds and
peak memory of every step. About 16 GB of memory and 31 GB of disk.
"""

# Annotations are not deferred: typer evaluates them.

import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from dyvte.checkpoints import release
from dyvte.checkpoints.keys import gates_to_official, host_to_official
from dyvte.checkpoints.load import load_gates
from dyvte.evaluation.run import run_eval
from dyvte.evaluation.settings import EvalSettings
from dyvte.gates import GateConfig, Gates
from tenfold.cli import main as run_app
from tenfold.data import mini_host
from tenfold.hosts.loading import Host
from tenfold.random_weights import random_weights
from tenfold.runs import atomic_directory, atomic_write_json, fingerprint
from tenfold.runs.rehearsal import Steps, rehearsed
from tenfold.weights import write_weights

SHARD_BYTES = 2 * 10**9
WORDS = 32000


BENCHMARK = "mme"
app = typer.Typer(add_completion=False)


@app.command()
def rehearsal(
    output: Annotated[Path, typer.Option(metavar="FILE", help="For the record, as JSON.")],
    folder: Annotated[Path | None, typer.Option(help="For files in between, 31 GB; default: a temporary one.")] = None,
) -> None:
    """Write, split, load and answer with LLaVA-1.5-7B and its gates, of random weights, at full size."""
    with rehearsed("dyvte", {"host": "llava-1.5-7b"}, output, folder) as (steps, place, metrics):
        metrics |= run_rehearsal(place, steps)


def run_rehearsal(
    folder: Path, steps: Steps, *, layers: int = 32, hidden: int = 4096, tower: int = 24
) -> dict[str, Any]:
    """All steps; what the record says beside them.

    Args:
        folder: for the checkpoints, which take 31 GB at full size.
        layers, hidden: of the decoder; LLaVA-1.5-7B's by default.
        tower: layers of the vision tower.

    Raises:
        UserError: a step fails.
    """
    step = steps.do
    config = host_config(layers, hidden, tower)
    step("write an official checkpoint", lambda: write_official(folder / "official", config))
    step("gates out of it", lambda: release.to_gates(folder / "official", folder / "gates"))
    step("host out of it", lambda: release.to_host(folder / "official", folder / "host"))
    shutil.rmtree(folder / "official")
    model = step(
        "load the host",
        lambda: LlavaForConditionalGeneration.from_pretrained(folder / "host", dtype=torch.bfloat16).eval(),
    )
    gates = step("load the gates", lambda: load_gates(folder / "gates", dtype=torch.bfloat16))
    answered = step("prefill and 4 tokens with an exit", lambda: answer(model, gates))
    answered |= step("evaluate a question", lambda: evaluate(model, folder))
    return {
        "layers": layers,
        "hidden": hidden,
        "parameters": sum(p.numel() for p in model.parameters()) + sum(p.numel() for p in gates.parameters()),
        **answered,
    }


def host_config(layers: int, hidden: int, tower: int) -> LlavaConfig:
    """LLaVA-1.5's configuration at these sizes, with room for <image> and <pad>."""
    llama = LlamaConfig(
        vocab_size=WORDS + 64,
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 128),
        max_position_embeddings=4096,
        pad_token_id=WORDS + 1,
    )
    clip = CLIPVisionConfig(**{**release.CLIP_L_336, "num_hidden_layers": tower})
    return LlavaConfig(
        text_config=llama,
        vision_config=clip,
        image_token_index=WORDS,
        vision_feature_layer=-2,
        official_vocab_size=WORDS,  # type: ignore[call-arg]
        dtype="bfloat16",
    )


def write_official(folder: Path, config: LlavaConfig) -> int:
    """An official checkpoint of random weights with gates inside, a shard in memory at a time; its parameters."""
    with torch.device("meta"):
        state = LlavaForConditionalGeneration(config).state_dict()
    text: Any = config.text_config
    vision: Any = config.vision_config
    gates = Gates(GateConfig(text.num_hidden_layers, text.hidden_size), device="meta").state_dict()
    shapes = {new: tuple(state[old].shape) for old, new in host_to_official(state).items()}
    shapes |= {new: tuple(gates[old].shape) for old, new in gates_to_official(gates).items()}
    shapes |= {name: (WORDS, *shapes[name][1:]) for name in release.WORD_ROWS}

    stored = random_weights(shapes)
    with atomic_directory(folder) as new:
        atomic_write_json(new / "config.json", release.official_config(config, WORDS) | {"torch_dtype": "bfloat16"})
        tower = {"model_type": "clip_vision_model", **vision.to_dict()}
        (new / "vision_tower").mkdir()
        atomic_write_json(new / "vision_tower" / "config.json", tower)
        write_weights(new, stored, SHARD_BYTES)
    return sum(tensor.numbers for tensor in stored.values())


def answer(model: Any, gates: Gates) -> dict[str, Any]:
    """One prompt of the paper's length with a picture, answered with an exit."""
    from dyvte.exits import VisualExit

    generator = torch.Generator().manual_seed(0)
    visual = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    ids = torch.randint(3, WORDS, (1, 35 + visual + 29), generator=generator)
    ids[:, 35 : 35 + visual] = WORDS
    pixels = torch.randn(
        1, 3, model.config.vision_config.image_size, model.config.vision_config.image_size, generator=generator
    )
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels.to(model.dtype)}
    with torch.inference_mode(), VisualExit(gates)(model) as exit:
        made = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        lengths = [layer[0] for layer in exit.kv_lengths(made.past_key_values)]
        return {"exit_layer": exit.exit_layers()[0], "tokens": ids.shape[1], "kv_lengths": lengths}


def evaluate(model: Any, folder: Path) -> dict[str, Any]:
    """The first question of a benchmark's mini set, written and read in its official format."""
    tower = model.config.vision_config
    processor = mini_host.processor(tower.image_size, tower.patch_size, longest=4096)
    model.config.image_token_id = processor.image_token_id  # the mini world's words, in a vocabulary of 32,000
    settings = EvalSettings(
        gates=str(folder / "gates"), benchmark=BENCHMARK, protocol="processor", limit=1, batch=1, device="cpu"
    )
    host = Host(model, processor, fingerprint({"random weights": model.config.to_dict()}))
    (found,) = run_eval(settings, 0, folder / "eval", host=host)
    return {"evaluated": {name: found.metrics[name] for name in ("benchmark", "questions")}}


if __name__ == "__main__":
    run_app(app)
