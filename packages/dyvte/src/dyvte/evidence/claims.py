"""The checks behind `claims.yaml`: what this package recomputes of the paper, by name.

Analytic ones follow from `dyvte.costs`. Parity ones compare with golden data of the released code, which lies in the
source tree (or under `$TENFOLD_GOLDENS`) and does not travel in a wheel. The mini host serves what needs a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dyvte import costs
from dyvte.costs import LLAMA_7B, LLAMA_13B, DecoderShape
from dyvte.gates import GateConfig
from tenfold.cli import find_package_file
from tenfold.ledger import Figure, Outcome
from tenfold.ledger.goldens import NO_GOLDENS, goldens
from tenfold.ledger.goldens import parity as golden_parity
from tenfold.ledger.text import small
from tenfold.runs import read_json

Check = Callable[[], Outcome]

PARITY = (
    "gate_forward",
    "prefill_decode_llava_layout",
    "manual_exit_sweep",
    "label_rule",
    "train_step",
    "fastv_combo",
    "attention_state_variant",
    "attention_profile",
)
SHAPES = {"7b": LLAMA_7B, "13b": LLAMA_13B}
# (host, benchmark) -> mean exit layer, counted from 0 (tables 4 and 6). VILA has LLaVA-1.5's shape.
MEAN_EXITS = {
    ("llava_7b", "gqa"): 16.4,
    ("llava_7b", "mmvet"): 21.1,
    ("llava_7b", "scienceqa"): 13.4,
    ("llava_7b", "textvqa"): 19.7,
    ("vila_7b", "gqa"): 17.4,
    ("vila_7b", "vqav2"): 16.7,
    ("vila_7b", "seed"): 17.6,
    ("vila_7b", "mmbench"): 16.2,
    ("vila_7b", "mme"): 13.1,
}
# (size, benchmark) -> published TFLOPs of rows that print no exit layer (tables 1 and 2).
WITHOUT_EXIT = {
    "7b": {"vqav2": 5.1, "seed": 5.0, "mmbench": 5.4, "mme": 4.3, "pope": 4.1},
    "13b": {
        "gqa": 9.0,
        "vqav2": 8.9,
        "textvqa": 10.8,
        "scienceqa": 8.2,
        "seed": 7.1,
        "mme": 7.2,
        "mmbench": 7.8,
        "pope": 7.6,
        "mmvet": 10.6,
    },
}
# The prompt of the worked example, and the authors' file as far as it is known.
TOKENS, EXIT, SAMPLES, BATCH = 640, 16, 6653, 128


def checks() -> Mapping[str, Check]:
    """Check name -> function, for every claim of the ledger that is recomputed here."""
    found: dict[str, Check] = {name: partial(parity, name) for name in PARITY}
    for size, shape in SHAPES.items():
        found[f"official_keys_{size}"] = partial(official_keys, size)
        found[f"gate_parameters_{size}"] = partial(gate_parameters, shape)
        for benchmark in costs.PROMPT_TOKENS:
            found[f"dense_{size}_{benchmark}"] = partial(tflops, benchmark, None, shape)
        for benchmark, published in WITHOUT_EXIT[size].items():
            found[f"implied_{size}_{benchmark}"] = partial(implied, benchmark, published, shape)
    for (host, benchmark), mean_exit in MEAN_EXITS.items():
        found[f"tflops_{host}_{benchmark}"] = partial(tflops, benchmark, mean_exit, LLAMA_7B)
    found["saves_seed_7b"] = partial(saves, 9.2, 5.0)
    found["saves_sqa_13b"] = partial(saves, 18.6, 8.2)
    return found | {
        "fastv_sqa": fastv_sqa,
        "gate_flops": gate_flops,
        "kv_cache": kv_cache,
        "updates": updates,
        "compaction": compaction,
        "dense_rows": dense_rows,
        "blind": blind,
        "budget": budget,
    }


def parity(case: str) -> Outcome:
    """A golden case against this package."""
    from dyvte.evidence.parity import COMPUTATIONS, TOLERANCES

    return golden_parity("dyvte", case, COMPUTATIONS, TOLERANCES)


def official_keys(size: str) -> Outcome:
    """Names, shapes and number of a full-size host's gates, on the meta device, against the official checkpoint."""
    from dyvte.checkpoints.keys import gates_to_official
    from dyvte.gates import Gates

    folder = goldens("dyvte")
    if folder is None:
        return NO_GOLDENS
    golden = read_json(folder / "official_keys.json")[f"llava-1.5-{size}"]
    state = Gates(gate_config(SHAPES[size]), device="meta").state_dict()
    ours = {official: list(state[name].shape) for name, official in gates_to_official(state).items()}
    wrong = sorted(
        name for name in ours.keys() | golden["method_keys"] if ours.get(name) != golden["method_keys"].get(name)
    )
    total = sum(tensor.numel() for tensor in state.values())
    if total != golden["method_parameters"]:
        wrong.append(f"{total:,} parameters instead of {golden['method_parameters']:,}")
    if wrong:
        return Outcome(f"{len(wrong)} differ", False, ", ".join(wrong[:5]))
    return Outcome(f"{len(ours)} names agree", True, f"{total:,} parameters")


def gate_config(shape: DecoderShape) -> GateConfig:
    """The published gates of a host."""
    return GateConfig(shape.layers, shape.hidden)


def gate_parameters(shape: DecoderShape) -> Outcome:
    return Outcome(costs.gate_parameters(gate_config(shape)), True)


def tflops(benchmark: str, mean_exit: float | None, shape: DecoderShape) -> Outcome:
    """TFLOPs of a row from its mean exit layer; None: dense."""
    n = costs.PROMPT_TOKENS[benchmark]
    return Outcome(
        round(costs.mean_exit_tflops(benchmark, mean_exit, shape), 3), True, f"{n} tokens, 576 of them visual"
    )


def implied(benchmark: str, published: float, shape: DecoderShape) -> Outcome:
    """Mean layers on all tokens that a row's TFLOPs imply."""
    layers = costs.implied_full_layers(benchmark, published, shape)
    return Outcome(round(layers, 2), None, f"of {shape.layers}; 0.05 TFLOPs of rounding are about 0.2 layers at 7B")


def saves(dense: float, exited: float) -> Outcome:
    return Outcome(100 * (1 - exited / dense), True, f"from {dense} and {exited} as printed")


def fastv_sqa() -> Outcome:
    return Outcome(round(costs.fastv_tflops("scienceqa", LLAMA_7B), 3), True, "703 tokens")


def gate_flops() -> Outcome:
    share = costs.gate_flops(gate_config(LLAMA_7B)) / costs.layer_flops(TOKENS, LLAMA_7B)
    return Outcome(100 * share, None, f"{costs.gate_flops(gate_config(LLAMA_7B)) / 1e6:.1f} MFLOPs a gate")


def kv_cache() -> Outcome:
    whole, left = (costs.kv_bytes(TOKENS, 576, e, LLAMA_7B) / 2**20 for e in (None, EXIT))
    return Outcome(left, None, f"of {whole:.0f} MiB, {1 - left / whole:.0%} less")


def updates() -> Outcome:
    steps = -(-SAMPLES // BATCH)
    return Outcome(steps / LLAMA_7B.layers, None, f"{steps} steps")


def compaction() -> Outcome:
    whole = costs.prefill_flops(TOKENS, 576, None, LLAMA_7B)
    return Outcome(
        100 * costs.delay_flops(TOKENS, 576, 4, LLAMA_7B) / whole, None, "1.5 layers more, for 8 waits, not 32"
    )


def _mini() -> tuple[Any, Any, dict[str, Any]]:
    from dyvte.data.samples import mini_samples
    from dyvte.evaluation.model import open_gates
    from dyvte.evaluation.settings import SHIPPED
    from tenfold.cli.settings import MINI, HostSettings
    from tenfold.hosts.answers import Protocol, encode_batch
    from tenfold.hosts.loading import load_host

    host = load_host(HostSettings(device="cpu"))
    samples = mini_samples(3_000_000, 4)
    prompts = [Protocol.processor.prompt(host.processor, sample.image(), sample.question) for sample in samples]
    return host.model, open_gates(SHIPPED, MINI), encode_batch(host.processor, host.model, prompts)


def dense_rows() -> Outcome:
    """Logits of the mini host with gates that never fire, and without."""
    import torch

    from dyvte.exits import VisualExit

    model, gates, inputs = _mini()
    with torch.no_grad():
        dense = model(**inputs).logits
        with VisualExit(gates, threshold=float("inf"))(model):
            kept = model(**inputs).logits
    equal = dense.shape == kept.shape and bool((dense == kept).all())
    return Outcome("bit-equal" if equal else "differs", equal, f"{dense.numel():,} logits")


def blind() -> Outcome:
    """Last logits of the mini host with an exit before layer 0, and of the text alone at its own positions."""
    import torch

    from dyvte.exits import VisualExit
    from tenfold.hosts import structure

    model, _, inputs = _mini()
    inputs = {name: value[:1] for name, value in inputs.items()}
    text = ~structure.visual_mask(model, inputs)[0]
    real = inputs["attention_mask"][0].bool()
    at = (real & text).nonzero()[:, 0]
    positions = (real.long().cumsum(0) - 1)[at][None]
    with torch.no_grad():
        words = model.get_input_embeddings()(inputs["input_ids"][:, at])
        expected = model(inputs_embeds=words, position_ids=positions).logits[0, -1]
        with VisualExit(exit_at=-1)(model):
            found = model(**inputs).logits[0, -1]
    difference = float((found - expected).abs().max())
    return Outcome(
        "equal" if difference < 1e-4 else "differs", difference < 1e-4, f"largest difference {small(difference)}"
    )


def budget() -> Outcome:
    """How far the mini host's mean exit layer stays from the one asked for."""
    from dyvte.calibration import TOLERANCE, exits_at, margins, threshold_for

    model, gates, inputs = _mini()
    found = margins(model, gates, [inputs])
    means = exits_at(found, 0.0).double().mean()
    reached = exits_at(found, threshold_for(found, float(means))).double().mean()
    off = abs(float(reached - means))
    return Outcome(off, off <= TOLERANCE, f"{len(found)} samples, asked for {float(means):.2f}")


def figures(folder: Path) -> list[Figure]:
    """Draw the report's figures into a folder.

    Raises:
        UserError: there is no such folder.
    """
    from dyvte.evidence import figures as draw

    return draw.all_figures(folder, find_package_file("dyvte", "results"))
