"""Golden cases of inference: gates, prefill and decode, manual exit, FastV beside it, the attention profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dyvte.analysis import MEASURES, watch
from dyvte.evidence.parity.model import golden_gates, golden_model, image_mask
from dyvte.exits import VisualExit
from dyvte.fastv import FastV
from dyvte.gates import Gate, prefers_exit
from tenfold.hosts import structure
from tenfold.ledger.goldens import Comparison


def _gate_forward(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    gate = Gate(config["gate_in"], config["gate_hidden"])
    gate.load_state_dict({name: tensors[f"weights/{name}"] for name in ("w1.weight", "w2.weight")})
    logits = gate(tensors["in/x"])
    compare.close("logits", logits, tensors["out/logits"], "gate")
    compare.equal("exits", prefers_exit(logits), tensors["out/exit"])
    compare.equal("exits of the golden logits", prefers_exit(tensors["out/logits"]), tensors["out/exit"])


def _prefill_decode(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    model, gates = golden_model(config, tensors), golden_gates(tensors)
    for sample, golden_exit in enumerate(case["exit_layers"]):
        compare.equal(f"exit of the json {sample}", int(tensors[f"out/exit_layer_{sample}"]), golden_exit)
        embeds = tensors[f"in/embeds_{sample}"]
        visual = image_mask(config, embeds)
        exit = VisualExit(gates)
        with exit(model, visual_mask=visual), _traced(exit) as trace, _last_positions(model) as positions:
            output = model(inputs_embeds=embeds, use_cache=True)
            compare.equal(f"exit {sample}", _golden(exit.exit_layers()), [golden_exit])
            compare.close(f"prefill {sample}", output.logits[0], tensors[f"out/prefill_logits_{sample}"], "states")
            _compare_cache(sample, exit, output.past_key_values, tensors, compare)
            steps, ids = _decode(model, output, config["decode_steps"])
            lengths = [layer[0] for layer in exit.kv_lengths(output.past_key_values)]
        compare.close(f"gate inputs {sample}", _stacked(trace, 0), tensors[f"out/gate_in_{sample}"], "states")
        compare.close(f"gate logits {sample}", _stacked(trace, 1), tensors[f"out/gate_logits_{sample}"], "states")
        compare.close(f"step logits {sample}", steps, tensors[f"out/step_logits_{sample}"], "states")
        compare.equal(f"tokens {sample}", ids, tensors[f"out/tokens_{sample}"])
        compare.equal(f"KV lengths at the end {sample}", lengths, tensors[f"out/kv_len_end_{sample}"])
        compare.equal(f"positions {sample}", positions, tensors[f"out/decode_position_{sample}"])
        with exit(model, visual_mask=visual):
            for cached in (True, False):
                made = model.generate(  # type: ignore[misc]
                    inputs_embeds=embeds, max_new_tokens=len(ids), do_sample=False, use_cache=cached
                )
                compare.equal(f"generate(use_cache={cached}) {sample}", made[0], tensors[f"out/tokens_{sample}"])
        dense = model(inputs_embeds=embeds, use_cache=True)
        steps, ids = _decode(model, dense, config["decode_steps"])
        compare.close(f"dense step logits {sample}", steps, tensors[f"out/dense_step_logits_{sample}"], "states")
        compare.equal(f"dense tokens {sample}", ids, tensors[f"out/dense_tokens_{sample}"])


def _compare_cache(
    sample: int, exit: VisualExit, cache: Any, tensors: Mapping[str, Tensor], compare: Comparison
) -> None:
    lengths = [layer[0] for layer in exit.kv_lengths(cache)]
    compare.equal(f"KV lengths {sample}", lengths, tensors[f"out/kv_len_prefill_{sample}"])
    for kind in ("key", "value"):
        if (golden := tensors.get(f"out/{kind}_last_layer_{sample}")) is not None:
            compare.close(f"{kind}s {sample}", getattr(cache.layers[-1], f"{kind}s"), golden, "states")


def _manual_exit_sweep(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    model, embeds = golden_model(config, tensors), tensors["in/embeds"]
    visual = image_mask(config, embeds)
    text = slice(config["n_prefix"] + config["n_visual"], None)
    golden = tensors["out/text_logits_by_exit"]
    for layer in range(config["layers"]):
        exit = VisualExit(exit_at=layer)
        with exit(model, visual_mask=visual):
            logits = model(inputs_embeds=embeds).logits[0]
            compare.equal(f"exit {layer}", exit.exit_layers(), [layer])
        logits = logits[-config["n_text"] :]
        compare.close(f"exit after layer {layer}", logits, golden[layer], "states")
        masked = tensors["out/masked_branch_text_logits"][layer]
        compare.close(f"removal for the mask of layer {layer}", logits, masked, "states")
    compare.close("never", model(inputs_embeds=embeds).logits[0, text], golden[-1], "states")


def _fastv_combo(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    model, gates = golden_model(config, tensors), golden_gates(tensors)
    fastv = FastV(layer=config["prune_after_layer"], ratio=1 - config["keep"] / config["n_visual"])
    for sample, golden_exit in enumerate(case["exit_layers"]):
        embeds = tensors[f"in/embeds_{sample}"]
        exit = VisualExit(gates, fastv=fastv)
        with exit(model, visual_mask=image_mask(config, embeds)), _traced(exit) as trace:
            output = model(inputs_embeds=embeds, use_cache=True)
            compare.equal(f"exit {sample}", _golden(exit.exit_layers()), [golden_exit])
            lengths = [layer[0] for layer in exit.kv_lengths(output.past_key_values)]
            entering = exit.entering
            steps, ids = _decode(model, output, config["decode_steps"])
        compare.equal(f"KV lengths {sample}", lengths, tensors[f"out/kv_len_prefill_{sample}"])
        for layer in range(config["layers"]):
            golden = tensors[f"out/position_ids_{sample}_layer{layer}"]
            compare.equal(f"tokens into layer {layer} {sample}", entering[layer].index[0], golden)
        compare.close(f"gate logits {sample}", _stacked(trace, 1), tensors[f"out/gate_logits_{sample}"], "states")
        compare.close(f"step logits {sample}", steps, tensors[f"out/step_logits_{sample}"], "states")
        compare.equal(f"tokens {sample}", ids, tensors[f"out/tokens_{sample}"])


def _attention_profile(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    model, embeds = golden_model(config, tensors), tensors["in/embeds"]
    visual = image_mask(config, embeds)
    for name, layer in (("full", config["layers"] - 1), ("exit", config["forced_exit"])):
        exit = VisualExit(exit_at=layer)
        with exit(model, visual_mask=visual), watch(model, exit.present) as measured:
            model(inputs_embeds=embeds)
        measures = torch.stack(measured, dim=1)  # [samples, layers, 5]
        for number, measure in enumerate(MEASURES):
            compare.close(f"{name} {measure}", measures[..., number], tensors[f"out/{name}_{measure}"], "profile")


def _decode(model: Any, output: Any, count: int) -> tuple[Tensor, list[int]]:
    """Greedy steps on the cache of a prefill: logits ``[count + 1, vocabulary]``, and the tokens."""
    rows, ids, cache = [output.logits[0, -1]], [], output.past_key_values
    for _ in range(count):
        ids.append(int(rows[-1].argmax()))
        rows.append(model(input_ids=torch.tensor([[ids[-1]]]), past_key_values=cache, use_cache=True).logits[0, -1])
    return torch.stack(rows), ids


@contextmanager
def _traced(exit: VisualExit) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inputs and logits of every gate that is asked."""
    trace: list[tuple[Tensor, Tensor]] = []
    exit.trace = trace
    try:
        yield trace
    finally:
        exit.trace = None


def _stacked(trace: list[tuple[Tensor, Tensor]], part: int) -> Tensor:
    return torch.cat([both[part] for both in trace])


@contextmanager
def _last_positions(model: Any) -> Iterator[list[int]]:
    """Position of the last query of every pass."""
    positions: list[int] = []

    def see(module: Any, args: tuple, kwargs: dict) -> None:
        positions.append(int(kwargs["position_ids"][..., -1]))

    handle = structure.decoder_layers(model)[0].register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield positions
    finally:
        handle.remove()


def _golden(exits: list[int | None]) -> list[int]:
    return [-1 if layer is None else layer for layer in exits]


COMPUTATIONS = {
    "gate_forward": _gate_forward,
    "prefill_decode": _prefill_decode,
    "manual_exit_sweep": _manual_exit_sweep,
    "fastv_combo": _fastv_combo,
    "attention_profile": _attention_profile,
}
