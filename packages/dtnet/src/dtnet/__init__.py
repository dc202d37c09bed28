"""DTNet: image captioning via dynamic path customization (Ma et al., IEEE TNNLS 2025).

A captioning transformer on grid features whose encoder layers weigh five cells for every image by a router:

    import dtnet
    import torch

    model = dtnet.DTNet.from_pretrained("my-dtnet")                # a folder of `dtnet train` or `dtnet convert`
    features = torch.load("grid_features.pt", weights_only=True)   # [batch, 49, 2048] of a CNN; or a list of PIL images
    for caption in model.caption(features, beam_size=5, return_paths=True):
        print(caption.text, caption.log_prob)
        print(caption.paths.spatial)                               # [layers, 3]: local, axial, global
        print(caption.paths.channel)                               # [layers, 2]: attention, projection
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold import lazy

if TYPE_CHECKING:
    from dtnet.beam import beam_search as beam_search
    from dtnet.config import DTNetConfig as DTNetConfig
    from dtnet.model import DTNet as DTNet
    from dtnet.vocabulary import Vocabulary as Vocabulary

__version__ = "0.1.0"

# Loaded on first use: the command line answers --help without loading torch.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {"DTNet": "model", "DTNetConfig": "config", "Vocabulary": "vocabulary", "beam_search": "beam"},
)
