"""Train a tiny model with transformers' Trainer, die in forks, resume; write what happened to
FOLDER/outcome.json.

One interpreter imports torch once; every death is a fork of it that kills itself, so nothing is simulated.
"""

import json
import logging
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from tenfold import UserError
from tenfold.runs import AtomicCheckpointMixin, fingerprint, last_complete_checkpoint, seed_everything
from tenfold.testing.processes import killed

STEPS = 9


class Model(torch.nn.Module):
    """Dropout and a draw from Python's generator: both states must come back on resume."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(4, 8)
        self.dropout = torch.nn.Dropout(0.5)
        self.out = torch.nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        noise = random.random() if self.training else 0.0
        y = self.out(self.dropout(torch.relu(self.hidden(x + noise)))).squeeze(-1)
        return {"loss": ((y - labels) ** 2).mean(), "logits": y}


class AtomicTrainer(AtomicCheckpointMixin, transformers.Trainer):
    pass


class DiesInsideTheWrite(AtomicTrainer):
    def _save_rng_state(self, output_dir: str) -> None:
        if self.state.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_rng_state(output_dir)


class DiesAtStep(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **_) -> None:
        if state.global_step == 7:
            os.kill(os.getpid(), signal.SIGKILL)


class FirstStep(transformers.TrainerCallback):
    seen: int | None = None

    def on_step_begin(self, args, state, control, **_) -> None:
        if self.seen is None:
            self.seen = state.global_step


class WorseAndWorse(AtomicTrainer):
    """The first evaluation is the best one."""

    def evaluate(self, *_, **__) -> dict[str, float]:
        metrics = {"eval_loss": float(self.state.global_step)}
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def trainer(folder: Path, kind=AtomicTrainer, callbacks=(), **options) -> transformers.Trainer:
    seed_everything(0)
    generator = torch.Generator().manual_seed(1)
    rows = [{"x": torch.randn(4, generator=generator), "labels": torch.tensor(i % 2.0)} for i in range(12)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        save_steps=3,
        save_total_limit=2,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **options,
    )
    return kind(Model(), arguments, train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def die(make) -> bool:
    """Train in a fork; True when it was killed by SIGKILL."""
    return killed(lambda: make().train())


def resume(folder: Path, how=True) -> dict:
    first = FirstStep()
    resumed = trainer(folder, callbacks=[first])
    resumed.train(resume_from_checkpoint=how)
    weights = folder / "checkpoint-9" / "model.safetensors"
    return {
        "resumed_from": first.seen,
        "steps": resumed.state.global_step,
        "sha256": fingerprint(weights),
        "final": names(folder),
    }


def refusal(call) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return "no error"


def main(folder: Path) -> None:
    outcome: dict = {}
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("tenfold").addHandler(handler)

    whole = folder / "whole"
    trainer(whole).train()
    weights = fingerprint(whole / "checkpoint-9" / "model.safetensors")
    outcome["uninterrupted"] = {"sha256": weights, "left": names(whole)}

    deaths = {
        "at step 7": lambda at: trainer(at, callbacks=[DiesAtStep()]),
        "inside the write of checkpoint 6": lambda at: trainer(at, DiesInsideTheWrite),
    }
    for number, (death, make) in enumerate(deaths.items()):
        at = folder / str(number)
        killed = die(lambda make=make, at=at: make(at))
        left = names(at)
        outcome[death] = {"killed": killed, "left": left, **resume(at)}

    torn = folder / "torn"
    die(lambda: trainer(torn, callbacks=[DiesAtStep()]))
    shutil.copytree(torn / "checkpoint-6", torn / "checkpoint-8")
    (torn / "checkpoint-8" / "COMPLETE").unlink()
    os.truncate(torn / "checkpoint-8" / "model.safetensors", 10)
    outcome["resume from torn"] = refusal(lambda: trainer(torn).train(str(torn / "checkpoint-8")))
    messages.clear()
    outcome["a torn checkpoint-8"] = resume(torn) | {"message": " ".join(messages)}

    best = folder / "best"
    options = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
    trained = trainer(best, WorseAndWorse, metric_for_best_model="eval_loss", greater_is_better=False, **options)
    trained.train()
    states = [json.loads(path.read_text()) for path in best.glob("checkpoint-*/trainer_state.json")]
    kept = load_file(best / "checkpoint-3" / "model.safetensors")
    outcome["best"] = {
        "recorded": [state["best_model_checkpoint"] for state in states],
        "expected": [str(best / "checkpoint-3")] * 2,
        "left": names(best),
        "loaded": all(torch.equal(value, kept[name]) for name, value in trained.model.state_dict().items()),
    }

    outcome["nothing to resume"] = refusal(lambda: trainer(folder / "empty").train(resume_from_checkpoint=True))
    outcome["hub"] = refusal(lambda: trainer(folder / "hub", push_to_hub=True))
    assert last_complete_checkpoint(whole) == whole / "checkpoint-9"
    (folder / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
