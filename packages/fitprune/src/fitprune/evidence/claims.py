"""The checks behind `claims.yaml`: what this package recomputes of the paper, by name.

Analytic ones follow from `flops` and the released recipes. Parity ones compare with golden data of the authors' code,
which lies in the source tree (or under `$TENFOLD_GOLDENS`) and does not travel in a wheel. The mini host serves what
needs a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitprune import costs
from fitprune.costs import LLAVA_7B
from fitprune.recipe import Recipe
from tenfold import UserError
from tenfold.cli import find_package_file
from tenfold.ledger import Figure, Outcome
from tenfold.ledger.goldens import NO_GOLDENS, goldens
from tenfold.ledger.goldens import parity as compare_golden
from tenfold.runs import read_json

if TYPE_CHECKING:
    from torch import Tensor

Check = Callable[[], Outcome]

VISUAL = 576
PUBLISHED = Recipe.released("llava-1.5-7b", 60)
# Text tokens of a prompt, prefix included, that reproduce FitPrune's own TFLOPs, and those of FiCoCo's table.
FITPRUNE_TEXT, FICOCO_TEXT = 100, 60
PARITY = (
    "prune_layer",
    "tiny_generate",
    "tiny_generate_gqa",
    "full_depth_recipe60",
    "recipe_search",
    "official_recipes",
)
PEERS = {
    "fastv_2_50": costs.fastv_alive(VISUAL, 2, 0.5, LLAVA_7B.layers),
    "fastv_2_75": costs.fastv_alive(VISUAL, 2, 0.75, LLAVA_7B.layers),
    "fastv_3_75": costs.fastv_alive(VISUAL, 3, 0.75, LLAVA_7B.layers),
    "pyramiddrop": costs.pyramid_alive(VISUAL, (8, 16, 24), 0.5, LLAVA_7B.layers),
}
KEPT_FROM_LAYER_0 = (192, 128, 64)


def checks() -> Mapping[str, Check]:
    """Check name -> function, for every claim of the ledger that is recomputed here."""
    found: dict[str, Check] = {name: partial(parity, name) for name in PARITY}
    found["official_keys"] = official_keys
    for model, percent in Recipe.released_names():
        if percent:
            name = f"saves_{model.replace('-', '_').replace('.', '_')}_{percent}"
            found[name] = partial(recipe_saving, model, percent)
    found |= {
        "tflops_60": tflops_60,
        "tflops_unpruned": tflops_unpruned,
        "prompt_saving_60": prompt_saving_60,
        "mean_tokens_60": mean_tokens_60,
        "kv_kept_60": kv_kept_60,
        "scoring_overhead": scoring_overhead,
        "next_flops": next_flops,
        "zero_recipe": zero_recipe,
        "ragged_cache": ragged_cache,
        "shipped_host": shipped_host,
    }
    found |= {f"peer_{name}": partial(peer_saving, entering) for name, entering in PEERS.items()}
    for tokens in KEPT_FROM_LAYER_0:
        entering = [tokens] * LLAVA_7B.layers
        found[f"peer_saving_{tokens}"] = partial(peer_saving, entering)
        found[f"peer_tflops_{tokens}"] = partial(peer_tflops, entering)
    return found


def parity(case: str) -> Outcome:
    """A golden case against this package."""
    from fitprune.evidence.parity import COMPUTATIONS, TOLERANCES

    return compare_golden("fitprune", case, COMPUTATIONS, TOLERANCES)


def official_keys() -> Outcome:
    """Names, shapes and number of the official LLaVA-1.5-7B weights against a full-size host on the meta device."""
    from transformers import LlamaConfig, LlavaConfig

    from fitprune.checkpoints.keys import official_shapes

    folder = goldens("fitprune")
    if folder is None:
        return NO_GOLDENS
    golden = read_json(folder / "official_keys.json")
    expected = {
        pattern.replace("{0..31}", str(layer)): tuple(shape)
        for pattern, shape in golden["host_keys_pattern"].items()
        for layer in range(LLAVA_7B.layers if "{0..31}" in pattern else 1)
    }
    llama = LlamaConfig(
        vocab_size=expected["lm_head.weight"][0],
        hidden_size=LLAVA_7B.hidden,
        intermediate_size=LLAVA_7B.intermediate,
        num_hidden_layers=LLAVA_7B.layers,
        num_attention_heads=LLAVA_7B.heads,
    )
    host = official_shapes(LlavaConfig(text_config=llama))
    # Releases may leave the vision tower to CLIP's own checkpoint; it is counted, not listed.
    listed = {name: shape for name, shape in host.items() if ".vision_tower." not in name}
    wrong = sorted(name for name in expected.keys() | listed.keys() if listed.get(name) != expected.get(name))
    total = sum(prod(shape) for shape in host.values())
    if total != golden["parameters"]["total"]:
        wrong.append(f"{total:,} parameters instead of {golden['parameters']['total']:,}")
    if wrong:
        return Outcome(f"{len(wrong)} differ", False, ", ".join(wrong[:5]))
    return Outcome(f"{len(expected)} names agree", True, f"{total:,} parameters with CLIP ViT-L/14-336")


def recipe_saving(model: str, percent: int) -> Outcome:
    """What a released recipe saves of the visual FLOPs; the ledger's tolerance says how far from its label."""
    recipe = Recipe.released(model, percent)
    delivered = recipe.macs["delivered"] / 1e12
    detail = f"{recipe.alive()[-1]} of {recipe.visual_tokens} visual tokens left, {delivered:.4f} TMACs"
    return Outcome(100 * costs.reduction(recipe.remove, recipe.visual_tokens, LLAVA_7B), True, detail)


def tflops_60() -> Outcome:
    """The published 4.4 TFLOPs."""
    value = costs.prompt_flops(PUBLISHED.remove, VISUAL, FITPRUNE_TEXT, LLAVA_7B) / 1e12
    return Outcome(value, True, f"{FITPRUNE_TEXT} text tokens")


def tflops_unpruned() -> Outcome:
    """The 8.5 TFLOPs of FiCoCo's baseline."""
    value, other = (_unpruned(tokens) / 1e12 for tokens in (FICOCO_TEXT, FITPRUNE_TEXT))
    return Outcome(value, True, f"{FICOCO_TEXT} text tokens; {other:.1f} with {FITPRUNE_TEXT}")


def prompt_saving_60() -> Outcome:
    """Share of a whole prompt's FLOPs that the 60 % recipe saves."""
    pruned = costs.prompt_flops(PUBLISHED.remove, VISUAL, FITPRUNE_TEXT, LLAVA_7B)
    return Outcome(100 * (1 - pruned / _unpruned(FITPRUNE_TEXT)), None, f"{FITPRUNE_TEXT} text tokens")


def mean_tokens_60() -> Outcome:
    """Mean number of visual tokens that enter a layer."""
    left = PUBLISHED.alive()[-1]
    return Outcome(costs.mean_entering(PUBLISHED.remove, VISUAL), None, f"{left} leave the last layer")


def kv_kept_60() -> Outcome:
    """Share of the visual KV cache that is kept."""
    return Outcome(100 * costs.kv_kept(PUBLISHED.remove, VISUAL), None)


def scoring_overhead() -> Outcome:
    """The visual columns' logits, computed once more beside a fused attention, in a layer that all tokens enter."""
    tokens = VISUAL + FITPRUNE_TEXT
    logits = tokens * VISUAL * LLAVA_7B.hidden
    layer = costs.layer_macs(tokens, tokens, LLAVA_7B)
    return Outcome(100 * logits / layer, None, f"{logits / 1e9:.1f} of {layer / 1e9:.1f} GMACs")


def next_flops() -> Outcome:
    """LLaVA-NeXT's 54.9 %: between which values the whole-prompt saving lies for usual prompts."""
    recipe = Recipe.released("llava-next-7b", 60)

    def saving(visual: int, text: int) -> float:
        pruned = costs.prompt_flops(recipe.counts_for(visual), visual, text, LLAVA_7B)
        return 100 * (1 - pruned / costs.prompt_flops([0] * LLAVA_7B.layers, visual, text, LLAVA_7B))

    least, most = saving(1000, 120), saving(1500, 60)
    full = saving(recipe.visual_tokens, 100)
    return Outcome(f"{least:.1f} to {most:.1f} %", None, f"{full:.1f} % at {recipe.visual_tokens:,} + 100 tokens")


def peer_saving(entering: Sequence[int]) -> Outcome:
    """Share of the visual FLOPs that a pruner saves which lets ``entering`` tokens into each layer."""
    return Outcome(100 * (1 - costs.alive_macs(entering, LLAVA_7B) / costs.base_macs(VISUAL, LLAVA_7B)), None)


def peer_tflops(entering: Sequence[int]) -> Outcome:
    """TFLOPs of a whole prompt with the text that FiCoCo's baseline has."""
    value = 2 * costs.alive_macs([tokens + FICOCO_TEXT for tokens in entering], LLAVA_7B) / 1e12
    return Outcome(value, True, f"{FICOCO_TEXT} text tokens")


def _unpruned(text_tokens: int) -> int:
    return costs.prompt_flops([0] * LLAVA_7B.layers, VISUAL, text_tokens, LLAVA_7B)


def zero_recipe() -> Outcome:
    """Logits of the mini host without pruning, under the zero recipe, and under one of a token in a million, which goes
    through every attached layer and removes nothing."""
    from fitprune.pruner import Pruner

    model, inputs = _mini_prompt()
    plain = _prefill(model, inputs).logits
    layers = model.config.text_config.num_hidden_layers
    equal = True
    for recipe in (Recipe.zero(layers, _mini_tokens()), Recipe("any", layers, 10**6, (0,) * (layers - 1) + (1,))):
        with Pruner(recipe)(model):
            pruned = _prefill(model, inputs).logits
        equal &= plain.shape == pruned.shape and bool((plain == pruned).all())
    return Outcome("bit-equal" if equal else "differs", equal, f"{plain.numel():,} logits")


def ragged_cache() -> Outcome:
    """KV lengths of the mini host under a uniform recipe."""
    from fitprune.pruner import Pruner

    model, inputs = _mini_prompt()
    layers = model.config.text_config.num_hidden_layers
    recipe = Recipe.uniform(layers, _mini_tokens(), total=4 * layers)
    with Pruner(recipe)(model):
        lengths = [layer[0] for layer in Pruner.kv_lengths(_prefill(model, inputs).past_key_values)]
    text = inputs["input_ids"].shape[1] - recipe.visual_tokens
    expected = [tokens + text for tokens in recipe.alive()[:-1]]
    return Outcome(", ".join(map(str, lengths)), lengths == expected, "tokens in the cache of layer 0, 1, ...")


def _mini_tokens() -> int:
    from tenfold.data import mini_host

    return mini_host.VISUAL_TOKENS


def _mini_prompt() -> tuple[Any, dict[str, Tensor]]:
    from tenfold.data import mini_host
    from tenfold.data.miniworld import flags

    model, processor = mini_host.load()
    image = flags.render(flags.scene(seed=0, index=0))
    return model, dict(processor(images=image, text=mini_host.prompt("What shape is it?"), return_tensors="pt"))


def _prefill(model: Any, inputs: dict[str, Tensor]) -> Any:
    import torch

    with torch.no_grad():
        return model(**inputs, use_cache=True)


def shipped_host() -> Outcome:
    """Accuracy of the host that ships at 60 %: what stays is chosen by the product, or by chance."""
    from fitprune.evidence import experiments

    questions = 8
    found = experiments.shipped(questions)
    told = ", ".join(f"{name} {share:.1%}" for name, share in found.items())
    detail = f"{told}; {questions} questions of each kind"
    return Outcome(100 * found["product"], found["product"] > found["random"], detail)


def host_gates() -> Mapping[str, Mapping[str, Any]]:
    """What was measured of the mini hosts, by training seed."""
    from tenfold.data import mini_host

    measured: Mapping[str, Mapping[str, Any]] = read_json(mini_host.path() / "gates.json")["seeds"]
    return measured


def figures(folder: Path) -> list[Figure]:
    """Draw the report's figures into a folder: recipes, what they deliver, and what the mini hosts showed.

    Those of recorded results are left out where there are none.

    Raises:
        UserError: there is no such folder.
    """
    from fitprune.evidence import figures as draw

    if not folder.is_dir():
        raise UserError("no such folder", folder)
    results = find_package_file("fitprune", "results")

    def recorded(claim: str) -> dict[str, Any] | None:
        path = None if results is None else results / f"{claim}.json"
        return read_json(path) if path is not None and path.is_file() else None

    PUBLISHED.plot(folder / "recipe-60.png")
    recipe, patches = draw.mini_host(folder)
    drawn = [
        Figure(
            patches,
            "FitPrune on a small model that ships: which patches of a scene are left after which layers under a 60 % "
            "recipe, and the answers with and without it.",
        ),
        Figure(folder / "recipe-60.png", "The released 60 % recipe of LLaVA-1.5-7B, layer by layer."),
        Figure(
            draw.delivered(folder / "delivered.png"),
            "What the released recipes save of the visual FLOPs, against their labels: mean counts are rounded down.",
        ),
    ]
    drawn.append(Figure(recipe, "A 60 % recipe of the mini host that ships."))
    caption = (
        "Where the mini hosts read the picture: accuracy when all visual tokens are removed after a layer, when 40 % "
        "of them go on, and when one layer's attention is removed. Masks and hints in their training led them to look "
        "where they do: no evidence of where larger models look."
    )
    drawn.append(Figure(draw.gates(host_gates(), folder / "gates.png"), caption))
    if compared := recorded("mini-which"):
        path = draw.accuracy(compared["table"], folder / "accuracy.png")
        seeds = max(len(row["seeds"]) for row in compared["table"])
        caption = (
            "Accuracy of the mini hosts against the visual FLOPs that are left, every arm at the same budgets; lines: "
            f"means, dots: {seeds} training seed{'s' if seeds > 1 else ''}."
        )
        drawn.append(Figure(path, caption))
    return drawn
