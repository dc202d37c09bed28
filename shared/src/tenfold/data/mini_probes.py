"""The mini host's decoder, layer by layer: what tokens see, keep, skip or lose on the way, and what is said then.

Plain pieces for gates and for the trainer; no method of any paper.

    probes = Probes(*mini_host.load(), prompts(processor, seed=100, count=64))
    probes.right(probes.removed())          # without visual tokens after no layer, the first, the second, ...

Needs the extra `tenfold[train]` (torch, transformers).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tenfold.data import mini_host
from tenfold.data.mini_sets import SHORT_ANSWER
from tenfold.data.miniworld import flags
from tenfold.data.miniworld.flag_questions import KINDS, FlagQuestion, asked
from tenfold.data.miniworld.flags import FlagScene


def embed(model: LlavaForConditionalGeneration, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
    """The decoder's input: words, and the picture's features in the places of its tokens.

    Args:
        model: the mini host.
        input_ids: `[batch, tokens]` int64, each row with one picture's tokens.
        pixel_values: `[batch, 3, 80, 80]` float32.

    Returns:
        `[batch, tokens, width]`.
    """
    hidden = model.model.language_model.embed_tokens(input_ids)
    features = torch.cat(tuple(model.get_image_features(pixel_values).pooler_output))
    visual = input_ids == model.config.image_token_id
    return hidden.masked_scatter(visual[..., None], features.to(hidden.dtype))


def walk(
    model: LlavaForConditionalGeneration,
    hidden: Tensor,
    positions: Tensor,
    sees: Tensor | Sequence[Tensor],
    *,
    layers: Sequence[int] | None = None,
    without_attention: Collection[int] = (),
    skipped: Mapping[int, Tensor] | None = None,
) -> list[Tensor]:
    """Hidden states before the first and after every layer.

    Args:
        model: the mini host.
        hidden: `[batch, tokens, width]`.
        positions: `[batch, tokens]` int64.
        sees: bool `[batch or 1, tokens, tokens]`, which token sees which; one for all layers, or one for each of them.
        layers: numbers of the layers to go through; default: all.
        without_attention: layers whose attention adds nothing.
        skipped: layer -> bool `[batch, tokens]`: tokens that pass it by, unchanged and unseen.

    Returns:
        One more than layers, each `[batch, tokens, width]`.
    """
    decoder = model.model.language_model
    numbers = range(len(decoder.layers)) if layers is None else layers
    turned = decoder.rotary_emb(hidden, positions)
    masks: dict[int, Tensor] = {}
    states = [hidden]
    for number in numbers:
        layer = decoder.layers[number]
        seen = sees if isinstance(sees, Tensor) else sees[number]
        passing = None if skipped is None else skipped.get(number)
        if number in without_attention:
            states.append(states[-1] + layer.mlp(layer.post_attention_layernorm(states[-1])))
            continue
        if passing is not None:
            # A token that passes by sees itself: a row without any key has no softmax.
            itself = torch.eye(seen.shape[-1], dtype=torch.bool)
            mask = _additive((seen & ~passing[:, None, :]) | itself, hidden.dtype)
        else:
            mask = masks.setdefault(id(seen), _additive(seen, hidden.dtype))
        output = layer(states[-1], attention_mask=mask, position_ids=positions, position_embeddings=turned)
        after = output[0] if isinstance(output, tuple) else output
        states.append(after if passing is None else torch.where(passing[..., None], states[-1], after))
    return states


def _additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """`[batch, 1, tokens, tokens]`: 0 where a token is seen, the least number where it is not."""
    return torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def words(model: LlavaForConditionalGeneration, hidden: Tensor) -> Tensor:
    """Logits over the vocabulary of hidden states `[..., width]`, by the model's last norm and output matrix."""
    return model.lm_head(model.model.language_model.norm(hidden))


# Counts and presence are taught, but not learnt 20 points beyond the most common answer: of seed 0, on world 9001,
# counts 35 % right, presence 69 % where "no" was right in 60 %. Gates go without them; `mini_gate` measures them.
LEARNT = tuple(kind for kind in KINDS if kind not in ("count", "yes_no"))


@dataclass(frozen=True)
class Prompts:
    """Questions of one kind and one length, each about a scene of its own.

    Args:
        kind: of all of them.
        scenes: shown.
        input_ids: `[questions, tokens]` int64.
        answers: `[questions]` int64: the right word.
        objects: `[questions, 100]` bool: patches of objects and of their flags.
        answer_patch: `[questions, 100]` bool: the patch of the object that has the answer; none for counts and "no".
    """

    kind: str
    scenes: tuple[FlagScene, ...]
    input_ids: Tensor
    answers: Tensor
    objects: Tensor
    answer_patch: Tensor

    def visual(self, model: LlavaForConditionalGeneration) -> Tensor:
        """`[tokens]` bool: which tokens are visual, the same ones in every row."""
        return self.input_ids[0] == model.config.image_token_id


def prompts(processor: LlavaProcessor, seed: int, count: int, kinds: Sequence[str] = LEARNT) -> list[Prompts]:
    """`count` held-out questions of each kind: half as they are, half with the short-answer ending."""
    groups = []
    for kind in kinds:
        pairs = asked(kind, seed, count)
        for ending, part in (("", pairs[: count // 2]), (f"\n{SHORT_ANSWER}", pairs[count // 2 :])):
            if part:
                groups.append(_group(processor, kind, part, ending))
    return groups


def _group(
    processor: LlavaProcessor, kind: str, pairs: Sequence[tuple[FlagScene, FlagQuestion]], ending: str
) -> Prompts:
    picture = "<image>" * mini_host.VISUAL_TOKENS
    texts = [mini_host.prompt(question.text + ending).replace("<image>", picture) for _, question in pairs]
    objects, answer_patch = (torch.zeros(len(pairs), mini_host.VISUAL_TOKENS, dtype=torch.bool) for _ in range(2))
    for row, (scene, question) in enumerate(pairs):
        for thing in scene.things:
            objects[row, list(thing.patches)] = True
        if question.chain and kind != "count":
            answer_patch[row, scene.things[question.chain[-1]].patches[0]] = True
    answers = processor.tokenizer.convert_tokens_to_ids([question.answer for _, question in pairs])
    ids = torch.tensor(processor.tokenizer(texts)["input_ids"])
    return Prompts(kind, tuple(scene for scene, _ in pairs), ids, torch.tensor(answers), objects, answer_patch)


class Probes:
    """What a host says to the same questions when its decoder is disturbed.

    Args:
        model, processor: the mini host, in eval mode.
        groups: of questions.
        noise: of the pictures, in grey levels.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        groups: Sequence[Prompts],
        noise: int = flags.NOISE,
    ) -> None:
        self.model = model
        self._processor = processor
        self.groups = tuple(groups)
        self._noise = noise
        self.layers = len(model.model.language_model.layers)
        # `[questions]`: kind and right word of every question, in the order of all results
        self.kinds = np.array([group.kind for group in groups for _ in group.scenes])
        self.answers = torch.cat([group.answers for group in groups])

    def start(self, group: Prompts, draw: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """The decoder's input `[questions, tokens, width]`, positions `[1, tokens]`, and what sees what."""
        images = [flags.render(scene, noise=self._noise, draw=draw) for scene in group.scenes]
        pixels = self._processor.image_processor(images, return_tensors="pt")["pixel_values"]
        hidden = embed(self.model, group.input_ids, pixels)
        tokens = hidden.shape[1]
        return hidden, torch.arange(tokens)[None], torch.ones(1, tokens, tokens, dtype=torch.bool).tril()

    def said(self, hidden: Tensor) -> Tensor:
        """`[questions]` int64: the word that the last token predicts."""
        return words(self.model, hidden[:, -1]).argmax(-1)

    @torch.inference_mode()
    def removed(self, draw: int = 0) -> Tensor:
        """Words said when all visual tokens are removed before the first layer and after each layer.

        Returns:
            `[layers + 1, questions]` int64; the last row is the whole model's.
        """
        columns = []
        for group in self.groups:
            hidden, positions, sees = self.start(group, draw)
            states = walk(self.model, hidden, positions, sees)
            left = ~group.visual(self.model)
            rows = []
            for after, state in enumerate(states):
                rest = range(after, self.layers)
                own = sees[:, left][:, :, left]
                rows.append(self.said(walk(self.model, state[:, left], positions[:, left], own, layers=rest)[-1]))
            columns.append(torch.stack(rows))
        return torch.cat(columns, dim=1)

    @torch.inference_mode()
    def kept(self, choose: Callable[[Prompts], Tensor], after: int) -> Tensor:
        """Words said when only chosen visual tokens go on after a layer (-1: before the first one).

        Args:
            choose: gives bool `[questions, 100]`, what is kept; equally many in each row.
            after: number of the layer.

        Returns:
            `[questions]` int64.
        """
        columns = []
        for group in self.groups:
            hidden, positions, sees = self.start(group)
            state = walk(self.model, hidden, positions, sees, layers=range(after + 1))[-1]
            stays = (~group.visual(self.model)).repeat(len(state), 1)
            stays[:, group.visual(self.model)] = choose(group)
            left = stays.nonzero()[:, 1].view(len(state), -1)  # [questions, tokens left]
            state = state.gather(1, left[..., None].expand(-1, -1, state.shape[-1]))
            # Tokens keep their positions: what stands before stays before.
            own = torch.ones(1, left.shape[1], left.shape[1], dtype=torch.bool).tril()
            columns.append(self.said(walk(self.model, state, left, own, layers=range(after + 1, self.layers))[-1]))
        return torch.cat(columns)

    @torch.inference_mode()
    def routed(self, choose: Callable[[Prompts], Tensor], layers: Sequence[int]) -> Tensor:
        """Words said when chosen visual tokens pass layers by, unchanged and unseen there.

        Args:
            choose: gives bool `[questions, 100]`, what passes by; asked once a layer.
            layers: that are passed by.
        """
        columns = []
        for group in self.groups:
            hidden, positions, sees = self.start(group)
            skipped = {}
            for layer in layers:
                passing = torch.zeros(hidden.shape[:2], dtype=torch.bool)
                passing[:, group.visual(self.model)] = choose(group)
                skipped[layer] = passing
            columns.append(self.said(walk(self.model, hidden, positions, sees, skipped=skipped)[-1]))
        return torch.cat(columns)

    @torch.inference_mode()
    def without_attention(self) -> Tensor:
        """Words said when one layer's attention adds nothing: `[layers, questions]` int64."""
        columns = []
        for group in self.groups:
            hidden, positions, sees = self.start(group)
            states = walk(self.model, hidden, positions, sees)
            rows = [
                self.said(
                    walk(
                        self.model, states[layer], positions, sees,
                        layers=range(layer, self.layers), without_attention={layer},
                    )[-1]
                )
                for layer in range(self.layers)
            ]  # fmt: skip
            columns.append(torch.stack(rows))
        return torch.cat(columns, dim=1)

    def right(self, said: Tensor) -> np.ndarray:
        """Which words are right: float `[..., questions]`."""
        return (said == self.answers).double().numpy()

    def score(self, right: np.ndarray) -> float:
        """Mean over kinds of the share of right answers, in per cent, of `[questions]`."""
        return 100 * float(np.mean([right[self.kinds == kind].mean() for kind in dict.fromkeys(self.kinds)]))

    def by_kind(self, right: np.ndarray) -> dict[str, Any]:
        """Shares in per cent of `[questions]`, or lists of them of `[rows, questions]`."""
        return {
            str(kind): np.round(100 * right[..., self.kinds == kind].mean(-1), 2).tolist()
            for kind in dict.fromkeys(self.kinds)
        }
