"""The frozen model twice (section 3.3): with its visual tokens, and without them after layer k.

One dense pass gives the answer's logits and, after every layer k that is asked for, the gate's input x. From each of
these layers a second branch goes on without the image. The released code runs it on a doubled batch whose visual keys
are blocked; here the tokens are really taken out, which is the same numbers for the text (`dyvte.passes`) at a tenth
of the cost, and all branches of a batch run together. Only the positions that predict the answer pass the head.

Leaving after layer k was right when both say the same and the answer did not become less certain:

    agreement = share of answer positions whose most likely tokens are equal       > 0.99
    CE(without) < 1.03 CE(with)

Both are teacher-forced on the answer of the data set, so that a question that is answered wrongly either way also
says "exit". The loss of a gate is the ordinary cross entropy with these labels (the paper prints it with a sign
slip); the exit's KL divergence of the paper's equation 2 motivates it and is not computed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dyvte.attention_states import attention_states
from dyvte.gates import GateConfig
from dyvte.observation import Observed, Observer
from dyvte.passes import gather_positions
from dyvte.states import pooled_states, text_block
from tenfold import UserError
from tenfold.hosts import structure
from tenfold.hosts.ragged import Tokens, layer_mask, take

AGREEMENT = 0.99
CE_RATIO = 1.03
IGNORED = -100


@dataclass(frozen=True)
class LabelRule:
    """The two-part rule and its options.

    Attributes:
        agreement: least share of equal argmax tokens, exclusive.
        ratio: largest CE(without) / CE(with), exclusive.
        slack: added to the right-hand side, in nats (ours). Where the model is certain, the CE is near 0 and the
            published comparison, with slack 0, is decided by noise; 0.01 repairs that.
        drop_token_zero: as released: token id 0 counts neither in the agreement nor in the denominator of the CE.
            With LLaVA's tokenizer id 0 is padding and cannot be in an answer; in Qwen's it is "!".
    """

    agreement: float = AGREEMENT
    ratio: float = CE_RATIO
    slack: float = 0.0
    drop_token_zero: bool = False

    def judge(self, dense: Tensor, exited: Tensor, targets: Tensor) -> Judgement:
        """Compare the two branches on the answer.

        Args:
            dense: ``[batch, positions, vocabulary]`` logits with visual tokens; position t predicts ``targets[t]``.
            exited: the same without them.
            targets: ``[batch, positions]`` int64, `IGNORED` outside the answer.
        """
        counted = targets > 0 if self.drop_token_zero else targets != IGNORED
        number = counted.sum(1)
        same = (dense.argmax(-1) == exited.argmax(-1)) & counted
        agreement = same.sum(1) / number
        ce_dense, ce_exited = (_answer_ce(logits, targets) / number for logits in (dense, exited))
        right = (agreement > self.agreement) & (ce_exited < self.ratio * ce_dense + self.slack)
        return Judgement(right.long(), agreement, ce_dense, ce_exited)


@dataclass(frozen=True)
class Judgement:
    """What the rule says of every row, ``[batch]`` each.

    Attributes:
        labels: 1 where leaving is right, else 0.
        agreement: share of answer positions with equal argmax.
        ce_dense, ce_exited: mean cross entropy of the answer with and without visual tokens.
    """

    labels: Tensor
    agreement: Tensor
    ce_dense: Tensor
    ce_exited: Tensor


def shifted(labels: Tensor) -> Tensor:
    """``labels [batch, tokens]`` as targets: position t predicts token t + 1; the last predicts nothing."""
    return torch.cat((labels[:, 1:], labels.new_full((labels.shape[0], 1), IGNORED)), dim=1)


def gate_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of gate logits ``[batch, 2]`` with exit labels ``[batch]``."""
    return torch.nn.functional.cross_entropy(logits.float(), labels)


def _answer_ce(logits: Tensor, targets: Tensor) -> Tensor:
    ce = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return ce.view(targets.shape).sum(1)


@dataclass(frozen=True)
class Branches:
    """What one batch of training samples gave.

    Attributes:
        layers: the exit layers k, in the order of the first dimension below.
        x: ``[K, batch, inputs]``, the gates' inputs.
        dense: ``[batch, positions, vocabulary]`` logits with visual tokens, at the positions that predict the answer.
        exited: ``[K, batch, positions, vocabulary]`` without them after layer k.
        targets: ``[batch, positions]`` int64, the answer; `IGNORED` at padding.
    """

    layers: tuple[int, ...]
    x: Tensor
    dense: Tensor
    exited: Tensor
    targets: Tensor


@torch.no_grad()
def run_branches(
    model: nn.Module,
    inputs: Mapping[str, Any],
    labels: Tensor,
    layers: Sequence[int],
    config: GateConfig,
    *,
    visual: Tensor | None = None,
) -> Branches:
    """Run both branches of a batch.

    Args:
        model: the frozen host, in eval mode; nothing may be attached to it.
        inputs: of its forward: single-turn samples with one answer each, padded on either side.
        labels: ``[batch, tokens]`` int64, `IGNORED` outside the answer.
        layers: the exit layers, ascending.
        config: what the gates read.
        visual: ``[batch, tokens]`` bool; read off ``input_ids`` by default.

    Raises:
        UserError: a row without an image or without an answer, or a host that cannot be served.
    """
    host: Any = structure.unwrap(model)
    model, modules = host, structure.decoder_layers(host)
    layers = tuple(sorted(set(layers)))
    attention_mask = inputs.get("attention_mask")
    visual = structure.visual_mask(model, inputs) if visual is None else visual
    real = torch.ones_like(visual) if attention_mask is None else attention_mask.bool()
    answer = labels != IGNORED
    _check(visual & real, answer)
    prompt = Tokens.of_prompt(visual, real)
    assert prompt is not None
    text = text_block(prompt.visual, real) & ~answer  # prompt only: no answer tokens
    survivors, select = prompt.without(prompt.visual, prompt.num_visual)

    recorder = _Recorder(modules, layers, prompt, text, select, config)
    with recorder:
        hidden = _decoder_output(model, inputs)
    targets, at = _answer_positions(shifted(labels))  # [batch, positions]
    dense = _head(model, take(hidden, at))

    # A branch starts after layer k; at layer j all branches with k < j are one batch.
    branches: list[Tensor] = []
    real_keys = survivors.real if survivors.padded else None
    whole: Any = model.config
    implementation = whole.get_text_config()._attn_implementation
    for number, module in enumerate(modules):
        if branches:
            arguments = recorder.arguments[number]
            arguments |= gather_positions(arguments, select, prompt.width)
            like = branches[0]
            arguments["attention_mask"] = layer_mask(
                implementation, like.shape[1], like.shape[1], real_keys, dtype=like.dtype, device=like.device
            )
            output = module.forward(torch.cat(branches), **_repeated(arguments, len(branches), like.shape[0]))
            output = output[0] if isinstance(output, tuple) else output
            branches = list(output.split(like.shape[0]))
        if number in layers:
            branches.append(recorder.states[number])
    column = _columns(select, survivors.real, at)  # of the answer positions, among the survivors
    norm = _final_norm(model, modules)
    exited = torch.stack([_head(model, norm(take(states, column))) for states in branches])
    return Branches(layers, torch.stack(recorder.x), dense, exited, targets)


class _Recorder:
    """Hooks that keep, of one dense pass, each layer's arguments, and after the layers asked for the gate's input and
    the states of the tokens that are not visual: [batch, n - V, d], a few megabytes a layer at full size."""

    def __init__(
        self,
        modules: nn.ModuleList,
        layers: Sequence[int],
        prompt: Tokens,
        text: Tensor,
        select: Tensor,
        config: GateConfig,
    ) -> None:
        self.arguments: dict[int, dict[str, Any]] = {}
        self.states: dict[int, Tensor] = {}
        self.x: list[Tensor] = []
        self._modules, self._layers = modules, set(layers)
        self._prompt, self._text, self._select, self._config = prompt, text, select, config
        self._handles: list[Any] = []
        self._observed: Observed | None = None

    def __enter__(self) -> None:
        for number, module in enumerate(self._modules):
            names = list(inspect.signature(inspect.unwrap(type(module).forward)).parameters)[1:]

            def before(module: Any, args: tuple, kwargs: dict, number: int = number, names: list = names) -> None:
                self.arguments[number] = dict(zip(names[1:], args[1:], strict=False)) | kwargs

            def after(module: Any, args: tuple, kwargs: dict, output: Any, number: int = number) -> None:
                if number in self._layers:
                    self._keep(number, output[0] if isinstance(output, tuple) else output)

            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(after, with_kwargs=True))
        if self._config.reads_attention:
            self._handles += [Observer(self._modules[number].self_attn, self._see) for number in self._layers]

    def _see(self, observed: Observed) -> None:
        self._observed = replace(observed, real_keys=self._prompt.real if self._prompt.padded else None)

    def _keep(self, number: int, hidden: Tensor) -> None:
        if self._config.reads_attention:
            assert self._observed is not None
            tokens = self._prompt.to(hidden.device)
            self.x.append(attention_states(self._observed, replace(tokens, text=self._text), self._config))
        else:
            self.x.append(pooled_states(hidden, self._text, self._prompt.visual, self._config.states))
        self.states[number] = take(hidden, self._select)

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()


def _check(visual: Tensor, answer: Tensor) -> None:
    faults = {
        "a sample without an image": ~visual.any(1),
        "a sample without an answer": ~answer.any(1),
        "an answer before the image": (answer & (visual.flip(1).cumsum(1).flip(1) > 0)).any(1),
    }
    for fault, rows in faults.items():
        if bool(rows.any()):
            raise UserError(fault, f"row {int(rows.nonzero()[0])} of the batch", "one image, one question, one answer")
    runs = (answer[:, 1:] & ~answer[:, :-1]).sum(1) + answer[:, 0]
    if bool((runs > 1).any()):
        row = int((runs > 1).nonzero()[0])
        raise UserError("a sample of several rounds", f"row {row} of the batch", "one question and its answer a sample")


def _decoder_output(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Normed last hidden states of a dense pass, without the head."""
    kept: list[Tensor] = []
    head = model.get_output_embeddings()

    def grab(module: nn.Module, args: tuple) -> tuple:
        kept.append(args[0])
        return (args[0][:, :1],)  # the head need not run on the whole prompt

    handle = head.register_forward_pre_hook(grab)
    try:
        model(**inputs, use_cache=False)
    finally:
        handle.remove()
    return kept[0]


def _final_norm(model: Any, modules: nn.ModuleList) -> nn.Module:
    decoder = next(module for module in model.modules() if modules in module.children())
    norm = getattr(decoder, "norm", None)
    if not isinstance(norm, nn.Module):
        raise UserError("no final norm beside the decoder layers", type(model).__name__, "a module named norm")
    return norm


def _head(model: Any, hidden: Tensor) -> Tensor:
    return model.get_output_embeddings()(hidden).float()


def _answer_positions(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Targets and their columns, ``[batch, positions]`` each, the answers of all rows side by side."""
    counted = targets != IGNORED
    width = int(counted.sum(1).max())
    order = torch.argsort(counted.to(torch.uint8), dim=1, descending=True, stable=True)[:, :width]
    return targets.gather(1, order), order


def _columns(select: Tensor, real: Tensor, at: Tensor) -> Tensor:
    """Where the prompt's columns ``at [batch, positions]`` stand among the survivors ``select [batch, kept]``."""
    same = (select[:, None, :] == at[:, :, None]) & real[:, None, :]
    return same.to(torch.uint8).argmax(2)


def _repeated(arguments: dict[str, Any], times: int, batch: int) -> dict[str, Any]:
    """A layer's arguments for one branch as those of ``times`` branches in one batch."""
    repeated = dict(arguments)

    def tile(value: Tensor, dimension: int) -> Tensor:
        return torch.cat([value] * times, dimension) if value.shape[dimension] == batch else value

    if isinstance(value := arguments.get("attention_mask"), Tensor):
        repeated["attention_mask"] = tile(value, 0)
    if isinstance(value := arguments.get("position_ids"), Tensor):  # [.., batch, tokens]
        repeated["position_ids"] = tile(value, -2)
    if (value := arguments.get("position_embeddings")) is not None:  # [.., batch, tokens, head_dim] each
        repeated["position_embeddings"] = tuple(tile(part, -3) for part in value)
    return repeated
