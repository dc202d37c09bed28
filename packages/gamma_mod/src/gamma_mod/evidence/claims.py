"""The checks behind `claims.yaml`: what this package recomputes of the paper, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gamma_mod import costs
from gamma_mod.costs import NOMINAL, VICUNA_7B, VICUNA_13B, DecoderShape, model_flops
from gamma_mod.placement import place
from tenfold import UserError
from tenfold.cli import find_package_file
from tenfold.ledger import Figure, Outcome
from tenfold.ledger.goldens import NO_GOLDENS, goldens
from tenfold.ledger.goldens import parity as golden_case
from tenfold.runs import read_json

Check = Callable[[], Outcome]
PARITY = (
    "mod_layer_train",
    "mod_layer_train_short",
    "mod_layer_train_1059",
    "mod_layer_infer",
    "mgm_layer",
    "tiny_model_train",
    "tiny_model_train_nopad",
    "tiny_model_generate",
    "arank",
    "llava_hr_fusion",
)
# Check -> decoder, nominal prompt, converted layers (None: all but four), measured skip (section 9).
TFLOPS: dict[str, tuple[DecoderShape, str, int | None, float]] = {
    "llava_hr_7b": (VICUNA_7B, "llava-hr", 0, 0.0),
    "llava_hr_7b_0_3": (VICUNA_7B, "llava-hr", None, 0.379),
    "llava_hr_7b_0_5": (VICUNA_7B, "llava-hr", None, 0.577),
    "no_mask": (VICUNA_7B, "llava-hr", None, 0.489),
    "mask_q_a": (VICUNA_7B, "llava-hr", None, 0.355),
    "router_not_shared": (VICUNA_7B, "llava-hr", None, 0.515),
    "ratio_17": (VICUNA_7B, "llava-hr", None, 0.164),
    "ratio_68": (VICUNA_7B, "llava-hr", None, 0.743),
    "all_layers": (VICUNA_7B, "llava-hr", 32, 0.347),
    "2_per_3": (VICUNA_7B, "llava-hr", 21, 0.252),
    "1_per_2": (VICUNA_7B, "llava-hr", 16, 0.175),
    "llava_7b": (VICUNA_7B, "llava", 0, 0.0),
    "llava_7b_0_3": (VICUNA_7B, "llava", None, 0.310),
    "llava_7b_0_5": (VICUNA_7B, "llava", None, 0.564),
    "llava_hr_13b": (VICUNA_13B, "llava-hr", 0, 0.0),
    "llava_hr_13b_0_3": (VICUNA_13B, "llava-hr", None, 0.349),
    "llava_hr_13b_0_5": (VICUNA_13B, "llava-hr", None, 0.551),
    "mini_gemini_hd_7b": (VICUNA_7B, "mini-gemini-hd", 0, 0.0),
    "mini_gemini_hd_7b_0_3": (VICUNA_7B, "mini-gemini-hd", None, 0.362),
    "mini_gemini_hd_7b_0_5": (VICUNA_7B, "mini-gemini-hd", None, 0.581),
}
# Table 4 of the paper, LLaVA-HR-7B dense and under gamma-MoD-0.5: hours, samples a second, GB, average accuracy.
DENSE, HALF = (20.7, 4.7, 19.0, 58.5), (14.3, 7.2, 14.0, 57.6)
ROUTABLE, TOKENS = 1059, NOMINAL["llava-hr"]
SHIPPED_SKIP = 0.3


def checks() -> Mapping[str, Check]:
    """Check name -> function, for every claim of the ledger that is recomputed here."""
    found: dict[str, Check] = {name: partial(parity, name) for name in PARITY}
    found |= {f"tflops_{name}": partial(tflops, name) for name in TFLOPS}
    return found | {
        "selection_tables": selection_tables,
        "official_keys": official_keys,
        "layers_7b": partial(converted_share, VICUNA_7B),
        "layers_13b": partial(converted_share, VICUNA_13B),
        "flops_saved": flops_saved,
        "throughput_gain": partial(_change, 1),
        "time_saved": time_saved,
        "training_time_saved": partial(_saved, 0),
        "memory_saved": partial(_saved, 2),
        "accuracy_lost": partial(_saved, 3),
        "training_skip": training_skip,
        "training_flops": training_flops,
        "kv_kept": kv_kept,
        "parameters_7b": parameters_7b,
        "router_parameters": router_parameters,
        "float_rounding": float_rounding,
        "nothing_skipped": nothing_skipped,
        "shipped_host": shipped_host,
    }


def parity(case: str) -> Outcome:
    """A golden case against this package."""
    from gamma_mod.evidence.parity import COMPUTATIONS, TOLERANCES

    return golden_case("gamma_mod", case, COMPUTATIONS, TOLERANCES)


def selection_tables() -> Outcome:
    """The authors' lists of layers, budgets and lengths at which rounding keeps one token more."""
    folder = goldens("gamma_mod")
    if folder is None:
        return NO_GOLDENS
    tables = read_json(folder / "selection_tables.json")
    wrong, compared = [], 0
    for num_layers, lists in tables["mod_layers_idx"].items():
        for name, layers in lists.items():
            compared += 1
            if list(place(name, int(num_layers))) != layers:
                wrong.append(f"{name} of {num_layers} layers")
    for pair, budgets in tables["train_top_k"].items():
        prefix, ratio = _pair(pair)
        for tokens, k in budgets.items():
            compared += 1
            if costs.budget(int(tokens), prefix if int(tokens) > prefix else 0, ratio) != k:
                wrong.append(f"k of {tokens} tokens, {pair}")
    for pair, lengths in tables["float_off_by_one"].items():
        compared += 1
        if rounded_up(*_pair(pair)) != lengths:
            wrong.append(f"rounding of {pair}")
    return Outcome(
        f"{compared} entries agree" if not wrong else f"{len(wrong)} differ", not wrong, "; ".join(wrong[:5])
    )


def official_keys() -> Outcome:
    """Names, shapes and number of the released weights."""
    from gamma_mod.evidence.parity.official import official_keys as compare

    folder = goldens("gamma_mod")
    return NO_GOLDENS if folder is None else compare(read_json(folder / "official_keys.json"))


def tflops(name: str) -> Outcome:
    """A published TFLOPs figure by the paper's formula."""
    shape, prompt, converted, skip = TFLOPS[name]
    value = model_flops(shape, NOMINAL[prompt], skip, converted) / 1e12
    count = shape.layers - 4 if converted is None else converted
    detail = f"{NOMINAL[prompt]:,} tokens, {count} of {shape.layers} layers converted, skip {skip:.1%}"
    if name == "1_per_2":
        detail += f"; {model_flops(shape, NOMINAL[prompt], skip, 28) / 1e12:.1f} with 28"
    return Outcome(value, True, detail)


def converted_share(shape: DecoderShape) -> Outcome:
    """Share of the layers that ARank converts."""
    layers = place("arank_mod", shape.layers)
    return Outcome(100 * len(layers) / shape.layers, True, f"{len(layers)} of {shape.layers} layers")


def flops_saved() -> Outcome:
    """gamma-MoD-0.5 on LLaVA-HR-7B against the dense model."""
    dense, half = (model_flops(VICUNA_7B, TOKENS, skip, n) for skip, n in ((0.0, 0), (0.577, 28)))
    return Outcome(100 * (1 - half / dense), True, f"{half / 1e12:.2f} of {dense / 1e12:.2f} TFLOPs")


def time_saved() -> Outcome:
    """What 7.2 against 4.7 samples a second is in time."""
    return Outcome(100 * (1 - DENSE[1] / HALF[1]), True, "the published throughputs, as time a sample")


def training_skip() -> Outcome:
    """(T - k) / T."""
    value = costs.training_skip(TOKENS, ROUTABLE, 0.5)
    return Outcome(100 * value, None, f"k = {costs.budget(TOKENS, ROUTABLE, 0.5)} of {TOKENS:,}; routing ratio 50 %")


def training_flops() -> Outcome:
    """Share of the dense model's FLOPs in training."""
    dense = model_flops(VICUNA_7B, TOKENS, 0.0, 0)
    return Outcome(100 * costs.training_flops(VICUNA_7B, TOKENS, ROUTABLE, 0.5, 28) / dense, None)


def kv_kept() -> Outcome:
    """Share of the dense cache."""
    return Outcome(100 * costs.kv_kept(32, 28, 0.577), None)


def parameters_7b() -> Outcome:
    """Of the released checkpoint, the router counted once."""
    from gamma_mod.checkpoints.keys import RELEASES
    from gamma_mod.evidence.parity.official import official_model

    total = official_model(RELEASES["llava_hr_7b"])[1]
    return Outcome(total / 1e9, True, f"{total:,}")


def router_parameters() -> Outcome:
    """Of the shared router."""
    return Outcome(costs.router_parameters(VICUNA_7B.hidden), True)


def float_rounding() -> Outcome:
    """How many lengths keep one token more than the formula on paper."""
    return Outcome(len(rounded_up(2880, 0.5)), True)


def rounded_up(prefix: int, ratio: float) -> list[int]:
    """Lengths up to 4,096 at which k is one above ``tokens - prefix * ratio``."""
    lengths = range(prefix + 1, 4097)
    return [tokens for tokens in lengths if costs.budget(tokens, prefix, ratio) != tokens - int(prefix * ratio)]


def nothing_skipped() -> Outcome:
    """Greedy tokens of the mini host, dense and converted with thresholds of 0 and a router that keeps for certain."""
    from gamma_mod.conversion import convert
    from gamma_mod.evidence.experiments import be_certain
    from tenfold.data import mini_host

    model, inputs = _mini_prompt()
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4}
    expected = model.generate(**inputs, **options)
    convert(model, "arank_mod", prefill_threshold=0.0, decode_threshold=0.0)
    be_certain(model)
    equal = bool((model.generate(**inputs, **options) == expected).all())
    return Outcome("equal" if equal else "differ", equal, f"{mini_host.VISUAL_TOKENS} visual tokens")


def shipped_host() -> Outcome:
    """The mini host, converted, calibrated on some scenes and measured on others."""
    import torch

    from gamma_mod.conversion import convert
    from gamma_mod.data.prompts import batch_prompts
    from gamma_mod.report import calibrate, measure_skips
    from tenfold.data import mini_host, mini_sets

    model, processor = mini_host.load()
    convert(model, "arank_mod")

    def prompts(world: int) -> list[Any]:
        scenes = mini_sets.calibration(world, 16, 96)
        shown = [(one.picture.open(), one.text) for one in scenes if one.picture]
        groups = [shown[start : start + 8] for start in range(0, len(shown), 8)]
        return [batch_prompts(processor, [one for one, _ in group], [text for _, text in group]) for group in groups]

    calibrated = calibrate(model, prompts(0), SHIPPED_SKIP)
    with torch.no_grad(), measure_skips() as skips:
        for prompt in prompts(1):
            model(**prompt, use_cache=False)
    value = skips.prefill or 0.0
    detail = f"asked for {SHIPPED_SKIP:.0%}, calibrated to {calibrated.skip:.1%}, threshold {calibrated.threshold:.3f}"
    return Outcome(100 * value, abs(value - SHIPPED_SKIP) < 0.05, detail)


def figures(folder: Path) -> list[Figure]:
    """Draw the report's figures into a folder; those of recorded results are left out where there are none.

    Raises:
        UserError: there is no such folder.
    """
    from gamma_mod.evidence import figures as draw

    if not folder.is_dir():
        raise UserError("no such folder", folder)
    results = find_package_file("gamma_mod", "results")

    def recorded(claim: str) -> dict[str, Any] | None:
        path = None if results is None else results / f"{claim}.json"
        return read_json(path) if path is not None and path.is_file() else None

    drawn = [
        Figure(
            draw.published_flops(folder / "flops.png"),
            "TFLOPs of the paper's tables against the realised skip, recomputed: dots are the printed numbers.",
        )
    ]
    if found := recorded("mini-learned"):
        drawn.append(
            Figure(
                draw.arms(found["table"], folder / "arms.png"),
                "Accuracy of the mini host after equally many steps, by how tokens are chosen; dots: seeds.",
            )
        )
    if found := recorded("mini-arank"):
        drawn.append(
            Figure(
                draw.ranks(found["arank"], folder / "arank.png"),
                "ARank of the mini host's layers: shown, not claimed; it says nothing about a pretrained 7B model.",
            )
        )
    return drawn


def _pair(text: str) -> tuple[int, float]:
    prefix, ratio = text.split("/")
    return int(prefix), float(ratio)


def _saved(column: int) -> Outcome:
    dense, half = DENSE[column], HALF[column]
    return Outcome(100 * (1 - half / dense), True, f"{half:g} against {dense:g}, as printed")


def _change(column: int) -> Outcome:
    dense, half = DENSE[column], HALF[column]
    return Outcome(100 * (half / dense - 1), True, f"{half:g} against {dense:g}, as printed")


def _mini_prompt() -> tuple[Any, dict[str, Any]]:
    from gamma_mod.data.prompts import batch_prompts
    from tenfold.data import mini_host, mini_sets

    model, processor = mini_host.load()
    (scene,) = mini_sets.calibration(0, 1, 96)
    assert scene.picture is not None
    return model, batch_prompts(processor, [scene.picture.open()], [scene.text])
