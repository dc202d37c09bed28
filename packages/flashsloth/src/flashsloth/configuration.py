"""Configuration of FlashSloth (arXiv 2412.04317, CVPR 2025): SigLIP, nine-fold compression, Phi-2.

The defaults are the released 3.2B model; ``views=5`` is FlashSloth-HD. What the official code has as literals (the
layer before which EmbQ stands, the number of queries, the pool's side, EmbQ's width) are fields here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import AutoConfig, PhiConfig, PreTrainedConfig, SiglipVisionConfig

from tenfold import UserError
from tenfold.runs.files import atomic_write_text

# microsoft/phi-2; the released checkpoints keep its 51,200 rows, of which 50,295 are words.
PHI_2: dict[str, Any] = {
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4},
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.0,
    "attention_dropout": 0.0,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
# google/siglip-so400m-patch14-384 without its last layer, norm and head: 26 of 27 layers (mm_vision_select_layer -2).
SIGLIP_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": False,
}
HD_VIEWS = 5  # the whole image, and 2 x 2 tiles of it at twice the side
QUERY = 50295  # `<learnable>`
END = 50296  # `</s>`, which ends an answer; Phi-2's own <|endoftext|> is 50256
IMAGE = 50297  # ours: one id a visual token; the official code puts -200 once an image


class FlashSlothConfig(PreTrainedConfig):
    """SigLIP, SAP, projector, query tokens, and Phi-2 with EmbQ before one of its layers.

    Args:
        text_config: of the language model, a Phi.
        vision_config: of the vision tower as it is used: SigLIP with one layer less than it was built with.
        views: pictures that an image becomes: 1, or 5 for HD (the whole, and 2 x 2 tiles).
        pool: side p of SAP's blocks, in patches; p^2-fold compression.
        query_count: K, learnable query tokens of a question.
        embq_layer: EmbQ updates the queries' hidden states where they enter this decoder layer, counted from 0.
        embq_width: width dd in which EmbQ compares; None: half the vision width.
        embq_initializer_range: standard deviation of EmbQ's first weights; None: 1 / sqrt(inputs).
        dot_token_id: the token whose embedding is added to every query: " ." in Phi-2's vocabulary.
        image_token_id: stands for a visual token in the input ids.
        query_token_id: `<learnable>`: stands for a query token in the input ids.
        end_token_id: `</s>`, which ends an answer.
        user_token_ids: "USER:" at the start of a later round.
        newline_token_id: "\\n", which follows an image.
        projector_hidden_act: between the projector's two layers.
        sap_dropout: in SAP's scores, in training.
        train_vision: let gradients into the vision tower. The released code never does (section 5).
        instruction_tuned: False for weights of stage 1, which have not learnt to end an answer.
        image_aspect_ratio: "square" squashes (the released models); "pad" or "crop" switch HD off.

    Raises:
        UserError: sizes that do not fit each other.
    """

    model_type = "flashsloth"
    sub_configs: ClassVar = {"text_config": PhiConfig, "vision_config": SiglipVisionConfig}

    if TYPE_CHECKING:  # configs, once the constructor is done
        text_config: Any = None
        vision_config: Any = None
    else:
        text_config: dict | PreTrainedConfig | None = None
        vision_config: dict | PreTrainedConfig | None = None
    views: int = 1
    pool: int = 3
    query_count: int = 9
    embq_layer: int = 7
    embq_width: int | None = None
    embq_initializer_range: float | None = 0.02
    dot_token_id: int = 764
    image_token_id: int = IMAGE
    query_token_id: int = QUERY
    end_token_id: int = END
    user_token_ids: list[int] | tuple[int, ...] = (29904, 25)
    newline_token_id: int = 198
    projector_hidden_act: str = "gelu"
    sap_dropout: float = 0.1
    train_vision: bool = False
    instruction_tuned: bool = True
    image_aspect_ratio: str = "square"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = PhiConfig(**PHI_2)
        elif isinstance(self.text_config, dict):
            if (kind := self.text_config.get("model_type", "phi")) != "phi":
                raise UserError(f"language model {kind!r}", "text_config", "phi: FlashSloth has no other")
            self.text_config = PhiConfig(**self.text_config)
        if self.vision_config is None:
            self.vision_config = SiglipVisionConfig(**SIGLIP_SO400M)
        elif isinstance(self.vision_config, dict):
            if (kind := self.vision_config.get("model_type", "siglip_vision_model")) != "siglip_vision_model":
                raise UserError(f"vision tower {kind!r}", "vision_config", "siglip_vision_model")
            self.vision_config = SiglipVisionConfig(**self.vision_config)
        if self.embq_width is None:
            self.embq_width = self.vision_config.hidden_size // 2
        self.user_token_ids = list(self.user_token_ids)
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        heads, layers = self.text_config.num_attention_heads, self.text_config.num_hidden_layers
        for name, width in (("embq_width", self.embq_width), ("vision width", self.vision_config.hidden_size)):
            if not width or width % heads:
                raise UserError(f"{name} {width} does not split into heads", "config", f"a multiple of {heads}")
        if not 0 <= self.embq_layer < layers:
            raise UserError(f"embq_layer {self.embq_layer}", "config", f"0 to {layers - 1}, a layer of the Phi")
        for name in ("pool", "query_count"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}", "config", "a positive number")
        if self.views not in (1, HD_VIEWS):
            raise UserError(f"views {self.views}", "config", f"1, or {HD_VIEWS} for HD")
        ids = {name: getattr(self, name) for name in ("image_token_id", "query_token_id", "end_token_id")}
        if len(set(ids.values())) < len(ids):
            raise UserError(f"equal ids {ids}", "config", "three different ones")

    @property
    def grid(self) -> int:
        """Side of the square of patches of a view: 27."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def patches_per_image(self) -> int:
        """n, patches that EmbQ reads: 729, and 3,645 in HD."""
        return self.views * self.grid**2

    @property
    def num_image_tokens(self) -> int:
        """Visual tokens Nv of an image: 81, and 405 in HD."""
        return self.views * (-(-self.grid // self.pool)) ** 2

    @classmethod
    def named(cls, name: str) -> FlashSlothConfig:
        """A released model: ``3.2b`` or ``hd-3.2b``.

        Raises:
            UserError: no such name.
        """
        if name not in NAMED:
            raise UserError("unknown model", name, ", ".join(NAMED))
        return cls(views=NAMED[name])


def write_card(folder: str | os.PathLike[str], config: FlashSlothConfig, run: str | None = None) -> None:
    """A model card, README.md, for the hub: licence, base models, tags, and which run trained the weights.

    Args:
        folder: of the model; a card that is there stays, unless a run is named.
        run: id of the training's record.
    """
    path = Path(folder) / "README.md"
    if path.exists() and run is None:
        return
    whole = all(getattr(config.text_config, name) == value for name, value in PHI_2.items() if isinstance(value, int))
    bases = "base_model:\n- microsoft/phi-2\n- google/siglip-so400m-patch14-384\n" if whole else ""
    stage = "" if config.instruction_tuned else " Stage 1 only: it does not end its answers."
    trained = f"Trained by run `{run}`: its `run.json` names data, settings and versions." if run else "Not said."
    card = f"""---
library_name: transformers
license: apache-2.0
pipeline_tag: image-text-to-text
{bases}tags:
- flashsloth
- vision-language
---

# FlashSloth{"-HD" if config.views > 1 else ""}

{config.num_image_tokens} visual tokens an image and {config.query_count} queries a question
([arXiv 2412.04317](https://arxiv.org/abs/2412.04317)), in the format of the Python package `flashsloth`.{stage}

What it was trained on: {trained}
Weights of the authors' releases were tuned on a private mixture of 3.7 million samples; their checkpoints are tagged
Apache-2.0, their code has no licence file. Phi-2 and SigLIP have licences of their own (MIT and Apache-2.0).

```python
import flashsloth

model, processor = flashsloth.load("this folder")
```
"""
    atomic_write_text(path, card)


NAMED = {"3.2b": 1, "hd-3.2b": HD_VIEWS}

AutoConfig.register(FlashSlothConfig.model_type, FlashSlothConfig, exist_ok=True)
