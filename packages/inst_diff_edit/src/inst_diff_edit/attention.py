"""Attention of picture positions to words, recorded while the UNet runs on its fast path.

Of 32 attention modules the method needs five: the cross-attention of the down and up blocks at a quarter of the
latent's edge, 16 x 16 at 512 pixels (the middle block is left out at any size). There the processor in place does its
work, fused as before, and beside it one softmax of ``[rows * heads, 256, 77]`` is formed for the conditional half and
averaged at once. Every other module is left alone. A compiled UNet stays compiled, in one graph.

    with AttentionRecorder(unet, stride=4) as recorder:
        recorder.expect(latent_height, latent_width, rows=slice(batch, None))
        unet(...)
        recorder.finish_step()
        recorder.mean()  # [batch, 16, 16, 77]: mean over layers, heads and the steps so far
"""

from __future__ import annotations

from functools import cache, update_wrapper
from threading import Lock
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from tenfold import UserError

PLACES = ("down_blocks", "up_blocks")
# What diffusers calls a block's attention to the prompt.
CROSS = "attn2"
# UNets whose attention is being recorded, by any recorder of any thread.
_RECORDED: WeakSet[nn.Module] = WeakSet()
_CLAIMING = Lock()


class AttentionRecorder:
    """Averages the attention maps of a UNet's middle resolution over layers, heads and steps.

    Args:
        unet: diffusers' UNet2DConditionModel, or one built like it.
        stride: edge of the latent over edge of the maps; 4 for Stable Diffusion.

    Raises:
        UserError: the model has no cross-attention in its down and up blocks (a transformer such as SD 3 or Flux).
    """

    def __init__(self, unet: nn.Module, stride: int = 4) -> None:
        # torch.compile(unet) is a shell around it.
        self.unet = getattr(unet, "_orig_mod", unet)
        self.stride = stride
        self.layers = {
            name: module
            for name, module in self.unet.named_modules()
            if name.split(".")[0] in PLACES and name.endswith(f".{CROSS}")
        }
        if not self.layers:
            raise UserError(
                "no cross-attention in down and up blocks",
                type(self.unet).__name__,
                "a UNet such as Stable Diffusion 1 or 2",
            )
        self._recordings: dict[str, Any] = {}
        self._grid = (0, 0)
        self._rows = slice(None)
        self._given: list[Tensor] = []
        self._total: Tensor | None = None
        self.steps = 0

    def __enter__(self) -> AttentionRecorder:
        """Wrap the processors; leaving puts back the very same ones.

        Raises:
            UserError: another call or thread is recording on this UNet; its maps would be mixed with ours.
        """
        with _CLAIMING:
            if self.unet in _RECORDED:
                raise UserError(
                    "already recording for another call",
                    type(self.unet).__name__,
                    "one call at a time on a UNet; threads with a UNet each",
                )
            _RECORDED.add(self.unet)
        try:
            for name, module in self.layers.items():
                recording = _recording_kind(type(module.processor))(module.processor, self)
                module.set_processor(recording)
                self._recordings[name] = recording
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name, recording in self._recordings.items():
            self.layers[name].set_processor(recording.processor)
        self._recordings = {}
        _RECORDED.discard(self.unet)

    def expect(self, height: int, width: int, rows: slice = slice(None)) -> None:
        """Forget what was recorded; which maps to take from now on.

        Args:
            height, width: of the latents.
            rows: of the UNet's batch that count: the conditional half.
        """
        self._grid = (grid_edge(height, self.stride), grid_edge(width, self.stride))
        self._rows = rows
        self._total, self.steps = None, 0
        self._take()

    def look(self, attention: nn.Module, hidden: Tensor, context: Tensor) -> Tensor:
        """One layer's maps, ``[rows, positions, words]``: mean over heads, of the rows that count."""
        return cross_attention(attention, hidden[self._rows], context[self._rows]).mean(1)

    def wants(self, positions: int) -> bool:
        """Whether layers with so many positions are used."""
        return positions == self._grid[0] * self._grid[1]

    def add(self, maps: Tensor) -> None:
        """Maps that someone else formed in this step: ``[rows, heads, positions, words]`` float32, of one layer."""
        self._given.append(maps.mean(1))

    def finish_step(self) -> None:
        """Add this step's mean over layers to the running mean.

        Raises:
            UserError: no layer works at the resolution asked for.
        """
        maps = self._take()
        if not maps:
            rows, columns = self._grid
            raise UserError(
                f"no cross-attention at {rows} x {columns}", type(self.unet).__name__, f"layers of stride {self.stride}"
            )
        step = sum(maps[1:], maps[0]) / len(maps)
        self._total = step if self._total is None else self._total + step
        self.steps += 1

    def _take(self) -> list[Tensor]:
        """The maps of the step, which are forgotten here."""
        found = [*self._given, *(one.maps for one in self._recordings.values() if one.maps is not None)]
        self._given = []
        for recording in self._recordings.values():
            recording.maps = None
        return found

    def mean(self) -> Tensor:
        """``[rows, grid rows, grid columns, positions]`` float32, mean over layers, heads and finished steps."""
        if self._total is None:
            raise UserError("nothing was recorded", type(self.unet).__name__, "finish_step() after the UNet")
        return (self._total / self.steps).unflatten(1, self._grid)


@cache
def _recording_kind(wrapped: type) -> type:
    """The class of processors that hand a layer's maps to a recorder after one of class ``wrapped`` has done its work.

    diffusers hands on only the keywords that it finds in the signature of ``processor.__call__``: it finds the wrapped
    one's, else an IP adapter's masks are lost. Around a module it is a module, so that offloading moves its weights.
    Compiled code sees a class that stays, and an attribute that it only writes: nothing to compile anew in a later
    step or call.
    """
    base = nn.Module if issubclass(wrapped, nn.Module) else object

    def __init__(self: Any, processor: Any, recorder: AttentionRecorder) -> None:
        base.__init__(self)
        self.processor = processor
        self.recorder = recorder
        self.maps = None

    def __call__(
        self: Any,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        out = self.processor(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        # IP adapters hand over (text, images): the words are the first.
        context = encoder_hidden_states[0] if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states
        if context is not None and self.recorder.wants(hidden_states.shape[1]):
            self.maps = self.recorder.look(attn, hidden_states, context)
        return out

    return type("Recording", (base,), {"__init__": __init__, "__call__": update_wrapper(__call__, wrapped.__call__)})


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
    # In float32: the mask's decisions should not depend on the model's dtype, and products of Stable Diffusion 2's
    # queries and keys leave the range of float16.
    return (query.float() @ key.float().transpose(2, 3) * attention.scale).softmax(-1)


def grid_edge(edge: int, stride: int) -> int:
    """The edge of the maps: the UNet halves by convolutions that round up."""
    while stride > 1:
        edge, stride = (edge + 1) // 2, stride // 2
    return edge
