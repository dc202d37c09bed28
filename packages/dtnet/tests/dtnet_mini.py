"""A mini model that was not trained: real words, real feature settings, captions of no sense."""

from __future__ import annotations

from pathlib import Path

from dtnet.config import DTNetConfig
from dtnet.features import MiniFeatures
from dtnet.model import DTNet
from dtnet.vocabulary import Vocabulary
from tenfold.data import mini_captions


def write_untrained(folder: Path) -> Path:
    """Write the model into `folder`."""
    scenes = [mini_captions.caption_scene(0, index) for index in range(60)]
    words = sorted({word for scene in scenes for text in scene.captions for word in text.split()})
    vocabulary = Vocabulary(["<unk>", "<pad>", "<bos>", "<eos>", *words])
    sizes = {"d_in": 24, "d_model": 32, "heads": 2, "d_k": 16, "d_v": 16, "d_ff": 32, "max_len": 20}
    model = DTNet(DTNetConfig(**sizes, encoder_layers=2, decoder_layers=1, vocabulary_size=len(vocabulary)))
    model.vocabulary, model.feature_settings = vocabulary, MiniFeatures().settings()
    model.save_pretrained(folder)
    return folder
