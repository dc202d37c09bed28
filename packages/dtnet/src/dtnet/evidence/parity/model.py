"""Golden cases: the reference implementation's inputs, weights and outputs, against this package.

A case is a json file that names its ``computation`` and dimensions, with a safetensors file beside it. All
dimensions are read from the case, so that any folder of cases can be checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtnet.beam import beam_search, greedy
from dtnet.cells import LocalCell, build_cell
from dtnet.checkpoints.keys import from_official, import_state, to_official
from dtnet.config import DTNetConfig
from dtnet.encoder import Encoder, EncoderLayer, grid_code
from dtnet.model import DTNet
from dtnet.router import Router
from dtnet.training.stages import scst_loss
from tenfold.ledger.goldens import Comparison, Computation
from tenfold.weights import load_into

Case = Mapping[str, Any]
Tensors = Mapping[str, Tensor]

# The tolerances of the cases as (absolute, relative). Tokens, decisions, texts and counts are compared exactly.
TOLERANCES = {
    "router": (1e-5, 1e-5),
    "cells": (2e-5, 1e-4),
    "positions": (1e-4, 1e-4),
    "encoder_layer": (2e-5, 1e-4),
    "model": (3e-5, 1e-4),
    "gradients": (1e-5, 1e-3),
    "after_adam": (5e-6, 0.0),
    "augmentation": (1e-6, 0.0),
    "metrics": (1e-6, 0.0),
    "lr_schedule": (0.0, 1e-12),
}
LAYER = "encoder.layers.0."


def _router(case: Case, tensors: Tensors, compare: Comparison) -> None:
    sizes = case["config"]
    config = _config({**sizes, "d_model": sizes["dim"], "grid": round(sizes["n"] ** 0.5)})
    for paths in sizes["paths"]:
        name = f"path{paths}"
        router = Router(config, paths)
        state = _below(tensors, f"weights/{name}.", f"{LAYER}spatialrouter.")
        load_into(router, {key.removeprefix(f"{LAYER}spatial_router."): t for key, t in state.items()}, name)
        x = tensors[f"in/x_{name}"]
        compare.close(f"{name} channel", router.channel_logits(x), tensors[f"out/channel_logits_{name}"], "router")
        compare.close(f"{name} spatial", router.spatial_logits(x), tensors[f"out/spatial_logits_{name}"], "router")
        weight = router(x)
        compare.close(f"{name} weights", weight, tensors[f"out/weight_{name}"].flatten(1), "router")
        compare.equal(f"{name} choice", weight.argmax(1), tensors[f"out/weight_{name}"].flatten(1).argmax(1))


def _cells(case: Case, tensors: Tensors, compare: Comparison) -> None:
    config = _config({**case["config"], "d_model": case["config"]["dim"]})
    state: dict[str, Tensor] = {}
    for prefix, whole in {
        **{f"{part}.": f"spatialmultibranch.{part}." for part in ("lp", "smlp")},
        "se.": "channelmultibranch.se.",
        **{f"{part}.": f"{part}." for part in ("mhatt", "pwff", "spatialmultibranch", "channelmultibranch")},
    }.items():
        state |= _below(tensors, f"weights/{prefix}", LAYER + whole)

    def cell(place: str, name: str) -> Any:
        prefix = f"{LAYER}{place}.{name}."
        built = build_cell(name, config).eval()
        own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        if name == "gmc":  # the case stops before the cell's second LayerNorm
            built = cast(Any, built).attention
            own = {key.removeprefix("attention."): tensor for key, tensor in own.items()}
        load_into(built, own, f"cells, {name}")
        return built

    x = tensors["in/x"]
    lmc, amc, gmc = (cell("spatial", name) for name in ("lmc", "amc", "gmc"))
    cac, cpc = cell("channel", "cac"), cell("channel", "cpc")
    bias = tensors["in/relative_pos"].clamp(min=1e-6).log()
    bias = bias.masked_fill(tensors["in/attention_mask"], float("-inf"))
    attention = gmc.multi_head(x, *gmc.project(x), bias)
    mean_map = x.mean(dim=-1).view(tensors["out/lmc_mean_map"].shape)
    for name, ours in {
        "lmc_mean_map": mean_map,
        "lmc_gate_eval": lmc.cell.gate(x),
        "lmc_eval": lmc.cell(x),
        "amc": amc.cell(x),
        "cac": cac.cell(x),
        "cpc": cpc(x),
        "gmc_attention_only": attention,
        "gmc": gmc(x, mask=bias),
        "spatial_stack": torch.stack((lmc(x), amc(x), gmc(x, mask=bias)), dim=1),
        "channel_stack": torch.stack((cac(x), cpc(x)), dim=1),
    }.items():
        compare.close(name, ours, tensors[f"out/{name}"], "cells")
    _train_gate(lmc.cell, x, tensors, compare)


def _train_gate(local: LocalCell, x: Tensor, tensors: Tensors, compare: Comparison) -> None:
    compare.close("lmc_gate_train", local.train().gate(x), tensors["out/lmc_gate_train"], "cells")
    prefix = f"{LAYER}spatial.lmc.cell."
    golden = _below(tensors, "out/lmc_bn_after_train/", f"{LAYER}spatialmultibranch.lp.")
    for name, buffer in golden.items():
        compare.close(f"after training: {name}", local.get_buffer(name.removeprefix(prefix)), buffer, "cells")


def _positions(case: Case, tensors: Tensors, compare: Comparison) -> None:
    table = tensors["out/decoder_sinusoid_table"]
    config = _config({**case["config"], "vocab": 4, "max_len": len(table) - 1, "d_model": table.shape[1]})
    compare.close("grid code", grid_code(config.grid, config.d_in), tensors["out/grid_pe"], "positions")
    encoder = Encoder(config)
    for key, tensor in _below(tensors, "weights/WGs.", "encoder.WGs.").items():
        encoder.get_parameter(key.removeprefix("encoder.")).copy_(tensor)
    rows = encoder.geometry_embedding[tensors["in/relational_rows"]]
    compare.close("geometry embedding", rows, tensors["out/relational_embedding_rows"], "positions")
    compare.close("geometry gate", encoder.geometry_gate(), tensors["out/grid2grid"], "positions")
    model = DTNet(
        _config({**case["config"], "vocab": 4, "max_len": len(table) - 1, "d_model": table.shape[1]}, "sinusoid")
    )
    compare.close("sinusoid", model.decoder.position_embedding.weight, table, "positions")


def _encoder_layer(case: Case, tensors: Tensors, compare: Comparison) -> None:
    layer = EncoderLayer(_config(case["config"])).eval()
    state = _below(tensors, "weights/", LAYER)
    load_into(layer, {key.removeprefix(LAYER): tensor for key, tensor in state.items()}, "encoder_layer")
    x = tensors["in/x"]
    bias = tensors["in/relative_pos"].clamp(min=1e-6).log()[None]
    seen: dict[str, Tensor] = {}
    # "ff" is the projection cell, "sp_att" what the channel cells work on.
    layer.channel["cpc"].register_forward_hook(lambda _, inputs, output: seen.update(sp_att=inputs[0], ff=output))
    layer.spatial["gmc"].register_forward_hook(lambda _, inputs, output: seen.update(sa_att=output))
    output, alpha, beta = layer(x, bias)
    seen |= {"spatial_weight": alpha[..., None, None], "channel_weight": beta[..., None, None], "layer": output}
    for name, ours in seen.items():
        compare.close(name, ours, tensors[f"out/{name}"], "encoder_layer")


def _model_xe(case: Case, tensors: Tensors, compare: Comparison) -> None:
    model = golden_model(case["config"], tensors)
    images, captions = tensors["in/images"], tensors["in/captions"]
    encoded = model.encode(images)
    compare.close("encoder", encoded.memory, tensors["out/enc"], "model")
    mask = torch.zeros_like(tensors["out/enc_mask"]) if encoded.mask is None else ~encoded.mask
    compare.equal("mask", mask, tensors["out/enc_mask"])
    for number in range(model.config.encoder_layers):
        for name, ours in zip(("spatialrouter", "channelrouter"), encoded.paths, strict=True):
            compare.close(f"{name} {number}", ours[:, number], tensors[f"out/path_weight/{number}.{name}"], "model")
    compare.close("log-probs", model(images, captions), tensors["out/log_probs"], "model")
    cache, steps = model.decoder.start(encoded.memory, encoded.mask), []
    for word in captions.unbind(dim=1):
        step, cache = model.decoder.step(word[:, None], cache)
        steps.append(step)
    compare.close("log-probs by steps", torch.cat(steps, dim=1), tensors["out/log_probs_stepwise"], "model")

    _without_dropout(model)
    adam = torch.optim.Adam(_trainable(model), lr=2.5e-5, betas=(0.9, 0.98), eps=1e-8)
    with torch.enable_grad():
        log_probs = model(images, captions)[:, :-1]
        loss = F.nll_loss(log_probs.flatten(0, 1), captions[:, 1:].flatten(), ignore_index=model.config.pad_id)
        loss.backward()
    compare.close("loss", loss, tensors["out/xe_loss_train"], "model")
    _gradients(model, case, tensors, compare)
    without = [to_official(name) for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    compare.equal("parameters without gradient", sorted(without), sorted(case["params_without_gradient"]))
    adam.step()
    parameters = {to_official(name): parameter for name, parameter in model.state_dict().items()}
    for key, golden in tensors.items():
        kind, _, name = key.removeprefix("out/").partition("/")
        if kind == "after_adam":
            # The first step is the rate times the gradient's sign, which rounding decides where it is nearly 0.
            steady = tensors[f"out/grad/{name}"].abs() >= 1e-6
            allowed = torch.where(steady, TOLERANCES["after_adam"][0], 5e-5 + TOLERANCES["after_adam"][0])
            compare.within(f"after Adam: {name}", parameters[name], golden, allowed)
        elif kind == "bn_after_train":
            compare.close(f"after training: {name}", parameters[name], golden, "model")


def _gradients(model: DTNet, case: Case, tensors: Tensors, compare: Comparison) -> None:
    gradients = {to_official(name): parameter.grad for name, parameter in model.named_parameters()}
    for name, norm in case["grad_norms"].items():
        gradient = gradients[name]
        compare.equal(f"gradient of {name}", gradient is None, norm is None)
        if gradient is not None and norm is not None:
            compare.close(f"gradient norm of {name}", gradient.norm(), norm, "gradients")
            if (golden := tensors.get(f"out/grad/{name}")) is not None:
                compare.close(f"gradient of {name}", gradient, golden, "gradients")
    total = torch.stack([gradient.norm() for gradient in gradients.values() if gradient is not None]).norm()
    compare.close("norm of all gradients", total, case["grad_norm_total"], "gradients")


def _beam_search(case: Case, tensors: Tensors, compare: Comparison) -> None:
    model = golden_model(case["config"], tensors)
    images, length = tensors["in/images"], case["config"]["beam_max_len"]
    for key in tensors:
        if key.startswith("out/beam") and key.endswith("_log_probs"):
            size = int(key.removeprefix("out/beam").removesuffix("_log_probs"))
            beams = beam_search(model, images, size, length, out_size=size)
            compare.equal(f"{size} beams, tokens", beams.tokens, tensors[f"out/beam{size}_tokens"])
            compare.close(f"{size} beams, log-probs", beams.log_probs, tensors[key], "model")
            best = beam_search(model, images, size, length, early_stop=True)
            compare.equal(f"{size} beams, stopped early", best.tokens, tensors[f"out/beam{size}_tokens"][:, :1])
        if key.startswith("out/beam") and "_first_image_tokens_len" in key:
            size, short = (int(part) for part in key.removeprefix("out/beam").split("_first_image_tokens_len"))
            _first_image(model, images[:1], size, short, tensors, compare)
    ours = greedy(model, images, length).tokens[:, 0].tolist()
    golden = tensors["out/greedy_tokens"].tolist()
    eos = model.config.eos_id
    compare.equal("greedy", [_until(row, eos) for row in ours], [_until(row, eos) for row in golden])


def _first_image(model: DTNet, image: Tensor, size: int, length: int, tensors: Tensors, compare: Comparison) -> None:
    steps: list[Tensor] = []
    beams = beam_search(model, image, size, length, out_size=size, steps=steps)
    compare.equal(f"{size} beams of one image", beams.tokens, tensors[f"out/beam{size}_first_image_tokens_len{length}"])
    seen = torch.stack([step.expand(-1, size, -1) for step in steps], dim=2)
    golden = tensors[f"out/beam{size}_first_image_all_log_probs_len{length}"]
    compare.close(f"{size} beams, every word", seen, golden, "model")


def _until(row: list[int], eos: int) -> list[int]:
    return row[: row.index(eos) + 1] if eos in row else row


def _scst(case: Case, tensors: Tensors, compare: Comparison) -> None:
    sizes = case["config"]
    model = golden_model(sizes, tensors)
    _without_dropout(model)
    with torch.enable_grad():
        beams = beam_search(model, tensors["in/images"], sizes["beam"], sizes["beam_max_len"], sizes["beam"])
        loss = scst_loss(beams.log_probs, tensors["in/reward"])
        loss.backward()
    compare.equal("tokens", beams.tokens, tensors["out/tokens"])
    compare.close("log-probs", beams.log_probs, tensors["out/log_probs"], "model")
    compare.close("loss", loss, tensors["out/loss"], "model")
    _gradients(model, case, tensors, compare)


def golden_model(sizes: Mapping[str, Any], tensors: Tensors) -> DTNet:
    """The model of a case, in eval mode, with the case's weights, through the same names as a checkpoint's."""
    model = DTNet(_config(sizes))
    weights = {key.removeprefix("weights/"): tensor for key, tensor in tensors.items() if key.startswith("weights/")}
    load_into(model, import_state(weights, "golden weights"), "golden weights")
    return model.eval()


# The cases' names of the dimensions.
_NAMES = {
    **{"h": "heads", "n_enc": "encoder_layers", "n_dec": "decoder_layers", "vocab": "vocabulary_size"},
    **{"pad": "pad_id", "bos": "bos_id", "eos": "eos_id"},
    **{name: name for name in ("grid", "d_in", "d_model", "d_k", "d_v", "d_ff", "max_len", "se_reduction")},
}


def _config(sizes: Mapping[str, Any], init: Any = "official") -> DTNetConfig:
    values = {_NAMES[name]: value for name, value in sizes.items() if name in _NAMES}
    return DTNetConfig(**values, router_reductions=(sizes.get("r1", 7), sizes.get("r2", 16)), init=init)


def _below(tensors: Tensors, prefix: str, official: str) -> dict[str, Tensor]:
    """Tensors whose name starts with `prefix`, under this package's name of `official` and what follows."""
    return {
        from_official(official + key.removeprefix(prefix)): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }


def _without_dropout(model: nn.Module) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


COMPUTATIONS: dict[str, Computation] = {
    "router": _router,
    "cells": _cells,
    "positions": _positions,
    "encoder_layer": _encoder_layer,
    "model_xe": _model_xe,
    "beam_search": _beam_search,
    "scst": _scst,
}
