"""The checks behind `claims.yaml`: what this package recomputes of the paper, by name.

Parity ones compare with golden data of the authors' code, which lies in the source tree (or under `$TENFOLD_GOLDENS`)
and does not travel in a wheel. Sizes and costs are counted by closed formulas and on full-size models without weights.
The mini one runs the model that ships.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from llava_hr import costs
from tenfold.cli import find_package_file
from tenfold.ledger import Figure, Outcome
from tenfold.ledger.goldens import NO_GOLDENS
from tenfold.ledger.goldens import parity as compare_golden
from tenfold.runs import read_json

Check = Callable[[], Outcome]

PARITY = (
    "mr_adapter",
    "final_align",
    "low_res_embedding",
    "convnext_l",
    "convnext_xxl",
    "vision_tower",
    "tiny_llava_hr",
    "preprocess",
    "conversation",
    "metrics",
)
MODELS = {"7b": "7b", "13b": "13b", "x_13b": "x-13b"}
SIZES, LLAVA_SIZES = (384, 768, 1024, 1536), (336, 448, 672, 1022)
QUOTED_TOKENS = 1400


def checks() -> Mapping[str, Check]:
    """Check name -> function, for every claim of the ledger that is recomputed here."""
    found: dict[str, Check] = {name: partial(parity, name) for name in PARITY}
    for check, model in MODELS.items():
        found[f"parameters_{check}"] = partial(parameters, model)
        found[f"trainable_{check}"] = partial(trainable, model)
    for model, size in [("7b", size) for size in SIZES] + [("13b", 1024), ("x-13b", 1024)]:
        found[f"tflops_{model.replace('-', '_')}_{size}"] = partial(tflops, costs.NAMED[model], size)
    for size in SIZES:
        found[f"tokens_{size}"] = partial(tokens, costs.NAMED["7b"], size)
    for size in LLAVA_SIZES:
        found[f"tokens_llava_{size}"] = partial(tokens, costs.LLAVA_7B, size)
        found[f"tflops_llava_{size}"] = partial(tflops, costs.LLAVA_7B, size)
    for model in ("7b", "13b"):
        found[f"tflops_{model}_{QUOTED_TOKENS}"] = partial(language_model_tflops, model)
    return found | {
        "official_keys": official_keys,
        "parameters_mra": parameters_mra,
        "tflops_ratio": tflops_ratio,
        "adapters_share": adapters_share,
        "macs_counter": macs_counter,
        "shipped_model": shipped_model,
    }


def parity(case: str) -> Outcome:
    """A golden case against this package."""
    from llava_hr.evidence.parity import COMPUTATIONS, TOLERANCES

    return compare_golden("llava_hr", case, COMPUTATIONS, TOLERANCES)


def official_keys() -> Outcome:
    """Names and shapes of the released models' weights, at full size."""
    from llava_hr.checkpoints.convert import key_report

    folder = find_package_file("llava_hr", "tests/goldens")
    if folder is None:
        return NO_GOLDENS
    golden = read_json(folder / "official_keys.json")
    reports = {model: key_report(model, golden) for model in golden["keys"]}
    wrong = [line for report in reports.values() for line in report.wrong]
    if wrong:
        return Outcome(f"{len(wrong)} differ", False, ", ".join(wrong[:5]))
    count = " and ".join(f"{report.count}" for report in reports.values())
    return Outcome(f"{count} names agree", True, f"of {' and '.join(reports)}")


def parameters(model: str) -> Outcome:
    """Of everything, ConvNeXt's unused head included, in billions."""
    shape = costs.NAMED[model]
    assert shape.conv is not None
    total = costs.parameters(shape).total + costs.head_parameters(shape.conv)
    return Outcome(total / 1e9, True, f"{total:,}, with the unused head of ConvNeXt")


def trainable(model: str) -> Outcome:
    """Of stage 1."""
    return Outcome(costs.stage1_parameters(costs.NAMED[model]), True)


def parameters_mra() -> Outcome:
    """Three adapters and the final combination."""
    sizes = costs.parameters(costs.NAMED["7b"])
    return Outcome(
        sizes.adapters + sizes.align, True, f"{(sizes.adapters + sizes.align) / sizes.total:.2%} of the model"
    )


def tokens(shape: costs.Shape, size: int) -> Outcome:
    """Visual tokens."""
    return Outcome(costs.visual_tokens(shape, size), True)


def tflops(shape: costs.Shape, size: int) -> Outcome:
    """Of a prefill."""
    prefill = costs.prefill(shape, size)
    return Outcome(prefill.tflops, True, f"{prefill.vision_share:.1%} of it before the language model")


def language_model_tflops(model: str) -> Outcome:
    """The language model's share at the number of tokens that gamma-MoD counts with."""
    return Outcome(2 * costs.llm_macs(costs.NAMED[model].decoder, QUOTED_TOKENS) / 1e12, True)


def tflops_ratio() -> Outcome:
    """The paper's comparison at about 1024 pixels, by FLOPs."""
    ours, theirs = costs.prefill(costs.NAMED["7b"], 1024), costs.prefill(costs.LLAVA_7B, 1022)
    fewer = costs.visual_tokens(costs.LLAVA_7B, 1022) / costs.visual_tokens(costs.NAMED["7b"], 1024)
    return Outcome(theirs.total / ours.total, True, f"{fewer:.1f} times the visual tokens and KV cache entries")


def adapters_share() -> Outcome:
    """What the adapters cost."""
    prefill = costs.prefill(costs.NAMED["7b"], 1024)
    return Outcome(100 * prefill.adapters / prefill.total, True)


def macs_counter() -> Outcome:
    """The closed formulas against torch's FLOP counter, on full-size modules without weights."""
    from llava_hr.modeling import meta_model

    model = meta_model("7b")
    seen, formula = costs.counted(model, 1024), costs.prefill(costs.NAMED["7b"], 1024)
    differing = [name for name in vars(formula) if getattr(seen, name) != getattr(formula, name)]
    return Outcome(f"{seen.total / 1e9:,.1f} GMACs", not differing, ", ".join(differing) or "equal part by part")


def shipped_model() -> Outcome:
    """The model that ships, on held-out scenes, with and without its high-resolution pathway."""
    from llava_hr.evidence.shipped import shipped_outcome

    return shipped_outcome()


def figures(folder: Path) -> list[Figure]:
    """Pictures for the report."""
    from llava_hr.evidence.figures import report_figures

    return report_figures(folder)
