"""What the UNet is told in a call besides latents and times: text, pictures of IP-Adapters, options of attention.

An edit of a picture takes several rows, one for every noise; under guidance there are two halves, the unconditional
first. What is given once for an edit is repeated here.

    text = read_text(pipe, 2, "a raccoon", None, None, None, None, guided=True)
    told = Conditioning(embeddings, edits=2, noises=3)
    told.unet(pipe.unet)(latents, time, encoder_hidden_states=told.rows())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inst_diff_edit.inputs import one_each
from inst_diff_edit.words import Words, given_words, split_words, token_ids
from tenfold import InputError


@dataclass
class Conditioning:
    """Of one call; a callback may change the text between two steps.

    Attributes:
        embeddings: of the text, ``[edits, positions, width]``, under guidance ``[2 * edits, positions, width]`` with
            the unconditional ones first.
        edits: pictures times edits of each.
        noises: of an edit.
        pictures: of IP-Adapters, one tensor an adapter with ``edits * noises`` rows, under guidance twice as many.
        guidance: the scale as the UNet of a consistency model wants it, ``[edits * noises, width]``.
        attention: diffusers' ``cross_attention_kwargs``.
    """

    embeddings: Tensor
    edits: int = 1
    noises: int = 1
    pictures: list[Tensor] | None = None
    guidance: Tensor | None = None
    attention: Mapping[str, Any] | None = None

    def rows(self) -> Tensor:
        """The embeddings of all rows, ``[rows or 2 * rows, positions, width]``."""
        return self.embeddings.repeat_interleave(self.noises, 0)

    def negative(self) -> Tensor | None:
        """The unconditional half, ``[edits, positions, width]``; None without guidance."""
        return self.embeddings[: self.edits] if len(self.embeddings) == 2 * self.edits else None

    def change(self, embeddings: Any) -> None:
        """Other embeddings from the next step on; the conditional half alone ends guidance.

        Raises:
            InputError: for another number of edits, of positions, or of another width.
        """
        positions, width = self.embeddings.shape[1:]
        counts = (self.edits, 2 * self.edits)
        shape = list(embeddings.shape) if torch.is_tensor(embeddings) else type(embeddings).__name__
        if shape not in [[count, positions, width] for count in counts]:
            expected = f"[{counts[0]} or {counts[1]}, {positions}, {width}]"
            raise InputError(f"prompt_embeds {shape} of a callback", "callback_on_step_end", expected)
        self.embeddings = embeddings.to(self.embeddings)

    def unet(self, unet: Callable[..., Any]) -> Callable[..., Any]:
        """The UNet as a function of latents, time and embeddings, told all the rest."""

        def predict(latents: Tensor, time: Tensor, encoder_hidden_states: Tensor) -> Any:
            rows, told = len(latents), dict[str, Any]()
            if self.attention is not None:
                told["cross_attention_kwargs"] = dict(self.attention)
            if self.guidance is not None:
                told["timestep_cond"] = self.guidance[-rows:]
            if self.pictures is not None:
                # Without guidance, the conditional half.
                told["added_cond_kwargs"] = {"image_embeds": [one[-rows:] for one in self.pictures]}
            return unet(latents, time, encoder_hidden_states=encoder_hidden_states, **told)

        return predict


def given_embeddings(embeddings: Any, name: str, count: int, width: Any) -> Tensor | None:
    """A caller's embeddings, one row a picture: ``[count, positions, width]``; None if there are none.

    Args:
        embeddings: ``[1 or count, positions, width]``.
        width: what the UNet attends to.

    Raises:
        InputError: something else.
    """
    if embeddings is None:
        return None
    if not torch.is_tensor(embeddings) or not embeddings.is_floating_point():
        raise InputError(f"{name} of type {type(embeddings).__name__}", name, "a tensor of floating-point numbers")
    shape = list(embeddings.shape)
    if len(shape) != 3 or shape[0] not in (1, count) or (isinstance(width, int) and shape[2] != width):
        raise InputError(f"{name} of shape {shape}", name, f"[1 or {count}, positions, {width}]")
    if not bool(embeddings.isfinite().all()):
        raise InputError(f"{name} that are not finite", name, "numbers")
    return embeddings.expand(count, -1, -1)


@dataclass(frozen=True)
class Text:
    """What a caller said of every picture.

    Attributes:
        prompts, negatives: one a picture; None where embeddings stand for them.
        embeddings, negative_embeddings: ``[pictures, positions, width]``, given ones; else None.
        words: of the prompts, one a picture.
    """

    prompts: list[str] | None
    negatives: list[str] | None
    embeddings: Tensor | None
    negative_embeddings: Tensor | None
    words: list[Words]

    def for_inpainting(self, edits: int) -> dict[str, Any]:
        """The same for diffusers' inpainting pipeline, which takes texts or embeddings, for ``edits`` of a picture."""

        def told(name: str, texts: Sequence[str] | None, embeddings: Tensor | None) -> dict[str, Any]:
            if embeddings is not None:
                return {f"{name}_embeds": embeddings.repeat_interleave(edits, 0)}
            return {} if texts is None else {name: [text for text in texts for _ in range(edits)]}

        positive = told("prompt", self.prompts, self.embeddings)
        return positive | told("negative_prompt", self.negatives, self.negative_embeddings)


def read_text(
    pipe: Any,
    count: int,
    prompt: Any,
    negative_prompt: Any,
    prompt_embeds: Any,
    negative_prompt_embeds: Any,
    words: Any,
    guided: bool,
) -> Text:
    """The texts of ``count`` pictures, and where their words are; arguments as in a call of the pipeline.

    Embeddings do not say which of their positions are words, of which the mask is made: that comes from the prompt
    beside them, or from ``words``. A negative text is read only with guidance (``guided``).

    Raises:
        InputError: no prompt, no words, too many of them, two negative prompts, embeddings of another shape, nothing to
            read a text with.
    """
    width = pipe.unet.config.cross_attention_dim
    embeddings = given_embeddings(prompt_embeds, "prompt_embeds", count, width)
    negative = given_embeddings(negative_prompt_embeds, "negative_prompt_embeds", count, width)
    if prompt is None and embeddings is None:
        raise InputError("no prompt", "prompt", 'what the picture shall show, such as "a raccoon"')
    if negative_prompt is not None and negative is not None:
        raise InputError("a negative prompt twice", "negative_prompt_embeds", "it, or negative_prompt")
    if embeddings is not None and negative is not None and embeddings.shape != negative.shape:
        expected = f"{list(embeddings.shape)}, that of prompt_embeds"
        raise InputError(f"embeddings of shape {list(negative.shape)}", "negative_prompt_embeds", expected)
    needed = embeddings is None or (guided and negative is None)
    if needed and (pipe.tokenizer is None or pipe.text_encoder is None):
        raise InputError("no text encoder", "prompt", "prompt_embeds and, with guidance, negative_prompt_embeds")
    prompts = None if prompt is None else one_each(prompt, count, "prompt")
    unread = negative is not None or pipe.tokenizer is None
    negatives = None if unread else one_each(negative_prompt or "", count, "negative_prompt")

    def convert(text: str) -> str:
        return pipe.maybe_convert_prompt(text, pipe.tokenizer)

    for text in negatives or ():
        token_ids(pipe.tokenizer, convert(text) if isinstance(text, str) else text, "negative_prompt")
    positions = pipe.tokenizer.model_max_length if embeddings is None else embeddings.shape[1]
    if words is None:
        if prompts is None or pipe.tokenizer is None:
            expected = "the prompt that they were made from beside them, or words=split_words(tokenizer, prompt)"
            raise InputError("embeddings do not say where their words are", "prompt_embeds", expected)
        words = [split_words(pipe.tokenizer, text, convert) for text in prompts]
    return Text(prompts, negatives, embeddings, negative, given_words(words, count, positions))
