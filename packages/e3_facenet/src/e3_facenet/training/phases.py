"""The four phases of an iteration: each gives a loss, whose gradient goes to one player (section 3.5).

Gmain   every iteration      L_G
Greg    every 4th, times 4   path-length penalty of half a batch
Dmain   every iteration      L_D
Dreg    every 16th, times 16 R1
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from e3_facenet.discriminator import Discriminator
from e3_facenet.generator import Generator, Synthesis
from e3_facenet.losses import (
    PATH_LENGTH_WEIGHT,
    R1_GAMMA,
    adversarial,
    clip_loss,
    generator_parts,
    path_length_penalty,
    r1_penalty,
    total,
)
from e3_facenet.nerf import Draws
from e3_facenet.text import Text, TextEncoder

GREG_EVERY, DREG_EVERY = 4, 16


@dataclass(frozen=True)
class Faces:
    """What a batch of faces is made from.

    Attributes:
        z: [B, z_dim]; text: of B captions; pose: [B, 4, 4]; z_bg: [B, bg_dim].
        mixing: a second noise [B, z_dim] and the code from which on it is taken (style mixing), or None.
    """

    z: Tensor
    text: Text
    pose: Tensor
    z_bg: Tensor
    mixing: tuple[Tensor, int] | None = None


@dataclass(frozen=True)
class Phase:
    """A phase's loss (a scalar, times its interval), its terms by name, and logits of every pass of D in order."""

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    logits: tuple[tuple[Tensor, Tensor], ...] = ()


class Step:
    """Losses of the phases for one pair of networks.

    Args:
        encoder: frozen CLIP for the contrastive loss; None leaves it out.
        regulariser: a name in `losses.REGULARISERS`.
        draws: random numbers of rendering and of the path-length picture.
        clip_rescale: contrast pictures in [0, 1] instead of the released [-1, 1].
        conditional: give the enhancer its tokens; False trains without offsets (dw = 0).
        r1_gamma: weight of R1.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        encoder: TextEncoder | None,
        regulariser: str = "paper",
        draws: Draws | None = None,
        clip_rescale: bool = False,
        conditional: bool = True,
        r1_gamma: float = R1_GAMMA,
        clip_weight: float = 1.0,
    ) -> None:
        self.generator, self.discriminator, self.encoder = generator, discriminator, encoder
        self.regulariser, self.clip_rescale, self.conditional = regulariser, clip_rescale, conditional
        self.r1_gamma, self.clip_weight = r1_gamma, clip_weight
        self.draws: Draws = draws  # type: ignore[assignment]
        self.path_length_mean = torch.zeros([])

    def styles(self, faces: Faces, train_mapping: bool = True) -> Tensor:
        """Style codes [B, num_ws, w_dim], mixed where the faces say so; mixing keeps the caption."""
        ws = self.generator.styles(faces.z, faces.text.t, update_average=train_mapping)
        if faces.mixing is not None:
            z, cutoff = faces.mixing
            other = self.generator.styles(z, faces.text.t, update_average=False)
            ws = torch.cat([ws[:, :cutoff], other[:, cutoff:]], dim=1)
        return ws

    def make(self, faces: Faces, train_mapping: bool = True, ws: Tensor | None = None) -> Synthesis:
        """A training pass of the generator."""
        ws = self.styles(faces, train_mapping) if ws is None else ws
        tokens = faces.text.tokens if self.conditional else None
        return self.generator(ws, tokens, faces.pose, faces.z_bg, draws=self.draws)

    def generator_main(self, faces: Faces) -> Phase:
        """Gmain: L_G and its terms."""
        made = self.make(faces)
        logits = self.discriminator(made.image, faces.text.t)
        contrast = None
        if self.encoder is not None:
            contrast = self.clip_weight * clip_loss(self.encoder, made.image, faces.text, self.clip_rescale)
        parts = generator_parts(made, logits, contrast, self.regulariser)
        return Phase(total(parts), parts, (logits,))

    def generator_path_length(self, faces: Faces) -> Phase:
        """Greg: the path-length penalty; attention by its plain form, which has a second derivative."""
        with sdpa_kernel(SDPBackend.MATH):
            ws = self.styles(faces)
            made = self.make(faces, ws=ws)
            noise = self.draws.normal("path-length picture", made.image.shape)
            mean = self.path_length_mean.to(ws.device)
            penalty, self.path_length_mean = path_length_penalty(made.image, ws, noise, mean)
        loss = penalty.mean() * PATH_LENGTH_WEIGHT
        return Phase(loss * GREG_EVERY, {"path length": penalty})

    def discriminator_main(self, faces: Faces, real: Tensor, real_text: Text) -> Phase:
        """Dmain: L_D on made and real pictures; the NeRF-path value counts as a constant (as released)."""
        with torch.no_grad():
            made = self.make(faces)
        logits: tuple[Tensor, Tensor] = self.discriminator(made.image, faces.text.t)
        false = adversarial(*logits, sign=1.0)
        if made.path_loss is not None:
            false = false + made.path_loss.detach()
        real_logits: tuple[Tensor, Tensor] = self.discriminator(real, real_text.t)
        true = adversarial(*real_logits, sign=-1.0)
        return Phase(false.mean() + true.mean(), {"made": false, "real": true}, (logits, real_logits))

    def discriminator_r1(self, real: Tensor, real_text: Text) -> Phase:
        """Dreg: R1 on the sum of both heads' logits."""
        real = real.detach().requires_grad_()
        logits = self.discriminator(real, real_text.t)
        penalty = r1_penalty(real, logits)
        loss = penalty.mean() * (self.r1_gamma / 2)
        return Phase(loss * DREG_EVERY, {"R1": penalty}, (logits,))
