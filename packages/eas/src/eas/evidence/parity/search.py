"""Golden cases: the preferences of the three searches after every update, and what they remove."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eas.plan import meter_flags
from eas.search import RULES, Search
from tenfold.ledger.goldens import Comparison


def _replay(search: Search, tensors: Mapping[str, Tensor], after: str, compare: Comparison) -> None:
    updates = zip(tensors["in/eval_selects"], tensors["in/eval_losses"], strict=True)
    for number, (subnets, losses) in enumerate(updates):
        search.update(subnets, losses)
        compare.close(f"preferences after update {number}", search.preferences, tensors[after][number], "search")
    worst_last = search.order()[: search.removed][::-1]
    compare.equal("what goes, the least sure first", list(worst_last), tensors["out/final_skip"])


def search_llava(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """With the ramp of the warm-up, and the calls at which an update is due."""
    config = case["config"]
    sites = tensors["in/costs"].shape[0]
    schedule = Search(RULES["llava"], sites, config["skipped_num"], config["warmup_steps"], ramp=True)
    counts, subnets, losses = [], iter(tensors["in/eval_selects"]), iter(tensors["in/eval_losses"])
    for _ in range(config["iters"]):
        counts.append(schedule.begin())
        if schedule.due():
            schedule.update(next(subnets), next(losses))
    compare.equal("skipped at each call", counts, tensors["out/num_skipped_per_call"])
    compare.equal("updates in all", schedule.updates, len(tensors["in/eval_losses"]))
    search = Search(RULES["llava"], sites, config["skipped_num"])
    _replay(search, tensors, "out/scores_after_update", compare)
    compare.close("preferences by the schedule", schedule.preferences, search.preferences, "search")


def search_lavin(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """Softmax of ten times the preferences, step 2."""
    search = Search(RULES["lavin"], case["config"]["n_layers"], case["config"]["skipped_num"])
    _replay(search, tensors, "out/scores_after_update", compare)
    compare.close("sampling weights", search.rule.probability(search.preferences), tensors["out/probs_final"], "search")


def search_meter(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """24 sites; what each subnet flags by the authors' map, in which 18-23 alias 12-17."""
    search = Search(RULES["meter"], tensors["in/costs"].shape[0], case["config"]["skip_num"])
    _replay(search, tensors, "out/gate_after_update", compare)
    for subnets, flags in zip(tensors["in/eval_selects"].tolist(), tensors["out/eval_flags"], strict=True):
        for subnet, golden in zip(subnets, flags, strict=True):
            compare.equal("flags", meter_flags(subnet, as_released=True).long(), golden.long())
