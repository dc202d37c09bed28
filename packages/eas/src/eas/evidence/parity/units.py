"""Golden case: PIA and the plain adapter alone, their running mean, and their dense matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eas.adapters import PIA, Adapter, mean_token
from eas.checkpoints import keys
from eas.folding import affine
from tenfold.ledger.goldens import Comparison


def load(module: Adapter, tensors: Mapping[str, Tensor], prefix: str, official: str) -> None:
    """Fill a module from weights under their official names, all of them and no other."""
    named = {
        f"model.layers.0.{official}.{key.removeprefix(prefix)}": value
        for key, value in tensors.items()
        if key.startswith(prefix)
    }
    weights = {key.split(".", 3)[3]: value for key, value in keys.tensors_from_official(named).items()}
    module.load_state_dict(weights, strict=True)
    module.eval()


def pia_units(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """The LaVIN host's units: token 0 is left out of the router's mean and is part of the global vector's."""
    config = case["config"]
    options = {"groups": config["groups"], "scale": config["scale"], "temperature": config["t"], "dropout": 0.0}
    adapter, pia = Adapter(config["dim"], config["hidden"], **options), PIA(config["dim"], config["hidden"], **options)
    load(adapter, tensors, "weights/ffn.", "adapter_attn")
    load(pia, tensors, "weights/pia.", "replaced_adapter")
    tokens, given = tensors["in/x"], tensors["in/w"]
    batch, length, _ = tokens.shape
    everything = torch.full((batch, length), 1 / length)
    behind = torch.full((batch, length), 1 / (length - 1))
    behind[:, 0] = 0
    mean, mean_behind = mean_token(tokens, everything), mean_token(tokens, behind)

    router, globe = pia.route(mean_behind), pia.globe(mean)
    compare.close("router", router, tensors["out/pia_router"], "units")
    compare.close("adapter", adapter(tokens, adapter.route(mean_behind)), tensors["out/ffn"], "units")
    compare.close("adapter, router given", adapter(tokens, given), tensors["out/ffn_given_w"], "units")
    compare.close("PIA", pia(tokens, router, globe), tensors["out/pia"], "units")
    compare.close("PIA, router given", pia(tokens, given, globe), tensors["out/pia_given_w"], "units")
    # The last tokens alone, with the mean of all: the running mean that a decode step could keep.
    late = tensors["out/pia_running_mean_last2"]
    compare.close("PIA, running mean", pia(tokens[:, -late.shape[1] :], given, globe), late, "units")
    for name, module, state in (("ffn", adapter, ()), ("pia", pia, (globe[0],))):
        one = affine(module, given[0], *state)
        compare.close(f"{name} M", one.matrix(), tensors[f"out/{name}_rep_matrix_b0"], "units")
        compare.close(f"{name} b", one.bias, tensors[f"out/{name}_rep_bias_b0"], "units")
        merged = tokens[:1] @ one.matrix().T + one.bias
        compare.close(f"{name} as one matrix", merged, tensors[f"out/{name}_merged_b0"], "units")
