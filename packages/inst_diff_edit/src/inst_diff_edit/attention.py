"""Attention of picture positions to words, recorded while the UNet runs on its fast path.

Of 32 attention modules the method needs five: the cross-attention of the down and up blocks at a quarter of the
latent's edge, 16 x 16 at 512 pixels (the middle block is left out at any size). There the processor in place does its
work, fused as before, and beside it one softmax of ``[rows * heads, 256, 77]`` is formed for the conditional half and
averaged at once. Every other module is left alone.

    with AttentionRecorder(unet, stride=4) as recorder:
        recorder.expect(latent_height, latent_width, rows=slice(batch, None))
        unet(...)
        recorder.finish_step()
        recorder.mean()  # [batch, 16, 16, 77]: mean over layers, heads and the steps so far
"""

from __future__ import annotations

from functools import partial, update_wrapper
from typing import Any

from torch import Tensor, nn

from tenfold import UserError

PLACES = ("down_blocks", "up_blocks")
# What diffusers calls a block's attention to the prompt.
CROSS = "attn2"


class AttentionRecorder:
    """Averages the attention maps of a UNet's middle resolution over layers, heads and steps.

    Args:
        unet: diffusers' UNet2DConditionModel, or one built like it.
        stride: edge of the latent over edge of the maps; 4 for Stable Diffusion.

    Raises:
        UserError: the model has no cross-attention in its down and up blocks (a transformer such as SD 3 or Flux).
    """

    def __init__(self, unet: nn.Module, stride: int = 4) -> None:
        self.unet = unet
        self.stride = stride
        self.layers = {
            name: module
            for name, module in unet.named_modules()
            if name.split(".")[0] in PLACES and name.endswith(f".{CROSS}")
        }
        if not self.layers:
            raise UserError(
                "no cross-attention in down and up blocks",
                type(unet).__name__,
                "a UNet such as Stable Diffusion 1 or 2",
            )
        self._before: dict[str, Any] = {}
        self._grid = (0, 0)
        self._rows = slice(None)
        self._step: Tensor | None = None
        self._step_layers = 0
        self._total: Tensor | None = None
        self.steps = 0

    def __enter__(self) -> AttentionRecorder:
        """Wrap the processors; leaving puts back the very same ones."""
        if self._before:
            raise UserError("already recording", type(self.unet).__name__, "one recording at a time")
        for name, module in self.layers.items():
            self._before[name] = module.processor
            module.set_processor(_Recording(module.processor, self))
        return self

    def __exit__(self, *_: object) -> None:
        for name, processor in self._before.items():
            self.layers[name].set_processor(processor)
        self._before = {}

    def expect(self, height: int, width: int, rows: slice = slice(None)) -> None:
        """Forget what was recorded; which maps to take from now on.

        Args:
            height, width: of the latents.
            rows: of the UNet's batch that count: the conditional half.
        """
        self._grid = (grid_edge(height, self.stride), grid_edge(width, self.stride))
        self._rows = rows
        self._step, self._step_layers, self._total, self.steps = None, 0, None, 0

    def take(self, attention: nn.Module, hidden: Tensor, context: Tensor) -> None:
        """Form and keep one layer's maps, if it works at the right resolution: ``hidden [rows, positions, width]``."""
        if self.wants(hidden.shape[1]):
            self.add(cross_attention(attention, hidden[self._rows], context[self._rows]))

    def wants(self, positions: int) -> bool:
        """Whether layers with so many positions are used."""
        return positions == self._grid[0] * self._grid[1]

    def add(self, maps: Tensor) -> None:
        """One layer's maps in this step: ``[rows, heads, positions, words]`` float32."""
        mean = maps.mean(1)
        self._step = mean if self._step is None else self._step + mean
        self._step_layers += 1

    def finish_step(self) -> None:
        """Add this step's mean over layers to the running mean.

        Raises:
            UserError: no layer works at the resolution asked for.
        """
        if self._step is None:
            rows, columns = self._grid
            raise UserError(
                f"no cross-attention at {rows} x {columns}", type(self.unet).__name__, f"layers of stride {self.stride}"
            )
        step = self._step / self._step_layers
        self._total = step if self._total is None else self._total + step
        self.steps += 1
        self._step, self._step_layers = None, 0

    def mean(self) -> Tensor:
        """``[rows, grid rows, grid columns, positions]`` float32, mean over layers, heads and finished steps."""
        if self._total is None:
            raise UserError("nothing was recorded", type(self.unet).__name__, "finish_step() after the UNet")
        return (self._total / self.steps).unflatten(1, self._grid)


class _Recording:
    """An attention processor that hands its layer's inputs to a recorder after the wrapped one has done its work."""

    def __init__(self, processor: Any, recorder: AttentionRecorder) -> None:
        self.processor = processor
        self.recorder = recorder
        # diffusers hands on only the keywords that it finds in the signature of `processor.__call__`: show it the
        # wrapped one's, else an IP adapter's masks are lost. Calls go to the class's method, as Python looks it up.
        self.__call__ = update_wrapper(partial(type(self).__call__, self), processor.__call__)

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        out = self.processor(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        # IP adapters hand over (text, images): the words are the first.
        context = encoder_hidden_states[0] if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states
        if context is not None:
            self.recorder.take(attn, hidden_states, context)
        return out


def cross_attention(attention: nn.Module, hidden: Tensor, context: Tensor) -> Tensor:
    """The attention map of one layer: ``[rows, heads, positions, words]`` float32.

    Over all positions of the prompt, padding included, as the model itself attends.

    Args:
        attention: diffusers' ``Attention``.
        hidden: ``[rows, positions, width]``, the layer's input.
        context: ``[rows, words, context width]``, the prompt.
    """
    query = attention.to_q(hidden).unflatten(2, (attention.heads, -1)).transpose(1, 2)
    key = attention.to_k(context).unflatten(2, (attention.heads, -1)).transpose(1, 2)
    # The softmax in float32: the mask's decisions should not depend on the model's dtype.
    return (query @ key.transpose(2, 3) * attention.scale).float().softmax(-1)


def grid_edge(edge: int, stride: int) -> int:
    """The edge of the maps: the UNet halves by convolutions that round up."""
    while stride > 1:
        edge, stride = (edge + 1) // 2, stride // 2
    return edge
