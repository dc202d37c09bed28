"""A slow FitPrune: one row at a time, full attention maps, no cache, everything recomputed at every step.

It shares no code with the package. ``slow(model, counts)`` replaces the model's forward, so that
transformers' own ``generate(use_cache=False)`` (greedy, beams) drives it.
"""

from contextlib import contextmanager
from functools import wraps

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from tenfold.testing.hosts import IMAGE


class _Captured(Exception):
    pass


def decoder(model):
    return getattr(model.model, "language_model", None) or model.model.text_model


def layer_zero_input(model, **inputs):
    """Hidden states [B, n, d] and (cos, sin) [B or 1, n, head_dim] at the decoder's door, from the host
    itself."""

    def grab(module, args, kwargs):
        raise _Captured(args[0], kwargs["position_embeddings"])

    handle = decoder(model).layers[0].register_forward_pre_hook(grab, with_kwargs=True)
    try:
        type(model).forward(model, **inputs)
    except _Captured as captured:
        return captured.args
    finally:
        handle.remove()


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def heads_of(states, head_dim):
    return states.view(states.shape[0], -1, head_dim).transpose(0, 1)  # [heads, n, head_dim]


def forward_row(model, hidden, cos, sin, visual, counts, turns):
    """One unpadded row [n, d] through all layers; returns final hidden states, the tokens left, and those
    per layer."""
    alive = torch.arange(hidden.shape[0])
    per_layer = [alive]
    removals = [counts(int(visual[start:stop].sum())) for start, stop in turns]
    for number, layer in enumerate(decoder(model).layers):
        attention, n = layer.self_attn, len(alive)
        normed = layer.input_layernorm(hidden)
        query = rotate(heads_of(attention.q_proj(normed), attention.head_dim), cos[alive], sin[alive])
        key = rotate(heads_of(attention.k_proj(normed), attention.head_dim), cos[alive], sin[alive])
        value = heads_of(attention.v_proj(normed), attention.head_dim)
        key, value = (x.repeat_interleave(query.shape[0] // key.shape[0], dim=0) for x in (key, value))
        logits = query @ key.transpose(1, 2) * attention.head_dim**-0.5
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        maps = logits.masked_fill(future, -torch.inf).softmax(-1)  # [heads, n, n]
        output = (maps @ value).transpose(0, 1).reshape(n, -1)
        keep = torch.ones(n, dtype=torch.bool)
        for (start, stop), removal in zip(turns, removals, strict=True):
            inside = (alive >= start) & (alive < stop)
            image = (inside & visual[alive]).nonzero()[:, 0]
            if removal[number] == 0 or len(image) == 0:
                continue
            text = inside & ~visual[alive] & (torch.arange(n) > image[0])
            strongest = maps.max(0).values
            score = strongest[image].sum(0)[image] / len(image) * strongest[text].sum(0)[image]
            order = sorted(range(len(image)), key=lambda j: (score[j].item(), -j))
            keep[image[order[: removal[number]]]] = False
        hidden = hidden[keep] + attention.o_proj(output[keep])
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        alive = alive[keep]
        per_layer.append(alive)
    return decoder(model).norm(hidden), per_layer


def logits_of(model, counts, turns=None, **inputs):
    """Logits [B, vocab] of every row's last token, and each row's surviving columns per layer.

    ``turns``: per row, the (start, stop) of every pruned prompt, counted in real tokens; default: the whole
    row is one.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    hidden, (cos, sin) = layer_zero_input(model, **inputs)
    rows, survivors = [], []
    for row in range(ids.shape[0]):
        real = torch.ones_like(ids[row], dtype=torch.bool) if mask is None else mask[row].bool()
        prompts = turns[row] if turns else [(0, int(real.sum()))]
        visual = ids[row][real] == IMAGE
        c, s = (x[row % x.shape[0]][real] for x in (cos, sin))
        states, per_layer = forward_row(model, hidden[row][real], c, s, visual, counts, prompts)
        rows.append(model.lm_head(states[-1]))
        survivors.append([real.nonzero()[:, 0][alive].tolist() for alive in per_layer])
    return torch.stack(rows), survivors


@contextmanager
def slow(model, counts, prompt_lengths):
    """Prune ``model`` slowly inside the block; ``prompt_lengths``: real prompt tokens (generated ones are
    not text)."""

    @wraps(type(model).forward.__get__(model))
    def forward(**inputs):
        inputs = {
            k: v
            for k, v in inputs.items()
            if k not in ("return_dict", "logits_to_keep", "use_cache", "past_key_values")
        }
        beams = inputs["input_ids"].shape[0] // len(prompt_lengths)
        turns = [[(0, length)] for length in prompt_lengths for _ in range(beams)]
        return CausalLMOutputWithPast(logits=logits_of(model, counts, turns, **inputs)[0][:, None])

    model.forward = forward
    try:
        yield
    finally:
        del model.forward
