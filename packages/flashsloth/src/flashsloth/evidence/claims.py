"""The checks behind `claims.yaml`: what this package recomputes of the paper, by name.

Parity ones compare with golden data of the authors' code, which lies in the source tree (or under `$TENFOLD_GOLDENS`)
and does not travel in a wheel. Sizes and costs are counted by closed formulas and on full-size models without weights.
The mini one runs the model that ships.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from flashsloth import costs
from flashsloth.configuration import HD_VIEWS, FlashSlothConfig
from tenfold.cli import find_package_file
from tenfold.ledger import Figure, Outcome
from tenfold.ledger.goldens import NO_GOLDENS
from tenfold.runs import read_json

Check = Callable[[], Outcome]
QUESTION = 7  # tokens of the question that costs are counted for


def checks() -> Mapping[str, Check]:
    """Check name -> function, for every claim of the ledger that is recomputed here."""
    found: dict[str, Check] = {f"parity_{case}": partial(parity, case) for case in ("modules", "data", "tiny_model")}
    for name, views in (("base", 1), ("hd", HD_VIEWS)):
        config = FlashSlothConfig(views=views)
        found |= {
            f"tokens_{name}": partial(tokens, config),
            f"tflops_{name}": partial(tflops, config, True),
            f"tflops_{name}_uncompressed": partial(tflops, config, False),
            f"reduction_{name}": partial(reduction, config),
            f"language_reduction_{name}": partial(reduction, config, True),
            f"cache_{name}": partial(cache, config),
        }
    return found | {
        "official_keys": official_keys,
        "trainable_1": partial(parameters, "stage 1 trainable"),
        "trainable_2": partial(parameters, "stage 2 trainable"),
        "fewer_tokens": fewer_tokens,
        "fewer_with_queries": partial(fewer_tokens, True),
        "counter": counter,
        "shipped_model": shipped_model,
    }


def parity(case: str) -> Outcome:
    """A golden case against this package."""
    from flashsloth.evidence.parity import COMPUTATIONS, TOLERANCES
    from tenfold.ledger.goldens import parity as compared

    return compared("flashsloth", case, COMPUTATIONS, TOLERANCES)


def official_keys() -> Outcome:
    """Names and shapes of the released models' weights, at full size."""
    from flashsloth.checkpoints.keys import key_report

    folder = find_package_file("flashsloth", "tests/goldens")
    if folder is None:
        return NO_GOLDENS
    report = key_report(read_json(folder / "official_keys.json"))
    if report.wrong:
        return Outcome(f"{len(report.wrong)} differ", False, ", ".join(report.wrong[:5]))
    return Outcome(report.parameters, True, f"{report.count} names and shapes agree")


def parameters(part: str) -> Outcome:
    """Numbers that a stage trains."""
    from flashsloth.checkpoints.keys import meta_model, parameter_counts, to_official

    state = to_official(meta_model("3.2b").state_dict())
    return Outcome(parameter_counts({name: tuple(one.shape) for name, one in state.items()})[part], True)


def tokens(config: FlashSlothConfig) -> Outcome:
    """Visual tokens and queries of a question about an image."""
    return Outcome(config.num_image_tokens + config.query_count, True, f"{config.num_image_tokens} and 9 queries")


def tflops(config: FlashSlothConfig, compressed: bool) -> Outcome:
    """Of a prompt, logits at every position as in the official code."""
    sizes = costs.Sizes.of(config, compressed)
    cost = costs.prefill(sizes, QUESTION)
    return Outcome(cost.total / 1e12, True, f"{costs.length(sizes, QUESTION)} tokens; vision {cost.vision / 1e12:.3f}")


def reduction(config: FlashSlothConfig, language: bool = False) -> Outcome:
    """Per cent of FLOPs less than the same model uncompressed, of all parts or the language model's."""
    ours, plain = (costs.prefill(costs.Sizes.of(config, compressed), QUESTION) for compressed in (True, False))
    ratio = ours.language / plain.language if language else ours.total / plain.total
    return Outcome(-100 * (1 - ratio), True)


def cache(config: FlashSlothConfig) -> Outcome:
    """MiB of the KV cache of a prompt in float16."""
    sizes = costs.Sizes.of(config)
    return Outcome(costs.length(sizes, QUESTION) * costs.cache_bytes(sizes) / 2**20, True)


def fewer_tokens(queries: bool = False) -> Outcome:
    """Per cent of tokens less than SigLIP's 729."""
    config = FlashSlothConfig()
    count = config.num_image_tokens + (config.query_count if queries else 0)
    return Outcome(-100 * (1 - count / config.patches_per_image), True)


def counter() -> Outcome:
    """The closed formulas against torch's FLOP counter, on full-size modules without weights."""
    config = FlashSlothConfig()
    seen, formula = costs.counted(config, QUESTION), costs.prefill(costs.Sizes.of(config), QUESTION)
    differing = [name for name in vars(formula) if getattr(seen, name) != getattr(formula, name)]
    return Outcome(seen.total / 1e12, not differing, ", ".join(differing) or "equal part by part")


def shipped_model() -> Outcome:
    """The model that ships, on held-out scenes, with and without EmbQ's look."""
    from flashsloth.evidence.findings import shipped_outcome

    return shipped_outcome()


def figures(folder: Path) -> list[Figure]:
    """Pictures for the report."""
    from flashsloth.evidence.figures import report_figures

    return report_figures(folder)
