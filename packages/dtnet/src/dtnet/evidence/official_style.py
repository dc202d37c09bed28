"""Beam search as the official code does its work: the baseline of `dtnet bench`, with the same tokens.

Every step projects the keys and values of all words so far and of the image again, for every beam; the image is
repeated for its beams and gathered with them; every continuation is sorted. What comes out is what `beam.beam_search`
finds.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dtnet.beam import Beams, _candidates, _of_parents
from dtnet.decoder import DecoderLayer
from dtnet.model import DTNet


@torch.no_grad()
def reprojecting_beam_search(
    model: DTNet, features: Tensor, beam_size: int = 5, max_len: int = 20, out_size: int = 1
) -> Beams:
    """All steps, no cache of projections, no early stop. Arguments as `beam.beam_search`."""
    memory = model.encode(features).memory  # [batch, n, d], then [batch * beams, n, d]
    batch, vocabulary = len(features), model.config.vocabulary_size
    words = torch.full((batch, 1), model.config.bos_id, device=features.device)
    scores = torch.zeros(batch, 1, device=features.device)
    finished = torch.zeros_like(words, dtype=torch.bool)
    tokens, gains = words[..., None][..., :0], scores[..., None][..., :0]
    # Of every layer the inputs of its self-attention so far: [batch * beams, t, d].
    inputs: list[Tensor] = [memory[:, :0] for _ in model.decoder.layers]
    visible = torch.ones(batch, 1, 1, 0, dtype=torch.bool, device=features.device)
    for position in range(1, max_len + 1):
        visible = torch.cat((visible, (words != model.config.pad_id).view(-1, 1, 1, 1)), dim=-1)
        step = _step(model, words, position, inputs, visible, memory)
        ordered, index = _candidates(scores, step, finished).flatten(1).sort(dim=-1, descending=True)
        scores, chosen = ordered[:, :beam_size], index[:, :beam_size]
        parents, words = chosen // vocabulary, chosen % vocabulary
        ended = finished.gather(1, parents)
        gain = step.flatten(1).gather(1, chosen).masked_fill(ended, 0)
        tokens = torch.cat((_of_parents(tokens, parents), words[..., None]), dim=-1)
        gains = torch.cat((_of_parents(gains, parents), gain[..., None]), dim=-1)
        finished = ended | (words == model.config.eos_id)
        rows = (torch.arange(batch, device=features.device)[:, None] * step.shape[1] + parents).flatten()
        memory, visible, inputs = memory[rows], visible[rows], [part[rows] for part in inputs]
    return Beams(tokens[:, :out_size], gains[:, :out_size])


def _step(model: DTNet, words: Tensor, position: int, inputs: list[Tensor], visible: Tensor, memory: Tensor) -> Tensor:
    decoder = model.decoder
    x = decoder.word_embedding(words) + decoder.position_embedding.weight[position]
    x = x.flatten(0, 1).unsqueeze(1)  # [batch * beams, 1, d]
    keep = visible[:, 0, 0, -1:, None]
    for number, layer in enumerate(decoder.layers):
        layer = cast(DecoderLayer, layer)
        inputs[number] = torch.cat((inputs[number], x), dim=1)
        a = layer.self_norm(x + layer.self_attention(x, inputs[number], visible)) * keep
        e = layer.cross_norm(a + layer.cross_attention(a, memory)) * keep
        x = layer.feed_forward(e) * keep
    logits = decoder.fc(x).view(*words.shape, -1)
    return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
