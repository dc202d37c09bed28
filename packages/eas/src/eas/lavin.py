"""EAS on LaVIN (Luo et al., 2023): LLaMA-1 with class tokens of CLIP's ViT-L/14 in its prompt, and MM-adapters.

    sequence   [modality] [BOS] prefix [6 image vectors] question ... answer ...
    kept       x <- x + MHA(Adp(RMS1(x)));   x <- x + FFN(RMS2(x))
    skipped    y  = x + FFN(gamma2 * PIA(RMS1(x)))

The modality token says whether there is a picture. No other token attends to it: it acts through PIA's means
alone. The router's mean leaves it out, the global vector's takes it in. Names are LLaMA's own (Meta's layout); RoPE
turns neighbouring pairs. In a skipped block no key and no value is computed or kept.

What a prompt leaves for its decoding, and the authors' two ways of using it, are in `eas.lavin_decoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from eas.adapters import PIA, Adapter, mean_token
from eas.folding import Affine, affine, fold, linear_of
from eas.tower import Tower
from tenfold import UserError

IGNORED = 0  # the label that is not learnt: LaVIN's, so that token 0 never can be
Fold = Literal["exact", "released"]
KEPT_TARGETS, SKIPPED_TARGETS = ("wq", "wk", "wv"), ("w1", "w3")


@dataclass(frozen=True)
class LavinConfig:
    """LaVIN's sizes (the defaults are 7B's), and what is skipped.

    Attributes:
        skip: layers whose attention goes. features: vectors of a picture, class tokens of as many blocks.
        hidden_proj: of the projector. tower_rank: of the adapters in the tower.
    """

    width: int = 4096
    layers: int = 32
    heads: int = 32
    ffn: int = 11008
    vocabulary: int = 32000
    norm_eps: float = 1e-6
    skip: tuple[int, ...] = ()
    adapter_rank: int = 8
    pia_rank: int = 32
    tower_rank: int = 8
    groups: int = 2
    scale: float = 1.0
    temperature: float = 10.0
    dropout: float = 0.1
    hidden_proj: int = 128
    features: int = 6
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    size: int = 224
    patch: int = 14


LAVIN_7B = LavinConfig()
LAVIN_13B = LavinConfig(width=5120, layers=40, heads=40, ffn=13824)


class Cache:
    """Keys and values of the attentions that are left, a slot each, and what a prompt leaves to its decoding.

    Attributes:
        keys, values: by slot, ``[batch, heads, room, width / heads]``. used: filled positions.
        valid: ``[batch, room]`` bool, positions that hold a token. router, globe: by layer, of every row's prompt.
    """

    def __init__(self, batch: int, room: int, device: torch.device) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.used, self.room = 0, room
        self.valid = torch.zeros(batch, room, dtype=torch.bool, device=device)
        self.router: dict[int, Tensor] = {}
        self.globe: dict[int, Tensor] = {}

    def put(self, slot: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values behind the used ones; all that there are."""
        if slot not in self.keys:
            shape = (*keys.shape[:2], self.room, keys.shape[3])
            self.keys[slot], self.values[slot] = keys.new_zeros(shape), values.new_zeros(shape)
        end = self.used + keys.shape[2]
        self.keys[slot][:, :, self.used : end], self.values[slot][:, :, self.used : end] = keys, values
        return self.keys[slot][:, :, :end], self.values[slot][:, :, :end]


@dataclass(frozen=True)
class Step:
    """What one pass tells the blocks.

    Attributes:
        rotation: ``[batch or 1, tokens, width / heads / 2]`` complex, of every token's position.
        mask: ``[batch or 1, 1, tokens, keys]`` bool, true where a token looks.
        router_mean, globe_mean: weights ``[batch, tokens]`` of the means over a prompt; None: what the cache holds.
        cache: where keys and values are kept; None: nowhere.
        current: the global vector is of each token of this pass alone (the authors' un-merged decoding).
        fold: put adapters into the matrices on the way, for this one prompt.
    """

    rotation: Tensor
    mask: Tensor
    router_mean: Tensor | None = None
    globe_mean: Tensor | None = None
    cache: Cache | None = None
    current: bool = False
    fold: Fold | None = None


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, tokens: Tensor) -> Tensor:
        wide = tokens.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(tokens.dtype) * self.weight


class _Attention(nn.Module):
    def __init__(self, config: LavinConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(config.width, config.width, bias=False) for _ in range(4))

    def forward(self, tokens: Tensor, step: Step, slot: int) -> Tensor:
        batch, length, width = tokens.shape
        query, key, value = (part(tokens).view(batch, length, self.heads, -1) for part in (self.wq, self.wk, self.wv))
        query, key = (_rotate(part, step.rotation).transpose(1, 2) for part in (query, key))
        value = value.transpose(1, 2)  # [batch, heads, tokens, width / heads]
        if step.cache is not None and step.cache.used:
            key, value = step.cache.put(slot, key, value)
        elif step.cache is not None:  # of a prompt: all but the modality token
            step.cache.put(slot, key[:, :, 1:], value[:, :, 1:])
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=step.mask)
        return self.wo(mixed.transpose(1, 2).reshape(batch, length, width))


class _FeedForward(nn.Module):
    def __init__(self, config: LavinConfig) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(config.width, config.ffn, bias=False) for _ in range(2))
        self.w2 = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(tokens)) * self.w3(tokens))


class LavinBlock(nn.Module):
    """A decoder block: an adapter before its attention, or a PIA in its place; a search has both."""

    def __init__(self, config: LavinConfig, number: int, both: bool) -> None:
        super().__init__()
        self.number, self.slot, self.skipped, self.folded = number, 0, number in config.skip, False
        self.attention_norm, self.ffn_norm = (RMSNorm(config.width, config.norm_eps) for _ in range(2))
        self.attention = None if self.skipped and not both else _Attention(config)
        self.feed_forward = _FeedForward(config)
        options = {"groups": config.groups, "scale": config.scale, "temperature": config.temperature}
        options["dropout"] = config.dropout
        kept, gone = both or not self.skipped, both or self.skipped
        self.adapter = Adapter(config.width, config.adapter_rank, **options) if kept else None  # type: ignore[arg-type]
        self.pia = PIA(config.width, config.pia_rank, identity_start=True, **options) if gone else None  # type: ignore[arg-type]

    def forward(self, tokens: Tensor, step: Step) -> Tensor:
        """``[batch, tokens, width]``."""
        normed = self.attention_norm(tokens)
        part = self.pia if self.skipped else self.adapter
        assert part is not None
        if not self.folded:
            router, globe = self._state(part, normed, step)
            if step.fold is not None:
                self._fold(affine(part, router[0], None if globe is None else globe[0]), step.fold)
            elif isinstance(part, PIA):
                normed = part(normed, router, globe)
            else:
                normed = part(normed, router)
        if self.skipped:
            # Folded, the gain of the second norm is in the matrices.
            return tokens + self.feed_forward(normed if self.folded else normed * self.ffn_norm.weight)
        assert self.attention is not None
        tokens = tokens + self.attention(normed, step, self.slot)
        return tokens + self.feed_forward(self.ffn_norm(tokens))

    def _state(self, part: Adapter, normed: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        """Expert weights and global vector: of the prompt, or frozen since its prefill."""
        cache = step.cache
        if step.router_mean is None or step.globe_mean is None:
            assert cache is not None
            if isinstance(part, PIA):
                return cache.router[self.number], part.globe(normed[:, -1]) if step.current else cache.globe[
                    self.number
                ]
            return cache.router[self.number], None
        router = part.route(mean_token(normed, step.router_mean))
        globe = part.globe(mean_token(normed, step.globe_mean)) if isinstance(part, PIA) else None
        if cache is not None:
            cache.router[self.number] = router
            if globe is not None:
                cache.globe[self.number] = globe
        return router, globe

    def targets(self) -> list[tuple[nn.Module, str]]:
        """The matrices behind the adapter or PIA: their holder and name."""
        holder = self.feed_forward if self.skipped else self.attention
        assert holder is not None
        return [(holder, name) for name in (SKIPPED_TARGETS if self.skipped else KEPT_TARGETS)]

    def _fold(self, one: Affine, how: Fold) -> None:
        gain = self.ffn_norm.weight if self.skipped else None
        for holder, name in self.targets():
            old = getattr(holder, name)
            setattr(holder, name, linear_of(fold(old.weight, one, gain=gain, as_released=how == "released")))
        self.folded = True


class _Projector(nn.Module):
    def __init__(self, config: LavinConfig) -> None:
        super().__init__()
        self.conv_A = nn.Linear(config.vision_width, config.hidden_proj)
        self.conv_B = nn.Linear(config.hidden_proj, config.width)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv_B(F.silu(self.conv_A(features)))


class _Backbone(nn.Module):
    def __init__(self, config: LavinConfig) -> None:
        super().__init__()
        options = {"groups": config.groups, "scale": config.scale, "temperature": config.temperature}
        self.visual = Tower(
            config.vision_width,
            config.vision_layers,
            config.vision_heads,
            config.patch,
            config.size,
            config.tower_rank,
            dropout=config.dropout,
            **options,
        )


class Lavin(nn.Module):
    """LaVIN with adapters and PIAs.

    Args:
        both: every layer has adapter and PIA (the search); `set_skip` says which is at work.

    Raises:
        UserError: a skip list that is none.
    """

    def __init__(self, config: LavinConfig, *, both: bool = False) -> None:
        super().__init__()
        if len(set(config.skip)) != len(config.skip) or not set(config.skip) < set(range(config.layers)):
            raise UserError(
                f"a skip list {list(config.skip)}", f"of {config.layers} layers", "each once, and one stays"
            )
        self.config, self.checkpointing = config, False  # true: blocks are computed again in the backward pass
        self.tok_embeddings = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList([LavinBlock(config, number, both) for number in range(config.layers)])
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.output = nn.Linear(config.width, config.vocabulary, bias=False)
        self.backbone, self.adapter_proj = _Backbone(config), _Projector(config)
        self.adapter_modality_embedding = nn.Embedding(2, config.width)
        self.set_skip(config.skip)

    def blocks(self) -> Iterator[LavinBlock]:
        yield from self.layers  # type: ignore[misc]

    def set_skip(self, skip: tuple[int, ...]) -> None:
        """Skip these attentions from the next pass on; those that stay get consecutive cache slots."""
        slot = 0
        for block in self.blocks():
            block.skipped = block.number in skip
            if (block.pia if block.skipped else block.adapter) is None:
                raise UserError(f"layer {block.number} lacks its adapter or PIA", "this model", "one made with both")
            block.slot, slot = slot, slot + (not block.skipped)

    def see(self, images: Tensor, *, fold: bool = False) -> Tensor:
        """Pictures ``[batch, 3, size, size]`` as vectors ``[batch, features, width]``.

        Args:
            fold: with the tower's adapters in its matrices, for one picture.
        """
        every = self.config.vision_layers // self.config.features
        found = self.backbone.visual.classes(images, every, fold=fold)
        return self.adapter_proj(found.to(self.adapter_proj.conv_A.weight.dtype))

    def rotation(self, positions: Tensor) -> Tensor:
        """Complex turns of positions ``[..., tokens]``: ``[..., tokens, width / heads / 2]``."""
        size = self.config.width // self.config.heads
        rates = 10000.0 ** (-torch.arange(0, size, 2, device=positions.device).float() / size)
        angles = positions.float()[..., None] * rates
        return torch.polar(torch.ones_like(angles), angles)

    def run(self, tokens: Tensor, step: Step, watch: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """Embeddings ``[batch, tokens, width]`` through all blocks and the last norm."""
        for block in self.blocks():
            again = self.checkpointing and torch.is_grad_enabled()
            tokens = checkpoint(block, tokens, step, use_reentrant=False) if again else block(tokens, step)
            if watch is not None:
                watch(block.number, tokens)
        return self.norm(tokens)

    def insert(
        self, ids: Tensor, images: Tensor, has_image: Tensor, prefixes: Prefixes, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The sequence of a training: modality token and prefix in front, cut to the length of `ids`.

        Args:
            ids: ``[batch, tokens]``, the first is BOS, 0 is padding. images: ``[batch, 3, size, size]``, zeros where
                there is none. has_image: ``[batch]``, 1 or 0. labels: as `ids`; inserted positions are ignored.

        Returns:
            Embeddings ``[batch, tokens, width]`` and their labels.
        """
        seen, length = self.see(images), ids.shape[1]
        rows, targets = [], []
        for row in range(len(ids)):
            picture = bool(has_image[row])
            prefix = self.tok_embeddings(prefixes.of(picture).to(ids.device))
            inside = torch.cat((prefix, seen[row].to(prefix.dtype))) if picture else prefix
            words, mode = self.tok_embeddings(ids[row]), self.adapter_modality_embedding.weight[int(picture)]
            rows.append(torch.cat((mode[None].to(words.dtype), words[:1], inside, words[1:]))[:length])
            own = ids.new_zeros(length) if labels is None else labels[row]
            targets.append(torch.cat((own.new_zeros(1), own[:1], own.new_zeros(len(inside)), own[1:]))[:length])
        return torch.stack(rows), torch.stack(targets)

    def train_step(self, sequence: Tensor, prompt: Tensor | None = None) -> Step:
        """How a training passes a sequence ``[batch, tokens, width]``.

        Args:
            prompt: ``[batch, tokens]`` bool, what means run over; None: all positions, padding and answers too, as in
                the authors' code. The router leaves out position 0 either way.
        """
        batch, length, _ = sequence.shape
        chosen = torch.ones(batch, length, device=sequence.device) if prompt is None else prompt.float()
        mask = causal(length, sequence.device)
        rotation = self.rotation(torch.arange(length, device=sequence.device)[None])
        return Step(rotation, mask, *prompt_means(chosen))

    def forward(self, sequence: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Logits ``[batch, tokens, vocabulary]`` of a training's sequence."""
        return self.output(self.run(sequence, self.train_step(sequence, prompt)))

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What a tuning moves: adapters and PIAs, in tower and decoder, the projector, the modality tokens."""
        for name, parameter in self.named_parameters():
            if "adapter" in name or ".pia." in name:
                yield name, parameter


@dataclass(frozen=True)
class Prefixes:
    """Token ids in front of a question: with a picture ("Image: "), and without ("Image: N/A")."""

    image: Tensor
    none: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def of(self, picture: bool) -> Tensor:
        return self.image if picture else self.none


def prompt_means(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``[batch, tokens]`` of the router's mean and of the global vector's, over ``chosen [batch, tokens]``."""
    behind = chosen.clone()
    behind[:, 0] = 0
    return behind / behind.sum(1, keepdim=True), chosen / chosen.sum(1, keepdim=True)


def causal(length: int, device: torch.device) -> Tensor:
    """``[1, 1, tokens, tokens]``: back to itself, and nobody else to the modality token."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask[1:, 0] = False
    return mask[None, None]


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the next token over positions whose label is not 0."""
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def _rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """RoPE on neighbouring pairs of ``heads [batch, tokens, heads, size]``."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation[:, :, None]).flatten(-2).to(heads.dtype)
