"""SAM's prompt encoder and mask decoder, with text as sparse prompts (section 3.1, steps 3 to 7).

Both are segment-anything's, subclassed where text and several pictures at once need it:

- the dense positions are computed for the grid of the input, not for SAM's 64 x 64;
- the decoder takes one sentence a picture. Upstream repeats the image embeddings once for each prompt, which is right
  for many prompts on one picture and wrong for pictures with a sentence each;
- of the four mask tokens the first one's mask is the answer; the others' are not computed (training never reached
them).
"""

from __future__ import annotations

import math

import torch
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder as SamPromptEncoder
from segment_anything.modeling import TwoWayTransformer
from torch import Tensor

from dit_sam.attention import Grid
from dit_sam.config import DITConfig


class PromptEncoder(SamPromptEncoder):
    """SAM's prompt encoder, of which text uses two weights: the dense positions and "no mask"."""

    def __init__(self, config: DITConfig) -> None:
        native = config.native_size // config.patch_size
        super().__init__(
            embed_dim=config.prompt_width,
            image_embedding_size=(native, native),
            input_image_size=(config.native_size, config.native_size),
            mask_in_chans=config.mask_channels,
        )

    def dense_positions(self, grid: Grid) -> Tensor:
        """SAM's random Fourier features of a grid's cells, [1, width, h, w]."""
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        # In float32 whatever the weights are: phases of many turns have no digits left in half precision.
        rows, columns = (torch.arange(size, device=matrix.device, dtype=torch.float32).add(0.5) / size for size in grid)
        cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # [h, w, 2]: x, y in (0, 1)
        phases = 2 * math.pi * ((2 * cells - 1) @ matrix.float())
        positions = torch.cat([phases.sin(), phases.cos()], dim=-1).permute(2, 0, 1)[None]
        return positions.to(self.no_mask_embed.weight.dtype)

    def no_mask(self) -> Tensor:
        """The dense prompt where no mask is given, [1, width, 1, 1]."""
        return self.no_mask_embed.weight[:, :, None, None]


class MaskDecoder(SamMaskDecoder):
    """SAM's mask decoder for one prompt sequence a picture."""

    def __init__(self, config: DITConfig) -> None:
        super().__init__(
            transformer_dim=config.prompt_width,
            transformer=TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=config.prompt_width,
                num_heads=config.decoder_heads,
                mlp_dim=config.decoder_mlp,
                attention_downsample_rate=config.decoder_downsample,
            ),
            num_multimask_outputs=config.mask_outputs,
            iou_head_depth=config.iou_depth,
            iou_head_hidden_dim=config.iou_width,
        )

    def forward(self, image: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Decode one mask a row.

        Args:
            image: the encoder's output, [batch, width, h, w].
            positions: [1, width, h, w].
            sparse: prompt tokens, [batch, tokens, width].
            dense: the dense prompt, broadcast over the grid.

        Returns:
            mask logits [batch, 1, 4 h, 4 w], and the raw IoU head's number [batch, 1] (no training on text reaches it).
        """
        batch = len(image)
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(batch, -1, -1)
        tokens = torch.cat([own, sparse], dim=1)
        tokens, cells = self.transformer(image + dense, positions.expand(batch, -1, -1, -1), tokens)
        grid = image.shape[2:]
        upscaled = self.output_upscaling(cells.transpose(1, 2).unflatten(2, grid))  # [batch, width / 8, 4 h, 4 w]
        # Token 0 is the IoU's, token 1 that of the single mask.
        weights = self.output_hypernetworks_mlps[0](tokens[:, 1])  # [batch, width / 8]
        mask = (weights[:, None] @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        return mask, self.iou_prediction_head(tokens[:, 0])[:, :1]
