"""Golden case: a whole tiny LLaVA host with adapters and PIAs, on transformers' own decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from eas.attachment import STATE
from eas.checkpoints import keys
from eas.checkpoints.folder import fill
from eas.plan import Plan
from eas.skipper import Skipper
from tenfold.ledger.goldens import Comparison

IMAGE, IGNORED = -200, -100
PREFIX = "weights/"


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[LlamaForCausalLM, Skipper]:
    """The golden host without its adapters, and a skipper that holds them."""
    host = LlamaConfig(
        vocab_size=config["vocab"],
        hidden_size=config["dim"],
        intermediate_size=config["inter"],
        num_hidden_layers=config["n_layers"],
        num_attention_heads=config["n_heads"],
        rms_norm_eps=config["norm_eps"],
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(host)
    weights = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
    frozen = {key: value for key, value in weights.items() if keys.from_official(key) is None}
    model.load_state_dict(frozen, strict=True)
    plan = Plan(
        layers=config["n_layers"],
        skip=tuple(config["skip"]),
        adapter_rank=config["adapt_dim"],
        pia_rank=config["replaced_dim"],
        groups=config.get("groups", 2),
        scale=float(config["scale"]),
        temperature=float(config["t"]),
        dropout=0.0,
    )
    skipper = Skipper(plan)
    skipper.build(config["dim"])
    ours = keys.tensors_from_official(weights)
    both = {key: value for key, value in ours.items() if not key.startswith(keys.PROJECTOR)}
    # The golden file holds both modules of every layer; a tuned checkpoint only those that its plan uses.
    used = keys.named(skipper.adapters, skipper.pias)
    fill(skipper, {key: value for key, value in both.items() if key in used}, "the golden case")
    return model, skipper


def splice(model: Any, ids: Tensor, images: Tensor, mask: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
    """Put projected image features where the placeholder stands; rows are padded on the right.

    Args:
        ids: ``[batch, tokens]`` with one placeholder a row. images: ``[batch, features, width]``.
        mask: ``[batch, tokens]`` bool. labels: as `ids`, or None.

    Returns:
        Embeddings ``[batch, longest, width]``, their mask, and their labels (all ignored where there are none).
    """
    rows, targets = [], []
    for row in range(ids.shape[0]):
        real = mask[row]
        tokens = ids[row][real]
        answers = torch.full_like(tokens, IGNORED) if labels is None else labels[row][real]
        places = (tokens == IMAGE).nonzero()[:, 0].tolist()
        embedded = model.get_input_embeddings()(tokens.clamp_min(0))
        if places:
            at = places[0]
            embedded = torch.cat((embedded[:at], images[row], embedded[at + 1 :]))
            ignored = answers.new_full((images.shape[1],), IGNORED)
            answers = torch.cat((answers[:at], ignored, answers[at + 1 :]))
        rows.append(embedded)
        targets.append(answers)
    present = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    pad = nn.utils.rnn.pad_sequence
    return pad(rows, True), pad(present, True), pad(targets, True, padding_value=IGNORED)


def llava_model(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """Training loss and gradients, the search's loss, and cached greedy decoding."""
    config = case["config"]
    model, skipper = build(config, tensors)
    weight = tensors["weights/model.mm_projector.weight"].clone().requires_grad_()
    bias = tensors["weights/model.mm_projector.bias"].clone().requires_grad_()
    model.requires_grad_(False)
    with torch.enable_grad():
        _train(model, skipper, weight, bias, tensors, compare)
    _generate(model, skipper, weight.detach(), bias.detach(), config["gen_len"], tensors, compare)


def _train(
    model: LlamaForCausalLM,
    skipper: Skipper,
    weight: Tensor,
    bias: Tensor,
    tensors: Mapping[str, Tensor],
    compare: Comparison,
) -> None:
    images = F.linear(tensors["in/train/image_features"], weight, bias)
    mask = tensors["in/train/attention_mask"].bool()
    embeds, present, labels = splice(model, tensors["in/train/input_ids"], images, mask, tensors["in/train/labels"])
    compare.close("spliced embeddings", embeds, tensors["out/train/inputs_embeds"], "model")
    given: dict[str, Any] = {"inputs_embeds": embeds, "attention_mask": present.long(), "labels": labels}
    with skipper(model.train()):
        means = skipper.attachment._weights(given, embeds.shape[0], embeds.shape[1], embeds.device)
        compare.close("prompt mask", means, tensors["out/train/question_mask"], "model")
        out = model(**given, use_cache=False)
        compare.close("training logits", out.logits, tensors["out/train/logits"], "model")
        compare.close("training loss", out.loss, tensors["out/train/loss"], "model")
        out.loss.backward()
    parameters = keys.named(skipper.adapters, skipper.pias)
    gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    trained = keys.tensors_to_official(gradients)
    for leaf, value in (("weight", weight), ("bias", bias)):
        assert value.grad is not None
        trained[f"model.mm_projector.{leaf}"] = value.grad
    for name in (key for key in tensors if key.startswith("out/train/grad/")):
        compare.close(name, trained[name.removeprefix("out/train/grad/")], tensors[name], "model")
    norm = torch.stack([gradient.norm() for gradient in trained.values()]).norm()
    compare.close("gradient norm", norm, tensors["out/train/grad_norm_trainable"], "model")
    whole = Skipper(skipper.plan, means="all")
    whole.adapters, whole.pias = skipper.adapters, skipper.pias
    with whole(model.eval()), torch.no_grad():
        loss = model(**{key: value.detach() for key, value in given.items()}, use_cache=False).loss
    compare.close("the search's loss", loss, tensors["out/search_eval/loss"], "model")


def _generate(
    model: LlamaForCausalLM,
    skipper: Skipper,
    weight: Tensor,
    bias: Tensor,
    steps: int,
    tensors: Mapping[str, Tensor],
    compare: Comparison,
) -> None:
    ids = tensors["in/gen/input_ids"]
    images = F.linear(tensors["in/gen/image_features"], weight, bias)
    embeds, present, _ = splice(model, ids, images, torch.ones_like(ids, dtype=torch.bool), None)
    with skipper(model.eval()):
        out = model(inputs_embeds=embeds, attention_mask=present.long(), use_cache=True)
        cache = out.past_key_values
        compare.close("prefill logits", out.logits, tensors["out/gen/prefill_logits"], "model")
        logits, tokens = [out.logits[:, -1]], [out.logits[:, -1].argmax(-1)]
        for _ in range(steps):
            out = model(input_ids=tokens[-1][:, None], past_key_values=cache, use_cache=True)
            logits.append(out.logits[:, -1])
            tokens.append(out.logits[:, -1].argmax(-1))
        state = getattr(cache, STATE)
    compare.close("logits of every step", torch.stack(logits, 1), tensors["out/gen/step_logits"], "model")
    golden = tensors["out/gen/tokens"]
    compare.equal("greedy tokens", torch.stack(tokens, 1)[:, : golden.shape[1]], golden)
    compare.equal("slots of the cache", len(cache.layers), len(skipper.plan.kept))
    for name in tensors:
        kind, _, layer = name.rpartition(".")
        if kind == "out/gen/cached_global":
            compare.close(name, state.globe[int(layer)][..., None], tensors[name], "model")
        elif kind == "out/gen/router_weights":
            compare.close(name, state.router[int(layer)], tensors[name], "model")
