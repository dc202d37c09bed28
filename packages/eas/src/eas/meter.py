"""EAS on METER (Dou et al., 2022): two streams, post-norm, six layers each of self- and cross-attention.

RoBERTa and CLIP's tower are frozen and whole. What is searched are the 24 attentions of the twelve cross-modal blocks:

    kept self     y = LN(x + O(Attn(Adp(x))))                     query, key and value all behind the adapter
    kept cross    y = LN(y + O(Attn(Q: Adp(y), K, V: other)))     the query alone
    FFN           y = LN(y + W_o gelu(W_i Adp(y)))
    skipped self  y = LN(x + P(x, x))                             the norm stays
    skipped cross y = LN(y + P(x, other))                         x is the block's input, not y
    P(x0, x1)     = s U (C x0 + c + mean(A x1 + a)) / 2 + s b     no residual of its own, and no router

Adapters have no router here, so that they fold into the matrices behind them once and for all (`merge`). Modules carry
the official names; ``conv_D`` and ``expert_weights`` are stored there and never used. The text's class token is thrown
away behind RoBERTa: a trained one, ``token4classifier``, takes its place.

    model = Meter(MeterConfig(task="vqa", skip=eas.released("meter-vqa-10"), as_released=True))
    logits = model(MeterInputs(ids, mask, (pixels,)))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import RobertaConfig, RobertaModel

from eas.folding import Affine, Folded, fold
from eas.plan import METER_LAYERS, meter_flags
from eas.tower import Tower
from tenfold import UserError

Task = Literal["vqa", "nlvr2", "irtr"]
TRAINED = ("classifier", "pooler", "token_type_embeddings", "rank_output", "adapter")
ENCODERS = ("text_transformer.", "vit_model.")


@dataclass(frozen=True)
class MeterConfig:
    """METER's sizes (the defaults are the paper's), and what is skipped.

    Attributes:
        task: "vqa", "nlvr2" or "irtr" (retrieval).
        size: edge of the pictures in pixels.
        answers: of VQA's classifier.
        skip: sites 0-23 as `eas.plan.meter_flags` reads them.
        as_released: by the authors' map, in which 18-23 skip an image self-attention again.
        folded: adapters are in the matrices behind them.
    """

    task: Task = "vqa"
    size: int = 384
    answers: int = 3129
    skip: tuple[int, ...] = ()
    as_released: bool = False
    folded: bool = False
    max_text: int = 50
    width: int = 768
    heads: int = 12
    ffn: int = 3072
    vocabulary: int = 50265
    text_positions: int = 514
    text_width: int = 768
    text_layers: int = 12
    vit_width: int = 768
    vit_layers: int = 12
    vit_heads: int = 12
    vit_patch: int = 16
    adapter_rank: int = 96
    pia_rank: int = 144
    groups: int = 2
    scale: float = 1.0
    dropout: float = 0.1

    @property
    def image_types(self) -> int:
        """Token types: text, picture, and NLVR2's second picture."""
        return 3 if self.task == "nlvr2" else 2


class MeterInputs(NamedTuple):
    """A batch: ``ids`` and ``mask [batch, text]``, and one or (NLVR2) two pictures ``[batch, 3, size, size]``."""

    ids: Tensor
    mask: Tensor
    pixels: tuple[Tensor, ...]


class _LowRank(nn.Module):
    """The official modules of an adapter: 1x1 convolutions, of which ``conv_D`` and the router are never used."""

    def __init__(self, config: MeterConfig, rank: int) -> None:
        super().__init__()
        width, groups = config.width, config.groups
        self.scale, self.dropout = config.scale, config.dropout
        self.conv_C = nn.Conv1d(width, rank, 1)
        self.conv_B = nn.Conv1d(rank, width, 1, groups=groups)
        self.conv_D = nn.Conv1d(rank, width, 1, groups=groups)
        self.expert_weights = nn.Linear(width, 2)

    def start(self, generator: torch.Generator) -> None:
        """xavier for the down-projections, zero for the up-projections: the block starts as it was."""
        for name, module in self.named_children():
            if name in ("conv_A", "conv_C"):
                nn.init.xavier_uniform_(module.weight, generator=generator)  # type: ignore[arg-type]
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif name != "expert_weights":
                nn.init.zeros_(module.weight)  # type: ignore[arg-type]
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def _down(self, convolution: nn.Conv1d, tokens: Tensor) -> Tensor:
        return F.linear(tokens, convolution.weight[..., 0], convolution.bias)

    def _rise(self, hidden: Tensor) -> Tensor:
        hidden = F.dropout(hidden, self.dropout, self.training)
        parts = hidden.unflatten(-1, (self.conv_B.groups, -1))  # [..., groups, rank / groups]
        weight = self.conv_B.weight[..., 0].unflatten(0, (self.conv_B.groups, -1))  # [groups, width / groups, ...]
        risen = torch.einsum("...gi,goi->...go", parts, weight).flatten(-2)
        return self.scale * (risen + _bias(self.conv_B))


def _bias(convolution: nn.Conv1d) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias


class StaticAdapter(_LowRank):
    """``Adp(x) = x + s (B (C x + c) + b)``: the same map for every sample."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self._rise(self._down(self.conv_C, tokens))

    def affine(self) -> Affine:
        """It as ``M x + b``."""
        dense = torch.block_diag(*self.conv_B.weight[..., 0].chunk(self.conv_B.groups))
        up, bias = self.scale * dense, self.scale * _bias(self.conv_B)
        return Affine(up, self.conv_C.weight[..., 0], up @ _bias(self.conv_C) + bias)


class StaticPIA(_LowRank):
    """P in the place of a removed attention; the mean runs over all of `other`, padding too, as released."""

    def __init__(self, config: MeterConfig, rank: int) -> None:
        super().__init__(config, rank)
        self.conv_A = nn.Conv1d(config.width, rank, 1)

    def forward(self, tokens: Tensor, other: Tensor) -> Tensor:
        globe = self._down(self.conv_A, other.mean(1, keepdim=True))  # [batch, 1, rank]
        return self._rise(0.5 * (self._down(self.conv_C, tokens) + globe))


class _Projections(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))


class _Output(nn.Module):
    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, width), nn.LayerNorm(width, eps=1e-12)


class _Intermediate(nn.Module):
    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.ffn)
        self.adapter = _adapter(config)


def _adapter(config: MeterConfig) -> nn.Module:
    return nn.Identity() if config.folded else StaticAdapter(config, config.adapter_rank)


class SiteAttention(nn.Module):
    """One of the 24 attentions, with the adapter on its input and its norm."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.add_module("self", _Projections(config.width))
        self.output, self.adapter = _Output(config.width, config.width), _adapter(config)

    @property
    def projections(self) -> _Projections:
        """Query, key and value, whose official name is ``self``."""
        return cast(_Projections, self.get_submodule("self"))

    def forward(self, tokens: Tensor, other: Tensor | None, mask: Tensor) -> Tensor:
        """``tokens`` attend to themselves or to `other`; ``mask [batch, 1, 1, keys]`` bool, true where one may look."""
        adapted = self.adapter(tokens)
        source = adapted if other is None else other
        parts, drop = self.projections, self.dropout if self.training else 0.0
        query, key, value = (
            part(of).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [batch, heads, tokens, width / heads]
            for part, of in ((parts.query, adapted), (parts.key, source), (parts.value, source))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=drop)
        mixed = self.output.dense(mixed.transpose(1, 2).flatten(2))
        return self.output.LayerNorm(tokens + F.dropout(mixed, self.dropout, self.training))


class CrossLayer(nn.Module):
    """A cross-modal block of one stream; ``skip_self`` and ``skip_cross`` say which attentions are gone."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.dropout, self.skip_self, self.skip_cross = config.dropout, False, False
        self.attention, self.crossattention = SiteAttention(config), SiteAttention(config)
        self.intermediate, self.output = _Intermediate(config), _Output(config.ffn, config.width)
        self.adapter_self_attn, self.adapter_cross_attn = (StaticPIA(config, config.pia_rank) for _ in range(2))

    def forward(self, tokens: Tensor, other: Tensor, mask: Tensor, other_mask: Tensor) -> Tensor:
        """``tokens [batch, tokens, width]`` of this stream, `other` of the other, masks as in `SiteAttention`."""
        if self.skip_self:
            attended = self.attention.output.LayerNorm(tokens + self.adapter_self_attn(tokens, tokens))
        else:
            attended = self.attention(tokens, None, mask)
        if self.skip_cross:
            crossed = self.crossattention.output.LayerNorm(attended + self.adapter_cross_attn(tokens, other))
        else:
            crossed = self.crossattention(attended, other, other_mask)
        hidden = F.gelu(self.intermediate.dense(self.intermediate.adapter(crossed)))
        hidden = F.dropout(self.output.dense(hidden), self.dropout, self.training)
        return self.output.LayerNorm(crossed + hidden)


class _Pooler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.dense(tokens[:, 0]))


class _Vision(nn.Module):
    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        blocks = config.vit_layers - 1  # the last one of the release is not built
        self.visual = Tower(config.vit_width, blocks, config.vit_heads, config.vit_patch, config.size)


class Encoded(NamedTuple):
    """A stream before the cross-modal layers: ``tokens [batch, tokens, width]``, ``mask [batch, 1, 1, tokens]``."""

    tokens: Tensor
    mask: Tensor


class Meter(nn.Module):
    """METER with adapters and PIAs, for one task, under the names of the authors' state dict.

    Raises:
        UserError: a site outside of 0-23.
    """

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        text = RobertaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.heads,
            intermediate_size=config.text_width * config.ffn // width,
            max_position_embeddings=config.text_positions,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
        )
        self.text_transformer, self.vit_model = RobertaModel(text, add_pooling_layer=False), _Vision(config)
        self.cross_modal_text_transform = nn.Linear(config.text_width, width)
        self.cross_modal_image_transform = nn.Linear(config.vit_width, width)
        self.token_type_embeddings = nn.Embedding(config.image_types, width)
        self.token4classifier = nn.Parameter(torch.zeros(1, 1, width))
        self.cross_modal_text_layers = nn.ModuleList([CrossLayer(config) for _ in range(METER_LAYERS)])
        self.cross_modal_image_layers = nn.ModuleList([CrossLayer(config) for _ in range(METER_LAYERS)])
        self.cross_modal_text_pooler, self.cross_modal_image_pooler = _Pooler(width), _Pooler(width)
        pooled = 2 * width
        if config.task == "vqa":
            self.vqa_classifier = _classifier(pooled, pooled, config.answers)
        elif config.task == "nlvr2":
            self.nlvr2_classifier = _classifier(2 * pooled, pooled, 2)
        else:
            self.rank_output = nn.Linear(pooled, 1)
        self.set_skip(config.skip, as_released=config.as_released)

    def layers(self) -> list[CrossLayer]:
        """The twelve blocks, text first: rows of `eas.plan.meter_flags`."""
        return [*self.cross_modal_text_layers, *self.cross_modal_image_layers]

    def set_skip(self, skip: tuple[int, ...], *, as_released: bool = False) -> None:
        """Skip these sites from the next forward on. Raises UserError for a list that is none."""
        flags = meter_flags(skip, as_released=as_released).tolist()
        for layer, (own, cross) in zip(self.layers(), flags, strict=True):
            layer.skip_self, layer.skip_cross = own, cross

    def flags(self) -> Tensor:
        """``[12, 2]`` bool: which attentions are skipped, as `eas.plan.meter_flags`."""
        return torch.tensor([[layer.skip_self, layer.skip_cross] for layer in self.layers()])

    def encode_text(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Token ids and their mask ``[batch, text]`` through RoBERTa."""
        tokens = self.text_transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        tokens = self.cross_modal_text_transform(tokens)
        tokens = torch.cat((self.token4classifier.expand(len(tokens), -1, -1), tokens[:, 1:]), dim=1)
        return Encoded(tokens + self.token_type_embeddings.weight[0], mask.bool()[:, None, None])

    def encode_image(self, pixels: Tensor, kind: int = 1) -> Encoded:
        """Pictures ``[batch, 3, size, size]`` through the tower; NLVR2's second picture is of kind 2."""
        tokens = self.cross_modal_image_transform(self.vit_model.visual(pixels))
        mask = torch.ones(len(tokens), 1, 1, tokens.shape[1], dtype=torch.bool, device=tokens.device)
        return Encoded(tokens + self.token_type_embeddings.weight[kind], mask)

    def fuse(self, text: Encoded, image: Encoded) -> tuple[Tensor, Tensor, Tensor]:
        """Both streams through the cross-modal layers: their tokens, and what is pooled, ``[batch, 2 width]``."""
        x, y = text.tokens, image.tokens
        for text_layer, image_layer in zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True):
            # Each reads the other as it was before this layer.
            x, y = text_layer(x, y, text.mask, image.mask), image_layer(y, x, image.mask, text.mask)
        return x, y, torch.cat((self.cross_modal_text_pooler(x), self.cross_modal_image_pooler(y)), dim=-1)

    def forward(self, inputs: MeterInputs) -> Tensor:
        """Answers' logits ``[batch, answers]``, NLVR2's ``[batch, 2]``, or retrieval's scores ``[batch]``."""
        text = self.encode_text(inputs.ids, inputs.mask)
        pooled = [self.fuse(text, self.encode_image(one, kind))[2] for kind, one in enumerate(inputs.pixels, start=1)]
        if len(pooled) != self.config.image_types - 1:
            raise UserError(f"{len(pooled)} pictures", f"task {self.config.task}", f"{self.config.image_types - 1}")
        if self.config.task == "vqa":
            return self.vqa_classifier(pooled[0])
        if self.config.task == "nlvr2":
            return self.nlvr2_classifier(torch.cat(pooled, dim=-1))
        return self.rank_output(pooled[0])[:, 0]

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What a tuning moves, by the authors' rule of names: adapters, poolers, token types, the task's head."""
        for name, parameter in self.named_parameters():
            if any(part in name for part in TRAINED) and not name.startswith(ENCODERS):
                yield name, parameter


def _classifier(inner: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out))


def used_parameters(config: MeterConfig) -> int:
    """Adapters and PIAs that are at work: without ``conv_D``, routers, and what the flags leave out."""
    with torch.device("meta"):
        adapter, pia = StaticAdapter(config, config.adapter_rank), StaticPIA(config, config.pia_rank)
    sizes = [
        sum(value.numel() for name, value in one.named_parameters() if "conv_D" not in name and "expert" not in name)
        for one in (adapter, pia)
    ]
    removed = int(meter_flags(config.skip, as_released=config.as_released).sum())
    return (6 * METER_LAYERS - removed) * sizes[0] + removed * sizes[1]


def task_loss(model: Meter, inputs: MeterInputs, targets: Tensor) -> Tensor:
    """The loss of a batch: VQA's soft targets ``[batch, answers]`` (times their number), classes ``[batch]``, or, for
    retrieval, ``[batch, captions]`` scores against the class of the right one.

    For retrieval `inputs` hold ``captions`` texts a picture, and ``targets [batch]`` say which is right.
    """
    logits = model(inputs)
    if model.config.task == "vqa":
        return F.binary_cross_entropy_with_logits(logits, targets) * targets.shape[1]
    if model.config.task == "irtr":
        logits = logits.view(len(targets), -1)
    return F.cross_entropy(logits, targets)


@torch.no_grad()
def merge(model: Meter) -> None:
    """Fold every adapter into the matrix behind it, for good: nothing is left of the 36, whatever the sample.

    PIAs stay: behind a norm they fold into nothing, and in low rank they cost less than a matrix would.

    Raises:
        UserError: it was done before.
    """
    if model.config.folded:
        raise UserError("adapters are folded already", "this model", "one with adapters")
    for layer in model.layers():
        pairs: list[tuple[nn.Module, list[nn.Linear]]] = [(layer.intermediate, [layer.intermediate.dense])]
        own, cross = (site.projections for site in (layer.attention, layer.crossattention))
        pairs += [(layer.attention, [own.query, own.key, own.value]), (layer.crossattention, [cross.query])]
        for holder, linears in pairs:
            adapter = holder.adapter
            assert isinstance(adapter, StaticAdapter)
            for linear in linears:
                folded: Folded = fold(linear.weight, adapter.affine(), bias=linear.bias)
                linear.weight.copy_(folded.weight)
                linear.bias.copy_(folded.bias)
            holder.adapter = nn.Identity()
    model.config = replace(model.config, folded=True)
