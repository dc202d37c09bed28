"""`llava-hr verify` of a training: how it is done again, and how far its numbers may move on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_hr.training.settings import TrainSettings, checked
from tenfold import UserError
from tenfold.runs import RunRecord

# Compared bit for bit where versions, device and threads are those of the record. A training that rounds otherwise
# takes another path: the mean loss of its last steps moves by some hundredths.
TOLERANCES = {"pretrain.loss": 0.1, "finetune.loss": 0.1}


def train_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same training, made in a new folder.

    Raises:
        UserError: it was made by several ranks, which sum in another order than one process.
    """
    from llava_hr.training.run import run_train

    ranks = record.metrics.get("ranks", 1)
    if ranks > 1:
        expected = f"torchrun --nproc_per_node {ranks} -m llava_hr train with its config, into a new folder"
        raise UserError(f"was trained by {ranks} ranks, and this is one process", record.id, expected)

    return run_train(checked(TrainSettings, record.config, record.id), record.seed, folder).metrics


VERIFIERS = {"train": train_again}
