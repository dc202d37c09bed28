"""Gates that read attention instead of states (table 8): the paper's negative result, kept so that it can be tried.

Three rows of a layer's head-maximum attention, each as long as the image, V:

    visual_self   of the last visual token over the visual ones
    cross         of the prompt's last token over the visual ones
    text_self     of the prompt's last token over the text after the image, resized linearly to V

Only those two rows are computed, never a map. The released inference code feeds such a gate another vector and stops;
this is what its training fed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dyvte.fastv import attention_row
from dyvte.gates import GateConfig
from dyvte.observation import Observed
from tenfold import UserError
from tenfold.hosts.ragged import Tokens


def attention_states(observed: Observed, tokens: Tokens, config: GateConfig, span: Tensor | None = None) -> Tensor:
    """The gate's input for every row that still has its image.

    Args:
        observed: queries and keys of the layer.
        tokens: those at its input; ``text`` is the prompt's text block.
        config: of the gates, with V.
        span: ``[batch, width]`` bool, the columns of ``text_self``, one run per row; the text block by default. As
            released, in training, the answer and padding behind the prompt count as many columns as are padded.

    Returns:
        ``[batch, inputs]`` in the dtype of the queries; rows whose image has left hold nothing of meaning.

    Raises:
        UserError: an image of another number of visual tokens than the gates were made for.
    """
    wide = config.visual_tokens
    if odd := [count for count in tokens.num_visual if count not in (0, wide)]:
        raise UserError(f"an image of {odd[0]} visual tokens", "gates that read attention", f"{wide} of them")
    image, prompt = (attention_row(observed, tokens, block).amax(1) for block in (tokens.visual, tokens.text))
    # Visual tokens may stand apart (rows of an image, frames): gather them in order, V a row.
    order = torch.argsort(tokens.visual.to(torch.uint8), dim=1, descending=True, stable=True)[:, :wide]
    rows = {
        "visual_self": image.gather(1, order),
        "cross": prompt.gather(1, order),
        "text_self": _resized(prompt, tokens.text if span is None else span, wide),
    }
    return torch.cat([rows[state] for state in config.states], dim=-1).to(observed.query.dtype)


def _resized(row: Tensor, span: Tensor, length: int) -> Tensor:
    """Linear interpolation of ``row [batch, width]`` inside ``span`` to ``length`` points, both ends kept."""
    start = span.to(torch.uint8).argmax(1, keepdim=True)
    count = span.sum(1, keepdim=True)
    at = torch.arange(length, device=row.device) * ((count - 1) / max(length - 1, 1))  # [batch, length]
    below = at.floor().long().clamp(max=(count - 1).clamp(min=0))
    above = (below + 1).clamp(max=(count - 1).clamp(min=0))
    weight = at - below
    low, high = (row.gather(1, (start + index).clamp(max=row.shape[1] - 1)) for index in (below, above))
    return low * (1 - weight) + high * weight
