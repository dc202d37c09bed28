"""Dynamic visual-token exit at inference (section 3.2, algorithm of the prefill).

After every decoder layer a gate reads the running text; at the first one that prefers to exit, all visual tokens of
that row leave for good, and the text runs on alone to the last layer. Decoding asks no gate: the KV caches of the
layers behind the exit are simply shorter.

    gates = dyvte.load_gates("gates/")
    with dyvte.VisualExit(gates)(model) as exit:
        model.generate(**inputs)
        exit.exit_layers()                      # [17, 9, None]: per row, None where nothing left
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dyvte.attachment import Attachment, ExitRule, HeldDecisions
from dyvte.attention_states import attention_states
from dyvte.fastv import FastV
from dyvte.gates import Gates, prefers_exit
from dyvte.passes import CACHE_STATE, Exits, ForwardPass
from dyvte.states import pooled_states
from tenfold import UserError
from tenfold.hosts import structure
from tenfold.hosts.ragged import Tokens


@dataclass
class VisualExit:
    """Lets the visual tokens of a transformers vision-language model leave where its gates say so.

    Use it as a context, ``with VisualExit(gates)(model): ...``, or with `attach` and `detach`; leaving restores the
    model exactly. Inside, the model takes batches, padding on either side, several images or none per row, and later
    turns on the same cache, whose new images are gated again. Its logits exist for the remaining tokens only; the last
    row stays the last one. What left is gone for later turns too: open a new cache to look at an image again.

    Attributes:
        gates: one per decoder layer. They are moved to the layers' devices and run in their own dtype.
        threshold: exits when ``keep + threshold < exit``. 0 is the published rule; lower exits sooner (`calibrate`
            finds the one for a mean exit layer).
        exit_at: leave after this layer, whatever the gates would say (the manual exit of figure 3): -1 before the
            first, so that no layer sees the image. None: by the gates.
        check_every: ask the gates of every so many layers only. This moves exits later, so it changes numbers.
        compact_every: layers between two compactions, g. Rows that have left are hidden at once and removed at the
            next compaction, which costs the host's only wait. It changes no number: a larger g waits less and runs
            (g - 1) / 2 layers more per exit on all tokens, on average.
        fastv: FastV beside it, which drops half of the visual tokens after the second layer (`dyvte.fastv`).
    """

    gates: Gates | None = None
    threshold: float = 0.0
    exit_at: int | None = None
    check_every: int = 1
    compact_every: int = 1
    fastv: FastV | None = None
    _attachment: Attachment | None = field(default=None, init=False, repr=False)

    @contextmanager
    def __call__(self, model: nn.Module, *, visual_mask: Tensor | None = None) -> Iterator[VisualExit]:
        """Attach for the duration of a ``with`` block; arguments and errors as in `attach`."""
        self.attach(model, visual_mask=visual_mask)
        try:
            yield self
        finally:
            self.detach()

    def attach(self, model: nn.Module, *, visual_mask: Tensor | None = None) -> None:
        """Start.

        Args:
            model: a transformers vision-language model, possibly under PEFT adapters.
            visual_mask: ``[batch, tokens]`` bool, which positions of the prompt hold a visual token. Needed only when
                prompts are given as ``inputs_embeds``; otherwise the placeholders in the input ids say it.

        Raises:
            UserError: gates for another host, a host whose structure cannot be served (the reason is named), a
                setting out of range, or one of both is already in use.
        """
        if self._attachment is not None:
            raise UserError("this exit is already attached", type(self._attachment.model).__name__, "detach() first")
        host: Any = structure.unwrap(model)
        layers, hidden = len(structure.decoder_layers(host)), host.config.get_text_config().hidden_size
        rule = self._rule(layers, hidden, type(host).__name__)
        self._attachment = Attachment(model, rule, compact_every=self.compact_every, visual_mask=visual_mask)

    def _rule(self, layers: int, hidden: int, model: str) -> ExitRule:
        for name in ("check_every", "compact_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}", model, "a number of layers, from 1")
        if self.fastv is not None:
            self.fastv.validate(layers, model)
        if self.exit_at is not None:
            if not -1 <= self.exit_at < layers:
                raise UserError(f"exit_at {self.exit_at}", model, f"a layer from -1 to {layers - 1}")
            return FixedRule(self.exit_at, self.fastv)
        if self.gates is None:
            raise UserError("neither gates nor exit_at", model, "VisualExit(gates), or VisualExit(exit_at=layer)")
        self.gates.validate(layers, hidden, model)
        if self.threshold != self.threshold:
            raise UserError("a threshold that is not a number", model, "a number; 0 is the published rule")
        return GateRule(self.gates, self.threshold, self.check_every, self.fastv)

    def detach(self) -> None:
        """Stop and restore the model; without effect when not attached."""
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the decisions of the first pass for all further ones in this block (in this thread).

        For passes without a KV cache over a growing prompt: with a cache the exit is decided at the prefill, once;
        without one every pass would decide anew, its own answer among the text. ``generate(use_cache=False)`` holds
        by itself.
        """
        attachment = self._attached()
        attachment.held = HeldDecisions()
        try:
            yield
        finally:
            attachment.held = None

    def exit_layers(self, cache: Any = None) -> list[int | None]:
        """The layer after which each row's visual tokens left, counted from 0.

        Args:
            cache: of a generation, for its latest image; by default this thread's latest pass with an image.

        Returns:
            Per row: -1 where they left before layer 0, None where they stayed or there are none.
        """
        if cache is not None:
            state = getattr(cache, CACHE_STATE, None)
            if state is None or not state.exits:
                raise UserError("this cache knows of no exit", None, "one that held an image inside this context")
            return state.exits[-1].tolist()
        exits = self._last().exits
        assert exits is not None
        return exits.tolist()

    @property
    def entering(self) -> list[Tokens]:
        """The tokens at the input of every layer, and after the last one, in this thread's latest pass with an image:
        as they ran, so rows that had left and were not yet compacted still have theirs."""
        return self._last().entering

    @staticmethod
    def kv_lengths(cache: Any) -> list[list[int]]:
        """Real tokens in the cache of every layer, per row: ``[layers][batch]``; padding does not count."""
        state = getattr(cache, CACHE_STATE, None)
        lengths = []
        for layer, keys in enumerate(layer.keys for layer in cache.layers):
            real = None if state is None else state.ragged.real[layer]
            lengths.append([keys.shape[2]] * keys.shape[0] if real is None else real.sum(1).tolist())
        return lengths

    def images(self) -> tuple[bool, ...]:
        """Per row of this thread's latest pass with an image, whether that row has one."""
        exits = self._last().exits
        assert exits is not None
        return exits.images

    def present(self) -> Tokens:
        """The tokens at the input of the layer that is running in this thread."""
        running = self._attached().running
        if running is None or running.tokens is None:
            raise UserError("no prompt with an image is running", None, "a call during its forward pass")
        return running.tokens

    @property
    def trace(self) -> list[tuple[Tensor, Tensor]] | None:
        """Where the inputs and logits of every gate that is asked are kept, for who wants to look; None: nowhere."""
        rule = self._attached().rule
        return rule.trace if isinstance(rule, GateRule) else None

    @trace.setter
    def trace(self, trace: list[tuple[Tensor, Tensor]] | None) -> None:
        rule = self._attached().rule
        if isinstance(rule, GateRule):
            rule.trace = trace

    def _attached(self) -> Attachment:
        if self._attachment is None:
            raise UserError("not attached", None, "inside `with VisualExit(gates)(model):`")
        return self._attachment

    def _last(self) -> ForwardPass:
        last = self._attached().last
        if last is None or last.exits is None:
            raise UserError("no image was seen yet", None, "a forward pass with an image")
        return last


def mean_exit(exits: Sequence[int | None] | Exits, layers: int) -> float:
    """Mean exit layer, counted from 0, of rows with an image; one whose tokens stay counts as ``layers - 1``, which
    costs the same."""
    values = exits.tolist() if isinstance(exits, Exits) else list(exits)
    return sum(layers - 1 if e is None else e for e in values) / len(values)


class GateRule(ExitRule):
    """The published rule: the gate of each layer reads the states after it."""

    def __init__(self, gates: Gates, threshold: float = 0.0, check_every: int = 1, fastv: FastV | None = None) -> None:
        self.gates = gates
        self.threshold = threshold
        self.check_every = check_every
        self.fastv = fastv
        self.needs_cache = fastv is not None
        self.trace: list[tuple[Tensor, Tensor]] | None = None  # inputs and logits, where someone wants to look

    def observes(self, layer: int) -> bool:
        return self.gates.config.reads_attention or (self.fastv is not None and self.fastv.layer == layer)

    def prune(self, layer: int, running: ForwardPass) -> tuple[Tensor, tuple[int, ...]] | None:
        return None if self.fastv is None or self.fastv.layer != layer else self.fastv.prune(running)

    def decide(self, layer: int, hidden: Tensor, running: ForwardPass) -> Tensor | None:
        if (layer + 1) % self.check_every:
            return None
        tokens = running.tokens
        assert tokens is not None
        config = self.gates.config
        if config.reads_attention:
            assert running.observed is not None
            x = attention_states(running.observed, tokens, config)
        else:
            start = 0 if any("visual" in state for state in config.states) else tokens.first_row
            block = slice(start, None)  # no gate reads the text before the image
            x = pooled_states(hidden[:, block], tokens.text[:, block], tokens.visual[:, block], config.states)
        gate = self.gates[layer]
        weight = gate.w2.weight
        if weight.device != x.device:
            gate.to(x.device)
        with torch.no_grad():
            logits = gate(x.to(weight.dtype))
        if self.trace is not None:
            self.trace.append((x, logits))
        return prefers_exit(logits, self.threshold)


class FixedRule(ExitRule):
    """All rows leave after one layer: the manual exit of figure 3."""

    def __init__(self, layer: int, fastv: FastV | None = None) -> None:
        self.layer = layer
        self.fastv = fastv
        self.needs_cache = fastv is not None

    def before(self, tokens: Tokens) -> bool:
        return self.layer < 0

    def observes(self, layer: int) -> bool:
        return self.fastv is not None and self.fastv.layer == layer

    def prune(self, layer: int, running: ForwardPass) -> tuple[Tensor, tuple[int, ...]] | None:
        return None if self.fastv is None or self.fastv.layer != layer else self.fastv.prune(running)

    def decide(self, layer: int, hidden: Tensor, running: ForwardPass) -> bool | None:
        return True if layer == self.layer else None
