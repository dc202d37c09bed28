"""DIT: deep instruction tuning of SAM for referring segmentation (Huang et al., ACM Multimedia 2024).

SAM whose image encoder reads the sentence: a picture and "the second cup from the left" in, a mask out.

    import dit_sam

    predictor = dit_sam.DitPredictor.from_pretrained("my-dit")     # a folder of `dit-sam train` or `dit-sam convert`
    predictor.set_image(image)                                     # uint8 [height, width, 3], RGB; a PIL image; a file
    masks, scores, low_res = predictor.predict(text="the second cup from the left")
    masks                                                          # bool [1, height, width]

    model = dit_sam.DITSam(dit_sam.DITConfig(variant="layer_wise"))                # to train: `dit-sam train`
    model = dit_sam.from_sam("sam_vit_b_01ec64.pth", "bert-base-uncased", dit_sam.DITConfig())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold.exports import lazy

if TYPE_CHECKING:
    from dit_sam.checkpoints.convert import convert, convert_back
    from dit_sam.checkpoints.load import from_sam
    from dit_sam.config import DITConfig, sized
    from dit_sam.model import DITSam, mask_loss
    from dit_sam.predictor import DitPredictor, Prediction

__version__ = "0.1.0"
_HOME = {
    "DITConfig": "config",
    "DITSam": "model",
    "DitPredictor": "predictor",
    "Prediction": "predictor",
    "convert": "checkpoints.convert",
    "convert_back": "checkpoints.convert",
    "from_sam": "checkpoints.load",
    "mask_loss": "model",
    "sized": "config",
}
__getattr__, __dir__, __all__ = lazy(__name__, _HOME)
