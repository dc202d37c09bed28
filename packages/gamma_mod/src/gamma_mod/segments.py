"""Which tokens of a prompt may be skipped in training (section 3.3, masked routing learning).

A row is a prefix (system prompt and "USER:"), visual tokens, the question, and in training the answers. Visual tokens
and the prefix compete for the budget; ``protect`` says what else does:

    "question"          the paper's best row: questions are always computed, answers compete
    "question+answer"   the released code: everything after the image is always computed
    "none"              every token competes
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
PROTECT = ("none", "question", "question+answer")


def routable_tokens(
    visual: Tensor, real: Tensor | None = None, labels: Tensor | None = None, protect: str = "question"
) -> Tensor:
    """The tokens that may be skipped in training.

    Args:
        visual: ``[batch, tokens]`` bool.
        real: ``[batch, tokens]`` bool, False at padding; None: nothing is padded.
        labels: ``[batch, tokens]`` int64, -100 outside the answers; without labels there are no answers.
        protect: see above.

    Returns:
        ``[batch, tokens]`` bool. A row without an image has no prefix: its answers compete or nothing does.
    """
    real = torch.ones_like(visual) if real is None else real
    if protect == "none":
        return real.clone()
    visual = visual & real
    seen = visual.cumsum(1)
    prefix = (seen == 0) & (seen[:, -1:] > 0)
    routable = visual | prefix
    if protect == "question" and labels is not None:
        routable = routable | (labels != IGNORED)
    return routable & real
