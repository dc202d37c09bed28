"""A slow DyVTE: one row at a time, full attention maps, no cache, everything recomputed at every step.

It shares no code with the package but the gates' weights. ``slow(model, ...)`` replaces the model's forward, so that
transformers' own ``generate(use_cache=False)`` (greedy, beams) drives it.
"""

from contextlib import contextmanager
from functools import wraps

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from dyvte.gates import GateConfig, Gates
from tenfold.testing.hosts import IMAGE


class _Captured(Exception):
    pass


def decoder(model):
    return getattr(model.model, "language_model", None) or model.model.text_model


def spread_gates(model, seed=0, width=12, **options):
    """Gates whose decisions differ from row to row: random, the exit's logit growing with depth."""
    config = model.config.get_text_config()
    gates = Gates(GateConfig(config.num_hidden_layers, config.hidden_size, width, **options)).initialise(seed)
    with torch.no_grad():
        for gate in gates:
            gate.w2.weight *= 3
    return gates


def layer_zero_input(model, **inputs):
    """Hidden states [B, n, d] and (cos, sin) at the decoder's door, from the host itself."""

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


def forward_row(model, hidden, cos, sin, visual, gates, threshold, turns):
    """One unpadded row [n, d] through all layers; final hidden states, exit per turn, tokens alive per layer."""
    alive = torch.arange(hidden.shape[0])
    per_layer, exits = [alive], [None] * len(turns)
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
        hidden = hidden + attention.o_proj((maps @ value).transpose(0, 1).reshape(n, -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        keep = torch.ones(n, dtype=torch.bool)
        for turn, (start, stop) in enumerate(turns):
            image = [i for i in range(start, stop) if visual[i]]
            if exits[turn] is not None or not image:
                continue
            text = [i for i in range(image[-1] + 1, stop)]
            if len(text) < 2:
                continue
            rows = torch.tensor([int((alive == i).nonzero()) for i in text])
            x = torch.cat((hidden[rows[:-1]].mean(0), hidden[rows[-1]]))
            gate = gates[number]
            keep_logit, exit_logit = gate.w2.weight @ torch.nn.functional.gelu(gate.w1.weight @ x)
            if exit_logit - keep_logit > threshold:
                exits[turn] = number
                for i in image:
                    keep[alive == i] = False
        hidden, alive = hidden[keep], alive[keep]
        per_layer.append(alive)
    return decoder(model).norm(hidden), exits, per_layer


def logits_of(model, gates, threshold=0.0, turns=None, **inputs):
    """Logits [B, vocab] of every row's last token, its exits by turn, and its tokens (columns) per layer.

    ``turns``: per row, the (start, stop) of every prompt, counted in real tokens; default: the whole row is one.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    hidden, (cos, sin) = layer_zero_input(model, **inputs)
    rows, exits, survivors = [], [], []
    for row in range(ids.shape[0]):
        real = torch.ones_like(ids[row], dtype=torch.bool) if mask is None else mask[row].bool()
        prompts = turns[row] if turns else [(0, int(real.sum()))]
        c, s = (x[row % x.shape[0]][real] for x in (cos, sin))
        states, left, per_layer = forward_row(
            model, hidden[row][real], c, s, ids[row][real] == IMAGE, gates, threshold, prompts
        )
        rows.append(model.lm_head(states[-1]))
        exits.append(left)
        survivors.append([real.nonzero()[:, 0][alive].tolist() for alive in per_layer])
    return torch.stack(rows), exits, survivors


@contextmanager
def slow(model, gates, threshold, prompt_lengths):
    """Exit slowly inside the block; ``prompt_lengths``: real prompt tokens (generated ones are no text)."""

    @wraps(type(model).forward.__get__(model))
    def forward(**inputs):
        left_out = ("return_dict", "logits_to_keep", "use_cache", "past_key_values")
        inputs = {name: value for name, value in inputs.items() if name not in left_out}
        beams = inputs["input_ids"].shape[0] // len(prompt_lengths)
        turns = [[(0, length)] for length in prompt_lengths for _ in range(beams)]
        return CausalLMOutputWithPast(logits=logits_of(model, gates, threshold, turns, **inputs)[0][:, None])

    model.forward = forward
    try:
        yield
    finally:
        del model.forward
