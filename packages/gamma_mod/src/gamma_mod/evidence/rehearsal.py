"""A full-size rehearsal without real weights: the way of a released model from its files to an evaluated question.

    python benchmarks/rehearse.py gamma_mod                # or: python -m gamma_mod.evidence.rehearsal FOLDER

1. writes a release of random weights in the official layout (LLaVA-HR-7B's language model and router, in shards),
2. splits it (`gamma-mod convert`), a shard in memory at a time,
3. joins it again and compares every tensor with the original,
4. loads the language model in bfloat16, restores the conversion,
5. answers a prompt of 1,400 tokens given as embeddings, and reports what was skipped.

The vision tower's weights are written and carried along; they are run by `llava-hr`, not here. `layers` below 32 is for
machines that cannot hold 13.5 GB: what was rehearsed is in the record.
"""

from __future__ import annotations

import gc
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from gamma_mod.checkpoints.convert import convert_back, convert_release
from gamma_mod.checkpoints.keys import RELEASES, ReleaseShape, Shapes, router_key, vision_shapes
from gamma_mod.checkpoints.load import restore
from gamma_mod.checkpoints.official import llama_config
from gamma_mod.report import calibrate, measure_skips
from tenfold.runs import atomic_write_json, track
from tenfold.weights import StoredTensor, WeightFiles, write_weights

Result = TypeVar("Result")
SHARD_BYTES = 2 * 10**9
PROMPT, NEW = 1400, 4


def rehearse(folder: Path, layers: int | None = None, shape: ReleaseShape | None = None, tokens: int = PROMPT) -> Any:
    """All steps, in a folder that is emptied on the way; seconds and peak memory of each.

    Args:
        layers: of the decoder; None: all.
        shape: dimensions other than LLaVA-HR-7B's.
        tokens: of the prompt.

    Raises:
        UserError: whatever a step refuses. AssertionError: a tensor changed on the way.
    """
    full = shape or RELEASES["llava_hr_7b"]
    small = replace(full, layers=layers or full.layers)
    steps: list[dict[str, Any]] = []

    def step(name: str, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = work()
        gc.collect()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        steps.append({"step": name, "seconds": time.perf_counter() - start, "peak_bytes_so_far": peak})
        return result

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
    return {
        "layers": small.layers,
        "of": full.layers,
        "parameters": made.parameters,
        "written": numbers,
        "tokens": tokens,
        "steps": steps,
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
    router = _drawn("router", (2, shape.hidden))
    stored = {}
    for name, size in release_shapes(shape).items():
        read: Callable[[], Tensor] = (lambda: router) if "router" in name else _reader(name, size)
        stored[name] = StoredTensor(size, torch.float16, read)
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


def _reader(name: str, size: tuple[int, ...]) -> Callable[[], Tensor]:
    return lambda: _drawn(name, size)


def _drawn(name: str, size: tuple[int, ...]) -> Tensor:
    seed = int.from_bytes(name.encode()[-6:], "little")
    drawn = torch.empty(size).normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
    return (drawn + (len(size) == 1)).half()


def _compare(one: Path, other: Path) -> None:
    with WeightFiles(one) as before, WeightFiles(other) as after:
        assert before.tensors.keys() == after.tensors.keys()
        for name in track(list(before.tensors), "compare"):
            assert torch.equal(before.tensors[name].read(), after.tensors[name].read()), name


def _load(folder: Path, shape: ReleaseShape) -> LlamaForCausalLM:
    """The language model, tensor by tensor into an empty model, and its conversion."""
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(shape)).to(torch.bfloat16)
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    own = dict(model.named_parameters())
    with WeightFiles(folder) as weights, torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights.tensors[name].read())
    restore(model.eval(), folder)
    return model


@torch.inference_mode()
def _answer(model: LlamaForCausalLM, shape: ReleaseShape, tokens: int) -> dict[str, Any]:
    embeds = torch.randn(1, tokens, shape.hidden, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    mask = torch.ones(1, tokens, dtype=torch.long)
    calibrate(model, [{"inputs_embeds": embeds[:, :64], "attention_mask": mask[:, :64]}], 0.5, rounds=3)
    with measure_skips() as skips:
        written = model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
    return {"new_tokens": written.shape[1], "skip_prefill": skips.prefill, "skip_decode": skips.decode}


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=False)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main(arguments: list[str]) -> None:
    """`python -m gamma_mod.evidence.rehearsal FOLDER RECORD [LAYERS]`."""
    place, record = Path(arguments[0]), Path(arguments[1])
    with _emptied(place) as folder:
        found = rehearse(folder, int(arguments[2]) if len(arguments) > 2 else None)
    atomic_write_json(record, found)


if __name__ == "__main__":
    main(sys.argv[1:])
