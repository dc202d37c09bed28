"""What all golden cases share: tolerances, and official weights for a part of the model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from flashsloth.checkpoints.keys import to_ours

# The prose tolerances of the cases as (absolute, relative). Decisions, ids, labels and indices are compared exactly.
TOLERANCES = {
    "sap": (1e-5, 1e-4),
    "embq": (2e-5, 2e-4),
    "model": (2e-4, 1e-3),
    "pixels": (0.0079, 0.0),
}


def official_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A case's weights under our names."""
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith("weights/")}
    return to_ours({name.removeprefix("weights/"): tensor for name, tensor in weights.items()})


def load_part(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Load a case's weights of one part of the model, strictly; ``prefix`` under our names."""
    weights = {name: tensor for name, tensor in official_weights(tensors).items() if name.startswith(prefix)}
    module.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in weights.items()}, strict=True)
