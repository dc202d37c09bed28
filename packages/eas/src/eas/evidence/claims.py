"""The checks behind `claims.yaml`: what this package recomputes of the paper, by name.

Parity ones compare with golden data of the authors' code, which lies in the source tree (or under `$TENFOLD_GOLDENS`)
and does not travel in a wheel. Sizes and costs are counted by closed formulas and on full-size modules without weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from eas import costs
from tenfold.cli import find_package_file
from tenfold.ledger import Outcome
from tenfold.ledger.goldens import NO_GOLDENS
from tenfold.ledger.goldens import parity as compare_golden
from tenfold.runs import read_json

Check = Callable[[], Outcome]

PARITY = (
    "pia_units", "llava_model", "search_llava", "search_lavin", "search_meter", "meter_cross_layer", "meter_vqa",
    "meter_nlvr2", "meter_irtr", "lavin_model", "text_protocol", "sqa_test_predictions",
)  # fmt: skip
# The authors' lists of METER whose MACs are counted: text and picture tokens of a pass.
METER_TEXT = {
    "meter-vqa-10": (50, 577),
    "meter-vqa-8": (50, 577),
    "meter-nlvr2-16": (50, 325),
    "meter-nlvr2-10": (50, 325),
    "meter-flickr30k-10": (40, 577),
    "meter-flickr30k-8": (40, 577),
}
METER_SHARES = ("meter-vqa-10", "meter-nlvr2-16")
TRAINED_7B, TRAINED_13B = (0, 2, 4, 6, 8, 10, 12), (0, 4, 8, 12)
REMOVED_7B = (0, 4, 8, 10, 12)


def checks() -> Mapping[str, Check]:
    """Check name -> function, for every claim of the ledger that is recomputed here."""
    found: dict[str, Check] = {name: partial(parity, name) for name in PARITY}
    for name, removed in (("7b", TRAINED_7B), ("13b", TRAINED_13B)):
        for k in removed:
            found[f"lavin_{name}_{k}"] = partial(lavin_parameters, name, k)
    for name in ("7b", "13b"):
        for k in REMOVED_7B:
            found[f"gmacs_{name}_{k}"] = partial(gmacs, name, k)
    for tokens in (356, 636):
        found[f"llava_saved_{tokens}"] = partial(llava_saved, tokens)
    for k in (0, 4, 12):
        found[f"dense_fold_{k}"] = partial(dense_fold, k)
        found[f"low_rank_fold_{k}"] = partial(low_rank_fold, k)
    for host in ("vicuna_7b_sqa", "llava15_7b_aid_slake"):
        found[f"trained_{host}"] = partial(trained, host)
        found[f"left_{host}"] = partial(left, host)
    for name in METER_TEXT:
        found[f"macs_{name.replace('-', '_')}"] = partial(meter_macs, name)
    for name in METER_SHARES:
        found[f"share_{name.replace('-', '_')}"] = partial(meter_share, name)
    for k in (0, 4, 8):
        found[f"meter_used_{k}"] = partial(meter_used, k)
    return found | {
        "official_keys": official_keys,
        "official_keys_meter": official_keys_meter,
        "official_keys_lavin": official_keys_lavin,
        "removed_parameters": removed_parameters,
        "bound_compute": bound_compute,
        "bound_bytes": bound_bytes,
        "cache_share": cache_share,
        "equal_rank": equal_rank,
        "shipped_folded": shipped_folded,
    }


def parity(case: str) -> Outcome:
    """A golden case against this package."""
    from eas.evidence.parity import COMPUTATIONS, TOLERANCES

    return compare_golden("eas", case, COMPUTATIONS, TOLERANCES)


def official_keys() -> Outcome:
    """Names and shapes of both LLaVA hosts' checkpoints, at full size."""
    from eas.checkpoints.convert import key_report

    folder = find_package_file("eas", "tests/goldens")
    if folder is None:
        return NO_GOLDENS
    golden = read_json(folder / "official_keys.json")
    reports = [key_report(host, golden) for host in ("vicuna_7b_sqa", "llava15_7b_aid_slake")]
    wrong = [line for report in reports for line in report.wrong]
    if wrong:
        return Outcome(f"{len(wrong)} differ", False, ", ".join(wrong[:5]))
    return Outcome(f"{sum(report.count for report in reports)} names agree", True, "of two hosts")


def official_keys_meter() -> Outcome:
    """Names, shapes and counts of METER-EAS for its three tasks, at full size."""
    from eas.checkpoints.meter import key_report

    return _agree(key_report, ("meter_vqa", "meter_nlvr2", "meter_irtr"))


def official_keys_lavin() -> Outcome:
    """Names, shapes and counts of LaVIN-EAS-7B and 13B, at full size."""
    from eas.checkpoints.lavin import key_report

    return _agree(key_report, ("lavin_7b", "lavin_13b"))


def _agree(report: Callable[[str, Mapping[str, Any]], tuple[int, int, list[str]]], hosts: tuple[str, ...]) -> Outcome:
    folder = find_package_file("eas", "tests/goldens")
    if folder is None:
        return NO_GOLDENS
    golden = read_json(folder / "official_keys.json")
    reports = [report(host, golden) for host in hosts]
    wrong = [line for _, _, lines in reports for line in lines]
    if wrong:
        return Outcome(f"{len(wrong)} differ", False, ", ".join(wrong[:5]))
    return Outcome(
        f"{sum(count for count, _, _ in reports)} names agree", True, f"of {', '.join(hosts)}, with all counts"
    )


def _meter_saved(name: str, more: int = 0, as_released: bool = True) -> tuple[float, float]:
    """GMACs and per cent that a list of METER adds to a pass of full tuning (both negative)."""
    from eas.plan import meter_flags, released

    text, image = METER_TEXT[name]
    full = costs.meter_macs(costs.METER, text + more, image + more, None)
    flags = meter_flags(released(name), as_released=as_released).tolist()
    less = costs.meter_macs(costs.METER, text + more, image + more, flags)
    return (less - full) / 1e9, 100 * (less / full - 1)


def meter_macs(name: str) -> Outcome:
    """GMACs of a pass, adapters with it, against full tuning, by the authors' map of sites."""
    correct = _meter_saved(name, as_released=False)
    return Outcome(_meter_saved(name)[0], True, f"by the correct map {correct[0]:.2f} ({correct[1]:.1f} %)")


def meter_share(name: str) -> Outcome:
    """The same in per cent; the authors' counter appends 200 random tokens to both streams."""
    counter, correct = _meter_saved(name, 200)[1], _meter_saved(name, as_released=False)[1]
    detail = f"with the authors' counter of 200 more tokens a stream {counter:.1f}; by the correct map {correct:.1f}"
    return Outcome(_meter_saved(name)[1], True, detail)


def meter_used(removed: int) -> Outcome:
    """Adapters and PIAs of METER that are at work."""
    from eas.meter import MeterConfig, used_parameters

    return Outcome(used_parameters(MeterConfig(skip=tuple(range(removed)))), True)


def lavin_parameters(name: str, removed: int) -> Outcome:
    """What LaVIN-EAS trains, in all."""
    return Outcome(costs.lavin_parameters(costs.NAMED[name], removed), True)


def gmacs(name: str, removed: int) -> Outcome:
    """Of a prompt of 128 tokens, un-merged."""
    shape = costs.NAMED[name]
    macs = costs.prefill_macs(shape, 128, removed, costs.LAVIN)
    less = 1 - macs / costs.prefill_macs(shape, 128, 0, costs.LAVIN)
    return Outcome(macs / 1e9, True, f"{less:.1%} less than K = 0")


def llava_saved(tokens: int) -> Outcome:
    """Per cent of the language model's MACs that K = 12 saves, folded."""
    full, less = (costs.prefill_macs(costs.LLAMA_7B, tokens, k, None) for k in (0, 12))
    ranks = costs.LLAVA_SCIENCEQA if tokens == 356 else costs.LLAVA_AID
    beside = [costs.prefill_macs(costs.LLAMA_7B, tokens, k, ranks) for k in (0, 12)]
    detail = f"{full / 1e9:.0f} to {less / 1e9:.0f} GMACs; un-merged {100 * (1 - beside[1] / beside[0]):.1f} %"
    return Outcome(100 * (1 - less / full), True, detail)


def dense_fold(removed: int) -> Outcome:
    """TMACs of a request, as the authors fold."""
    return Outcome(costs.dense_fold_macs(costs.LLAMA_7B, removed) / 1e12, True)


def low_rank_fold(removed: int) -> Outcome:
    """TMACs of a request, as here."""
    return Outcome(costs.low_rank_fold_macs(costs.LLAMA_7B, removed, costs.LAVIN) / 1e12, True)


def trained(host: str) -> Outcome:
    """Adapters, PIAs and projector of a LLaVA host, K = 12."""
    ranks, kind = _llava(host)
    modules = costs.module_parameters(costs.LLAMA_7B, 12, ranks, router_bias=False)
    return Outcome(modules + costs.projector_parameters(4096, kind), True, f"{modules:,} of adapters and PIAs")


def left(host: str) -> Outcome:
    """The whole language model with projector behind the deletion of twelve attentions."""
    count = trained(host).value
    assert isinstance(count, int)
    frozen = costs.language_model_parameters(costs.LLAMA_7B) - 12 * costs.attention_parameters(costs.LLAMA_7B)
    return Outcome(frozen + count, True)


def _llava(host: str) -> tuple[costs.RankSizes, str]:
    return (costs.LLAVA_SCIENCEQA, "linear") if host == "vicuna_7b_sqa" else (costs.LLAVA_AID, "mlp")


def removed_parameters() -> Outcome:
    """Of the attentions that K = 12 removes at 7B, in millions."""
    return Outcome(12 * costs.attention_parameters(costs.LLAMA_7B) / 1e6, True)


def bound_compute() -> Outcome:
    """How many times faster a prefill can be by skipping alone."""
    full, less = (costs.prefill_macs(costs.LLAMA_7B, 128, k, costs.LAVIN) for k in (0, 12))
    return Outcome(full / less, True, "K = 12, 128 tokens: the published 2.2 is not of skipping")


def bound_bytes() -> Outcome:
    """The same for a decoding step, by bytes."""
    full, less = (costs.decode_bytes(costs.LLAMA_7B, 128, k, None) for k in (0, 12))
    return Outcome(full / less, True, "K = 12, a cache of 128 tokens")


def cache_share() -> Outcome:
    """Per cent of the KV cache that is left at K = 12 of 32."""
    full, less = (costs.cache_bytes(costs.LLAMA_7B, 128, k) for k in (0, 12))
    return Outcome(100 * less / full, True)


def equal_rank() -> Outcome:
    """The adapter rank with which K = 0 trains as many weights as K = 12."""
    rank = costs.equal_parameter_rank(costs.LLAMA_7B, 12, costs.LAVIN)
    count = costs.lavin_parameters(costs.LLAMA_7B, 0, costs.RankSizes(rank, 32))
    return Outcome(rank, True, f"{count:,} weights; 1,159,536 of LaVIN's do not grow with the rank")


def shipped_folded() -> Outcome:
    """The adapters that ship, folded and beside the mini host: largest difference of logits over 3 decoded tokens."""
    import torch

    from eas.checkpoints.load import open_adapters
    from eas.miniature.shipped import adapters_path
    from tenfold.data import mini_host

    model, _ = mini_host.load()
    skipper, _ = open_adapters(adapters_path(), model)
    ids = torch.tensor([[1, 6, 30, 31, 32, 33, 20]])
    with torch.no_grad():
        caches = [model(input_ids=ids, use_cache=True).past_key_values for _ in range(3)]
        plain = _decoded(model, caches[0])
        with skipper.folded(caches[1]):
            folded = _decoded(model, caches[1])
        with skipper.folded(caches[2], as_released=True):
            released = _decoded(model, caches[2])
    skipper.detach()
    top = plain.abs().max()
    exact, off = ((one - plain).abs().max() / top for one in (folded, released))
    return Outcome(float(exact), bool(exact <= 1e-5), f"of the largest logit; in the authors' order {float(off):.1e}")


def _decoded(model: Any, cache: Any) -> Any:
    import torch

    steps = [
        model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits for token in (25, 26, 27)
    ]
    return torch.cat(steps, 1)
