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
import logging
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from fitprune.host import refuse_generation, refuse_input, refuse_pruned_cache
from fitprune.passes import Pass, Turn
from fitprune.rules import Observation, question_of
from tenfold import UserError
from tenfold.hosts import attached, structure
from tenfold.hosts.ragged import Reading, Tokens, cache_length, kv_cache, read_prompt, take
from tenfold.hosts.structure import is_plain_pre_norm

logger = logging.getLogger(__name__)

ATTENTION, NAME = "fitprune", "FitPrune"


_serial = itertools.count()


class Selection(ABC):
    """Decides which tokens leave. Counts stay on the host, so that no layer waits for the device.

    Attributes:
        at_output: tokens leave at the layer's output even where they could leave before ``o_proj``.
        idle: no token ever leaves, so nothing that the model can do is refused.
    """

    at_output = False
    idle = False

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
    running = layer.attachment.running
    if running is not None and running.turn is not None:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        running.turn = running.turn.observed(layer, query, key, scaling)
    return output


AttentionInterface.register(ATTENTION, observed_attention)


class Attachment:
    """A selection at work in one model, from construction to ``detach``.

    Several threads may ask the model at once; `prompt` and `entering` are then those of the pass that began last. A
    deep copy of the model is a model to which nothing is attached.

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
        self._of_thread = threading.local()
        self._said = False
        self.text_config = self.model.config.get_text_config()
        self.serial = next(_serial)
        # An idle selection leaves the layers alone, whatever they are.
        modules = [] if selection.idle else list(structure.decoder_layers(self.model))
        if NAME in attached.attached(self.model):
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
        self._modules = modules
        self._attach()

    def _attach(self) -> None:
        self.layers = [Layer(self, number, module) for number, module in enumerate(self._modules)]
        self._handles = [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end, always_call=True),
        ]
        # On the model itself, over its class's: methods that must know of the attachment.
        self._before = {name: vars(self.model).get(name) for name in ("generate", "__deepcopy__")}
        self._generate = getattr(self.model, "generate", None)
        if self._generate is not None:
            self.model.generate = self._refusing_generate
        self.model.__deepcopy__ = self._copied
        attached.join(self.model, NAME)

    def detach(self) -> None:
        """Restore the model: attributes, hooks and configuration are exactly as before."""
        attached.leave(self.model, NAME)
        for handle in self._handles:
            handle.remove()
        for layer in self.layers:
            layer.detach()
        for name, before in self._before.items():
            if before is not None:
                setattr(self.model, name, before)
            elif name in vars(self.model):
                delattr(self.model, name)
        self.layers, self._handles = [], []

    @property
    def running(self) -> Pass | None:
        """The pass of this thread; None between passes, and in those of an idle selection."""
        return getattr(self._of_thread, "running", None)

    def _refusing_generate(self, *args: Any, **kwargs: Any) -> Any:
        if not self.selection.idle:
            refuse_generation(self.model, kwargs)
        return self._generate(*args, **kwargs)  # type: ignore[misc]

    def _copied(self, memo: dict[int, Any]) -> Any:
        self.detach()
        try:
            return copy.deepcopy(self.model, memo)
        finally:
            self._attach()

    def _begin(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs = dict(zip(self._parameters, args, strict=False)) | kwargs
        if self.selection.idle:
            refuse_pruned_cache(model, kv_cache(inputs))
            self._note(inputs)
            return
        slots = [slot for layer in self.layers if (slot := layer.slot) is not None]
        attached.present.set(None)
        refuse_input(model, inputs, self.text_config._attn_implementation, self.serial, slots)
        sequence = inputs.get("inputs_embeds") if inputs.get("input_ids") is None else inputs["input_ids"]
        if sequence is None:
            raise UserError("forward without input_ids or inputs_embeds", type(model).__name__, "one of them")
        batch, length = sequence.shape[:2]
        past = cache_length(kv_cache(inputs), 0)
        if length == 1 and past:  # one generated token: nothing to remove, and no reason to ask the device
            self._of_thread.running = Pass(past, Reading(None, None, None))
            return
        reading = self._read(inputs, batch, length, past)
        if (prompt := reading.tokens) is not None and prompt.pad_end and inputs.get("logits_to_keep") == 1:
            raise UserError(
                "right padding under generate", type(model).__name__, "left padding: the last column is read"
            )
        self._start(Pass(past, reading))

    def _read(self, inputs: dict[str, Any], batch: int, length: int, past: int) -> Reading:
        visual = attached.visual_of_pass(self.model, inputs, self.visual_mask, batch, length)
        reading = read_prompt(visual, inputs.get("attention_mask"), past, asked=False)
        if reading.tokens is None:
            return reading
        if any(reading.tokens.unasked) and not self._said and not self.selection.idle:
            self._said = True
            row = reading.tokens.unasked.index(True)
            logger.warning("row %d ends in its image: without a text after it, self mass alone chooses tokens", row)
        if (ids := inputs.get("input_ids")) is None:
            return reading
        return replace(reading, tokens=replace(reading.tokens, question=question_of(ids, reading.tokens.real)))

    def _start(self, running: Pass) -> None:
        self._of_thread.running = running
        if running.prompt is not None:
            self.prompt, self.entering = running.prompt, running.entering

    def _note(self, inputs: dict[str, Any]) -> None:
        """For an idle selection: what is reported of a pass with an image, where that can be told."""
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        plain = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
        past = cache_length(kv_cache(inputs), 0)
        if ids is None or not plain or torch.compiler.is_compiling() or (past and ids.shape[1] == 1):
            return
        with suppress(UserError):
            tokens = self._read(inputs, *ids.shape, past).tokens
            if tokens is not None:
                self.prompt, self.entering = tokens, [tokens] * (self.text_config.num_hidden_layers + 1)

    def _end(self, *_: Any) -> None:
        if not self.selection.idle:
            self._of_thread.running = None
            attached.present.set(None)


class Layer:
    """One decoder layer of an attached model."""

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
            running.entering[-1] = running.tokens
        tokens = running.tokens
        if tokens is not None:  # layers of one model may live on several devices
            tokens = running.on(hidden_states.device)
            if self.number == 0 and (answer := owner.selection.before(tokens)) is not None:
                hidden_states = take(hidden_states, running.remove(*answer))
                tokens = running.tokens
                running.entering[:] = [tokens]
            real = tokens.real if tokens.padded else None
        else:
            real = running.real
        if (slot := self.slot) is None:
            return self._without_attention(hidden_states, kwargs, running)
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
            output = self._forward_and_remove(hidden_states, kwargs, running, real)
        else:
            output = self.original(hidden_states, **kwargs)
        running.entering.append(running.tokens)
        return output

    def _without_attention(self, hidden_states: Tensor, kwargs: dict, running: Pass) -> Any:
        """A layer whose attention another method leaves out: there is nothing to choose tokens by."""
        owner, tokens = self.attachment, running.tokens
        if tokens is not None:
            if owner.selection.active(self.number, tokens):
                raise UserError(
                    f"tokens to remove in layer {self.number}, whose attention is skipped",
                    type(owner.model).__name__,
                    "a recipe with 0 there",
                )
            running.entering.append(tokens)
        return self.original(hidden_states, **kwargs)

    def _forward_and_remove(self, hidden_states: Tensor, kwargs: dict, running: Pass, real: Tensor | None) -> Any:
        running.turn = Turn(running, real)
        try:
            if self.drops_before_projection:
                layer = self.module
                attended = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)[0]
                hidden_states = running.turn.take(hidden_states) + attended
                return hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))
            output = self.original(hidden_states, **kwargs)
            if isinstance(output, tuple):
                return (running.turn.take(output[0]), *output[1:])
            return running.turn.take(output)
        finally:
            running.turn = None

    def _before_projection(self, module: nn.Module, args: tuple) -> tuple | None:
        running = self.attachment.running
        if running is None or running.turn is None or not self.drops_before_projection:
            return None
        return (running.turn.take(args[0]), *args[1:])

    def __reduce__(self) -> NoReturn:
        raise UserError(
            "a copy of a part of a model that is being pruned",
            type(self.attachment.model).__name__,
            "a copy of the whole model, or one made outside the context",
        )
