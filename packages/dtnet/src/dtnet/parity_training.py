"""Golden cases of the training: what `parity` hands over to the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dtnet.training.schedule import EPOCHS, STAGES, paper_rate


def _lr_schedule(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Any) -> None:
    epochs = [(stage, epoch) for stage in STAGES for epoch in range(EPOCHS[stage])]
    compare.equal("stage of each epoch", [int(stage == "scst") for stage, _ in epochs], tensors["out/is_rl_epoch"])
    rates = [paper_rate(stage, epoch) for stage, epoch in epochs]
    compare.equal("rate of each epoch", rates, tensors["out/lr_per_epoch"])


COMPUTATIONS = {"lr_schedule": _lr_schedule}
