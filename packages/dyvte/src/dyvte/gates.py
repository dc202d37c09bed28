"""The hyper-networks of DyVTE (section 3.2 of the paper, equation 1): one small gate after every decoder layer.

A gate reads a pooled state of the running prompt and answers with two logits, (keep, exit):

    g(x) = W2 GELU(W1 x),    W1 [width, inputs],  W2 [2, width],  no biases, exact GELU

The visual tokens leave after the first layer whose gate prefers ``exit``; a tie, or a logit that is not a number,
keeps them. Gates are all that DyVTE trains: 537 M parameters on LLaVA-1.5-7B, 8 % of its language model.

    gates = Gates(GateConfig(layers=32, hidden=4096)).initialise(seed=0)
    logits = gates[3](x)                    # x [batch, 8192] -> [batch, 2]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from tenfold import UserError

# Hidden width of every released gate, whatever the host.
WIDTH = 2048
# The four pooled states of the ablation (tables 4 and 7) in the order in which they are concatenated.
STATES = ("mean_visual", "last_visual", "mean_text", "last_text")
# The published input: mean of the text states but the last, then the last.
DEFAULT_STATES = ("mean_text", "last_text")
# The three attention rows of table 8, each as long as the image.
ATTENTION_STATES = ("visual_self", "cross", "text_self")


@dataclass(frozen=True)
class GateConfig:
    """What a set of gates is made for.

    Attributes:
        layers: decoder layers L of the host, one gate each.
        hidden: width d of its residual stream.
        width: hidden width of a gate.
        states: what a gate reads: some of `STATES`, or some of `ATTENTION_STATES` (table 8), in that order.
        visual_tokens: V that attention rows are made for; 0 for pooled states, which take any V.
        rank: W1 as a product of two matrices of this rank (an option of ours: 537 M parameters become 21 M at 64);
            0 for the paper's full W1.
    """

    layers: int
    hidden: int
    width: int = WIDTH
    states: tuple[str, ...] = DEFAULT_STATES
    visual_tokens: int = 0
    rank: int = 0

    @property
    def reads_attention(self) -> bool:
        """Gates of table 8, which read attention rows."""
        return self.states[0] in ATTENTION_STATES

    @property
    def inputs(self) -> int:
        """Length of the vector that a gate reads."""
        return len(self.states) * (self.visual_tokens if self.reads_attention else self.hidden)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: Any = None) -> GateConfig:
        """A checked configuration from plain values, as a file holds them.

        Raises:
            UserError: an unknown or missing field, or a value out of range.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"unknown setting of gates {unknown[0]!r}", where, ", ".join(sorted(known)))
        for name, least in (("layers", 1), ("hidden", 1), ("width", 1), ("visual_tokens", 0), ("rank", 0)):
            value = values.get(name, least if name in ("visual_tokens", "rank") else WIDTH if name == "width" else None)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
                raise UserError(f"gates with {name}: {value!r}", where, f"a whole number from {least}")
        states = values.get("states", DEFAULT_STATES)
        for order in (STATES, ATTENTION_STATES):
            if isinstance(states, (list, tuple)) and states and tuple(s for s in order if s in states) == tuple(states):
                config = cls(**{**values, "states": tuple(states)})
                if config.reads_attention != bool(config.visual_tokens):
                    raise UserError("gates' visual_tokens", where, "a number for attention rows, 0 for pooled states")
                return config
        raise UserError(
            f"gates that read {states!r}", where, f"some of {', '.join(STATES)}; or of {', '.join(ATTENTION_STATES)}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "states": list(self.states)}


class Gate(nn.Module):
    """One hyper-network: ``x [..., inputs]`` to ``[..., 2]``, (keep, exit). The released code builds a dropout
    beside the two matrices and never applies it; here there is none."""

    def __init__(self, inputs: int, width: int = WIDTH, rank: int = 0) -> None:
        super().__init__()
        self.w1: nn.Module = nn.Linear(inputs, width, bias=False)
        if rank:
            self.w1 = nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, width, bias=False))
        self.w2 = nn.Linear(width, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(nn.functional.gelu(self.w1(x)))


class Gates(nn.Module):
    """The gates of all layers, as a list.

    Args:
        config: their dimensions. All weights are 0, so that no gate exits, until `initialise` or `load_state_dict`.
        device, dtype: where and as what they are made. Keep them in float32 to train: at the paper's learning rate a
            step is about one unit in the last place of a bfloat16 weight.
    """

    def __init__(
        self, config: GateConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):  # a linear layer would draw its start from torch's global generator
            gates = [Gate(config.inputs, config.width, config.rank) for _ in range(config.layers)]
            self.layers = nn.ModuleList(gates).to(dtype=dtype or torch.float32)
        if device is None or torch.device(device).type != "meta":
            self.layers.to_empty(device=device or "cpu")
            with torch.no_grad():
                for weight in self.parameters():
                    weight.zero_()

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> Gate:
        gate = self.layers[layer]
        assert isinstance(gate, Gate)
        return gate

    def __iter__(self) -> Iterator[Gate]:
        return (self[layer] for layer in range(len(self)))

    def initialise(self, seed: int, *, half: bool = False) -> Gates:
        """Xavier-uniform start of every matrix, from a generator of its own.

        Args:
            seed: of the generator.
            half: round to float16 first, as the released start checkpoint was stored.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                bound = (6 / (weight.shape[0] + weight.shape[1])) ** 0.5
                drawn = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)
                weight.copy_(drawn.half() if half else drawn)
        return self

    def validate(self, layers: int, hidden: int, model: str) -> None:
        """Refuse a host of other dimensions.

        Raises:
            UserError: the gates are for another number of layers or another width.
        """
        config = self.config
        if config.layers != layers or (config.hidden != hidden and not config.reads_attention):
            raise UserError(
                f"gates for {config.layers} layers of width {config.hidden}",
                model,
                f"{layers} layers of width {hidden}",
            )


def prefers_exit(logits: Tensor, threshold: float = 0.0) -> Tensor:
    """The exit rule: ``keep + threshold < exit``, strictly, so that ties and NaN keep the visual tokens.

    Args:
        logits: ``[..., 2]``, (keep, exit).
        threshold: 0 is the published rule; more exits later, less exits sooner (a knob of ours).

    Returns:
        ``[...]`` bool.
    """
    return logits[..., 0] + threshold < logits[..., 1]
