"""Features that pictures are compared by: Inception's from a user's file, CLIP's, and face embeddings."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from e3_facenet.facenet import E3FaceNet
from tenfold import UserError

logger = logging.getLogger(__name__)

FACE_SIZE = 112


def _script(path: str, what: str, device: torch.device) -> torch.jit.ScriptModule:
    if not Path(path).is_file():
        raise UserError("no such file", path, f"a TorchScript file of {what}")
    try:
        return torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"not readable ({type(error).__name__})", path, f"a TorchScript file of {what}") from error


class Features:
    """What `eval` measures pictures with.

    Args:
        model: whose CLIP serves scores, and distances where there is no Inception.
        inception: TorchScript of Inception's 2048 pool features (NVIDIA's inception-2015-12-05.pt: uint8 input,
            ``return_features=True``), or None.
        face: TorchScript that embeds faces [B, 3, 112, 112] in [-1, 1], or None.
    """

    def __init__(self, model: E3FaceNet, inception: str | None, face: str | None) -> None:
        self.model = model
        self.inception = _script(inception, "Inception features", model.device) if inception else None
        self.face = _script(face, "face embeddings", model.device) if face else None
        if face is None:
            logger.warning("MVIC is skipped: it needs --face, a TorchScript file of face embeddings")

    @property
    def name(self) -> str:
        """What the distance is taken on."""
        return "Inception" if self.inception is not None else "CLIP"

    def distance(self, uint8: Tensor) -> Tensor:
        """Features for FID and KID of pictures [B, 3, H, W] uint8: [B, d] float32."""
        with torch.no_grad():
            if self.inception is not None:
                return self.inception(uint8.to(self.model.device), return_features=True).float().cpu()
            return self.clip(uint8)

    def clip(self, uint8: Tensor) -> Tensor:
        """Normalised CLIP embeddings of pictures in [0, 1], as CLIP was trained: [B, t_dim]."""
        with torch.no_grad():
            pictures = uint8.to(self.model.device).float() / 127.5 - 1
            return self.model.encoder.picture_features(pictures, rescale=True).cpu()

    def faces(self, uint8: Tensor) -> Tensor | None:
        """Face embeddings [B, d] of aligned pictures; None where there is no file."""
        if self.face is None:
            return None
        with torch.no_grad():
            pictures = uint8.to(self.model.device).float() / 127.5 - 1
            pictures = F.interpolate(pictures, (FACE_SIZE, FACE_SIZE), mode="bilinear", antialias=True)
            return self.face(pictures).float().cpu()
