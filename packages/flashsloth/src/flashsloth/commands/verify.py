"""`flashsloth verify`: how a recorded run is done again, and how far its numbers may move."""

from __future__ import annotations

from flashsloth.evaluation.settings import DemoSettings, EvalSettings
from flashsloth.training.settings import TrainSettings
from tenfold.cli.verify import run_again

# Compared bit for bit where versions, device and threads are those of the record. Elsewhere rounding can tip an answer:
# 2 % of a score; MME counts points, up to 200 a subtask. A training takes another path: the mean loss of its last steps
# moves by some hundredths.
TOLERANCES = {
    "pretrain.loss": 0.1,
    "finetune.loss": 0.1,
    "scores.perception": 40,
    "scores.cognition": 16,
    "scores.total": 56,
    "scores.*/points": 8,
    "scores.unread": 10,
    "scores.neither yes nor no": 10,
    "scores.*": 0.02,
    "new_tokens": 2,
}

VERIFIERS = {
    "eval": run_again(EvalSettings, "flashsloth.evaluation.run:run_eval"),
    "demo": run_again(DemoSettings, "flashsloth.evaluation.demo:run_demo"),
    "train": run_again(TrainSettings, "flashsloth.training.run:run_train", one_process=True),
}
