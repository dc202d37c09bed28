"""Removing tokens inside a running model: what happens in each decoder layer while a selection is attached.

A selection (the pruner's recipe, or the statistics and thresholds of the recipe search) sees the queries
and keys of a layer through a function registered with transformers' attention interface, and answers with
the tokens to remove. Removal takes effect after the attention product and before ``o_proj``, so every token
of the layer's input still serves as key and value there, and is cached there, while ``o_proj``, the MLP and
all deeper layers run on the survivors only. Where a block is not the plain pre-norm kind, tokens leave at
the layer's output instead: the same numbers for the survivors, at slightly higher cost.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from fitprune.host import CACHE_STATE, refuse_input
from fitprune.rules import Observation
from tenfold import UserError
from tenfold.hosts import attached, structure
from tenfold.hosts.ragged import (
    RaggedCache,
    Reading,
    Tokens,
    cache_length,
    kv_cache,
    layer_mask,
    read_prompt,
    take,
)
from tenfold.hosts.structure import is_plain_pre_norm

ATTENTION, NAME = "fitprune", "FitPrune"


_serial = itertools.count()


class Selection(ABC):
    """Decides which tokens leave. Counts stay on the host, so that no layer waits for the device.

    Attributes:
        at_output: tokens leave at the layer's output even where they could leave before ``o_proj``.
    """

    at_output = False

    def before(self, tokens: Tokens) -> tuple[Tensor, tuple[int, ...]] | None:
        """Tokens that never enter layer 0, in the form of `remove`; by default all do."""
        return None

    def active(self, layer: int, tokens: Tokens) -> bool:
        """Whether this layer's queries and keys are to be looked at; by default every layer's."""
        return True

    @abstractmethod
    def remove(self, seen: Observation) -> tuple[Tensor, tuple[int, ...]] | None:
        """Choose what leaves inside a layer, from what its attention was given.

        Returns:
            The tokens to remove, ``[batch, width]`` bool, and their number per row; None to keep all.
        """


def observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention function of an attached layer: the host's own, with an observer of query and key beside
    it."""
    layer: Any = module._fitprune
    output = layer.attention_function()(module, query, key, value, attention_mask, **kwargs)
    if layer.turn is not None:
        layer.turn = layer.turn.observed(layer, query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5)
    return output


AttentionInterface.register(ATTENTION, observed_attention)


class Attachment:
    """A selection at work in one model, from construction to ``detach``.

    Attributes:
        entering: for the last pass that held an image, the tokens at the input of every layer and after the
            last one.
    """

    def __init__(self, model: Any, selection: Selection, visual_mask: Tensor | None = None) -> None:
        self.model = structure.unwrap(model)
        self.selection = selection
        self.visual_mask = visual_mask
        self.prompt: Tokens | None = None
        self.entering: list[Tokens] = []
        self.running: Pass | None = None
        self.text_config = self.model.config.get_text_config()
        self.serial = next(_serial)
        modules = structure.decoder_layers(self.model)
        if any(hasattr(module.self_attn, "_fitprune") for module in modules):
            raise UserError("this model is already being pruned", type(self.model).__name__, "one attachment at a time")
        attached.refuse_beside(
            self.model, NAME, after=("EAS",), reason="FitPrune attached first, or after EAS: it goes into layers"
        )
        if not all(hasattr(module.self_attn, "o_proj") for module in modules):
            raise UserError(
                "a decoder layer without o_proj", type(self.model).__name__, "self_attn.o_proj in all of them"
            )
        self.around = bool(attached.attached(self.model))
        self._parameters = list(inspect.signature(self.model.forward).parameters)
        self.layers = [Layer(self, number, module) for number, module in enumerate(modules)]
        self._handles = [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end, always_call=True),
        ]
        attached.join(self.model, NAME)

    def detach(self) -> None:
        """Restore the model: attributes, hooks and configuration are exactly as before."""
        attached.leave(self.model, NAME)
        for handle in self._handles:
            handle.remove()
        for layer in self.layers:
            layer.detach()
        self.layers, self._handles = [], []

    def _begin(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs = dict(zip(self._parameters, args, strict=False)) | kwargs
        slots = [slot for layer in self.layers if (slot := layer.slot) is not None]
        refuse_input(model, inputs, self.text_config._attn_implementation, self.serial, slots)
        sequence = inputs.get("inputs_embeds") if inputs.get("input_ids") is None else inputs["input_ids"]
        if sequence is None:
            raise UserError("forward without input_ids or inputs_embeds", type(model).__name__, "one of them")
        batch, length = sequence.shape[:2]
        mask = inputs.get("attention_mask")
        past = cache_length(kv_cache(inputs), 0)
        attached.present.set(None)
        if length == 1 and past:  # one generated token: nothing to remove, and no reason to ask the device
            self.running = Pass(past, Reading(None, None, None))
            return
        reading = read_prompt(attached.visual_of_pass(self.model, inputs, self.visual_mask, batch, length), mask, past)
        self.running = Pass(past, reading)
        if (prompt := reading.tokens) is None:
            return
        if prompt.pad_end and inputs.get("logits_to_keep") == 1:
            raise UserError(
                "right padding under generate", type(model).__name__, "left padding: the last column is read"
            )
        self.prompt = prompt
        self.entering = [prompt]

    def _end(self, *_: Any) -> None:
        self.running = None
        attached.present.set(None)


class Pass:
    """One forward of the attached model.

    Attributes:
        past: entries in layer 0's cache before this pass, which is never pruned.
        prompt: the tokens before layer 0, or None in a pass without an image (decoding, a later turn of
            text).
        tokens: the tokens at the present layer's input; ``prompt`` until a layer removes some.
        real: ``[batch, tokens]`` bool of the pass's input, None without padding.
    """

    def __init__(self, past: int, reading: Reading) -> None:
        self.past = past
        self.prompt: Any = reading.tokens
        self.tokens: Any = reading.tokens
        self.real = reading.real
        self._past_real = reading.past_real
        self._compacted: dict[str, Any] | None = None  # positions of the present tokens, gathered once per removal
        self._mask: Tensor | None = None
        self._seen: Tokens | None = None  # in `present`

    def look(self) -> bool:
        """Take note of tokens that another method has let leave; whether it has."""
        left = None if self.tokens is None else attached.left_by_another(self.prompt, self._seen)
        if left is None:
            return False
        self.tokens, self._seen = left, attached.present.get()
        self._compacted = self._mask = None
        return True

    def cache_state(self, cache: Any, owner: Attachment) -> RaggedCache | None:
        """The bookkeeping of this cache; made by the first pass that holds an image."""
        state = getattr(cache, CACHE_STATE, None)
        if cache is not None and state is None and self.tokens is not None:
            layers = len(owner.layers)
            lengths = [cache_length(cache, slot) for slot in range(layers)]
            state = RaggedCache(owner.serial, lengths, [self._past_real] * layers, [False] * layers)
            setattr(cache, CACHE_STATE, state)
        return state

    def on(self, device: torch.device) -> Tokens:
        """The present tokens, moved to the device of the layer that asks."""
        moved = self.tokens.to(device)
        if moved is not self.tokens:
            if self.tokens is self.prompt:
                self.prompt = moved
            self.tokens, self._compacted, self._mask = moved, None, None
        return self.tokens

    def remove(self, removed: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Take tokens out of the pass; returns ``[batch, kept]`` int64, the columns that survive."""
        self.tokens, select = self.tokens.without(removed, counts)
        self._compacted = self._mask = None
        self._seen = self.tokens
        attached.present.set(self.tokens)
        return select

    def compact(
        self, kwargs: dict[str, Any], real: Tensor | None, past: int, like: Tensor, implementation: str
    ) -> dict:
        """A layer's arguments for the tokens that are left: positions gathered, mask made for its own keys.

        Args:
            kwargs: the layer's arguments for the unpruned prompt.
            real: ``[batch, past + tokens]`` bool, None without padding.
            past: entries in this layer's cache.
            like: ``[batch, tokens, width]``, the layer's input.
        """
        tokens, new = self.tokens, like.shape[1]
        kwargs = dict(kwargs)
        if self._compacted is None and tokens is not self.prompt:
            self._compacted = attached.gather_positions(kwargs, tokens.index, self.prompt.width)
        if tokens is not self.prompt:
            kwargs.update(self._compacted or {})
        mask = self._mask
        if mask is None or past:  # with a past, two layers of one width can hide different entries
            mask = layer_mask(implementation, new, past + new, real, dtype=like.dtype, device=like.device)
            self._mask = mask
        kwargs["attention_mask"] = mask
        return kwargs


@dataclass(frozen=True)
class Turn:
    """One layer's turn in a pass, while its selection looks at it: the one value that its callbacks hand on.

    Attributes:
        running: the pass.
        real_keys: ``[batch, keys]`` bool, None without padding.
        survivors: ``[batch, kept]`` int64, the columns that stay, once the selection has chosen; None: all stay.
    """

    running: Pass
    real_keys: Tensor | None
    survivors: Tensor | None = None

    def observed(self, layer: Layer, query: Tensor, key: Tensor, scaling: float) -> Turn:
        """The turn after the selection has seen the layer's queries and keys, after rotary embedding."""
        seen = Observation(layer.number, self.running.tokens, query, key, scaling, self.real_keys)
        answer = layer.attachment.selection.remove(seen)
        if answer is None or not any(answer[1]):
            return self
        return replace(self, survivors=self.running.remove(*answer))

    def take(self, states: Tensor) -> Tensor:
        """The rows of ``states [batch, tokens, width]`` that stay."""
        return states if self.survivors is None else take(states, self.survivors)


class Layer:
    """One decoder layer of an attached model.

    Attributes:
        turn: set while the layer runs and its selection looks; None in between.
    """

    def __init__(self, attachment: Attachment, number: int, module: Any) -> None:
        self.attachment = attachment
        self.number = number
        self.module = module
        self.attention = module.self_attn
        self.config = module.self_attn.config
        # Where another method has its own block in the host's place, that one runs whole.
        self.drops_before_projection = (
            is_plain_pre_norm(module) and not attachment.selection.at_output and not attachment.around
        )
        self.turn: Turn | None = None
        self._names = list(inspect.signature(inspect.unwrap(type(module).forward)).parameters)[1:]
        # accelerate keeps the layer's own forward aside and moves its inputs to the right device first.
        self._slot = "_old_forward" if hasattr(module, "_old_forward") else "forward"
        self._previous = vars(module).get(self._slot)
        self.original: Callable[..., Any] = getattr(module, self._slot)
        setattr(module, self._slot, self.forward)
        config = copy.copy(self.config)
        config._attn_implementation_internal = ATTENTION
        self.attention.config = config
        self.attention._fitprune = self
        self._handle = self.attention.o_proj.register_forward_pre_hook(self._before_projection)

    def detach(self) -> None:
        self._handle.remove()
        self.attention.config = self.config
        del self.attention._fitprune
        if self._previous is None:
            delattr(self.module, self._slot)
        else:
            setattr(self.module, self._slot, self._previous)

    @property
    def slot(self) -> int | None:
        """Its place in the cache; None where another method leaves its attention out."""
        return getattr(self.attention, "layer_idx", self.number)

    def attention_function(self) -> Callable[..., Any]:
        implementation = self.config._attn_implementation
        if implementation == "eager":
            return sys.modules[type(self.attention).__module__].eager_attention_forward
        return AttentionInterface()[implementation]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        owner, running = self.attachment, self.attachment.running
        if running is None:
            raise UserError(
                "decoder layers were called outside the attached model",
                type(owner.model).__name__,
                "calls of the model that the pruner was attached to",
            )
        kwargs = dict(zip(self._names[1:], args, strict=False)) | kwargs
        cache = kv_cache(kwargs)
        state = running.cache_state(cache, owner)
        if running.tokens is None and state is None:
            return self.original(hidden_states, **kwargs)  # no image, in a cache that was never pruned

        if running.look():
            owner.entering[-1] = running.tokens
        tokens = running.tokens
        if tokens is not None:  # layers of one model may live on several devices
            tokens = running.on(hidden_states.device)
            if self.number == 0 and (answer := owner.selection.before(tokens)) is not None:
                hidden_states = take(hidden_states, running.remove(*answer))
                tokens = running.tokens
                owner.entering = [tokens]
            real = tokens.real if tokens.padded else None
        else:
            real = running.real
        if (slot := self.slot) is None:
            return self._without_attention(hidden_states, kwargs, tokens)
        past = cache_length(cache, slot)
        pruned = tokens is not running.prompt
        if state is not None:
            state.cut |= pruned and self.number == 0
            real = state.extend(slot, real, hidden_states.shape[:2], pruned)
            pruned = state.pruned[slot]
        if pruned:
            kwargs = running.compact(kwargs, real, past, hidden_states, self.config._attn_implementation)
        if tokens is None:
            return self.original(hidden_states, **kwargs)
        if owner.selection.active(self.number, tokens):
            output = self._forward_and_remove(hidden_states, kwargs, Turn(running, real))
        else:
            output = self.original(hidden_states, **kwargs)
        owner.entering.append(running.tokens)
        return output

    def _without_attention(self, hidden_states: Tensor, kwargs: dict, tokens: Tokens | None) -> Any:
        """A layer whose attention another method leaves out: there is nothing to choose tokens by."""
        owner = self.attachment
        if tokens is not None:
            if owner.selection.active(self.number, tokens):
                raise UserError(
                    f"tokens to remove in layer {self.number}, whose attention is skipped",
                    type(owner.model).__name__,
                    "a recipe with 0 there",
                )
            owner.entering.append(tokens)
        return self.original(hidden_states, **kwargs)

    def _forward_and_remove(self, hidden_states: Tensor, kwargs: dict, turn: Turn) -> Any:
        self.turn = turn
        try:
            if self.drops_before_projection:
                layer = self.module
                attended = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)[0]
                hidden_states = self.turn.take(hidden_states) + attended
                return hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))
            output = self.original(hidden_states, **kwargs)
            if isinstance(output, tuple):
                return (self.turn.take(output[0]), *output[1:])
            return self.turn.take(output)
        finally:
            self.turn = None

    def _before_projection(self, module: nn.Module, args: tuple) -> tuple | None:
        if self.turn is None or not self.drops_before_projection:
            return None
        return (self.turn.take(args[0]), *args[1:])
