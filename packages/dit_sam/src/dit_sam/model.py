"""DIT: a picture and a sentence in, the mask of what it refers to out (section 3.1).

model = DITSam.from_pretrained("my-dit")              # a folder of `dit-sam train` or `dit-sam convert`
output = model(images, ids, mask)                     # images [batch, 3, 512, 512] of `frame.letterbox`
loss = mask_loss(output.logits, target)               # binary cross entropy, and nothing else
foreground = output.logits.sigmoid() > model.config.threshold

y = BERT(sentence)                                    text_encoder
F = ViT(image, y)                                     image_encoder, text_path
s = text_proj(y)                                      the sparse prompts
mask = decoder(F, s), four times finer twice          mask_decoder
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_sam.config import DITConfig
from dit_sam.folder import push, read_folder, write_folder
from dit_sam.image_encoder import ImageEncoder, Keys
from dit_sam.mask_decoder import MaskDecoder, PromptEncoder
from dit_sam.text_encoder import TextEncoder, Vocabulary
from tenfold.weights import StoredTensor, check_fits, require_finite

# What a picture is normalised with: RGB in [0, 1].
PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Text(NamedTuple):
    """What is computed of sentences alone.

    Attributes:
        features: y, [batch, slots, text width].
        prompts: s, the sparse prompts, [batch, slots, prompt width].
        keys: keys and values of every block, where they depend on the sentence alone; else None.
    """

    features: Tensor
    prompts: Tensor
    keys: list[Keys] | None


class Output(NamedTuple):
    """What a model says of pictures and sentences.

    Attributes:
        logits: of the foreground, [batch, 1, H, W], in the padded square.
        low_res: the decoder's own, [batch, 1, H / 4, W / 4].
        iou_head: the raw number of SAM's IoU head, [batch, 1]. Training never reaches it: it is no IoU.
    """

    logits: Tensor
    low_res: Tensor
    iou_head: Tensor


class DITSam(nn.Module):
    """A DIT model.

    Args:
        config: dimensions and variant.
        vocabulary: of the sentences; None for a model that only takes ids.
    """

    def __init__(self, config: DITConfig, vocabulary: Vocabulary | None = None) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)
        self.text_encoder = TextEncoder(config)
        self.text_proj = nn.Linear(config.text_width, config.prompt_width)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.text_proj.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return self.text_proj.weight.dtype

    def encode_text(self, ids: Tensor, mask: Tensor) -> Text:
        """Sentences, ids and mask int64 [batch, slots], to all that does not depend on a picture."""
        features = self.text_encoder(ids, mask)
        keys = self.image_encoder.text_keys(features) if self.config.text_alone else None
        return Text(features, self.text_proj(features), keys)

    def encode_image(self, patches: Tensor, text: Text) -> Tensor:
        """F, [batch, prompt width, h, w], of `image_encoder.patches` and as many sentences."""
        return self.image_encoder.encode(patches, text.features, text.keys)

    def decode(self, embedding: Tensor, prompts: Tensor) -> Output:
        """Masks of image embeddings [batch, prompt width, h, w] and sparse prompts [batch, tokens, prompt width]."""
        positions = self.prompt_encoder.dense_positions((embedding.shape[2], embedding.shape[3]))
        low_res, iou_head = self.mask_decoder(embedding, positions, prompts, self.prompt_encoder.no_mask())
        return Output(self.upsample(low_res), low_res, iou_head)

    def upsample(self, low_res: Tensor) -> Tensor:
        """The decoder's logits at the size of the input: corners stay where they are (`align_corners=True`)."""
        scale = self.config.patch_size // 4
        return F.interpolate(low_res, scale_factor=scale, mode="bilinear", align_corners=True)

    def forward(self, image: Tensor, ids: Tensor, mask: Tensor) -> Output:
        """One mask a row.

        Args:
            image: normalised and padded, [batch, 3, H, W], H and W multiples of the patch size.
            ids, mask: of `Vocabulary.encode`, [batch, slots].
        """
        text = self.encode_text(ids, mask)
        embedding = self.encode_image(self.image_encoder.patches(image), text)
        return self.decode(embedding, text.prompts)

    @classmethod
    def from_state(
        cls, config: DITConfig, vocabulary: Vocabulary | None, state: dict[str, Tensor], where: str | Path
    ) -> DITSam:
        """A model in eval mode that takes over the tensors of `state`, without a second copy of them.

        Raises:
            UserError: weights that are missing, unknown, of another shape or not finite.
        """
        with torch.device("meta"):
            model = cls(config, vocabulary)
        check_fits(model.state_dict(), state, where)
        require_finite(state, where)
        model.load_state_dict(state, assign=True)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
    ) -> DITSam:
        """A model from a folder that `save_pretrained` wrote, or from such a repository of the Hub, in eval mode.

        Raises:
            UserError: no such folder or repository; a file that is missing, broken or of another model.
        """
        stored = read_folder(name, revision)
        model = cls.from_state(stored.config, stored.vocabulary, stored.state, stored.where)
        if dtype is not None:
            # The one buffer, frequencies of positions, keeps its digits.
            for weight in model.parameters():
                weight.data = weight.data.to(dtype)
        return model.to(device)

    def save_pretrained(
        self, folder: str | Path, *, trained: str | None = None, run: str | None = None, replace: bool = False
    ) -> None:
        """Write config.json, model.safetensors, vocab.txt and a model card; whole or not at all.

        Args:
            trained: what it was trained on, for the card. run: the id of its run record.
            replace: an existing folder.

        Raises:
            UserError: the folder exists, or cannot be written.
        """
        state = {name: StoredTensor.of(value.cpu()) for name, value in self.state_dict().items()}
        write_folder(folder, self.config, self.vocabulary, state, trained=trained, run=run, replace=replace)

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to the Hub; returns the commit's address.

        Raises:
            UserError: huggingface_hub is not installed.
        """
        with TemporaryDirectory() as place:
            folder = Path(place, "model")
            self.save_pretrained(folder)
            return push(folder, repository, private, token)


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy, the mean over all pixels of the padded square. The paper's whole objective.

    Args:
        logits: [batch, 1, H, W]. target: the same shape, in [0, 1]; edges are soft.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def stack_text(parts: Sequence[Text]) -> Text:
    """Several sentences' `Text` as one batch."""
    keys = None
    if parts[0].keys is not None:
        columns = zip(*(part.keys for part in parts if part.keys is not None), strict=True)
        keys = [Keys(*(torch.cat(x) for x in zip(*column, strict=True))) for column in columns]
    return Text(torch.cat([part.features for part in parts]), torch.cat([part.prompts for part in parts]), keys)
