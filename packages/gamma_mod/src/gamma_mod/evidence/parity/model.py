"""Golden cases of whole models and their layers, computed by the released code in float32.

The host is transformers' own Llama under official names; ``routable`` comes from the case's prefix. Padding follows the
released code (`GammaModConfig.padding`); that padded queries get no attention output in dense layers either is the
convention of the attention it ran with, and is put on the host here by a hook.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel

from gamma_mod import choosing, convert, kv_lengths, measure_skips
from gamma_mod.checkpoints import keys
from gamma_mod.ranks import arank as mean_ranks
from gamma_mod.ranks import attention_ranks, head_ranks
from gamma_mod.routing import choose_top_k
from tenfold.hosts import structure
from tenfold.ledger.goldens import Comparison

Case = Mapping[str, Any]
Tensors = Mapping[str, Tensor]
GRADIENTS = {
    "router": "router.weight",
    "input_layernorm": "layers.0.input_layernorm.weight",
    "down_proj": "layers.0.mlp.down_proj.weight",
    "q_proj": "layers.0.self_attn.q_proj.weight",
}


def weights_of(tensors: Tensors) -> dict[str, Tensor]:
    """A case's weights under their official names."""
    prefix = "weights/"
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def llama_config(config: Mapping[str, Any], layers: int) -> LlamaConfig:
    attention: dict[str, Any] = {"attn_implementation": "sdpa"}  # taken by every config, declared by none
    return LlamaConfig(
        vocab_size=config.get("vocab_size", 4),
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=layers,
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config.get("num_key_value_heads", config["num_attention_heads"]),
        rms_norm_eps=config["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        max_position_embeddings=4096,
        pad_token_id=None,
        **attention,
    )


def one_layer(case: Case, tensors: Tensors, router: Tensor | None = None, **knobs: Any) -> Any:
    """A decoder (LlamaModel) of the case's single layer: token states go in and come out as they leave the layer."""
    model: Any = LlamaModel(llama_config(case["config"], 1))
    model.norm = nn.Identity()
    weights, routers = weights_of(tensors), {}
    routers = {"model.layers.0.router.weight": weights.pop("router.weight") if router is None else router}
    weights.pop("router.weight", None)
    own = {f"layers.0.{name}": tensor for name, tensor in keys.split(weights)[0].items()}
    own["embed_tokens.weight"] = model.embed_tokens.weight
    model.load_state_dict(own, strict=True)
    convert(model, layers=(0,), padding="released", **knobs)
    model.gamma_mod.router.weight.data.copy_(keys.shared_router(routers, (0,), "golden case"))
    return model


def mod_layer_train(case: Case, tensors: Tensors, compare: Comparison) -> None:
    """One layer in training: choice, output, auxiliary loss and gradients."""
    config = case["config"]
    ratio, prefix = config["routing_ratio"], config["routable_prefix_len"]
    model = one_layer(case, tensors, routing_ratio=ratio)
    out = _train(model, tensors["in/hidden_states"], tensors["in/attention_mask"], tensors["in/cotangent"], prefix)
    _compare_training(out, {name: tensors[f"out/{name}"] for name in _outputs(tensors, "out/")}, compare)


def mgm_layer(case: Case, tensors: Tensors, compare: Comparison) -> None:
    """Mini-Gemini's layer: with an image, text alone (half of the row is computed, answers compete), inference."""
    config = case["config"]
    trained = _router_of_training(case, tensors)
    for kind in ("image", "text"):
        model = one_layer(case, tensors, trained, routing_ratio=config["routing_ratio"])
        given = {name: tensors[f"in/{kind}/{name}"] for name in ("hidden_states", "attention_mask", "cotangent")}
        labels, text = tensors[f"in/{kind}/labels"], kind == "text"
        hidden, mask, cotangent = given.values()
        out = _train(model, hidden, mask, cotangent, config["routable_prefix_len"], labels != -100 if text else None)
        golden = {name: tensors[f"out/{kind}/{name}"] for name in _outputs(tensors, f"out/{kind}/")}
        _compare_training(out, golden, compare, f"{kind} ")
    model = one_layer(case, tensors, tensors["in/infer/router_weight"], prefill_threshold=config["prefill_threshold"])
    with measure_skips(keep_tensors=True) as skips:
        states = model.eval()(inputs_embeds=tensors["in/infer/hidden_states"], use_cache=False).last_hidden_state
    compare.close("infer p", skips.probabilities["prefill", 0][0], tensors["out/infer/keep_prob"], "forward")
    compare.equal("infer kept", skips.kept["prefill", 0][0], tensors["out/infer/keep_mask"])
    compare.close("infer states", states, tensors["out/infer/hidden_states"], "forward")


def _router_of_training(case: Case, tensors: Tensors) -> Tensor:
    """The router behind the case's training outputs.

    A case may have been written after its router had been scaled in place for the inference part: its weights then
    hold that part's router, though its json tells the two apart. The factor is read off one output, the keep
    probabilities of the image part; all others are compared as ever.
    """
    stored, inference = tensors["weights/router.weight"], tensors["in/infer/router_weight"]
    if not torch.equal(stored, inference):
        return stored
    model = one_layer(case, tensors)
    logits = model.gamma_mod.router(model.layers[0].input_layernorm(tensors["in/image/hidden_states"]))
    factor = (torch.logit(tensors["out/image/keep_prob"].double()) / (logits[..., 1] - logits[..., 0])).median()
    return stored * round(factor.item(), 4)


def mod_layer_infer(case: Case, tensors: Tensors, compare: Comparison) -> None:
    """One layer at inference: the prompt by threshold, generated tokens one by one, the layer's own cache."""
    config = case["config"]
    thresholds = {name: config[name] for name in ("prefill_threshold", "decode_threshold")}
    model = one_layer(case, tensors, **thresholds).eval()
    cache: Any = DynamicCache()
    with measure_skips(keep_tensors=True) as skips:
        states = model(inputs_embeds=tensors["in/prefill_hidden"], past_key_values=cache).last_hidden_state
        compare.close("prompt p", skips.probabilities["prefill", 0][0], tensors["out/prefill_keep_prob"], "forward")
        compare.equal("prompt kept", skips.kept["prefill", 0][0][0], tensors["out/prefill_keep_mask"])
        compare.close("prompt states", states, tensors["out/prefill_hidden"], "forward")
        compare.close("keys", cache.layers[0].keys, tensors["out/prefill_key_cache"], "forward")
        compare.close("values", cache.layers[0].values, tensors["out/prefill_value_cache"], "forward")
        steps, lengths = [], []
        for token in tensors["in/decode_hidden"]:
            steps.append(model(inputs_embeds=token[None], past_key_values=cache).last_hidden_state[0])
            lengths.append(kv_lengths(cache)[0][0])
    decoded = torch.cat(skips.probabilities["decode", 0])[:, 0]
    compare.close("decoded p", decoded, tensors["out/decode_keep_prob"], "forward")
    compare.equal("executed", torch.cat(skips.kept["decode", 0])[:, 0], tensors["out/decode_executed"])
    compare.close("decoded states", torch.stack(steps), tensors["out/decode_hidden"], "forward")
    compare.equal("lengths", lengths, tensors["out/cache_len_after_step"])
    compare.close("final keys", cache.layers[0].keys, tensors["out/final_key_cache"], "forward")


def tiny_model(case: Case, tensors: Tensors, **knobs: Any) -> tuple[Any, nn.Sequential]:
    """The case's model: a converted Llama, and the projector of its image features."""
    config = case["config"]
    host, routers = keys.split(weights_of(tensors))
    layers = tuple(config["mod_layers_idx"])
    model: Any = LlamaForCausalLM(llama_config(config, config["num_hidden_layers"]))
    projector = nn.Sequential(
        nn.Linear(config["mm_hidden_size"], config["hidden_size"]),
        nn.GELU(),
        nn.Linear(config["hidden_size"], config["hidden_size"]),
    )
    prefix = "model.mm_projector."
    projector.load_state_dict({name.removeprefix(prefix): host.pop(name) for name in list(host) if prefix in name})
    model.load_state_dict(host, strict=True)
    convert(model, layers=layers, **knobs)
    model.gamma_mod.router.weight.data.copy_(keys.shared_router(routers, layers, "golden case"))
    return model, projector


def expand(model: Any, features: Tensor, ids: Tensor, image: int, *rows: tuple[Tensor, Any]) -> list[Tensor]:
    """Put image features where the placeholder stands, ``[batch, tokens + image - 1, ...]``.

    Args:
        features: ``[batch, image tokens, width]``, projected.
        ids: ``[batch, tokens]``, with one ``image`` placeholder a row.
        rows: per token values to be expanded likewise, each with the value of image tokens.
    """
    found: list[list[Tensor]] = [[] for _ in range(1 + len(rows))]
    for row, values in enumerate(ids):
        at = int((values == image).nonzero()[0, 0])
        before, after = model.get_input_embeddings()(values[:at]), model.get_input_embeddings()(values[at + 1 :])
        found[0].append(torch.cat((before, features[row], after)))
        for place, (tensor, fill) in enumerate(rows, start=1):
            filled = torch.full((features.shape[1],), fill, dtype=tensor.dtype)
            found[place].append(torch.cat((tensor[row, :at], filled, tensor[row, at + 1 :])))
    return [torch.stack(tensors) for tensors in found]


def tiny_model_train(case: Case, tensors: Tensors, compare: Comparison) -> None:
    """The whole model in training: expansion, losses, choices, gradients, one step of AdamW."""
    config, adamw = case["config"], case["config"]["adamw"]
    knobs = {"routing_ratio": config["routing_ratio"], "aux_coefficient": config["router_aux_loss_coef"]}
    model, projector = tiny_model(case, tensors, padding="released", **knobs)
    model.train()
    parameters = [*model.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=adamw["lr"], betas=adamw["betas"], eps=adamw["eps"], weight_decay=adamw["weight_decay"]
    )
    with torch.enable_grad(), measure_skips(keep_tensors=True) as skips:
        embeds, mask, labels, output = _tiny_forward(case, tensors, model, projector)
        output.loss.backward()
    compare.close("embeddings", embeds, tensors["out/inputs_embeds"], "model")
    compare.equal("mask", mask, tensors["out/expanded_attention_mask"])
    compare.equal("labels", labels, tensors["out/expanded_labels"])
    auxiliary = output.auxiliary_loss
    compare.close("loss", output.loss, tensors["out/loss"], "model")
    compare.close("mod loss", config["router_aux_loss_coef"] * auxiliary, tensors["out/mod_loss"], "model")
    language = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    compare.close("language model loss", language, tensors["out/lm_loss"], "model")
    per_layer = torch.stack(_auxiliary(case, skips, mask))
    compare.close("auxiliary losses", per_layer, tensors["out/aux_loss_per_mod_layer"], "model")
    compare.close("logits", output.logits, tensors["out/logits"], "model")
    chosen = torch.stack([_columns(skips.kept["training", layer][0]) for layer in config["mod_layers_idx"]])
    compare.equal("chosen", chosen, tensors["out/selected_sorted"])
    gradients = _official_gradients(model, projector, config["mod_layers_idx"])
    compare.close("router gradient", model.gamma_mod.router.weight.grad, tensors["out/grad_router"], "model")
    norms = torch.stack([gradients[name].norm() for name in case["grad_norm_param_order"]])
    compare.close("gradient norms", norms, tensors["out/grad_norm_per_param"], "gradient norms")
    compare.close("gradient norm", norms.norm(), tensors["out/grad_norm_total"], "gradient norms")
    optimizer.step()
    compare.close("stepped router", model.gamma_mod.router.weight, tensors["out/router_after_adamw"], "model")
    after = _tiny_forward(case, tensors, model, projector)[3]
    compare.close("loss after a step", after.loss, tensors["out/loss_after_adamw"], "loss after a step")


def tiny_model_generate(case: Case, tensors: Tensors, compare: Comparison) -> None:
    """Prefill and greedy decoding with ragged caches; `generate` gives the same tokens."""
    config = case["config"]
    layers, steps = config["mod_layers_idx"], config["steps"]
    thresholds = {name: config[name] for name in ("prefill_threshold", "decode_threshold")}
    model, projector = tiny_model(case, tensors, **thresholds)
    model.eval()
    ids = tensors["in/input_ids"]
    (embeds,) = expand(model, projector(tensors["in/image_features"]), ids, config["image_token_index"])
    cache = DynamicCache(config=model.config)
    with measure_skips(keep_tensors=True) as skips:
        logits = model(inputs_embeds=embeds, past_key_values=cache).logits
        compare.close("prompt logits", logits, tensors["out/prefill_logits"], "model")
        step_logits, tokens, lengths = [logits[0, -1]], [], [_row_lengths(cache)]
        for step in range(steps):
            tokens.append(int(step_logits[-1].argmax()))
            if step + 1 < steps:
                output = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=cache)
                step_logits.append(output.logits[0, -1])
                lengths.append(_row_lengths(cache))
    prompt = [skips.probabilities["prefill", layer][0][0] for layer in layers]
    compare.close("prompt p", torch.stack(prompt), tensors["out/prefill_keep_prob"], "model")
    kept = torch.stack([skips.kept["prefill", layer][0][0] for layer in layers])
    compare.equal("prompt kept", kept, tensors["out/prefill_keep_mask"])
    compare.close("step logits", torch.stack(step_logits), tensors["out/step_logits"], "model")
    compare.equal("tokens", tokens, tensors["out/greedy_tokens"])
    decoded = torch.stack([torch.cat(skips.probabilities["decode", layer])[:, 0] for layer in layers], 1)
    compare.close("decoded p", decoded, tensors["out/decode_keep_prob"], "model")
    executed = torch.stack([torch.cat(skips.kept["decode", layer])[:, 0] for layer in layers], 1)
    compare.equal("executed", executed, tensors["out/decode_executed"])
    compare.equal("lengths", lengths, tensors["out/cache_len_per_step_per_layer"])
    generated = model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        do_sample=False,
        max_new_tokens=steps,
        min_new_tokens=steps,
        eos_token_id=config["eos"],
        pad_token_id=0,
    )
    compare.equal("generate", generated[0], tensors["out/generate_tokens"])


def arank(case: Case, tensors: Tensors, compare: Comparison) -> None:
    """Ranks of given maps, and of a dense model's, layer by layer and head by head."""
    compare.equal("given maps", attention_ranks(tensors["in/synthetic_maps"]), tensors["out/synthetic_rank"])
    config = case["config"]
    model = LlamaForCausalLM(llama_config(config, config["num_hidden_layers"])).eval()
    model.load_state_dict(keys.split(weights_of(tensors))[0], strict=True)
    sample = {"input_ids": tensors["in/input_ids"]}
    with _eager(model):
        maps = torch.stack(model(**sample, output_attentions=True).attentions)[:, 0]
    compare.close("maps", maps, tensors["out/attention_maps"], "maps")
    compare.equal("ranks", head_ranks(model, [sample])[0], tensors["out/rank_per_layer_head"])
    compare.close("ARank", torch.tensor(mean_ranks(model, [sample])), tensors["out/arank_per_layer"], "maps")
    rounded = attention_ranks(tensors["out/attention_maps"].half())
    compare.equal("ranks of rounded maps", rounded, tensors["out/rank_after_fp16_rounding"])


def _train(
    model: Any, hidden: Tensor, mask: Tensor, cotangent: Tensor, prefix: int, answers: Tensor | None = None
) -> dict[str, Any]:
    batch, tokens = mask.shape
    model.train()
    hidden = hidden.clone().requires_grad_()
    routable = torch.zeros(batch, tokens, dtype=torch.bool)
    if tokens > prefix:
        routable[:, :prefix] = True
    half = (math.ceil(tokens / 2),) * batch
    rule = None if answers is None else lambda _layer, p, _run: (choose_top_k(p, ~answers, half), half)
    with torch.enable_grad(), measure_skips(keep_tensors=True) as skips, _rule(rule):
        output = model(inputs_embeds=hidden, attention_mask=mask, routable=routable, use_cache=False)
        states, auxiliary = output.last_hidden_state, output.auxiliary_loss
        ((states * cotangent * mask[..., None]).mean() + auxiliary).backward()
    parameters = dict(model.named_parameters())
    kept = skips.kept["training", 0][0]
    return {
        "hidden_states": states,
        "aux_loss": auxiliary,
        "router_logits": model.gamma_mod.router(model.layers[0].input_layernorm(hidden)),
        "keep_prob": skips.probabilities["training", 0][0],
        "selected_sorted": _columns(kept),
        "keep_mask": kept,
        "top_k": kept[0].sum(),
        "grad_hidden_states": hidden.grad,
        **{f"grad_{name}": parameters[key].grad for name, key in GRADIENTS.items()},
    }


@contextmanager
def _rule(rule: Any) -> Iterator[None]:
    if rule is None:
        yield
    else:
        with choosing(rule):
            yield


def _compare_training(out: Mapping[str, Any], golden: Tensors, compare: Comparison, where: str = "") -> None:
    for name, value in golden.items():
        if value.is_floating_point():
            compare.close(where + name, out[name], value, "forward")
        else:
            compare.equal(where + name, out[name], value)


def _outputs(tensors: Tensors, prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]


def _columns(kept: Tensor) -> Tensor:
    """``[batch, tokens]`` bool, equally many a row -> ``[batch, k]`` their columns."""
    return torch.stack([row.nonzero()[:, 0] for row in kept])


def _tiny_forward(case: Case, tensors: Tensors, model: Any, projector: nn.Module) -> tuple[Tensor, Tensor, Tensor, Any]:
    config = case["config"]
    embeds, mask, labels = expand(
        model,
        projector(tensors["in/image_features"]),
        tensors["in/input_ids"],
        config["image_token_index"],
        (tensors["in/attention_mask"], True),
        (tensors["in/labels"], config["ignore_index"]),
    )
    routable = torch.zeros(mask.shape, dtype=torch.bool)
    if mask.shape[1] > config["routable_prefix_len"]:
        routable[:, : config["routable_prefix_len"]] = True
    with _silent_padding(model, mask):
        output = model(inputs_embeds=embeds, attention_mask=mask, labels=labels, routable=routable, use_cache=False)
    return embeds, mask, labels, output


@contextmanager
def _silent_padding(model: Any, mask: Tensor) -> Iterator[None]:
    """Dense layers give padded queries no attention output; converted ones do so by themselves."""
    converted = model.gamma_mod.config.layers
    dense: list[Any] = [
        layer for number, layer in enumerate(structure.decoder_layers(model)) if number not in converted
    ]
    handles = [
        layer.self_attn.register_forward_hook(lambda _m, _a, output: (output[0] * mask[..., None], *output[1:]))
        for layer in dense
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _auxiliary(case: Case, skips: Any, mask: Tensor) -> list[Tensor]:
    """Every layer's auxiliary loss, once more from its probabilities and choices: cross-entropy of two classes."""
    found = []
    for layer in case["config"]["mod_layers_idx"]:
        p, kept = skips.probabilities["training", layer][0].double(), skips.kept["training", layer][0]
        found.append(-torch.where(kept, p, 1 - p).log().mean())
    return found


def _official_gradients(model: nn.Module, projector: nn.Module, layers: Sequence[int]) -> dict[str, Tensor]:
    names = {"model.router.weight": keys.router_key(layers[0])}
    found = {names.get(name, name): parameter.grad for name, parameter in model.named_parameters()}
    found |= {f"model.mm_projector.{name}": parameter.grad for name, parameter in projector.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def _row_lengths(cache: DynamicCache) -> list[int]:
    return [rows[0] for rows in kv_lengths(cache)]
