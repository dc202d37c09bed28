"""Visual tokens that leave a running model: what happens around each decoder layer while an exit is attached.

A rule says after each layer which rows of the batch leave (`dyvte.exits`). Its decision stays on the device: from the
next layer on the keys of a leaving row's visual tokens are hidden, which for its text is the same as their removal. At
a compaction the host asks once which rows have left; only then are their tokens really removed, from the states, from
positions and mask, and from the KV caches of the layers that ran with hidden keys. Positions are never renumbered:
text keeps its place behind the image, in the prompt and in decoding.
"""

from __future__ import annotations

import inspect
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from dyvte.observation import Observed, Observer
from dyvte.passes import CACHE_STATE, Exits, ForwardPass
from tenfold import UserError
from tenfold.hosts import structure
from tenfold.hosts.attached import attached, join, leave, present, refuse_beside, visual_of_pass
from tenfold.hosts.ragged import Tokens, cache_length, kv_cache

# Settings of generate() that propose tokens to be taken back: the cache would be cropped below its ragged lengths.
ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")

NAME = "DyVTE"
_serial = itertools.count()


class ExitRule(ABC):
    """Decides when the visual tokens of each row leave.

    Attributes:
        needs_cache: its choice depends on the prompt's last token, which recomputation without a cache would move.
    """

    needs_cache = False

    def before(self, tokens: Tokens) -> bool:
        """Whether they never enter layer 0; by default they do."""
        return False

    def observes(self, layer: int) -> bool:
        """Whether queries and keys of this layer are wanted; by default of none."""
        return False

    def prune(self, layer: int, running: ForwardPass) -> tuple[Tensor, tuple[int, ...]] | None:
        """Single visual tokens that leave after this layer, before its gate is asked, with their number per row."""
        return None

    @abstractmethod
    def decide(self, layer: int, hidden: Tensor, running: ForwardPass) -> Tensor | bool | None:
        """Which rows leave after this layer.

        Args:
            layer: its number.
            hidden: ``[batch, width, d]``, the residual stream after it.
            running: the pass, with its present tokens.

        Returns:
            ``[batch]`` bool on the device; True for every row, known without asking the device; None for none.
        """


class Attachment:
    """A rule at work in one model, from construction to ``detach``. What a pass needs to know of itself belongs to
    the thread that runs it and to its cache, never to the model: generations may interleave.

    Args:
        model: the host.
        rule: who leaves when.
        compact_every: layers between two compactions.
        visual_mask: ``[batch, tokens]`` bool, for prompts given as ``inputs_embeds``.
    """

    def __init__(
        self, model: nn.Module, rule: ExitRule, *, compact_every: int = 1, visual_mask: Tensor | None = None
    ) -> None:
        self.model: Any = structure.unwrap(model)
        self.rule = rule
        self.compact_every = compact_every
        self.visual_mask = visual_mask
        self.text_config = self.model.config.get_text_config()
        self.serial = next(_serial)
        self._thread = threading.local()
        modules: Any = structure.decoder_layers(self.model)
        if any(hasattr(module.self_attn, "_dyvte") for module in modules):
            raise UserError("an exit is already attached", type(self.model).__name__, "one attachment at a time")
        self._refuse_company(len(modules))
        self._parameters = list(inspect.signature(self.model.forward).parameters)
        self.layers = [AttachedLayer(self, number, module) for number, module in enumerate(modules)]
        self._handles = [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end, always_call=True),
        ]
        self._generate = self.model.generate
        self._own_generate = vars(self.model).get("generate")
        self.model.generate = self.generate
        join(self.model, NAME)

    def _refuse_company(self, layers: int) -> None:
        refuse_beside(
            self.model, NAME, after=("FitPrune",), reason="a host of whole layers, or FitPrune attached first"
        )
        if not attached(self.model):
            return
        alone = self.compact_every == 1 and not any(self.rule.observes(layer) for layer in range(layers))
        if not alone:
            expected = "compact_every=1, and gates that read states: caches and attention are FitPrune's too"
            raise UserError("DyVTE beside FitPrune in this setting", type(self.model).__name__, expected)

    @property
    def running(self) -> ForwardPass | None:
        """This thread's pass through the model."""
        return getattr(self._thread, "running", None)

    @property
    def last(self) -> ForwardPass | None:
        """This thread's latest pass that held an image."""
        return getattr(self._thread, "last", None)

    @property
    def held(self) -> HeldDecisions | None:
        """The decisions that passes of this thread without a cache keep."""
        return getattr(self._thread, "held", None)

    @held.setter
    def held(self, decisions: HeldDecisions | None) -> None:
        self._thread.held = decisions

    def detach(self) -> None:
        """Restore the model: attributes, hooks and configuration are exactly as before."""
        leave(self.model, NAME)
        for handle in self._handles:
            handle.remove()
        for layer in self.layers:
            layer.detach()
        if self._own_generate is None:
            del self.model.generate
        else:
            self.model.generate = self._own_generate
        self.layers, self._handles = [], []

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The host's ``generate``: without a KV cache the decision of the first pass is kept, as a cache keeps it."""
        given = inspect.signature(self._generate).bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        settings = given.get("generation_config") or self.model.generation_config
        for name in ASSISTED:
            if given.get(name) or getattr(settings, name, None):
                raise UserError(
                    f"assisted generation ({name})", type(self.model).__name__, "plain decoding: its cache is cropped"
                )
        if given.get("use_cache", getattr(settings, "use_cache", True)) is not False or self.held is not None:
            return self._generate(*args, **kwargs)
        if self.rule.needs_cache:
            raise UserError("pruning without a KV cache", type(self.model).__name__, "use_cache=True")
        self.held = HeldDecisions()
        try:
            return self._generate(*args, **kwargs)
        finally:
            self.held = None

    def _begin(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs = dict(zip(self._parameters, args, strict=False)) | kwargs
        self._refuse(inputs)
        sequence = inputs.get("inputs_embeds") if inputs.get("input_ids") is None else inputs["input_ids"]
        if sequence is None:
            raise UserError("forward without input_ids or inputs_embeds", type(model).__name__, "one of them")
        batch, length = sequence.shape[:2]
        mask = inputs.get("attention_mask")
        past = cache_length(kv_cache(inputs), 0)
        present.set(None)
        if length == 1 and past:  # one generated token: nothing leaves, and no reason to ask the device
            self._thread.running = ForwardPass(self, past, None, None, mask)
            return
        real = None if mask is None else mask[:, -length:].bool()
        real = None if real is None or bool(real.all()) else real
        prompt = Tokens.of_prompt(visual_of_pass(self.model, inputs, self.visual_mask, batch, length), real)
        self._thread.running = running = ForwardPass(self, past, prompt, real, mask)
        if prompt is None:
            return
        if prompt.pad_end and inputs.get("logits_to_keep") == 1:
            raise UserError(
                "right padding under generate", type(model).__name__, "left padding: the last column is read"
            )
        self._thread.last = running

    def _end(self, *_: Any) -> None:
        running = self.running
        if running is not None and self.held is not None and running.exits is not None:
            self.held.keep(running.exits)
        self._thread.running = None
        present.set(None)

    def _refuse(self, inputs: dict[str, Any]) -> None:
        name = type(self.model).__name__
        if inputs.get("labels") is not None:
            raise UserError("labels under an exit", name, "no labels: logits exist for the remaining tokens only")
        cache = kv_cache(inputs)
        if getattr(cache, "is_compileable", False):
            raise UserError("a static cache under an exit", name, "a dynamic cache: layers differ in length")
        mask = inputs.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise UserError("an attention mask that is not [batch, tokens]", name, "the two-dimensional padding mask")
        implementation = self.text_config._attn_implementation
        if implementation not in ("eager", "sdpa") and "flash" not in implementation:
            raise UserError(f"attention implementation {implementation!r}", name, "sdpa, eager or flash attention")
        state = getattr(cache, CACHE_STATE, None)
        if state is not None and state.ragged.cut and inputs.get("position_ids") is None:
            raise UserError("tokens removed before layer 0 leave positions open", name, "generate(), or position_ids")
        lengths = [cache_length(cache, layer) for layer in range(len(self.layers))]
        if (state is None and len(set(lengths)) > 1) or (state is not None and state.ragged.owner != self.serial):
            raise UserError("this cache was made elsewhere", name, "a cache made inside this context, or a new one")
        if state is not None and state.ragged.lengths != lengths:
            raise UserError("a ragged cache was changed between passes", name, "no cropping (assisted generation)")


class HeldDecisions:
    """Exit layers that repeated passes over a growing prompt keep, where no KV cache remembers them."""

    def __init__(self) -> None:
        self.exits: Exits | None = None

    def keep(self, exits: Exits) -> None:
        if self.exits is None:
            self.exits = exits

    def decide(self, layer: int, running: ForwardPass) -> Tensor:
        assert self.exits is not None
        if self.exits.layer.shape != (running.batch,):
            raise UserError("kept decisions of another batch", f"{running.batch} rows", f"{len(self.exits.layer)} rows")
        return self.exits.layer == layer


class AttachedLayer:
    """One decoder layer of an attached model."""

    def __init__(self, attachment: Attachment, number: int, module: Any) -> None:
        self.attachment = attachment
        self.number = number
        self.module = module
        self.attention = module.self_attn
        self._names = list(inspect.signature(inspect.unwrap(type(module).forward)).parameters)[1:]
        # accelerate keeps the layer's own forward aside and moves its inputs to the right device first.
        self._slot = "_old_forward" if hasattr(module, "_old_forward") else "forward"
        self._previous = vars(module).get(self._slot)
        self.original: Callable[..., Any] = getattr(module, self._slot)
        setattr(module, self._slot, self.forward)
        self.attention._dyvte = self
        self._observer = Observer(self.attention, self._see) if attachment.rule.observes(number) else None

    def detach(self) -> None:
        if self._observer is not None:
            self._observer.remove()
        del self.attention._dyvte
        if self._previous is None:
            delattr(self.module, self._slot)
        else:
            setattr(self.module, self._slot, self._previous)

    def _see(self, observed: Observed) -> None:
        running = self.attachment.running
        if running is not None:
            running.observed = replace(observed, real_keys=running.seen)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        owner, running = self.attachment, self.attachment.running
        if running is None:
            raise UserError(
                "decoder layers were called outside the attached model",
                type(owner.model).__name__,
                "calls of the model that the exit was attached to",
            )
        kwargs = dict(zip(self._names[1:], args, strict=False)) | kwargs
        state = running.cache_state(kv_cache(kwargs))
        if running.tokens is None and state is None:
            return self.original(hidden_states, **kwargs)  # no image, in a cache that holds none
        running.look()
        if running.tokens is not None:  # layers of one model may live on several devices
            running.on(hidden_states.device)
            if self.number == 0 and owner.rule.before(running.tokens):
                hidden_states = running.leave_before(hidden_states)
        kwargs = running.arguments(self.number, hidden_states, kwargs, owner.text_config._attn_implementation)
        output = self.original(hidden_states, **kwargs)
        if running.tokens is None:
            return output
        running.look()
        hidden_states = output[0] if isinstance(output, tuple) else output
        remaining = running.after(self.number, hidden_states)
        if remaining is hidden_states:
            return output
        return (remaining, *output[1:]) if isinstance(output, tuple) else remaining
