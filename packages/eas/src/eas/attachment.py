"""EAS at work inside a running transformers model: the two kinds of block, and where a prompt's state lives.

    kept      x <- x + MHA(Adp(norm1(x)));   x <- x + FFN(norm2(x))
    skipped   y  = x + FFN(gamma2 * PIA(norm1(x)))

A skipped block has one residual and drops its second norm, whose gain gamma2 stays: the FFN sees inputs of the scale
that it was trained on, and PIA can fold into it.

Router weights w and global vector g are means over a prompt. They are computed in its prefill and frozen: they live on
the KV cache, which has one slot for each attention that is left, so that beams, several threads and several caches do
not meet. What a forward needs to know of its prompt travels in a keyword argument through the host's own layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eas.adapters import PIA, Adapter, mean_token
from eas.plan import Plan
from tenfold import UserError
from tenfold.hosts.attached import join, leave, present, refuse_beside
from tenfold.hosts.ragged import cache_name, kv_cache
from tenfold.hosts.structure import decoder_layers, is_plain_pre_norm, unwrap

NAME = "EAS"
CALL = "eas_call"  # the keyword argument that layers receive
STATE = "eas_state"  # the attribute of a KV cache
Means = Literal["prompt", "all"]


@dataclass(frozen=True)
class Call:
    """What one forward of the model tells its layers.

    Attributes:
        weights: ``[batch, tokens]`` float32, of sum one in every row: the positions that means run over. None where
            the cache holds the prompt's state already.
    """

    weights: Tensor | None


@dataclass
class PromptState:
    """What a prompt leaves for its decoding, by layer: ``router [batch, 2]`` and ``globe [batch, rank]``."""

    router: dict[int, Tensor] = field(default_factory=dict)
    globe: dict[int, Tensor] = field(default_factory=dict)


class Attachment:
    """Adapters and PIAs at work in one model, from construction to `detach`.

    Args:
        adapters, pias: modules by layer number. A layer may have both (the search); `skip` says which is used.
        means: "prompt" (positions before the first label; without labels, all that are no padding) or "all"
            positions, padding and answers included, as the authors' search scores its subnets.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        adapters: dict[int, Adapter],
        pias: dict[int, PIA],
        means: Means = "prompt",
    ) -> None:
        self.model = unwrap(model)
        self.plan, self.means = plan, means
        # [batch, prompt tokens] bool, set by `Skipper.prompt`: of the thread that set it alone.
        self.prompt: ContextVar[Tensor | None] = ContextVar("eas_prompt", default=None)
        self.folded: Any = None  # the cache of the one prompt that is folded, set by `Skipper.folded`
        modules = decoder_layers(self.model)
        name = type(self.model).__name__
        if plan.layers != len(modules):
            raise UserError(f"a plan for {plan.layers} layers", name, f"{len(modules)} layers")
        for number, module in enumerate(modules):
            _refuse(module, number, name)
        refuse_beside(self.model, NAME, reason="EAS attached first: its blocks stand in the place of the host's")
        self._parameters = list(inspect.signature(self.model.forward).parameters)
        self.layers = [
            AttachedLayer(self, number, module, adapters.get(number), pias.get(number))
            for number, module in enumerate(modules)
        ]
        self.set_skip(plan.skip)
        self._handle = self.model.register_forward_pre_hook(self._begin, with_kwargs=True)
        join(self.model, NAME)

    def set_skip(self, skip: tuple[int, ...]) -> None:
        """Skip these attentions from the next forward on; those that stay get consecutive cache slots."""
        slot = 0
        for layer in self.layers:
            layer.skipped = layer.number in skip
            if layer.skipped and layer.pia is None:
                raise UserError(f"layer {layer.number} has no PIA", "the plan", "a plan that skips it")
            if layer.skipped:
                layer.module.self_attn.layer_idx = None  # it has none, for who else counts caches
            else:
                layer.module.self_attn.layer_idx = slot
                slot += 1
        self.slots = slot

    def detach(self) -> None:
        """Restore the model: attributes, hooks and cache slots are exactly as before."""
        leave(self.model, NAME)
        self._handle.remove()
        for layer in self.layers:
            layer.detach()
        self.layers = []

    def _begin(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        inputs = dict(zip(self._parameters, args, strict=False)) | kwargs
        sequence = inputs.get("inputs_embeds") if inputs.get("input_ids") is None else inputs["input_ids"]
        if sequence is None:
            raise UserError("forward without input_ids or inputs_embeds", type(model).__name__, "one of them")
        batch, length = sequence.shape[:2]
        cache = kv_cache(inputs)
        state = None if cache is None else getattr(cache, STATE, None)
        past = 0 if cache is None else int(cache.get_seq_length())
        if self.folded is not None and cache is not self.folded:
            raise UserError("another prompt is folded into the model", type(model).__name__, "leave folded() first")
        if past and state is None:
            raise UserError("a cache without this prompt's state", type(model).__name__, "a cache made while attached")
        if cache is not None and not past:  # new, or emptied for another prompt
            setattr(cache, STATE, PromptState())
        weights = None if past else self._weights(inputs, batch, length, sequence.device)
        return args, {**kwargs, CALL: Call(weights)}

    def _weights(self, inputs: dict[str, Any], batch: int, length: int, device: torch.device) -> Tensor:
        if self.means == "all":
            return torch.full((batch, length), 1 / length, device=device)
        chosen = _real(inputs.get("attention_mask"), batch, length, device)
        labels = inputs.get("labels")
        if (mask := self.prompt.get()) is not None:
            prompt = mask.to(device)
            if prompt.shape[1] > length or batch % prompt.shape[0]:
                raise UserError(f"a prompt mask {list(prompt.shape)}", "this forward", f"[{batch}, up to {length}]")
            prompt = prompt.repeat_interleave(batch // prompt.shape[0], dim=0)
            chosen = chosen & nn.functional.pad(prompt, (0, length - prompt.shape[1]))
        elif labels is not None:
            chosen = chosen & ((labels != -100).cumsum(1) == 0).to(device)
        weights = chosen.float()
        return weights / weights.sum(1, keepdim=True).clamp_min(1)


class AttachedLayer:
    """One decoder layer of an attached model."""

    def __init__(
        self, attachment: Attachment, number: int, module: nn.Module, adapter: Adapter | None, pia: PIA | None
    ) -> None:
        self.attachment, self.number = attachment, number
        self.module: Any = module  # a host's own class, whose parts `_refuse` has checked
        self.adapter, self.pia = adapter, pia
        self.skipped = False
        self.folded = False  # set by `Skipper.folded`: the module is in the matrices behind it
        attention: Any = self.module.self_attn
        self._own_slot = attention.layer_idx
        self._names = list(inspect.signature(inspect.unwrap(type(module).forward)).parameters)[2:]
        self._cache_name = cache_name(type(module).forward)
        for name, part in (("eas_adapter", adapter), ("eas_pia", pia)):
            if part is not None:  # a part of the model: its parameters, state_dict, device and mode
                module.add_module(name, part)
        # accelerate keeps the layer's own forward aside and moves its inputs to the right device first.
        self._place = "_old_forward" if hasattr(module, "_old_forward") else "forward"
        self._previous = vars(module).get(self._place)
        setattr(module, self._place, self.forward)

    def detach(self) -> None:
        for name in ("eas_adapter", "eas_pia"):
            if name in self.module._modules:
                delattr(self.module, name)
        self.module.self_attn.layer_idx = self._own_slot
        if self._previous is None:
            delattr(self.module, self._place)
        else:
            setattr(self.module, self._place, self._previous)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs = dict(zip(self._names, args, strict=False)) | kwargs
        call = kwargs.pop(CALL, None)
        if call is None:
            name = type(self.attachment.model).__name__
            raise UserError("this host hands no arguments to its layers", name, "a forward of the whole model")
        module = self.module
        if getattr(module, "gradient_checkpointing", False) and module.training:
            # As transformers checkpoints a layer, with the same block: the authors' code runs another formula here.
            kwargs = {**kwargs, self._cache_name: None, "use_cache": False}
            return module._gradient_checkpointing_func(partial(self._block, call=call, **kwargs), hidden_states)
        return self._block(hidden_states, call=call, **kwargs)

    def _block(self, hidden_states: Tensor, *, call: Call, **kwargs: Any) -> Tensor:
        module = self.module
        cache = kv_cache(kwargs)
        if self.number == 0 and cache is not None:
            _trim(cache, self.attachment.slots)
        tokens = module.input_layernorm(hidden_states)
        if self.folded and self.skipped:
            return hidden_states + module.mlp(tokens)
        part: Adapter | None = None if self.folded else self.pia if self.skipped else self.adapter
        if part is not None:
            tokens = part(tokens, *self._state(part, tokens, call, cache))
        if self.skipped:
            return hidden_states + module.mlp(module.post_attention_layernorm.weight * tokens)
        hidden_states = hidden_states + module.self_attn(hidden_states=tokens, **kwargs)[0]
        return hidden_states + module.mlp(module.post_attention_layernorm(hidden_states))

    def _state(self, part: Adapter, tokens: Tensor, call: Call, cache: Any) -> tuple[Tensor, ...]:
        """w and, for a PIA, g of every row: of this prompt, or as its prefill left them."""
        state: PromptState | None = None if cache is None else getattr(cache, STATE, None)
        if state is None and cache is not None:  # made inside the model, in this very pass
            state = PromptState()
            setattr(cache, STATE, state)
        if call.weights is None:
            assert state is not None
            if self.number not in (state.globe if isinstance(part, PIA) else state.router):
                raise UserError("this cache was made with another skip list", f"layer {self.number}", "a new cache")
            router = state.router[self.number]
            return (router, state.globe[self.number]) if isinstance(part, PIA) else (router,)
        mean = mean_token(tokens, _weights_left(call.weights.to(tokens.device)))
        router = part.route(mean)
        if state is not None:
            state.router[self.number] = router
        if not isinstance(part, PIA):
            return (router,)
        globe = part.globe(mean)
        if state is not None:
            state.globe[self.number] = globe
        return router, globe


def _weights_left(weights: Tensor) -> Tensor:
    """Of the tokens that another method has left, of sum one again; ``[batch, tokens]``."""
    tokens = present.get()
    if tokens is None:
        return weights
    left = weights.gather(1, tokens.index.to(weights.device)) * tokens.real.to(weights.device)
    return left / left.sum(1, keepdim=True).clamp_min(torch.finfo(left.dtype).tiny)


def _trim(cache: Any, slots: int) -> None:
    """Take the slots of skipped attentions, which nothing will fill, out of a cache."""
    layers = getattr(cache, "layers", None)
    if layers is None:  # an encoder-decoder cache or a user's own
        raise UserError("this kind of KV cache", type(cache).__name__, "a transformers cache of layers")
    if len(layers) > slots and not any(layer.is_initialized for layer in layers[slots:]):
        del layers[slots:]


def _real(mask: Any, batch: int, length: int, device: torch.device) -> Tensor:
    """Which positions of a prefill are no padding, ``[batch, tokens]`` bool."""
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask[:, -length:].bool().to(device)
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if isinstance(mask, Tensor) and mask.ndim == 4:  # as generate() prepares for a static cache: the last row sees all
        last = mask[:, 0, -1, :length]
        return (last if last.dtype == torch.bool else last >= 0).expand(batch, length).to(device)
    raise UserError("an attention mask that is not [batch, tokens]", "this forward", "the two-dimensional padding mask")


def _refuse(module: nn.Module, number: int, name: str) -> None:
    if hasattr(module, "eas_adapter") or hasattr(module, "eas_pia"):
        raise UserError("this model is already attached", name, "one plan at a time")
    norm: Callable[..., Any] | None = getattr(module, "post_attention_layernorm", None)
    gain = getattr(norm, "weight", None)
    if not is_plain_pre_norm(module) or gain is None or getattr(norm, "bias", None) is not None:
        raise UserError(
            f"block {number} is no plain pre-norm block", name, "norm, attention, norm, mlp; gains, no shifts"
        )
    if gain.device.type == "meta" and hasattr(norm, "_hf_hook"):  # a skipped block reads its gain without a forward
        raise UserError(f"block {number} is offloaded", name, "a device_map that keeps the decoder's layers on devices")
    if gain.device.type == "meta" or number:
        return
    with torch.no_grad():  # a norm of another form (1 + weight) would need its gain elsewhere
        ones = torch.ones(1, gain.numel(), dtype=gain.dtype, device=gain.device)
        if not torch.allclose(norm(ones)[0].float(), gain.float(), rtol=1e-2, atol=1e-3):  # type: ignore[misc]
            raise UserError("the second norm is no RMSNorm with a plain gain", name, "gamma * x / rms(x)")
