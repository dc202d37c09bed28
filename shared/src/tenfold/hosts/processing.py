"""What processors of vision-language models have in common: images and texts as a user gives them, checked.

images = [open_image(one) for one in flat_images(images)]
check_counts(texts, images)                            # as many `<image>` as images
rows = pad_rows(ids, pad, **padding_of(options))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, BatchFeature, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor
from transformers.tokenization_utils_base import AddedToken

from tenfold.data.conversation import IMAGE, Prompt, conversation_turns
from tenfold.data.formats import Turn
from tenfold.data.formats.records import Fields
from tenfold.data.instruct import pad_rows
from tenfold.data.pictures import open_picture, require_size
from tenfold.data.token_offsets import Span
from tenfold.errors import InputError

# transformers' options of videos and of nothing else. They have no effect where there is no video, as in its own
# processors of images: a call that serves models of both kinds gives them.
VIDEO_OPTIONS = frozenset({"do_sample_frames", "fps", "num_frames", "return_metadata", "video_metadata"})

ImageLike = str | PathLike[str] | Image.Image | np.ndarray


def open_image(image: ImageLike) -> Image.Image:
    """An image as RGB.

    Raises:
        InputError: a missing, broken or empty file, an array of another shape or type, something that is no image.
    """
    if isinstance(image, (str, PathLike)):
        return open_picture(fspath(image))
    if isinstance(image, Image.Image):
        require_size(image.size, getattr(image, "filename", None) or repr(image))
        try:
            return image.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:  # opened lazily and cut off, or a mode that cannot be RGB
            raise InputError(
                f"an image that cannot become RGB ({error})", getattr(image, "filename", None) or repr(image)
            ) from error
    if not isinstance(image, np.ndarray):
        raise InputError(f"an image of type {type(image).__name__}", None, "a path, a PIL image or an array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"array {list(image.shape)} of {image.dtype}", None, "[height, width, 3] of uint8")
    return Image.fromarray(image)


def as_list(images: Any) -> list[Any]:
    """One image or several, as a list."""
    return list(images) if isinstance(images, (list, tuple)) else [images]


def flat_images(images: Any) -> list[Any]:
    """One image, a list, or a list of lists, as a list."""
    if images is None:
        return []
    return [image for row in as_list(images) for image in as_list(row) if image is not None]


def read_turn(values: Any, where: str | None) -> Turn:
    said = Fields(values, where or "a conversation")
    return Turn(said.text("from"), said.text("value"))


def padding_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """`pad_rows`' arguments of a call's options."""
    padding, side = options["padding"], options["padding_side"]
    lengths = {True: None, "longest": None, False: 0, "do_not_pad": 0, "max_length": options["max_length"]}
    if padding not in lengths or side not in ("left", "right"):
        raise InputError(f"padding {padding!r} on the {side!r}", None, f"{', '.join(map(str, lengths))}; left or right")
    return {"side": side, "length": lengths[padding]}


def check_counts(texts: Sequence[str], images: Any) -> None:
    marks = [text.count(IMAGE) for text in texts]
    rows = as_list(images) if images is not None else []
    if rows and all(isinstance(row, (list, tuple)) for row in rows):
        if len(rows) != len(texts):
            raise InputError(f"{len(rows)} lists of images for {len(texts)} prompts", None, "one list for each prompt")
        for number, (mark, row) in enumerate(zip(marks, rows, strict=True)):
            if mark != len(row):
                raise InputError(f"{mark} {IMAGE} and {len(row)} images", f"prompt {number}", "as many of both")
    elif sum(marks) != len(rows):
        raise InputError(f"{sum(marks)} {IMAGE} and {len(rows)} images", None, "as many of both")


def check_lengths(rows: Sequence[Sequence[int]], options: Mapping[str, Any]) -> None:
    """With `truncation`, rows must fit `max_length` as they are: cutting would lose an image or the question.

    Raises:
        InputError: a row that would be cut, or another kind of truncation.
    """
    if options["truncation"] not in (True, False, "longest_first", "do_not_truncate"):
        raise InputError(f"truncation {options['truncation']!r}", None, "True or False")
    if options["truncation"] in (False, "do_not_truncate") or options["max_length"] is None:
        return
    for number, row in enumerate(rows):
        if len(row) > options["max_length"]:
            where = f"prompt {number} of {len(row)} tokens, visual ones included"
            raise InputError("prompts are not cut", where, f"at most {options['max_length']}, or truncation=False")


def call_options(given: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of a processor's call, plain or in groups as transformers sorts them; None is as if not given, and
    so are those of `VIDEO_OPTIONS`.

    Args:
        given: of the call; `common_kwargs`, `text_kwargs` and `images_kwargs` hold the same.
        defaults: every option that there is.
        where: the processor, for messages.

    Raises:
        InputError: an option that there is not (names those that there are), or one that is given twice, plain and in a
            group, or in two groups that differ.
    """
    options = dict(defaults)
    plain = {name: value for name, value in given.items() if not name.endswith("_kwargs")}
    common, *own = (dict(given.get(name) or {}) for name in ("common_kwargs", "text_kwargs", "images_kwargs"))
    seen: dict[str, Any] = {}
    for group in (common, *own, plain):
        asked = {name: value for name, value in group.items() if value is not None and name not in VIDEO_OPTIONS}
        if unknown := sorted(set(asked) - set(options)):
            raise InputError(f"unknown option {unknown[0]!r}", where, ", ".join(options))
        for name in sorted(set(asked) & set(seen)):
            if seen[name] != asked[name] or (group is plain and any(name in one for one in own)):
                raise InputError(f"option {name!r} is given twice", where, "once, plain or in a group")
        seen |= asked
        options |= asked
    return options


def own_padding(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Defaults of "padding", "padding_side" and "max_length": what the tokenizer was made with, as in transformers'
    own processors; otherwise rows of a batch become as long as its longest."""
    made_with = tokenizer.init_kwargs
    return {
        "padding": made_with.get("padding", True),
        "padding_side": tokenizer.padding_side,
        "max_length": made_with.get("max_length"),
    }


# A question, or a question with its answer.
Exchange = str | tuple[str, str | None]


def questions_and_answers(question: str | Sequence[Exchange]) -> tuple[list[str], list[str]]:
    """The turns of a prompt.

    Args:
        question: a question, or turns `(question, answer)`, the last one without an answer.

    Raises:
        InputError: an answer is missing before the last question, or the last one has one.
    """
    exchanges = [(one, None) if isinstance(one, str) else one for one in as_list(question)]
    questions, answers = [one[0] for one in exchanges], [one[1] for one in exchanges if one[1] is not None]
    if not exchanges or exchanges[-1][1] is not None or len(answers) != len(questions) - 1:
        raise InputError("turns of a prompt", None, "answers to all questions but the last")
    return questions, answers


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, image_token: str) -> int:
    """Give a tokenizer `<image>` as a special token if it has none, and a padding token; let it pad on the left.

    Returns:
        The id of `<image>`.
    """
    if image_token not in tokenizer.get_vocab():
        token = AddedToken(image_token, special=True, normalized=False)
        tokenizer.add_tokens([token], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer.get_vocab()[image_token]


def check_positions(rows: Sequence[Sequence[int]], most: int | None, reach: str) -> None:
    """Refuse prompts that are longer than a model can read.

    Args:
        rows: ids of the prompts, with placeholders.
        most: tokens; None does not check.
        reach: how far that is, for the message.

    Raises:
        InputError: names the first that is too long.
    """
    for number, row in enumerate(rows):
        if most is not None and len(row) > most:
            what = f"prompt {number} has {len(row)} tokens, visual ones included"
            raise InputError(what, None, f"at most {most}, which is as far as {reach}")


def model_inputs(
    processor: Any,
    images: Any,
    text: str | Sequence[str] | None,
    options: Mapping[str, Any],
    ids: Callable[[str], list[int]],
    *,
    reach: str,
    of_images: Sequence[str],
    spans: Callable[[str], list[Span]] | None = None,
) -> BatchFeature:
    """The inputs of one prompt or of a batch, as a processor's call gives them.

    Args:
        processor: with `tokenizer`, `image_processor` and `max_positions`.
        images, text: of the call.
        options: of `call_options`; with `num_images` the prompts are about so many images whose visual tokens the
            model is given instead of pixels.
        ids: a prompt -> its ids, with placeholders.
        reach: as for `check_positions`.
        of_images: the options that go to the image processor, beside "return_tensors".
        spans: a prompt -> of each of its ids the characters that it stands for; for `return_offsets_mapping`.

    Raises:
        InputError: another number of images than of `<image>`, a broken image, a row that is too long.
    """
    if images is None and text is None:
        raise InputError("nothing to process", type(processor).__name__, "images, text or both")
    pictures = flat_images(images)
    data: dict[str, Any] = {}
    replaced: list[list[dict[str, Any]]] | None = None
    if text is not None:
        texts = [text] if isinstance(text, str) else list(text)
        known = options.get("num_images")
        if known is None:
            check_counts(texts, images)
        elif pictures or (marks := sum(one.count(IMAGE) for one in texts)) != known:
            what = "images and num_images" if pictures else f"num_images {known} and {marks} {IMAGE}"
            raise InputError(what, type(processor).__name__, "num_images for images whose visual tokens are known")
        rows = [ids(one) for one in texts]
        check_positions(rows, processor.max_positions, reach)
        check_lengths(rows, options)
        data |= pad_rows(rows, processor.tokenizer.pad_token_id, **padding_of(options))
        if options.get("return_mm_token_type_ids"):
            token = processor.image_token_id
            data["mm_token_type_ids"] = [[int(one == token) for one in row] for row in data["input_ids"]]
        if options.get("return_text_replacement_offsets"):
            by = [processor.replace_image_token()] * sum(one.count(IMAGE) for one in texts)
            _, replaced = processor.get_text_with_replacements(list(texts), by)
        if spans is not None and options.get("return_offsets_mapping"):
            stretches = [spans(one) for one in texts]
            if replaced is not None:
                stretches = [moved(row, places) for row, places in zip(stretches, replaced, strict=True)]
            data["offset_mapping"] = pad_rows(stretches, (0, 0), **padding_of(options))["input_ids"]
    if pictures:
        given = {name: options[name] for name in (*of_images, "return_tensors")}
        data |= processor.image_processor(pictures, **given)
    made = BatchFeature(data, tensor_type=options["return_tensors"])
    if replaced is not None:
        made["text_replacement_offsets"] = replaced
    return made


def moved(spans: Sequence[Span], replaced: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Stretches of a prompt as they lie in the text that has all placeholders; the ids of an image share its new one.

    Args:
        replaced: of the prompt, what transformers' `get_text_with_replacements` tells.
    """
    images = {one["span"]: one["new_span"] for one in replaced}
    found = []
    for start, end in spans:
        gained = [one["new_span"][1] - one["span"][1] for one in replaced if one["span"][1] <= start]
        shift = gained[-1] if gained else 0
        found.append(images.get((start, end), (start + shift, end + shift)))
    return found


def rendered(
    conversations: Sequence[Mapping[str, str] | Turn], num_images: int, style: Any, where: str | None
) -> Prompt:
    """A training sample's text.

    Args:
        conversations: turns of "human" and "gpt", as LLaVA's json has them.
        style: a template, with `check` and `render`.
        where: file and record, for messages.

    Raises:
        InputError: another number of images than of `<image>`, speakers out of turn, no answer.
    """
    turns = [one if isinstance(one, Turn) else read_turn(one, where) for one in conversations]
    turns = conversation_turns(turns, images=num_images > 0, where=where)
    style.check(turns, images=num_images > 0, where=where)
    prompt = style.render(turns, images=num_images > 0)
    if len(prompt.images) != num_images:
        raise InputError(f"{len(prompt.images)} <image> for {num_images} images", where, "as many of both")
    return prompt


def register_image_processor(config: type[PreTrainedConfig], processor: type[BaseImageProcessor]) -> None:
    """Let `from_pretrained` find an image processor by its registered name. It is the one for every backend:
    transformers asks for torchvision's first, and would warn that there is none."""
    AutoImageProcessor.register(
        config, image_processor_classes=dict.fromkeys(("pil", "torchvision"), processor), exist_ok=True
    )
