"""`llava-hr verify`: how a recorded run is done again, and how far its numbers may move."""

from __future__ import annotations

from llava_hr.evaluation.settings import DemoSettings, EvalSettings
from llava_hr.training.settings import TrainSettings
from tenfold.cli.verify import run_again

# Compared bit for bit where versions, device and threads are those of the record. Elsewhere rounding can tip an answer:
# 2 % of a score; a gate moves in its last digits. MME counts points, up to 200 a subtask; CIDEr goes up to 10. A
# training takes another path: the mean loss of its last steps moves by some hundredths.
TOLERANCES = {
    "pretrain.loss": 0.1,
    "finetune.loss": 0.1,
    "scores.perception": 40,
    "scores.cognition": 16,
    "scores.*/points": 8,
    "scores.CIDEr": 0.1,
    "scores.unread": 10,
    "scores.neither yes nor no": 10,
    "scores.*": 0.02,
    "new_tokens": 2,
    "gates.*": 0.01,
}

VERIFIERS = {
    "eval": run_again(EvalSettings, "llava_hr.evaluation.run:run_eval"),
    "demo": run_again(DemoSettings, "llava_hr.evaluation.demo:run_demo"),
    "train": run_again(TrainSettings, "llava_hr.training.run:run_train", one_process=True),
}
