"""Answers of a host to records, in batches padded on the left; greedy, ended by the end token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eas.data.records import Record
from eas.data.samples import Encoder
from eas.skipper import Skipper
from tenfold import UserError
from tenfold.hosts.answers import FiniteScores, generate_tokens


@dataclass(frozen=True)
class Answer:
    """What a host wrote, and the tokens of prompt and answer."""

    text: str
    prompt_tokens: int
    new_tokens: int


@torch.inference_mode()
def answer(
    model: nn.Module,
    encoder: Encoder,
    records: Sequence[Record],
    *,
    max_new_tokens: int,
    folded: Skipper | None = None,
) -> list[Answer]:
    """One answer for each record.

    Args:
        folded: decode with this skipper's matrices folded, which takes one record at a time.

    Raises:
        UserError: several records at once with `folded`; a broken picture.
    """
    inputs = encoder.collate([encoder.question(record) for record in records], side="left")
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    inputs = {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in inputs.items()}
    ends = _ends(model, encoder)
    if folded is not None:
        if len(records) > 1:
            raise UserError(f"a batch of {len(records)}, folded", "eas eval", "--batch 1: a fold is one prompt's")
        rows = _decode_folded(model, folded, inputs, ends, max_new_tokens)
    else:
        rows = generate_tokens(model, inputs, max_new_tokens=max_new_tokens, pad_token_id=encoder.pad_id)
    found = []
    for row, real in zip(rows.tolist(), inputs["attention_mask"].sum(1).tolist(), strict=True):
        length = next((at for at, token in enumerate(row) if token in ends), len(row))
        text = encoder.processor.tokenizer.decode(row[:length], skip_special_tokens=True).strip()
        found.append(Answer(text, real, min(length + 1, len(row))))
    return found


def _decode_folded(
    model: Any, skipper: Skipper, inputs: dict[str, Tensor], ends: set[int], max_new_tokens: int
) -> Tensor:
    finite = FiniteScores()
    out = model(**inputs, use_cache=True, logits_to_keep=1)
    tokens, cache = [finite(None, out.logits[:, -1]).argmax(-1)], out.past_key_values
    with skipper.folded(cache):
        while len(tokens) < max_new_tokens and int(tokens[-1]) not in ends:
            out = model(input_ids=tokens[-1][:, None], past_key_values=cache, use_cache=True)
            tokens.append(finite(None, out.logits[:, -1]).argmax(-1))
    finite.require(model)
    return torch.stack(tokens, 1)


def _ends(model: Any, encoder: Encoder) -> set[int]:
    found = {encoder.processor.tokenizer.eos_token_id}
    own = model.generation_config.eos_token_id
    return found | set(own if isinstance(own, list) else [] if own is None else [own])
