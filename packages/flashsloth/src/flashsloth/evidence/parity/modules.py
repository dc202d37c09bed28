"""Golden cases of SAP and EmbQ, with their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flashsloth.embq import EmbeddedQuery
from flashsloth.evidence.parity.common import load_part
from flashsloth.pooling import SpatialAttentionPooling, average_pooling
from tenfold.ledger.goldens import Comparison


def modules(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """Both modules of a case, forward and backward."""
    _sap(case["parts"]["sap"]["config"], tensors, compare)
    _embq(case["parts"]["embq"]["config"], tensors, compare)


def _sap(config: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    sap = SpatialAttentionPooling(config["dim"], config["pool"]).eval()
    load_part(sap, tensors, "model.pooling.")
    x = tensors["in/sap/x"].clone().requires_grad_()
    with torch.enable_grad():
        y = sap(x)
        (y * tensors["in/sap/cotangent"]).sum().backward()
    compare.close("sap", y, tensors["out/sap/y"], "sap")
    compare.close("sap alpha", sap.weights(x), tensors["out/sap/alpha"], "sap")
    compare.close("sap gradient of x", x.grad, tensors["out/sap/grad/x"], "sap")
    for name, parameter in sap.named_parameters():
        if (golden := tensors.get(f"out/sap/grad/{name}")) is not None:
            compare.close(f"sap gradient of {name}", parameter.grad, golden, "sap")
    compare.close("average", average_pooling(x, config["pool"]), tensors["out/sap/y_average"], "sap")
    compare.close("sap, ragged", sap(tensors["in/sap/x_ragged"]), tensors["out/sap/y_ragged"], "sap")
    sap.pool = 2
    compare.close("sap, pool 2", sap(tensors["in/sap/x_pool2"]), tensors["out/sap/y_pool2"], "sap")


def _embq(config: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    embq = EmbeddedQuery(config["hidden"], config["d_model"], config["down"], config["heads"]).eval()
    load_part(embq, tensors, "model.embq.")
    mask = tensors["in/embq/text_mask"].bool()
    query, text, image = (tensors[f"in/embq/{name}"].clone().requires_grad_() for name in ("query", "text", "image"))
    # Each golden row is one round of its own.
    with torch.enable_grad():
        one = {"queries": query[:, None], "text": text[:, None], "patches": image}
        y = embq(**one, text_mask=mask[:, None])
        (y[:, 0] * tensors["in/embq/cotangent"]).sum().backward()
    compare.close("embq", y[:, 0], tensors["out/embq/y"], "embq")
    for name, value in (("query", query), ("text", text), ("image", image)):
        compare.close(f"embq gradient of {name}", value.grad, tensors[f"out/embq/grad/{name}"], "embq")
    for name, parameter in embq.named_parameters():
        if (golden := tensors.get(f"out/embq/grad/{name}")) is not None:
            compare.close(f"embq gradient of {name}", parameter.grad, golden, "embq")
    everything = embq(**one, text_mask=torch.ones_like(mask)[:, None])
    compare.close("embq without mask", everything[:, 0], tensors["out/embq/y_nomask"], "embq")

    read = embq.text_step(query, text, mask)
    compare.close("text step", read, tensors["out/embq/t2q_out"], "embq")
    compare.close("text map", _text_map(embq, query, text, mask), tensors["out/embq/t2q_attn"], "embq")
    for rounds in (1, 4):  # values projected behind the attention, and before it
        seen = embq.image_step(read, image, None, rounds)
        compare.close(f"image step, {rounds} rounds", seen, tensors["out/embq/i2q_out"], "embq")
    looks = embq.image_weights(read, image).mean(dim=1)
    compare.close("image map, mean of heads", looks, tensors["out/embq/i2q_attn_mean"], "embq")


def _text_map(embq: EmbeddedQuery, query: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """The text step's weights ``[rows, heads, K, t]``, which SDPA does not give."""
    layer, down = embq.layer, embq.down_projector_learnable_text
    asked = layer.t2q_attn.q_proj(layer.ln_q(down(query))).unflatten(-1, (embq.heads, -1)).transpose(1, 2)
    words = layer.t2q_attn.k_proj(layer.ln_text(down(text))).unflatten(-1, (embq.heads, -1)).transpose(1, 2)
    scores = asked @ words.transpose(-1, -2) * asked.shape[-1] ** -0.5
    return (scores + torch.where(mask, 1.0, -1e4)[:, None, None]).softmax(dim=-1)
