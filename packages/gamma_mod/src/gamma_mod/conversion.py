"""Turning a model's decoder layers into mixture-of-depths layers, in place.

    gamma_mod.convert(model, layers=gamma_mod.select_layers(ranks), routing_ratio=0.5)
    loss = model(**inputs, labels=labels).loss      # training: language model + lambda * sum of auxiliary losses
    model.eval().generate(**inputs)                 # inference: tokens below the threshold are skipped

The host's modules and their names stay; its decoder gets one more, ``router``, shared by all converted layers. Any
transformers model whose decoder is a stack of pre-norm blocks with rotary positions can be converted, by itself or
inside a vision-language model; `Conversion.remove` undoes it exactly.

In training the model's own placeholders and ``labels`` say which tokens may be skipped; ``routable=[batch, tokens]``,
one more argument of the model's forward, says it instead, and has to where prompts come as ``inputs_embeds``.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gamma_mod.config import GammaModConfig
from gamma_mod.forward_pass import ForwardPass, open_pass
from gamma_mod.layer import Positions
from gamma_mod.placement import place
from gamma_mod.routed import RoutedLayer
from gamma_mod.routing import Router
from gamma_mod.storage import write_beside, write_card
from tenfold import UserError
from tenfold.hosts import structure
from tenfold.hosts.attached import join, leave, refuse_beside

logger = logging.getLogger(__name__)

NAME = "gamma-MoD"
ATTENTIONS = ("eager", "sdpa")
# What save_pretrained(push_to_hub=True) hands on.
_HUB = {"repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr"}
# The pass that this thread is in: state belongs to a call, never to a module that two calls share.
_RUNNING: ContextVar[tuple[Conversion, ForwardPass, Any] | None] = ContextVar("gamma_mod_pass", default=None)


def convert(
    model: nn.Module,
    layers: Sequence[int] | str = "arank_mod",
    routing_ratio: float = 0.5,
    protect: str = "question",
    *,
    seed: int = 0,
    **knobs: Any,
) -> nn.Module:
    """Convert a model in place.

    Args:
        model: a transformers model, possibly under PEFT adapters.
        layers: the layers to convert, counted from 0 (`gamma_mod.select_layers`), or the name of a placement
            (`gamma_mod.place`).
        routing_ratio: share of the routable tokens that training skips.
        protect: what training may not skip; "question" is the paper's, "question+answer" the released code's.
        seed: of the router's initial weights.
        knobs: the other attributes of `GammaModConfig`.

    Returns:
        The same model; ``model.gamma_mod`` is its `Conversion`.

    Raises:
        UserError: a knob out of range, or a host whose structure cannot be served, with the reason.
    """
    host = structure.unwrap(model)
    if isinstance(layers, str):
        layers = place(layers, len(structure.decoder_layers(host)))
    config = GammaModConfig(tuple(layers), routing_ratio, protect, **knobs)
    Conversion(host, config).router.initialise(seed, config.initialisation)
    return model


class Conversion:
    """What `convert` leaves in a model, as ``model.gamma_mod``.

    Attributes:
        config: the knobs; thresholds may be changed at any time (`gamma_mod.calibrate`), layers not.
        hidden: width of the tokens.
    """

    def __init__(self, model: Any, config: GammaModConfig) -> None:
        layers = structure.decoder_layers(model)
        name = type(model).__name__
        if hasattr(model, "gamma_mod"):
            raise UserError("this model is already converted", name, "model.gamma_mod.remove() first")
        refuse_beside(
            model, NAME, reason="a host by itself: its layers pass tokens by, which no other method here counts"
        )
        if config.layers[-1] >= len(layers):
            raise UserError(f"layer {config.layers[-1]}", name, f"0 to {len(layers) - 1}")
        self.text_config = model.config.get_text_config()
        self.hidden: int = self.text_config.hidden_size
        self._model, self.config, self.name = model, config, name
        self._check_attention()
        for number in config.layers:
            _refuse_block(layers[number], number)
        self.decoder = next(module for module in model.modules() if layers in module.children())
        self.positions = Positions(self.decoder, self.text_config, config.positions)
        self._parameters = list(inspect.signature(model.forward).parameters)
        norm: Any = layers[config.layers[0]].input_layernorm
        weight, device = norm.weight, norm.weight.device
        if device.type == "meta" and hasattr(norm, "_hf_hook"):  # offloaded: its weights come when it is called
            device = torch.device(getattr(norm._hf_hook, "execution_device", None) or "cpu")
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        router = Router(self.hidden, 1 if config.shared_router else len(config.layers))
        self.decoder.add_module("router", router.to(device=device, dtype=dtype))
        self._routed = [RoutedLayer(self, index, number, layers[number]) for index, number in enumerate(config.layers)]
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, with_kwargs=True, always_call=True),
        ]
        self._save = model.save_pretrained if hasattr(model, "save_pretrained") else None
        if self._save is not None:
            model.save_pretrained = self.save_pretrained
        model.gamma_mod = self
        join(model, NAME)

    @property
    def router(self) -> Router:
        """The router; looked up by name, so that one wrapped by an adapter is found."""
        return self.decoder.router

    @property
    def attention(self) -> str:
        """The host's attention implementation."""
        return self.text_config._attn_implementation

    def running(self) -> ForwardPass:
        """The pass that this thread is in.

        Raises:
            UserError: there is none: a part of the model was called by itself.
        """
        running = _RUNNING.get()
        if running is None or running[0] is not self:
            raise UserError("a converted layer outside its model's forward", self.name, "a call of the whole model")
        return running[1]

    def configure(self, **knobs: Any) -> None:
        """Change knobs of a converted model.

        Raises:
            UserError: a value out of range, or a knob that is fixed with the conversion.
        """
        fixed = sorted({"layers", "shared_router", "router", "positions"} & knobs.keys())
        if fixed:
            raise UserError(f"{fixed[0]} of a converted model", self.name, "remove(), then convert() again")
        self.config = self.config.changed(**knobs)

    def remove(self) -> None:
        """Undo the conversion: modules, hooks and methods are as before; the router is gone."""
        leave(self._model, NAME)
        for handle in self._handles:
            handle.remove()
        for routed in self._routed:
            routed.remove()
        if self._save is not None:
            del self._model.save_pretrained
        del self.decoder.router
        del self._model.gamma_mod

    def save_pretrained(self, folder: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's own ``save_pretrained``, with the conversion's two files and a model card beside the weights."""
        push = kwargs.pop("push_to_hub", False)
        hub = {name: kwargs.pop(name) for name in _HUB & kwargs.keys()} if push else {}
        saved = self._save(folder, *args, **kwargs)  # type: ignore[misc]
        state = kwargs.get("state_dict") or {}
        weight = next((state[key] for key in state if key.endswith("router.weight")), self.router.weight)
        if kwargs.get("is_main_process", True):
            write_beside(folder, self.config, weight.detach(), len(structure.decoder_layers(self._model)))
            write_card(folder, self.config, getattr(self._model.config, "_name_or_path", None))
            if push:  # the library uploads before it returns: these two files would come too late
                self._model.push_to_hub(**({"repo_id": Path(folder).name} | hub))
        return saved

    def _check_attention(self) -> None:
        if self.attention not in ATTENTIONS:
            raise UserError(
                f"attention implementation {self.attention!r}",
                self.name,
                "sdpa, which runs the same fused kernels, or eager",
            )

    def _begin(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self._check_attention()
        routable = kwargs.get("routable")
        kwargs = {name: value for name, value in kwargs.items() if name != "routable"}
        inputs = dict(zip(self._parameters, args, strict=False)) | kwargs
        _RUNNING.set((self, open_pass(model, self.config, inputs, routable), _RUNNING.get()))
        return args, kwargs

    def _end(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        running = _RUNNING.get()
        if running is None or running[0] is not self:
            return output
        _RUNNING.set(running[2])
        if output is None or not running[1].auxiliary:
            return output
        # Section 3.5: the sum over layers, not their mean.
        auxiliary = torch.stack([loss.to(running[1].auxiliary[0].device) for loss in running[1].auxiliary]).sum()
        added = self.config.aux_coefficient * running[1].share * auxiliary
        if isinstance(output, tuple):
            labels = kwargs.get("labels") is not None
            return (output[0] + added.to(output[0].device), *output[1:]) if labels else output
        output.auxiliary_loss = auxiliary
        if getattr(output, "loss", None) is not None:
            output.loss = output.loss + added.to(output.loss.device)
        return output


def _refuse_block(block: nn.Module, number: int) -> None:
    if not structure.is_plain_pre_norm(block):
        raise UserError(
            f"layer {number} is no plain pre-norm block",
            type(block).__name__,
            "x += attention(norm(x)); x += mlp(norm(x)): the router reads the normalised input",
        )


def train_only(model: nn.Module, what: str = "all") -> None:
    """Choose what trains: "all" parameters (the paper), or the "router" alone.

    Raises:
        UserError: an unknown choice, or a model that is not converted.
    """
    host = structure.unwrap(model)
    conversion: Conversion | None = getattr(host, "gamma_mod", None)
    if conversion is None:
        raise UserError("a model that is not converted", type(host).__name__, "convert() first")
    if what not in ("all", "router"):
        raise UserError(f"trainable {what!r}", type(host).__name__, "all or router")
    if what == "router":
        logger.warning("only the router is trained, which users found unstable: watch the realised skip")
    for parameter in host.parameters():
        parameter.requires_grad_(what == "all")
    for parameter in conversion.router.parameters():
        parameter.requires_grad_(True)
