"""What the model that ships answers, asked anew on scenes of a world of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llava_hr.data.mini_questions import COARSE, FINE, TEST
from llava_hr.evidence.findings import SEEN
from llava_hr.miniature.model import mini_model_path
from tenfold import UserError

if TYPE_CHECKING:
    from tenfold.ledger import Outcome

PER_KIND = 25


def shipped_outcome(per_kind: int = PER_KIND) -> Outcome:
    """Fine accuracy of the shipped model, and what is left of it without detail.

    Args:
        per_kind: questions of each kind.

    Raises:
        UserError: no model ships with this installation.
    """
    import torch

    from llava_hr.checkpoints.load import align
    from llava_hr.data.mini_questions import held_out
    from llava_hr.evidence.experiments import SIZE, accuracy, answers
    from llava_hr.modeling import LlavaHrForConditionalGeneration
    from tenfold.ledger import Outcome

    if not (mini_model_path() / "config.json").is_file():
        raise UserError("no trained miniature", mini_model_path(), "an installation that ships it")
    model = LlavaHrForConditionalGeneration.from_pretrained(mini_model_path(), dtype=torch.float32).eval()
    align(model)
    asked = held_out(TEST + 1, per_kind)
    own, swapped = accuracy(asked, answers(model, asked)), accuracy(asked, answers(model, asked, swap=True))
    half = accuracy(asked, answers(model, asked, SIZE // 2))
    fine, guessed, blurred, coarse = (
        100 * float(np.mean([found[kind] for kind in kinds]))
        for found, kinds in ((own, FINE), (swapped, FINE), (half, FINE), (own, COARSE))
    )
    detail = (
        f"fine questions; {guessed:.1f} % with another question's picture, {blurred:.1f} % with pictures of 96 pixels; "
        f"coarse {coarse:.1f} %; {len(asked)} questions"
    )
    return Outcome(round(fine, 2), bool(fine - guessed >= SEEN), detail)
