"""When leaving would have been right (section 3.3): the labels that gates are trained on, and their loss.

The frozen model answers a training question twice from layer k on, with and without its visual tokens. Leaving is
right when both say the same and the answer did not become less certain:

    agreement = share of answer positions whose most likely tokens are equal       > 0.99
    CE(without) < 1.03 CE(with)

Both are teacher-forced on the answer of the data set, so that a question that is answered wrongly either way also
says "exit". The loss of a gate is the ordinary cross entropy with these labels (the paper prints it with a sign
slip); the exit's KL divergence of the paper's equation 2 motivates it and is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

AGREEMENT = 0.99
CE_RATIO = 1.03
IGNORED = -100


@dataclass(frozen=True)
class LabelRule:
    """The two-part rule and its options.

    Attributes:
        agreement: least share of equal argmax tokens, exclusive.
        ratio: largest CE(without) / CE(with), exclusive.
        slack: added to the right-hand side, in nats (ours). Where the model is certain, the CE is near 0 and the
            published comparison, with slack 0, is decided by noise; 0.01 repairs that.
        drop_token_zero: as released: token id 0 counts neither in the agreement nor in the denominator of the CE.
            With LLaVA's tokenizer id 0 is padding and cannot be in an answer; in Qwen's it is "!".
    """

    agreement: float = AGREEMENT
    ratio: float = CE_RATIO
    slack: float = 0.0
    drop_token_zero: bool = False

    def judge(self, dense: Tensor, exited: Tensor, targets: Tensor) -> Judgement:
        """Compare the two branches on the answer.

        Args:
            dense: ``[batch, positions, vocabulary]`` logits with visual tokens; position t predicts ``targets[t]``.
            exited: the same without them.
            targets: ``[batch, positions]`` int64, `IGNORED` outside the answer.
        """
        counted = targets > 0 if self.drop_token_zero else targets != IGNORED
        number = counted.sum(1)
        same = (dense.argmax(-1) == exited.argmax(-1)) & counted
        agreement = same.sum(1) / number
        ce_dense, ce_exited = (_answer_ce(logits, targets) / number for logits in (dense, exited))
        right = (agreement > self.agreement) & (ce_exited < self.ratio * ce_dense + self.slack)
        return Judgement(right.long(), agreement, ce_dense, ce_exited)


@dataclass(frozen=True)
class Judgement:
    """What the rule says of every row, ``[batch]`` each.

    Attributes:
        labels: 1 where leaving is right, else 0.
        agreement: share of answer positions with equal argmax.
        ce_dense, ce_exited: mean cross entropy of the answer with and without visual tokens.
    """

    labels: Tensor
    agreement: Tensor
    ce_dense: Tensor
    ce_exited: Tensor


def shifted(labels: Tensor) -> Tensor:
    """``labels [batch, tokens]`` as targets: position t predicts token t + 1; the last predicts nothing."""
    return torch.cat((labels[:, 1:], labels.new_full((labels.shape[0], 1), IGNORED)), dim=1)


def gate_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of gate logits ``[batch, 2]`` with exit labels ``[batch]``."""
    return torch.nn.functional.cross_entropy(logits.float(), labels)


def _answer_ce(logits: Tensor, targets: Tensor) -> Tensor:
    ce = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return ce.view(targets.shape).sum(1)
