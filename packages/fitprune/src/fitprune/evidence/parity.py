"""Golden cases: the reference implementation's inputs, weights and outputs, against this package.

A case is a json file that names its ``computation`` and dimensions, with a safetensors file beside it. All
dimensions are read from the json, so that any folder of cases can be checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext as nothing
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from fitprune.checkpoints.keys import to_transformers
from fitprune.costs import LLAVA_7B, DecoderShape, base_macs, kv_kept, mean_entering
from fitprune.fitting import Calibration
from fitprune.pruner import Pruner
from fitprune.recipe import Recipe
from fitprune.statistics import AttentionMass, attention_mass, lowest_scores
from tenfold import UserError
from tenfold.ledger.goldens import Comparison, Computation

# The prose tolerances of the cases as (absolute, relative). Decisions, ids and counts are compared exactly.
TOLERANCES = {"scores": (1e-6, 1e-5), "hidden": (2e-5, 1e-4), "logits": (1e-4, 1e-4), "mass": (1e-7, 1e-5)}


def _prune_layer(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    for number, sub in enumerate(case["cases"]):
        name = f"case{number}"
        start, visual_count, text_count = sub["sys_len"], sub["num_visual"], sub["num_text"]
        tokens, heads, width = start + visual_count + text_count, sub["heads"], sub["head_dim"]
        position = torch.arange(tokens)
        visual = ((position >= start) & (position < start + visual_count))[None]
        text = (position >= start + visual_count)[None]

        maps = tensors[f"in/{name}.attn_weights"]  # [1, heads, tokens, tokens]
        mass = _mass_of_maps(maps, visual, text)
        score = mass.product[visual]
        compare.close(f"{name} self", mass.self_[visual], tensors[f"out/{name}.score_self"], "scores")
        compare.close(f"{name} cross", mass.cross[visual], tensors[f"out/{name}.score_cross"], "scores")
        compare.close(f"{name} product", score, tensors[f"out/{name}.score_product"], "scores")
        removed = lowest_scores(mass.product, visual, torch.tensor([sub["num_delete"]]))
        golden = tensors[f"out/{name}.delete_idx"]
        compare.equal(f"{name} removed", removed[visual].nonzero()[:, 0].tolist(), sorted(golden.tolist()))
        compare.equal(f"{name} kept", (~removed[0]).long(), tensors[f"out/{name}.keep_mask"].long())

        hidden = tensors[f"in/{name}.hidden_normed"]
        value = (hidden @ tensors[f"in/{name}.v_proj.weight"].T).view(1, tokens, heads, width).transpose(1, 2)
        attended = (maps @ value).transpose(1, 2).reshape(1, tokens, heads * width)[:, ~removed[0]]
        output = attended @ tensors[f"in/{name}.o_proj.weight"].T
        compare.close(f"{name} output", output, tensors[f"out/{name}.attn_output_pruned"], "hidden")


def _mass_of_maps(maps: Tensor, visual: Tensor, text: Tensor) -> AttentionMass:
    """Scores of given attention maps: log-probabilities are logits whose softmax is the map.

    With an identity as queries, the product with the keys is the logits themselves.
    """
    heads, tokens = maps.shape[1:3]
    query = torch.eye(tokens).expand(1, heads, tokens, tokens)
    key = maps.clamp(min=1e-45).log().transpose(2, 3)
    return attention_mass(query, key, 1.0, visual=visual, text=text, num_visual=visual.sum(1), block_rows=7)


def _generate(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    model = golden_model(config, tensors)
    embeds, visual = golden_prompt(model, tensors["in/input_ids"], tensors["in/image_features"])
    recipe = Recipe(
        model=case["case"],
        num_layers=config["layers"],
        visual_tokens=config["num_visual"],
        remove=tuple(config["recipe"]),
    )
    for key, pruner in (("", Pruner(recipe)), ("unpruned_", None)):
        context = nothing() if pruner is None else pruner(model, visual_mask=visual)
        with context:
            output = model(inputs_embeds=embeds, use_cache=True, output_hidden_states=True)
            cache = output.past_key_values
            if pruner is not None:
                _compare_prefill(config, tensors, compare, pruner, output)
            rows, ids, lengths = [output.logits[0, -1]], [], [_lengths(cache)]
            for _ in range(config["decode_steps"]):
                ids.append(int(rows[-1].argmax()))
                step = model(input_ids=torch.tensor([[ids[-1]]]), past_key_values=cache, use_cache=True)
                rows.append(step.logits[0, -1])
                lengths.append(_lengths(cache))
        compare.close(f"{key}step logits", torch.stack(rows), tensors[f"out/{key}step_logits"], "logits")
        compare.equal(f"{key}generated ids", ids, tensors[f"out/{key}generated_ids"])
        if pruner is not None:
            compare.equal("KV lengths", lengths, tensors["out/kv_lengths"])
            with pruner(model, visual_mask=visual):
                ids = model.generate(inputs_embeds=embeds, max_new_tokens=len(ids), do_sample=False)
            compare.equal("generate()", ids[0], tensors["out/generated_ids"])


def _compare_prefill(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison, pruner: Pruner, output: Any
) -> None:
    compare.close("prefill logits", output.logits[0], tensors["out/prefill_logits"], "logits")
    compare.equal("alive", pruner.surviving().long(), tensors["out/alive"].long())
    compare.close("final norm", output.hidden_states[-1][0], tensors["out/last_hidden_after_norm"], "hidden")
    for layer in range(config["layers"]):
        if (golden := tensors.get(f"out/hidden_in_layer{layer}")) is not None:
            compare.close(f"hidden into layer {layer}", output.hidden_states[layer][0], golden, "hidden")
        for kind in ("key", "value"):
            if (golden := tensors.get(f"out/prefill_{kind}_cache.layer{layer}")) is not None:
                ours = getattr(output.past_key_values.layers[layer], f"{kind}s")[0]
                compare.close(f"{kind} cache of layer {layer}", ours, golden, "hidden")
        if (golden := tensors.get(f"out/delete_idx.layer{layer}")) is not None:
            before, after = pruner.surviving()[layer : layer + 2]
            compare.equal(
                f"removed in layer {layer}",
                (~after[before]).nonzero()[:, 0].tolist(),
                sorted(golden.tolist()),
            )


def _lengths(cache: Any) -> list[int]:
    return [layer[0] for layer in Pruner.kv_lengths(cache)]


def _search(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    model = golden_model(config, tensors)
    samples = []
    for number in range(len(config["text_lengths_after_image"])):
        ids, features = (tensors[f"in/sample{number}.{name}"] for name in ("input_ids", "image_features"))
        embeds, visual = golden_prompt(model, ids, features)
        samples.append({"inputs_embeds": embeds, "visual_mask": visual})
    calibration = Calibration(model, None, samples)
    calibration.shape = shape = DecoderShape(
        layers=config["layers"],
        hidden=config["flops_hidden"],
        intermediate=config["flops_intermediate"],
        heads=config["heads"],
    )
    for name in ("cross", "self"):
        field = "self_" if name == "self" else name
        ours = torch.tensor([getattr(sample, field) for sample in calibration.statistics], dtype=torch.float64)
        compare.close(f"mass {name}", ours, tensors[f"out/mass_{name}"], "mass")
    for ratio in config["ratios"]:
        key = f"ratio{round(100 * ratio)}"
        steps, best = calibration.search(ratio)
        compare.equal(f"{key} alphas", [step.alpha for step in steps], tensors[f"out/{key}.alphas"])
        compare.equal(f"{key} reached", [int(step.reached) for step in steps], tensors[f"out/{key}.reached"])
        compare.equal(f"{key} stop layers", [step.stop_layer for step in steps], tensors[f"out/{key}.stop_layer"])
        removed = torch.tensor([step.removed for step in steps])  # [steps, samples, layers]
        compare.equal(f"{key} removals", removed.sum(1), tensors[f"out/{key}.deleted_sum_over_samples"])
        left = config["num_visual"] - removed.sum(2)
        compare.equal(f"{key} left", left, tensors[f"out/{key}.visual_left_per_sample"])
        # Where the budget was missed, the case recorded its sum after the last layer was finished, with that
        # layer's o_proj and MLP both in what was spent and in what was forecast.
        tail = shape.hidden**2 + 3 * shape.hidden * shape.intermediate
        recorded = [
            step.forecast + (0 if step.reached else tail * tokens.double().mean().item())
            for step, tokens in zip(steps, left, strict=True)
        ]
        forecast = torch.tensor(recorded, dtype=torch.float64)
        compare.close(f"{key} forecast", forecast, tensors[f"out/{key}.flops_forecast_at_stop"], "mass")
        golden = case["results"][key]
        compare.equal(f"{key} smallest feasible alpha", best and best.alpha, golden["smallest_feasible_alpha"])
        if best is not None:
            recipe = calibration.recipe(ratio, rounding="floor")
            compare.equal(f"{key} recipe", list(recipe.remove), golden["scheme_at_smallest_feasible_alpha"])


def _recipes(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    for host, golden in case["hosts"].items():
        visual = golden["num_visual"]
        compare.equal(f"{host} base", base_macs(visual, LLAVA_7B), golden["base_macs"])
        for percent, row in golden["ratios"].items():
            recipe, name = Recipe.released(host, int(percent)), f"{host} {percent} %"
            compare.equal(name, list(recipe.remove), row["recipe"])
            compare.equal(f"{name} tensor", list(recipe.remove), tensors[f"out/{host}.ratio{percent}"])
            compare.equal(f"{name} left", recipe.alive()[-1], row["visual_left"])
            compare.equal(f"{name} removed", sum(recipe.remove), row["total_removed"])
            compare.equal(f"{name} MACs", recipe.macs["delivered"], row["macs"])
            compare.equal(f"{name} reduction", recipe.reduction, row["reduction"])
            compare.equal(f"{name} entering", mean_entering(recipe.remove, visual), row["mean_visual_entering"])
            compare.equal(f"{name} KV", kv_kept(recipe.remove, visual), row["visual_kv_kept"])
            for key, scaled in tensors.items():
                if key.startswith(f"out/{host}.ratio{percent}.scaled_to_"):
                    compare.equal(key, recipe.counts_for(int(key.rsplit("_", 1)[1])), scaled)


def golden_model(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LlavaForConditionalGeneration:
    """The host of a case: a Llama decoder with the case's weights, under a LLaVA whose vision tower is not
    used."""
    text = LlamaConfig(
        vocab_size=config["vocab"],
        hidden_size=config["hidden"],
        intermediate_size=config["intermediate"],
        num_hidden_layers=config["layers"],
        num_attention_heads=config["heads"],
        num_key_value_heads=config.get("kv_heads", config["heads"]),
        rms_norm_eps=config["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)},
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=4,
        patch_size=2,
    )
    llava = LlavaConfig(text_config=text, vision_config=vision, image_token_index=config["vocab"])
    model = LlavaForConditionalGeneration._from_config(llava).eval()
    weights = {name.removeprefix("weights/"): tensor for name, tensor in tensors.items() if name.startswith("weights/")}
    missing, unexpected = model.load_state_dict(to_transformers(weights), strict=False)
    absent = [name for name in missing if "vision_tower" not in name and "multi_modal_projector" not in name]
    if absent or unexpected:
        raise UserError("weights that do not fit", None, f"{absent[:2]} present, {unexpected[:2]} absent")
    return model


def golden_prompt(model: LlavaForConditionalGeneration, input_ids: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Put projected image features where the ids say -200; returns ``inputs_embeds`` and the visual mask."""
    at = int((input_ids[0] == -200).nonzero())
    words = model.get_input_embeddings()(input_ids.clamp(min=0))
    embeds = torch.cat((words[:, :at], features, words[:, at + 1 :]), dim=1)
    visual = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    visual[:, at : at + features.shape[1]] = True
    return embeds, visual


COMPUTATIONS: dict[str, Computation] = {
    "prune_layer": _prune_layer,
    "tiny_generate": _generate,
    "full_depth_recipe60": _generate,
    "recipe_search": _search,
    "official_recipes": _recipes,
}
