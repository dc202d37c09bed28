"""A predictor like segment-anything's, that is told what to segment in words.

    predictor = DitPredictor.from_pretrained("my-dit")
    predictor.set_image(image)                                     # uint8 [height, width, 3], RGB
    masks, scores, low_res = predictor.predict(text="the second cup from the left")
    masks                                                          # bool [1, height, width]
    many = predictor.predict(text=["left cup", "right cup"])       # [2, height, width]; the same as two calls

What can be kept between calls differs from SAM. Text enters the image encoder before its first block, so the encoder
runs once for every picture and sentence (but for the variant `default`, whose image embedding is kept as SAM's is). Of
a picture its patch embedding is kept, of a sentence all that depends on it alone: BERT's output, the sparse prompts,
and for L-DIT keys and values of every block.

The model's weights must not change while a predictor uses it: what it keeps of sentences would be another model's.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dit_sam.frame import Frame, fit, foreground, picture, to_picture
from dit_sam.model import DITSam, Output, Text, stack_text
from tenfold import UserError
from tenfold.data.pictures import open_picture, require_size

logger = logging.getLogger(__name__)

Protocol = Literal["smooth", "official"]
Picture = np.ndarray | Image.Image
# Sentences of which something is kept.
KEPT_SENTENCES = 64


@dataclass(frozen=True)
class Prediction:
    """What was found in one picture; used like SAM's tuple: ``masks, scores, low_res = prediction``, ``prediction[0]``.

    Attributes:
        masks: bool [sentences, height, width] in the picture's own size; float32 logits where these were asked for.
        scores: float32 [sentences], the mean foreground probability over the mask, in [0, 1]; 0 for an empty mask. It
            is no estimate of IoU: SAM's IoU head gets no training here.
        low_res: float32 [sentences, 4 h, 4 w], the decoder's logits in the PADDED square; `low_res_box` cuts the
            picture out.
        low_res_box: left, top, right and bottom of the picture in `low_res`, in its pixels, not rounded.
        iou_head: float32 [sentences], the raw number of SAM's IoU head.
        texts: the sentences.
    """

    masks: np.ndarray
    scores: np.ndarray
    low_res: np.ndarray
    low_res_box: tuple[float, float, float, float]
    iou_head: np.ndarray
    texts: tuple[str, ...]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.masks, self.scores, self.low_res))

    def __getitem__(self, index: int) -> np.ndarray:
        return (self.masks, self.scores, self.low_res)[index]

    def __len__(self) -> int:
        return 3


@dataclass
class _Shown:
    """A picture that was set: its place in the square, and what is kept of it."""

    frame: Frame
    patches: Tensor
    embedding: Tensor | None = None


@dataclass
class DitPredictor:
    """Masks for sentences.

    Args:
        model: with a vocabulary; it is put into eval mode.
        input_size: edge of the padded square in pixels, a multiple of the patch size; None: the model's own. The same
            weights serve 256 to 1024 pixels, as positions are resized; the released models were trained at 512.
        batch_size: sentences in one pass.
        protocol: "smooth" resizes logits; "official" is the published numbers' way (see `dit_sam.frame`).

    Raises:
        UserError: a model without a vocabulary, or a size that does not fit.
    """

    model: DITSam
    input_size: int | None = None
    batch_size: int = 8
    protocol: Protocol = "smooth"
    _shown: list[_Shown] = field(default_factory=list, init=False, repr=False)
    _several: bool = field(default=False, init=False, repr=False)
    _texts: OrderedDict[str, Text] = field(default_factory=OrderedDict, init=False, repr=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        config = self.model.config
        self.input_size = self.input_size or config.input_size
        if self.model.vocabulary is None:
            raise UserError("a model without a vocabulary", "DitPredictor", "vocab.txt in its folder")
        if self.input_size % config.patch_size or not config.patch_size <= self.input_size <= 4096:
            raise UserError(f"input_size {self.input_size}", "DitPredictor", f"a multiple of {config.patch_size}")
        if self.protocol not in ("smooth", "official"):
            raise UserError(f"protocol {self.protocol!r}", "DitPredictor", "smooth or official")
        self.model.eval()

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str = "cpu", **options: Any) -> DitPredictor:
        """A predictor of a folder or Hub repository; options as the constructor's. Raises UserError as `DITSam`."""
        return cls(DITSam.from_pretrained(name, device=device), **options)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def is_image_set(self) -> bool:
        """Whether a picture was set."""
        return bool(self._shown)

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the picture that was set."""
        frame = self._one().frame
        return frame.height, frame.width

    @torch.inference_mode()
    def set_image(self, image: Picture | str | Path, image_format: Literal["RGB", "BGR"] = "RGB") -> None:
        """Take a picture.

        Args:
            image: uint8 [height, width, 3], a PIL image of any mode, or a file (its EXIF orientation is applied).
            image_format: of an array: "RGB", or OpenCV's "BGR".

        Raises:
            UserError: another kind of array, a broken file, a picture too narrow for the square.
        """
        with self._alone():
            self._shown, self._several = [self._show(image, image_format)], False

    @torch.inference_mode()
    def set_images(self, images: Sequence[Picture | str | Path], image_format: Literal["RGB", "BGR"] = "RGB") -> None:
        """Take several pictures, of any sizes; `predict` then wants sentences for each. Raises as `set_image`."""
        with self._alone():
            if not images:
                raise UserError("no picture", "set_images", "one or more")
            self._shown, self._several = [self._show(one, image_format) for one in images], True

    def reset_image(self) -> None:
        """Forget the picture."""
        self._shown = []

    def get_image_embedding(self) -> Tensor:
        """The image embedding [1, width, h, w], of the variant without text in the encoder.

        Raises:
            UserError: no picture set; a variant whose embedding depends on the sentence.
        """
        if self.model.config.variant != "default":
            what = f"variant {self.model.config.variant} has no embedding of a picture alone"
            raise UserError(what, "get_image_embedding", "the variant default: text enters the encoder's first block")
        with self._alone(), torch.inference_mode():
            return self._embedding(self._one())

    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        point_coords: None = None,
        point_labels: None = None,
        box: None = None,
        mask_input: None = None,
        multimask_output: bool = False,
        return_logits: bool = False,
        *,
        text: str | Sequence[str],
        threshold: float | None = None,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        point_coords: None = None,
        point_labels: None = None,
        box: None = None,
        mask_input: None = None,
        multimask_output: bool = False,
        return_logits: bool = False,
        *,
        text: Sequence[Sequence[str]],
        threshold: float | None = None,
    ) -> list[Prediction]: ...

    @torch.inference_mode()
    def predict(
        self,
        point_coords: None = None,
        point_labels: None = None,
        box: None = None,
        mask_input: None = None,
        multimask_output: bool = False,
        return_logits: bool = False,
        *,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        threshold: float | None = None,
    ) -> Prediction | list[Prediction]:
        """Segment what sentences refer to.

        Args:
            point_coords, point_labels, box, mask_input, multimask_output: SAM's other prompts, which these models were
                not trained with: refused.
            return_logits: give logits at the picture's size in place of masks.
            text: a sentence or several; after `set_images` a list of sentences for each picture.
            threshold: of the foreground's probability; None: the model's own, 0.35 of the released ones.

        Returns:
            One prediction, or one for each picture after `set_images`.

        Raises:
            UserError: no picture was set; no or an empty sentence; another prompt than text.
        """
        others = {"point_coords": point_coords, "point_labels": point_labels, "box": box, "mask_input": mask_input}
        given = [name for name, value in others.items() if value is not None]
        if given or multimask_output:
            what = ", ".join(given) or "multimask_output=True"
            raise UserError(f"{what}: these models were trained with text alone", "predict", 'text="..."')
        threshold = self.model.config.threshold if threshold is None else threshold
        if not 0 < threshold < 1:
            raise UserError(f"threshold {threshold}", "predict", "between 0 and 1")
        with self._alone():
            if not self._shown:
                raise UserError("no picture", "predict", "set_image first")
            wanted = self._wanted(text)
            pairs = [(shown, sentence) for shown, ones in zip(self._shown, wanted, strict=True) for sentence in ones]
            outputs = self._run(pairs)
            predictions, start = [], 0
            for shown, sentences in zip(self._shown, wanted, strict=True):
                rows = slice(start, start := start + len(sentences))
                output = Output(*(part[rows] for part in outputs))
                predictions.append(self._finish(output, shown.frame, sentences, threshold, return_logits))
        return predictions if self._several else predictions[0]

    def _wanted(self, text: Any) -> list[tuple[str, ...]]:
        """The sentences of each picture, checked."""
        if text is None:
            raise UserError("no text", "predict", 'text="..."')
        if not self._several:
            groups = [(text,) if isinstance(text, str) else tuple(text)]
        elif isinstance(text, str) or len(text) != len(self._shown) or any(isinstance(one, str) for one in text):
            raise UserError("sentences that fit no pictures", "predict", f"a list of {len(self._shown)} lists of texts")
        else:
            groups = [tuple(ones) for ones in text]
        for sentences in groups:
            if not sentences:
                raise UserError("no sentence", "predict", "one or more for each picture")
            for sentence in sentences:
                if not isinstance(sentence, str) or not sentence.strip():
                    raise UserError(f"an empty sentence {sentence!r}", "predict", "words")
        return groups

    def _run(self, pairs: Sequence[tuple[_Shown, str]]) -> Output:
        """Logits of picture and sentence, a few at a time."""
        parts = []
        self._encode([sentence for _, sentence in pairs])
        for start in range(0, len(pairs), self.batch_size):
            some = pairs[start : start + self.batch_size]
            text = stack_text([self._texts[sentence] for _, sentence in some])
            if self.model.config.variant == "default":
                embedding = torch.cat([self._embedding(shown) for shown, _ in some])
            else:
                embedding = self.model.encode_image(torch.cat([shown.patches for shown, _ in some]), text)
            parts.append(self.model.decode(embedding, text.prompts))
        return Output(*(torch.cat(x).float() for x in zip(*parts, strict=True)))

    def _encode(self, sentences: Sequence[str]) -> None:
        """Keep what depends on sentences alone; the oldest ones go, never those of this call."""
        new = [one for one in dict.fromkeys(sentences) if one not in self._texts]
        assert self.model.vocabulary is not None
        if new:
            encoded = self.model.vocabulary.encode(new, self.model.config.text_length)
            for i, sentence in enumerate(new):
                if encoded.lost[i]:
                    logger.warning("no room for %r at the end of %r", encoded.lost[i], sentence)
                # One by one, so that a sentence's numbers do not depend on the others of the call.
                ids, mask = encoded.ids[i : i + 1], encoded.mask[i : i + 1]
                self._texts[sentence] = self.model.encode_text(ids.to(self.device), mask.to(self.device))
        for one in sentences:
            self._texts.move_to_end(one)
        while len(self._texts) > max(KEPT_SENTENCES, len(set(sentences))):
            self._texts.popitem(last=False)

    def _embedding(self, shown: _Shown) -> Tensor:
        if shown.embedding is None:
            shown.embedding = self.model.image_encoder.encode(shown.patches)
        return shown.embedding

    def _finish(
        self, output: Output, frame: Frame, sentences: tuple[str, ...], threshold: float, return_logits: bool
    ) -> Prediction:
        """From logits in the square to the picture's size."""
        logits = output.logits[:, 0]
        if not bool(logits.isfinite().all()):
            raise UserError("logits that are not finite", "predict", "finite weights; float32 or bfloat16")
        full = to_picture(logits, frame) if return_logits or self.protocol == "smooth" else frame.cut(logits)
        probability = full.sigmoid()
        inside = probability > threshold
        pixels = inside.flatten(1).sum(1)
        scores = (probability * inside).flatten(1).sum(1) / pixels.clamp(min=1)
        if return_logits:
            masks = full.cpu().numpy()
        elif self.protocol == "smooth":
            masks = inside.cpu().numpy()
        else:
            square = (logits.sigmoid() > threshold).cpu().numpy()
            masks = np.stack([foreground(one, frame) for one in square])
        scale = output.low_res.shape[-1] / frame.size
        left, top, right, bottom = (edge * scale for edge in frame.box)
        low_res, heads = output.low_res[:, 0].cpu().numpy(), output.iou_head[:, 0].cpu().numpy()
        return Prediction(masks, scores.cpu().numpy(), low_res, (left, top, right, bottom), heads, sentences)

    def _show(self, image: Picture | str | Path, image_format: str) -> _Shown:
        shown = as_rgb(image, image_format)
        assert self.input_size is not None
        frame = fit(shown.height, shown.width, self.input_size)
        x = picture(shown, frame)[None].to(self.device, self.model.dtype)
        return _Shown(frame, self.model.image_encoder.patches(x))

    def _one(self) -> _Shown:
        if not self._shown:
            raise UserError("no picture", "DitPredictor", "set_image first")
        return self._shown[0]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A predictor serves one thread at a time: what it keeps belongs to one picture."""
        if not self._lock.acquire(blocking=False):
            raise UserError("used by two threads at once", "DitPredictor", "a predictor for each thread, on one model")
        try:
            yield
        finally:
            self._lock.release()


def as_rgb(image: Picture | str | Path, image_format: str = "RGB") -> Image.Image:
    """A picture as 8-bit RGB.

    Raises:
        UserError: an array that is not uint8 [height, width, 3]; a file that is no picture.
    """
    if image_format not in ("RGB", "BGR"):
        raise UserError(f"image_format {image_format!r}", "set_image", "RGB or BGR")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            what = f"an array {image.dtype} {list(image.shape)}"
            raise UserError(what, "set_image", "uint8 [height, width, 3], values 0 to 255")
        return Image.fromarray(np.ascontiguousarray(image[:, :, ::-1] if image_format == "BGR" else image))
    if isinstance(image, Image.Image):
        require_size(image.size, "set_image")
        return image.convert("RGB")
    return open_picture(image)
