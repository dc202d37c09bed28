"""Where the gates' inputs and labels come from: a host that runs as they are needed, or a table mined before.

Step t draws its exit layer k and its samples from generators of their own, so a resumed training sees what an unbroken
one would, and every rank draws the same k.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from dyvte.branches import LabelRule, run_branches
from dyvte.data.prompts import encode_answers, find_protocol
from dyvte.data.samples import TrainingSample, epoch_order
from dyvte.gates import GateConfig
from dyvte.training.settings import TrainSettings
from tenfold.hosts.loading import Host
from tenfold.runs import atomic_write_bytes, sample_rng
from tenfold.weights import WeightFiles

logger = logging.getLogger(__name__)

# Samples that the host runs at a time, whatever the batch of a step is.
AT_A_TIME = 8
LAYER_STREAM = 2**34


def exit_layers(step: int, settings: TrainSettings, seed: int, layers: int) -> list[int]:
    """The exit layers of a step: one, uniform over all layers, or all of them."""
    if settings.layers_a_step == "all":
        return list(range(layers))
    return [int(sample_rng(seed, LAYER_STREAM, step).integers(layers))]


def samples_of(step: int, count: int, batch: int, seed: int) -> list[int]:
    """The samples of a step: the next ones of the epoch's order; an epoch's last batch may be smaller."""
    an_epoch = -(-count // batch)
    epoch, place = divmod(step, an_epoch)
    return epoch_order(count, seed, epoch)[place * batch : (place + 1) * batch]


class Labeller:
    """Runs the frozen host on samples and judges its branches."""

    def __init__(self, host: Host, settings: TrainSettings, config: GateConfig) -> None:
        self.host, self.config = host, config
        self.rule = LabelRule(settings.agreement, settings.ratio, settings.slack, settings.drop_token_zero)
        self.protocol = find_protocol(settings.protocol, host.model, host.processor)

    def label(self, samples: Sequence[TrainingSample], layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs ``[K, samples, inputs]`` of the gates and labels ``[K, samples]`` int64, on the host's device."""
        inputs, labels = [], []
        for start in range(0, len(samples), AT_A_TIME):
            some = samples[start : start + AT_A_TIME]
            batch, targets = encode_answers(self.host.processor, self.host.model, self.protocol, some)
            branches = run_branches(self.host.model, batch, targets, layers, self.config)
            judged = [self.rule.judge(branches.dense, exited, branches.targets).labels for exited in branches.exited]
            inputs.append(branches.x.float())
            labels.append(torch.stack(judged))
        return torch.cat(inputs, dim=1), torch.cat(labels, dim=1)


class Mined:
    """Inputs and labels of all layers, mined once: ``x [samples, layers, inputs]``, ``labels [samples, layers]``."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.x, self.labels = x, labels

    def label(self, numbers: Sequence[int], layers: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """As `Labeller.label`, of the samples of these numbers."""
        rows = self.x[list(numbers)][:, list(layers)], self.labels[list(numbers)][:, list(layers)]
        return rows[0].transpose(0, 1).float().to(device), rows[1].transpose(0, 1).to(device)


def mine(
    labeller: Labeller,
    samples: Sequence[TrainingSample],
    folder: Path,
    progress: Callable[[Sequence[int], str], Iterable[int]],
) -> Mined:
    """Label every sample at every layer, kept in ``folder`` part by part: a killed mining goes on where it stopped."""
    layers = list(range(labeller.config.layers))
    starts = list(range(0, len(samples), AT_A_TIME))
    parts = [folder / f"labels-{start // AT_A_TIME:06d}.safetensors" for start in starts]
    if done := sum(part.is_file() for part in parts):
        logger.info("going on after %d of %d mined parts", done, len(parts))
    folder.mkdir(parents=True, exist_ok=True)
    todo = [number for number, part in enumerate(parts) if not part.is_file()]
    for number in progress(todo, "labels"):
        x, labels = labeller.label(samples[starts[number] : starts[number] + AT_A_TIME], layers)
        stored = {"x": x.transpose(0, 1).contiguous().cpu(), "labels": labels.T.contiguous().cpu()}
        atomic_write_bytes(parts[number], save(stored))
    found = []
    for part in parts:
        with WeightFiles(part) as files:
            found.append({name: tensor.read() for name, tensor in files.tensors.items()})
    return Mined(torch.cat([part["x"] for part in found]), torch.cat([part["labels"] for part in found]))
