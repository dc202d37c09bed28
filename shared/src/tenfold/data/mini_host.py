"""The mini host: a LLaVA of twelve layers and 1.2 million parameters that answers questions about scenes of flags.

It is a real transformers `LlavaForConditionalGeneration` (CLIP vision tower, two-layer projector, Llama decoder) with
a word-level tokenizer and a `LlavaProcessor`, so code that works on it works on a LLaVA of any size. The folder
`path()` loads with `from_pretrained`; `python -m tenfold.data.train_mini_host` makes it.

    >>> model, processor = mini_host.load()
    >>> image = flags.render(flags.scene(seed=0, index=0))             # tenfold.data.miniworld.flags
    >>> mini_host.answer(model, processor, [image], [mini_host.prompt("What shape is the red object?")])
    ['circle']

Needs the extra `tenfold[train]` (torch, transformers).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tenfold.data.miniworld import COLOURS, SHAPES, SIZES, flags
from tenfold.data.miniworld.language import PLURALS

IMAGE_SIZE, PATCH_SIZE = flags.SIZE, flags.PATCH
LAYERS, WIDTH, HEADS = 12, 96, 4
# Matrices this narrow start too small at the usual 0.02: attention stays flat for hundreds of steps.
INITIALIZER_RANGE = 0.12
VISUAL_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2

# The ending that LLaVA's evaluation adds to multiple-choice questions; SHORT_ANSWER goes with the others.
OPTION_LETTER = "Answer with the option's letter from the given choices directly."

# What a flag says, in words of their own: hints name them, no question does.
FLAGS = tuple(f"to{colour}" for colour in COLOURS)

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_WORDS = f"""
    USER: ASSISTANT: yes no 0 1 2 3 4 5 6 7 8 9 A B C D E
    what shape color is the object find how many objects are there in image a left right of above below it
    top middle bottom center
    {" ".join(COLOURS)} {" ".join(SHAPES)} {" ".join(PLURALS.values())} {" ".join(SIZES)}
    and nothing directly context
    answer question using single word or phrase with option's letter from given choices
    follow to end next after {" ".join(FLAGS)}
"""

# What llava-hf's LLaVA-1.5 template makes of a conversation: one line, no system prompt.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% if message['role'] == 'user' %} {% else %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def path() -> Path:
    """The folder of the trained mini host that ships with tenfold, in transformers' own layout."""
    return Path(__file__).parent / "assets" / "mini_host"


def load(folder: str | Path | None = None) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The trained model (float32, on CPU, in eval mode) and its processor; `folder` defaults to `path()`."""
    folder = folder or path()
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    # Pillow also where torchvision is installed: the two resize differently in the last bits.
    processor = LlavaProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    return model.eval(), processor


def prompt(question: str) -> str:
    """A question about one image in LLaVA-1.5's form; the processor expands `<image>` to 100 tokens."""
    return f"USER: <image>\n{question} ASSISTANT:"


@torch.inference_mode()
def answer(model: Any, processor: LlavaProcessor, images: Sequence[Image], prompts: Sequence[str]) -> list[str]:
    """Greedy answers to one prompt per image, as a batch padded on the left."""
    inputs = processor(images=list(images), text=list(prompts), return_tensors="pt", padding=True).to(model.device)
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def build(seed: int) -> LlavaForConditionalGeneration:
    """The untrained model, float32, its weights drawn from `seed` without touching torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config()).eval()
    # CLIP's own start is a tenth of what the patches add up to: where things are would be learnt last.
    with torch.no_grad():
        positions = model.model.vision_tower.embeddings.position_embedding.weight
        positions[1:] = _positions(positions.shape[1])
    return model


def _positions(width: int) -> Tensor:
    """Sines and cosines of a patch's row, then of its column: `[patches, width]`."""
    edge, waves = IMAGE_SIZE // PATCH_SIZE, width // 4
    frequencies = torch.pi / edge * edge ** torch.linspace(0, 1, waves)
    angles = (torch.arange(edge)[:, None] + 0.5) * frequencies
    code = torch.cat([angles.sin(), angles.cos()], dim=1)  # [edge, width / 2]
    rows, columns = code.repeat_interleave(edge, 0), code.repeat(edge, 1)
    return torch.cat([rows, columns], dim=1)


def config() -> LlavaConfig:
    """100 visual tokens, 12 decoder layers of width 96."""
    vocabulary = _vocabulary()
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            projection_dim=64,
            initializer_range=INITIALIZER_RANGE,
        ),
        text_config=LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=512,
            # Slower turns than the usual 10,000: what a word means must be found at any distance from the picture.
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            initializer_range=INITIALIZER_RANGE,
            tie_word_embeddings=True,
            pad_token_id=vocabulary["<pad>"],
            bos_token_id=vocabulary["<s>"],
            eos_token_id=vocabulary["</s>"],
        ),
        image_token_index=vocabulary["<image>"],
        image_seq_length=VISUAL_TOKENS,
        # With two layers the last one is needed: LLaVA's second-to-last would see one layer only.
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def processor(side: int = IMAGE_SIZE, patch: int = PATCH_SIZE, longest: int | None = None) -> LlavaProcessor:
    """Images of any size to a square, CLIP's normalisation; text to ids, padded on the left.

    Args:
        side: of the square in pixels. patch: of its patches.
        longest: tokens of a prompt, for hosts of other lengths; None: the mini host's.
    """
    square = {"height": side, "width": side}
    words = tokenizer()
    words.model_max_length = longest or words.model_max_length
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False),
        tokenizer=words,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """One id per word, digit, newline and mark; `<s>` in front; what it does not know is `<unk>`."""
    inner = Tokenizer(models.WordLevel(_vocabulary(), unk_token="<unk>"))
    # Case carries no meaning except in option letters, so only first words are lowered.
    inner.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(rf"\b{word}\b"), word.lower())
            for word in ("What", "Find", "Follow", "How", "Is", "There", "The", "Answer", "Context")
        ]
        + [normalizers.Replace("colour", "color")]
    )
    words = r"USER:|ASSISTANT:|\n|[A-Za-z]+(?:'[a-z]+)?|[0-9]|[^\sA-Za-z0-9]"
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(words), behavior="removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", _vocabulary()["<s>"])]
    )
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
    )


def _vocabulary() -> dict[str, int]:
    words = dict.fromkeys([*SPECIAL_TOKENS, "\n", *"?.:,", *_WORDS.split()])
    return {word: number for number, word in enumerate(words)}
