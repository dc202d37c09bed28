"""How deep the mini host looks at its picture: answers after all visual tokens but one are dropped.

A rule that chooses which visual tokens to drop can only be told from another one in a model that still reads them
where they are dropped. So for each layer k, this measures the share of right answers when layers after k see a single
visual token. Where the curve still rises, the layers above k still read the picture.

Needs the extra `tenfold[train]` (torch, transformers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaModel, LlavaForConditionalGeneration, LlavaProcessor

from tenfold.data import mini_host, miniworld
from tenfold.data.mini_sets import SHORT_ANSWER


def asked(kind: str, seed: int, count: int) -> list[tuple[miniworld.Scene, miniworld.Question]]:
    """`count` held-out questions of a kind, one a scene: `miniworld.scene` shares no stream with the trainer."""
    found: list[tuple[miniworld.Scene, miniworld.Question]] = []
    index = 0
    while len(found) < count:
        scene = miniworld.scene(seed, index)
        found += [(scene, question) for question in miniworld.questions(scene, seed, index, 1, (kind,))]
        index += 1
    return found


@torch.inference_mode()
def evaluate(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    seed: int,
    count: int,
    *,
    size: int = mini_host.IMAGE_SIZE,
    ending: str = "",
    batch: int = 100,
    kinds: Sequence[str] = miniworld.KINDS,
) -> dict[str, dict[str, float]]:
    """Held-out accuracy per kind of question: one question an image, answered by `generate` and compared as text.

    Args:
        model, processor: the mini host.
        seed: of the scenes; `miniworld.scene` shares no stream with the trainer, whatever the seeds.
        count: questions of each kind.
        size: edge of the pictures before the processor resizes them.
        ending: added to every question after a newline.
        batch: questions at once; they differ in length, so the shorter ones are padded on the left.
        kinds: of questions.

    Returns:
        kind -> {"accuracy": share of right answers, "n": questions asked}.
    """
    table = {}
    for kind in kinds:
        questions = asked(kind, seed, count)
        hits = 0
        for start in range(0, count, batch):
            part = questions[start : start + batch]
            texts = [mini_host.prompt(question.text + (f"\n{ending}" if ending else "")) for _, question in part]
            images = [miniworld.render(scene, size) for scene, _ in part]
            answers = mini_host.answer(model, processor, images, texts)
            hits += sum(said == question.answer for said, (_, question) in zip(answers, part, strict=True))
        table[kind] = {"accuracy": hits / count, "n": count}
    return table


# What a user may do differently from the trainer: larger pictures (resized by Pillow), an ending to the question.
VARIANTS: dict[str, dict[str, Any]] = {
    "as trained": {},
    "336 pixel pictures": {"size": 336},
    "short-answer ending": {"ending": SHORT_ANSWER},
}


@torch.inference_mode()
def gate_curve(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    seed: int,
    count: int,
    kind: str = "two_hop",
    batch: int = 100,
) -> list[float]:
    """Share of right answers when only the first visual token is left after layer k, for k = 0 .. layers - 1.

    Args:
        model, processor: the mini host's, in eval mode.
        seed: of the held-out scenes.
        count: questions.
        kind: of questions, one of `miniworld.KINDS`.
        batch: questions at once.

    Returns:
        One share per layer. Nothing is lost by dropping after the last layer: its share is the whole model's.
    """
    right = torch.zeros(len(model.model.language_model.layers))
    questions = asked(kind, seed, count)
    for start in range(0, count, batch):
        part = questions[start : start + batch]
        inputs = processor(
            images=[miniworld.render(scene, mini_host.IMAGE_SIZE) for scene, _ in part],
            text=[mini_host.prompt(question.text) for _, question in part],
            return_tensors="pt",
            padding=True,
        )
        words = [question.answer for _, question in part]
        answers = torch.tensor(processor.tokenizer.convert_tokens_to_ids(words))
        right += (pruned_logits(model, **inputs).argmax(-1) == answers).sum(-1)
    return (right / count).tolist()


@torch.inference_mode()
def pruned_logits(
    model: LlavaForConditionalGeneration, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor
) -> Tensor:
    """What the last token of a prompt predicts when all visual tokens but the first are dropped after layer k.

    Tokens that are left keep their positions and what they read from the others before.

    Args:
        model: the mini host.
        input_ids, attention_mask: `[batch, tokens]` int64, padded on the left.
        pixel_values: `[batch, 3, 48, 48]` float32.

    Returns:
        `[layers, batch, vocabulary]` float32.
    """
    decoder = model.model.language_model
    visual = input_ids == model.config.image_token_id
    hidden = decoder.embed_tokens(input_ids)
    features = torch.cat(tuple(model.get_image_features(pixel_values).pooler_output))
    hidden = hidden.masked_scatter(visual[..., None], features.to(hidden.dtype))
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    # The same number of tokens stays in every row, so what is left is a rectangle again.
    stays = ~visual | (visual.cumsum(-1) == 1)
    left = torch.nonzero(stays)[:, 1].view(len(input_ids), -1)  # [batch, tokens left]
    found = []
    for dropped_after, layer in enumerate(decoder.layers):
        hidden = _apply([layer], decoder, hidden, attention_mask, positions)
        short = hidden.gather(1, left[..., None].expand(-1, -1, hidden.shape[-1]))
        rest = decoder.layers[dropped_after + 1 :]
        short = _apply(rest, decoder, short, attention_mask.gather(1, left), positions.gather(1, left))
        found.append(model.lm_head(decoder.norm(short[:, -1])))
    return torch.stack(found)


def _apply(
    layers: Sequence[torch.nn.Module], decoder: LlamaModel, hidden: Tensor, mask: Tensor, positions: Tensor
) -> Tensor:
    """Decoder layers with causal attention on tokens `[batch, tokens, width]`, padding unseen."""
    tokens = hidden.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    # A padded token sees itself: a row without any key has no softmax.
    sees = (causal & mask[:, None, :].bool()) | torch.eye(tokens, dtype=torch.bool)
    turned = decoder.rotary_emb(hidden, positions)
    for layer in layers:
        output = layer(hidden, attention_mask=sees[:, None], position_ids=positions, position_embeddings=turned)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden
