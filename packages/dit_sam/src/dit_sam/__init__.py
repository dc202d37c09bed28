"""DIT: deep instruction tuning of SAM for referring segmentation (Huang et al., ACM Multimedia 2024).

SAM whose image encoder reads the sentence: a picture and "the second cup from the left" in, a mask out.

    import dit_sam

    predictor = dit_sam.DitPredictor.from_pretrained("my-dit")     # a folder of `dit-sam train` or `dit-sam convert`
    predictor.set_image(image)                                     # uint8 [height, width, 3], RGB; a PIL image; a file
    masks, scores, low_res = predictor.predict(text="the second cup from the left")
    masks                                                          # bool [1, height, width]

    model = dit_sam.from_sam("sam_vit_b_01ec64.pth", "bert-base-uncased", dit_sam.DITConfig())   # to train
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold import lazy

if TYPE_CHECKING:
    from dit_sam.checkpoints.convert import convert as convert
    from dit_sam.checkpoints.convert import convert_back as convert_back
    from dit_sam.checkpoints.load import from_sam as from_sam
    from dit_sam.config import DITConfig as DITConfig
    from dit_sam.config import sized as sized
    from dit_sam.model import DITSam as DITSam
    from dit_sam.model import mask_loss as mask_loss
    from dit_sam.predictor import DitPredictor as DitPredictor
    from dit_sam.predictor import Prediction as Prediction

__version__ = "0.1.0"

# Loaded on first use: the command line answers --help without loading torch.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DITConfig": "config",
        "DITSam": "model",
        "DitPredictor": "predictor",
        "Prediction": "predictor",
        "convert": "checkpoints.convert",
        "convert_back": "checkpoints.convert",
        "from_sam": "checkpoints.load",
        "mask_loss": "model",
        "sized": "config",
    },
)
