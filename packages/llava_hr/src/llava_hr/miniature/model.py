"""The miniature's data set, model and processor: LLaVA-HR at 192 pixels, 36 visual tokens, 0.6 million parameters.

    >>> from llava_hr import mini
    >>> mini.write_mini_data("data", train=1000)       # instruct.json, captions.json, images/
    >>> model = LlavaHrForConditionalGeneration(mini.mini_config())
    >>> processor = mini.mini_processor()

The tower's proportions are the paper's: 84 / 14 = 192 / 32 = 6 cells along an edge, one ViT layer a quarter, three
adapters. `mini_encoders.initialise(model)` fills in what is pre-trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_hr.data.mini_questions import ANSWERS, TRAIN, Question, caption, conversation
from llava_hr.data.mini_world import SIZE, render, scene
from tenfold import UserError
from tenfold.data.formats import LlavaInstructSample, Picture, Turn, write_llava_instruct
from tenfold.data.formats.prompts import SHORT_ANSWER, short_answer
from tenfold.runs import atomic_directory, atomic_write_json

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from llava_hr.configuration import LlavaHrConfig
    from llava_hr.processing import LlavaHrProcessor

INSTRUCT, CAPTIONS, IMAGES = "instruct.json", "captions.json", "images"
# Of the conversations, every n-th is about a described scene instead of a picture, as some of LLaVA's mixture are.
TEXT_ONLY_EVERY = 16

PATCH, LOW_SIZE, STRIDE = 14, 84, 32
VISUAL_TOKENS = (SIZE // STRIDE) ** 2
WIDTH, HEADS, LAYERS = 64, 4, 3

# LLaVA-1.5's system prompt and the request for a short answer are one token each: they say nothing here.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
IMAGE_TOKEN = "<image>"
# "which" within a question is <unk>: a word that says nothing here.
_WORDS = """
    USER: ASSISTANT: What Which How In Where shape color letter side row column many objects object dots notch tag
    is are on of the there has a at with large small
"""


def write_mini_data(
    folder: str | Path, seed: int = TRAIN, train: int = 6400, text_only_every: int = TEXT_ONLY_EVERY
) -> Path:
    """Write the miniature's training data in LLaVA's formats; the same files for the same arguments.

        <folder>/captions.json    stage 1: one caption for each image
        <folder>/instruct.json    stage 2: conversations of several turns, some of them about text alone
        <folder>/images/000000000000.png

    Args:
        folder: must not exist; appears whole or not at all.
        seed: of the world.
        train: number of scenes.
        text_only_every: every so many conversations one has no image; 0: none.

    Returns:
        The folder.

    Raises:
        UserError: the folder exists, or no scene is asked for.
    """
    if train < 1:
        raise UserError("no scenes", f"train={train}", "at least one")
    with atomic_directory(folder) as path:
        write_llava_instruct(path / CAPTIONS, path / IMAGES, captions(seed, train))
        # The same images again: only their names are written.
        atomic_write_json(path / INSTRUCT, list(instruct(seed, train, text_only_every)))
    return Path(folder)


def captions(seed: int, count: int, pictures: bool = True) -> Iterator[LlavaInstructSample]:
    """Stage 1's samples: every image and its caption; without `pictures`, their words only."""
    for index in range(count):
        said = (Turn("human", f"Describe the image.\n{IMAGE_TOKEN}"), Turn("gpt", caption(scene(seed, index))))
        yield LlavaInstructSample(f"{index:012d}", said, _name(index), _picture(seed, index) if pictures else None)


def instruct(seed: int, count: int, text_only_every: int = TEXT_ONLY_EVERY) -> Iterator[dict[str, Any]]:
    """Stage 2's records: questions and answers about every image."""
    for index in range(count):
        text_only = text_only_every and index % text_only_every == text_only_every - 1
        drawn = scene(seed, index)
        said = turns(conversation(drawn, seed, index), caption(drawn) if text_only else IMAGE_TOKEN)
        record: dict[str, Any] = (
            {"id": f"{index:012d}"} if text_only else {"id": f"{index:012d}", "image": _name(index)}
        )
        yield record | {"conversations": [{"from": turn.speaker, "value": turn.text} for turn in said]}


def turns(questions: tuple[Question, ...], before: str) -> tuple[Turn, ...]:
    """Questions with their answers; `before` (an image or a description) opens the first one."""
    said = []
    for number, question in enumerate(questions):
        text = short_answer(question.text)
        said += [Turn("human", f"{before}\n{text}" if number == 0 else text), Turn("gpt", question.answer)]
    return tuple(said)


def _name(index: int) -> str:
    return f"{index:012d}.png"


def _picture(seed: int, index: int) -> Picture:
    return Picture(render(scene(seed, index)))


def mini_config() -> LlavaHrConfig:
    """The model of sheet 11: Llama of 3 layers and width 64, ViT of 4 layers, ConvNeXt of 16 to 64 channels."""
    from transformers import CLIPVisionConfig, LlamaConfig

    from llava_hr.configuration import LlavaHrConfig, LlavaHrVisionConfig

    words = vocabulary()
    vision = LlavaHrVisionConfig(
        low_res_config=CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=HEADS,
            image_size=LOW_SIZE,
            patch_size=PATCH,
            projection_dim=WIDTH,
        ),
        image_size=SIZE,
        high_res_stride=STRIDE,
        min_low_size=LOW_SIZE,
        high_res_dims=[16, 32, 48, 64],
        high_res_depths=[1, 1, 2, 1],
        high_res_weights="mini",  # `mini_encoders`
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=512,
        # Slower turns than the usual 10,000: what a word means must be found at any distance from the picture.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        # Matrices this narrow start too small at the usual 0.02.
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=words["<s>"],
        eos_token_id=words["</s>"],
        pad_token_id=words["<unk>"],
    )
    return LlavaHrConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image_token_id(),
        image_aspect_ratio="pad",
        conversation="vicuna_v1",
    )


def mini_processor() -> LlavaHrProcessor:
    """Images of any size padded and resized to 192 pixels, the toy tokenizer, the template vicuna_v1."""
    from llava_hr.image_processing import LlavaHrImageProcessor
    from llava_hr.processing import LlavaHrProcessor

    return LlavaHrProcessor(
        image_processor=LlavaHrImageProcessor(size=SIZE, image_aspect_ratio="pad"),
        tokenizer=mini_tokenizer(),
        conversation="vicuna_v1",
        num_image_tokens=VISUAL_TOKENS,
        image_token=IMAGE_TOKEN,
    )


def mini_tokenizer() -> PreTrainedTokenizerFast:
    """One id per word, digit, letter, newline and mark; `<s>` in front; what it does not know is `<unk>`.

    `<image>` is one beyond the vocabulary of the model, as in the official models.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    pattern = r"USER:|ASSISTANT:|\n|[A-Za-z]+(?:'[a-z]+)?|[0-9]|[^\sA-Za-z0-9]"
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", words["<s>"])]
    )
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    inner.add_tokens([AddedToken(phrase, normalized=False) for phrase in (SYSTEM, SHORT_ANSWER)])
    inner.add_special_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=512,
    )


@cache
def vocabulary() -> dict[str, int]:
    """Word -> id: 0, 1 and 2 as Llama's."""
    answers = [word for several in ANSWERS.values() for word in several]
    known = dict.fromkeys(
        [*SPECIAL_TOKENS, "\n", *"?.:,", *_WORDS.split(), *answers, *"0123456789", SYSTEM, SHORT_ANSWER]
    )
    return {word: number for number, word in enumerate(known)}


def image_token_id() -> int:
    """The placeholder's id: one beyond the vocabulary."""
    return len(vocabulary())


def answer_ids() -> dict[str, int]:
    """Every answer's only token."""
    words = vocabulary()
    return {word: words[word] for several in ANSWERS.values() for word in several}


def mini_model_path() -> Path:
    """The folder of the trained miniature that ships: variant (d), seed 0, made by `llava-hr train --config mini`."""
    return Path(__file__).parents[1] / "assets" / "mini_model"
