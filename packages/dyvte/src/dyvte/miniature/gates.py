"""The miniature's gates, by the paper's recipe on a table: one random exit layer a step, ordinary cross entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from dyvte.branches import gate_loss
from dyvte.gates import GateConfig, Gates
from dyvte.miniature.tables import Table
from tenfold.runs import sample_rng
from tenfold.runs.finite import require_finite_loss

RATE, BATCH = 1e-3, 64
# The published recipe's own number of updates a gate: 52 steps, one of 32 gates each.
PUBLISHED_UPDATES = 52 / 32


def train_gates(table: Table, config: GateConfig, seed: int, updates: float, slack: float) -> Gates:
    """Gates trained on a table, each for so many updates on average.

    Args:
        table: of the training questions.
        config: of the gates.
        seed: of the start, the layers and the batches.
        updates: mean updates a gate.
        slack: which labels.
    """
    gates = Gates(config).initialise(seed)
    optimizer = torch.optim.AdamW(gates.parameters(), lr=RATE, weight_decay=0.0)
    steps = max(1, round(updates * config.layers))
    for step in range(steps):
        draw = sample_rng(seed, 1, step)
        layer = int(draw.integers(config.layers))
        rows = torch.from_numpy(draw.integers(len(table.x), size=BATCH))
        optimizer.zero_grad(set_to_none=True)
        loss = gate_loss(gates[layer](table.x[rows, layer]), table.labels[slack][rows, layer])
        require_finite_loss(loss, f"gate {layer}", step + 1)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        optimizer.step()
    return gates.eval().requires_grad_(False)


@torch.no_grad()
def table_margins(gates: Gates, table: Table) -> Tensor:
    """exit - keep of every question after every layer, ``[questions, layers]``."""
    logits = torch.stack([gate(table.x[:, layer]) for layer, gate in enumerate(gates)], dim=1)
    return logits[..., 1] - logits[..., 0]
