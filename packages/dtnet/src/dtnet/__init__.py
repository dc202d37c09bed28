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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtnet.beam import beam_search
    from dtnet.config import DTNetConfig
    from dtnet.model import DTNet
    from dtnet.vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = ["DTNet", "DTNetConfig", "Vocabulary", "__version__", "beam_search"]

_HOME = {
    "DTNet": "dtnet.model",
    "DTNetConfig": "dtnet.config",
    "Vocabulary": "dtnet.vocabulary",
    "beam_search": "dtnet.beam",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line answers --help without loading torch.
    if name not in _HOME:
        raise AttributeError(f"module 'dtnet' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
