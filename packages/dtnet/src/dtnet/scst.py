"""The loss of self-critical sequence training (section 5): the mean reward of an image's beams is the baseline.

beams = beam_search(model, features, beam_size=5, out_size=5)      # with gradients
loss = scst_loss(beams.log_probs, rewards)                         # CIDEr-D of every beam [batch, 5]
"""

from __future__ import annotations

from torch import Tensor


def scst_loss(log_probs: Tensor, rewards: Tensor) -> Tensor:
    """``mean over images and beams of -(1/T) sum_t log p_t * (r - mean over beams of r)``.

    T is the length of the search, 20, not that of the caption: what follows ``<eos>`` counts with log-probability 0.

    Args:
        log_probs: of every word of every caption `[batch, beams, T]`, 0 after ``<eos>``, with gradients.
        rewards: of every caption `[batch, beams]`, without gradients.

    Returns:
        The loss, a scalar.
    """
    advantage = rewards - rewards.mean(dim=1, keepdim=True)
    return -(log_probs.mean(dim=-1) * advantage.to(log_probs)).mean()
