"""Golden cases of training: the label rule, one step from every exit layer, gates that read attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dyvte.attention_states import attention_states
from dyvte.branches import LabelRule, gate_loss, run_branches, shifted
from dyvte.evidence.parity.model import golden_gates, golden_model, golden_weights, image_mask
from dyvte.gates import ATTENTION_STATES, Gate, GateConfig
from dyvte.observation import Observed, Observer
from dyvte.states import text_block
from tenfold.hosts import structure
from tenfold.hosts.ragged import Tokens
from tenfold.ledger.goldens import Comparison

# As released: token id 0 is no answer.
AS_RELEASED = LabelRule(drop_token_zero=True)


def _label_rule(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    judged = AS_RELEASED.judge(tensors["in/logits_full"], tensors["in/logits_exit"], shifted(tensors["in/labels"]))
    compare.equal("labels", judged.labels, tensors["out/gate_labels"])
    compare.close("agreement", judged.agreement, tensors["out/agreement"], "gate")
    compare.close("CE with the image", judged.ce_dense, tensors["out/loss_full"], "gate")
    compare.close("CE without", judged.ce_exited, tensors["out/loss_exit"], "gate")
    compare.close("loss", gate_loss(tensors["in/gate_logits"], judged.labels), tensors["out/loss"], "gate")


def _train_step(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    model, start = golden_model(config, tensors), golden_gates(tensors)
    embeds, mask = tensors["in/embeds"], tensors["in/attention_mask"]
    inputs = {"inputs_embeds": embeds, "attention_mask": mask.long()}
    for layer in range(config["layers"]):
        branches = run_branches(
            model, inputs, tensors["in/labels"], [layer], start.config, visual=image_mask(config, embeds, mask)
        )
        judged = AS_RELEASED.judge(branches.dense, branches.exited[0], branches.targets)
        gates = golden_gates(tensors)
        optimizer = torch.optim.AdamW(
            gates.parameters(),
            lr=config["lr"],
            betas=tuple(config["betas"]),
            eps=config["eps"],
            weight_decay=config["weight_decay"],
        )
        with torch.enable_grad():
            logits = gates[layer](branches.x[0])
            loss = gate_loss(logits, judged.labels)
            loss.backward()
        gate, before = gates[layer], start[layer]
        name = f"layer {layer}"
        compare.equal(f"{name} labels", judged.labels, tensors["out/gate_labels"][layer])
        compare.close(f"{name} agreement", judged.agreement, tensors["out/agreement"][layer], "training")
        compare.close(f"{name} CE with the image", judged.ce_dense, tensors["out/loss_full"][layer], "training")
        compare.close(f"{name} CE without", judged.ce_exited, tensors["out/loss_exit"][layer], "training")
        compare.close(f"{name} gate logits", logits, tensors["out/gate_logits"][layer], "training")
        compare.close(f"{name} loss", loss, tensors["out/gate_loss"][layer], "training")
        compare.close(
            f"{name} W1's gradient", _gradient(gate.w1).norm(), tensors["out/grad_w1_norm"][layer], "training"
        )
        compare.close(f"{name} W2's gradient", _gradient(gate.w2), tensors["out/grad_w2"][layer], "training")
        optimizer.step()
        moved = gate.w2.weight - before.w2.weight
        compare.close(f"{name} AdamW's step", moved, tensors["out/adamw_delta_w2"][layer], "step")
        others = [gates[other] for other in range(len(gates)) if other != layer]
        untouched = all(weight.grad is None for other in others for weight in other.parameters())
        compare.equal(f"{name}: only its gate learns", untouched, True)


def _gradient(matrix: torch.nn.Module) -> Tensor:
    (weight,) = matrix.parameters()
    assert weight.grad is not None
    return weight.grad


def _attention_state_variant(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    model, embeds, real = golden_model(config, tensors), tensors["in/embeds"], tensors["in/attention_mask"]
    visual = image_mask(config, embeds, real)
    prompt = Tokens.of_prompt(visual, real)
    assert prompt is not None
    answers = tensors["in/answer_lengths"]
    columns = torch.arange(real.shape[1])
    ends = real.sum(1) - answers
    text = text_block(visual, real) & (columns < ends[:, None])
    # As released, the columns of the text row end where an answer would end on the padded axis.
    padded = (columns >= config["n_prefix"] + config["n_visual"]) & (columns < (real.shape[1] - answers)[:, None])
    gate_config = GateConfig(
        config["layers"],
        config["hidden"],
        config["gate_hidden"],
        states=ATTENTION_STATES,
        visual_tokens=config["n_visual"],
    )
    seen: list[Observed] = []
    observers = [Observer(layer.self_attn, seen.append) for layer in _layers(model)]
    model(inputs_embeds=embeds, attention_mask=real.long())
    for observer in observers:
        observer.remove()
    weights = golden_weights(tensors)
    tokens = Tokens(**{**vars(prompt), "text": text})
    for number, layer in enumerate(config["exit_layers"]):
        observed = Observed(seen[layer].query, seen[layer].key, seen[layer].scaling, real)
        x = attention_states(observed, tokens, gate_config, padded)
        compare.close(f"features of layer {layer}", x, tensors["out/features"][number], "attention")
        gate = Gate(gate_config.inputs, gate_config.width)
        prefix = f"model.visual_gates_router.{layer}."
        gate.load_state_dict({name: weights[prefix + name] for name in ("w1.weight", "w2.weight")})
        compare.close(f"gate logits of layer {layer}", gate(x), tensors["out/gate_logits"][number], "attention")


def _layers(model: Any) -> Any:
    return structure.decoder_layers(model)


COMPUTATIONS = {
    "label_rule": _label_rule,
    "train_step": _train_step,
    "attention_state_variant": _attention_state_variant,
}
