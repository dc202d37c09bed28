"""The miniature: FlashSloth at 54 pixels, 9 visual tokens for 81 patches, 4 queries, 0.4 million parameters.

    >>> model = FlashSlothForConditionalGeneration(mini_config())
    >>> processor = mini_processor()

The proportions are the paper's: 3 x 3 blocks, EmbQ before the second of four layers (7/32 of the depth), half the
vision tower's width to compare in. `initialise(model)` puts in the vision tower and the language model that
`miniature.pretraining` made; `shipped_folder()` is the trained model that comes with the package.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from flashsloth.configuration import FlashSlothConfig
from flashsloth.data.mini_world import ANSWERS, COLOURS, PATCH, SIZE
from flashsloth.image_processing import FlashSlothImageProcessor
from flashsloth.modeling import FlashSlothForConditionalGeneration
from flashsloth.processing import FlashSlothProcessor
from flashsloth.prompts import END, QUERY, SYSTEM
from tenfold import UserError
from tenfold.data.conversation import IMAGE
from tenfold.hosts.checkpoints import require_shipped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WIDTH, HEADS, LAYERS = 64, 4, 4
VISION_WIDTH, VISION_LAYERS = 48, 2
QUERIES = 4
VISUAL_TOKENS = 9
SHORT_ANSWER = "Answer the question using a single word or phrase."
SPECIAL_TOKENS = ("<unk>", END, QUERY, IMAGE)
# Part -> what its weights' names begin with.
PRETRAINED = {"tower": ("model.vision_tower.",), "language": ("model.language_model.", "lm_head.")}
_WORDS = "USER: ASSISTANT: What Which shape row column is"
ASSETS = Path(__file__).parent.parent / "assets"


def mini_config(pool: int = 3) -> FlashSlothConfig:
    """The miniature's config; ``pool`` 1 leaves all 81 patches."""
    words = vocabulary()
    return FlashSlothConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "partial_rotary_factor": 0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            "max_position_embeddings": 512,
            "initializer_range": 0.08,  # matrices this narrow start too small at the usual 0.02
            "resid_pdrop": 0.0,
            "bos_token_id": None,
            "eos_token_id": words[END],
            "pad_token_id": words["<unk>"],
        },
        vision_config={
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": HEADS,
            "image_size": SIZE,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        pool=pool,
        query_count=QUERIES,
        embq_layer=1,
        embq_initializer_range=None,  # to these widths what 0.02 is to 2,560
        sap_dropout=0.0,
        dot_token_id=words["."],
        newline_token_id=words["\n"],
        user_token_ids=[words["USER:"]],
        end_token_id=words[END],
        query_token_id=words[QUERY],
        image_token_id=words[IMAGE],
    )


def mini_processor(num_image_tokens: int = VISUAL_TOKENS) -> FlashSlothProcessor:
    """Images of any size squashed to 54 pixels, the toy tokenizer, the usual prompts."""
    return FlashSlothProcessor(
        FlashSlothImageProcessor(SIZE), mini_tokenizer(), num_image_tokens=num_image_tokens, num_queries=QUERIES
    )


def mini_tokenizer() -> PreTrainedTokenizerFast:
    """One id a word, mark and newline; the system prompt and the request for a short answer are one token each."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    pattern = r"USER:|ASSISTANT:|\n|[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]"
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    inner.add_tokens([AddedToken(phrase, normalized=False) for phrase in (SYSTEM, SHORT_ANSWER)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=END,
        unk_token="<unk>",
        pad_token="<unk>",
        padding_side="left",
        model_max_length=512,
    )


@cache
def vocabulary() -> dict[str, int]:
    """Word -> id."""
    answers = [word for several in ANSWERS.values() for word in several]
    known = dict.fromkeys([*SPECIAL_TOKENS, "\n", *"?.,", *_WORDS.split(), *COLOURS, *answers, SYSTEM, SHORT_ANSWER])
    return {word: number for number, word in enumerate(known)}


def pretrained(folder: str | Path | None = None) -> dict[str, Tensor]:
    """The pre-trained vision tower and language model, float32, by their names in a model.

    Args:
        folder: what `miniature.pretraining` wrote; by default what ships.

    Raises:
        UserError: no such file.
    """
    found: dict[str, Tensor] = {}
    for part in PRETRAINED:
        path = Path(folder or ASSETS / "mini_start") / f"{part}.safetensors"
        if not path.is_file():
            raise UserError("no pre-trained parts", path, "python -m flashsloth.miniature.pretraining --output FOLDER")
        found |= {name: tensor.float() for name, tensor in load_file(path).items()}
    return found


def shipped_folder() -> Path:
    """The trained miniature that comes with the package: `flashsloth train --config mini` made it.

    Raises:
        UserError: none in this installation.
    """
    return require_shipped(ASSETS / "mini_model")


def initialise(model: FlashSlothForConditionalGeneration, folder: str | Path | None = None) -> None:
    """Put the pre-trained parts into a miniature; SAP, projector, queries and EmbQ stay as they are."""
    state, found = model.state_dict(), pretrained(folder)
    for name, tensor in found.items():
        if name not in state or state[name].shape != tensor.shape:
            raise UserError(f"no place for {name}", type(model).__name__, "a model of mini_config")
    model.load_state_dict(found, strict=False)


def new_model(seed: int, pool: int = 3, folder: str | Path | None = None) -> FlashSlothForConditionalGeneration:
    """A miniature before its two stages: new parts drawn by the seed, torch's global generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FlashSlothForConditionalGeneration(mini_config(pool))
    initialise(model, folder)
    return model
