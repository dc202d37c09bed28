"""transformers' Trainer with checkpoints that are complete or absent.

    class Trainer(AtomicCheckpointMixin, transformers.Trainer): ...

transformers writes `checkpoint-N` in place: a process killed in the middle leaves a folder that looks like a
checkpoint, and `resume_from_checkpoint=True` crashes on it. The mixin lets Trainer write everything as it
does, but into `.tmp-N/`, and publishes the result when the last rank has finished. Tested with
transformers 5.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.errors import UserError
from tenfold.runs.checkpoints import (
    incompleteness,
    last_complete_checkpoint,
    publish_checkpoint,
    rotate_complete_checkpoints,
    stage_checkpoint,
)

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    # The mixin stands before the real Trainer among a class's bases; importing this module needs no torch.
    _Trainer = object


class AtomicCheckpointMixin(_Trainer):
    """Put before `transformers.Trainer` among the bases; everything else stays the Trainer's.

    `train(resume_from_checkpoint=True)` resumes from the last complete checkpoint of `args.output_dir`,
    skipping torn ones with a warning; a folder given by name must be complete. `args.save_total_limit`
    counts complete checkpoints.
    All ranks must see `args.output_dir` on one file system, or use `args.save_on_each_node`.

    Raises (from `__init__`):
        UserError: `args.push_to_hub`, which uploads a checkpoint in the background while it would be renamed.
    """

    _staging: Path | None = None

    def __init__(self, model: Any = None, args: Any = None, *rest: Any, **options: Any) -> None:
        # Asked first: Trainer's own constructor already creates the repository on the hub.
        if args is not None and args.push_to_hub:
            raise UserError("push_to_hub uploads checkpoints before they are complete", "training arguments", "False")
        super().__init__(model, args, *rest, **options)

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train like `transformers.Trainer.train`.

        Raises:
            UserError: nothing complete to resume from.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise UserError("nothing to resume from", self.args.output_dir, "a complete checkpoint-<step>")
        elif resume_from_checkpoint:
            reason = incompleteness(Path(resume_from_checkpoint))
            if reason is not None:
                raise UserError(f"not a complete checkpoint, {reason}", resume_from_checkpoint)
        resume = str(resume_from_checkpoint) if resume_from_checkpoint else None
        return super().train(resume, *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        # Trainer asks this for the folder to put checkpoint-N into; only while saving is the answer
        # another one.
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        directory = Path(super()._get_output_dir(trial))
        step = self.state.global_step
        if self.args.should_save:
            stage_checkpoint(directory, step)
        self.accelerator.wait_for_everyone()
        self._staging = directory / f".tmp-{step}"
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:
            shutil.rmtree(self._staging, ignore_errors=True)
            raise
        finally:
            self._staging = None
        self._name_best_checkpoint(directory)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publish(directory, step)
        self.accelerator.wait_for_everyone()

    def _name_best_checkpoint(self, directory: Path) -> None:
        """Trainer noted the best checkpoint under the temporary folder when it is the one just written."""
        best = self.state.best_global_step
        if best and (best == self.state.global_step or (directory / f"checkpoint-{best}").is_dir()):
            self.state.best_model_checkpoint = str(directory / f"checkpoint-{best}")

    def _publish(self, directory: Path, step: int) -> None:
        temporary = directory / f".tmp-{step}"
        written = temporary / f"checkpoint-{step}"
        self.state.save_to_json(str(written / "trainer_state.json"))
        publish_checkpoint(written, directory, step)
        temporary.rmdir()
        if self.args.save_total_limit:
            best = self.state.best_model_checkpoint
            rotate_complete_checkpoints(directory, self.args.save_total_limit, [Path(best)] if best else [])
