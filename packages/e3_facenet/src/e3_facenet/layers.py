"""StyleGAN2's building blocks in plain PyTorch (no compiled extensions), and the StyleNeRF upsampling block.

Equalised layers keep weights at N(0, 1) and scale them when they are used: ``y = x @ (W g)^T + b lr`` with
``g = lr / sqrt(in)``. "lrelu" is LeakyReLU(0.2) times sqrt(2) throughout. Style codes modulate 1x1 convolutions:

    y = lrelu(d * W (s * x) + b),    s = affine(w),    d_o = rsqrt(sum_i (W_oi s_i)^2 + 1e-8)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQRT2 = math.sqrt(2.0)
CLAMP = 256.0
# Taps of every blur; as an outer product it sums to one.
TAPS = (1.0, 3.0, 3.0, 1.0)
MAGNITUDE_DECAY = 0.999


def lrelu(x: Tensor, gain: float = SQRT2, clamp: float | None = None) -> Tensor:
    """LeakyReLU(0.2) times `gain`, then within +-`clamp`; any shape."""
    x = F.leaky_relu(x, 0.2) * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def blur_filter(like: Tensor | None = None) -> Tensor:
    """The normalised 4 x 4 filter, outer([1, 3, 3, 1]) / 64."""
    taps = torch.tensor(TAPS, dtype=torch.float32 if like is None else like.dtype)
    taps = taps if like is None else taps.to(like.device)
    return torch.outer(taps, taps) / taps.sum() ** 2


def blur(x: Tensor, left: int, right: int, gain: float = 1.0) -> Tensor:
    """Filter every channel of [B, C, H, W] with [1, 3, 3, 1] a side, after zero padding.

    Args:
        left, right: rows and columns of zeros before and after.
        gain: of the whole.

    Returns:
        [B, C, H + left + right - 3, W + left + right - 3]. Four shifted sums a side: faster on a CPU than a depthwise
        convolution.
    """
    for dim in (2, 3):
        x = F.pad(x, (0, 0, left, right) if dim == 2 else (left, right))
        size = x.shape[dim] - 3
        a, b, c, d = (x.narrow(dim, shift, size) for shift in range(4))
        x = torch.add(a, d).add(torch.add(b, c), alpha=3.0)
    return x * (gain / 64.0)


def upsample2d(x: Tensor) -> Tensor:
    """Twice the size by zero insertion and blur: [B, C, H, W] -> [B, C, 2H, 2W]."""
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch, channels, height, 2, width, 2)
    spread[:, :, :, 0, :, 0] = x
    return blur(spread.view(batch, channels, 2 * height, 2 * width), 2, 1, gain=4.0)


def downsample2d(x: Tensor) -> Tensor:
    """Half the size by blur and decimation: [B, C, H, W] -> [B, C, H/2, W/2]."""
    return blur(x, 1, 1)[:, :, ::2, ::2]


def modulated_weight(weight: Tensor, styles: Tensor, demodulate: bool = True) -> Tensor:
    """A convolution's weight for every sample.

    Args:
        weight: [out, in, k, k]; styles: [B, in].

    Returns:
        [B, out, in, k, k], each output channel of unit norm when demodulated.
    """
    w = weight * styles[:, None, :, None, None]
    if demodulate:
        w = w * (w.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    return w


def modulated_conv2d(
    x: Tensor, weight: Tensor, styles: Tensor, padding: int = 0, demodulate: bool = True, fused: bool = True
) -> Tensor:
    """Convolution by a weight that each sample's style modulates: [B, in, H, W] -> [B, out, H, W].

    Fused modulates the weight (a grouped convolution); otherwise activations are scaled before and after. Both forms
    are the same function.
    """
    batch = x.shape[0]
    if not fused:
        demodulation = (torch.einsum("oikl,bi->boi", weight.square(), styles.square()).sum(2) + 1e-8).rsqrt()
        x = F.conv2d(x * styles[:, :, None, None], weight, padding=padding)
        return x * demodulation[:, :, None, None] if demodulate else x
    w = modulated_weight(weight, styles, demodulate)
    if w.shape[-1] == 1:  # a 1x1 convolution is a product of matrices
        y = torch.bmm(w.flatten(2), x.flatten(2))
        return y.view(batch, -1, *x.shape[2:])
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), w.flatten(0, 1), padding=padding, groups=batch)
    return y.view(batch, -1, *y.shape[2:])


class EqualLinear(nn.Module):
    """An equalised fully connected layer: [..., in] -> [..., out].

    Args:
        lr: learning-rate multiplier of weight and bias. bias: the bias's first value. activation: "linear" or "lrelu".
    """

    def __init__(self, d_in: int, d_out: int, activation: str = "linear", lr: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) / lr)
        self.bias = nn.Parameter(torch.full((d_out,), bias))
        self.activation, self.lr, self.gain = activation, lr, lr / math.sqrt(d_in)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight * self.gain, self.bias * self.lr)
        return lrelu(y) if self.activation == "lrelu" else y


class EqualConv2d(nn.Module):
    """An equalised convolution, optionally halving the size: [B, in, H, W] -> [B, out, H', W'].

    Args:
        kernel: odd size. down: halve the size, by blur and a convolution of stride 2.
        activation: "linear" or "lrelu". clamp: of what the activation gives.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        kernel: int = 1,
        down: bool = False,
        activation: str = "linear",
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(d_out))
        self.down, self.activation, self.clamp = down, activation, clamp
        self.gain, self.padding = 1 / math.sqrt(d_in * kernel**2), kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (self.weight * self.gain).to(x.dtype), self.bias.to(x.dtype)
        if self.down:  # the blur's own padding and the convolution's are made at once
            x = F.conv2d(blur(x, 1 + self.padding, 1 + self.padding), weight, bias, stride=2)
        else:
            x = F.conv2d(x, weight, bias, padding=self.padding)
        if self.activation == "lrelu":
            return lrelu(x, clamp=self.clamp)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ModulatedConv(nn.Module):
    """A style-modulated 1x1 convolution, with bias and activation left to who uses it.

    Args:
        w_dim: of the style code. demodulate: normalise output channels; else styles are divided by sqrt(in).
    """

    def __init__(self, d_in: int, d_out: int, w_dim: int, demodulate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(d_out))
        self.affine = EqualLinear(w_dim, d_in, bias=1.0)
        self.demodulate = demodulate
        self.style_gain = 1.0 if demodulate else 1 / math.sqrt(d_in)

    def matrix(self, w: Tensor) -> Tensor:
        """The layer as a matrix for each style code: [B, w_dim] -> [B, out, in]."""
        return modulated_weight(self.weight, self.affine(w) * self.style_gain, self.demodulate).flatten(2)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[B, in, H, W] and [B, w_dim] -> [B, out, H, W], with bias; no activation."""
        y = torch.baddbmm(self.bias[None, :, None].to(x.dtype), self.matrix(w).to(x.dtype), x.flatten(2))
        return y.view(x.shape[0], -1, *x.shape[2:])


class SynthesisConv(ModulatedConv):
    """A convolution of an upsampling block, optionally doubling the size by pixel shuffle (StyleNeRF).

    The buffer `w_avg` follows the mean square of the input in every training pass, and the input is divided by its
    root: released weights mean nothing without it.
    """

    w_avg: Tensor

    def __init__(self, d_in: int, d_out: int, w_dim: int, up: bool) -> None:
        super().__init__(d_in, d_out, w_dim)
        self.register_buffer("w_avg", torch.ones([]))
        self.adapter = (
            nn.Sequential(EqualConv2d(d_out, d_out // 4, activation="lrelu"), EqualConv2d(d_out // 4, 4 * d_out))
            if up
            else None
        )

    def forward(self, x: Tensor, w: Tensor, skip_up: bool = False) -> Tensor:
        """[B, in, h, w] -> [B, out, 2h, 2w] where it doubles, else the same size.

        Args:
            skip_up: leave interpolation, adapter and blur out (the NeRF-path regulariser's branch).
        """
        if self.training:
            with torch.no_grad():
                magnitude = x.detach().float().square().mean()
                self.w_avg.copy_(magnitude.lerp(self.w_avg, MAGNITUDE_DECAY))
        matrix = (self.matrix(w) * self.w_avg.rsqrt()).to(x.dtype)
        if not torch.is_grad_enabled():
            return self._without_gradients(x, matrix, self.adapter is not None and not skip_up)
        y = torch.bmm(matrix, x.flatten(2)).view(x.shape[0], -1, *x.shape[2:])
        if self.adapter is not None and not skip_up:
            y = F.pixel_shuffle(_as_four(y) + self.adapter(y), 2)
            y = blur(y, 2, 1)
        return lrelu(y + self.bias.to(y.dtype)[:, None, None], clamp=CLAMP)

    def _without_gradients(self, x: Tensor, matrix: Tensor, up: bool) -> Tensor:
        """The same function with few passes over memory, which bound it: channels last, in place, gains folded in.

        The blur is three averages of 2 x 2, since [1, 1] * [1, 1] * [1, 1] = [1, 3, 3, 1].
        """
        batch, _, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height * width, -1)
        matrix = matrix.transpose(1, 2) * SQRT2  # positive, so it may pass the activation
        bias = (self.bias * SQRT2).to(x.dtype)
        if not up:
            y = torch.baddbmm(bias, rows, matrix).view(batch, height, width, -1)
        else:
            y = torch.bmm(rows, matrix).view(batch, height, width, -1)
            four = self._adapted(y).view(batch, height, width, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
            y = _shuffled(four, y)
            for _ in range(3):
                y = F.avg_pool2d(y, 2, stride=1)
            y = y.permute(0, 2, 3, 1).add_(bias)
        return F.leaky_relu_(y, 0.2).clamp_(-CLAMP, CLAMP).permute(0, 3, 1, 2)

    def _adapted(self, y: Tensor) -> Tensor:
        """The adapter on sqrt(2) times its input, channels last, phases before channels: [B, h, w, 4 out]."""
        assert self.adapter is not None
        first, second = self.adapter[0], self.adapter[1]
        assert isinstance(first, EqualConv2d) and isinstance(second, EqualConv2d)
        # lrelu's own sqrt(2) goes into the second product, the input's sqrt(2) is taken out of the first.
        inner = (first.weight.flatten(1) * (first.gain / SQRT2)).to(y.dtype)
        hidden = F.leaky_relu_(F.linear(y, inner, first.bias.to(y.dtype)), 0.2)
        outer = (second.weight.flatten(1) * (second.gain * 2)).to(y.dtype).view(-1, 4, inner.shape[0])
        shift = (second.bias * SQRT2).to(y.dtype).view(-1, 4)
        return F.linear(hidden, outer.transpose(0, 1).flatten(0, 1), shift.T.flatten())


def _shuffled(four: Tensor, y: Tensor) -> Tensor:
    """Pixel shuffle of [B, h, 2, w, 2, C] plus nearest neighbours of [B, h, w, C], between the blur's zeros.

    Returns:
        [B, C, 2h + 3, 2w + 3], channels last: two rows and columns of zeros before, one after.
    """
    batch, height, _, width, _, channels = four.shape
    padded = y.new_zeros(batch, 2 * height + 3, 2 * width + 3, channels)
    inner = padded[:, 2:-1, 2:-1].view(batch, height, 2, width, 2, channels)
    torch.add(four, y[:, :, None, :, None], out=inner)
    return padded.permute(0, 3, 1, 2)


def _as_four(x: Tensor) -> Tensor:
    """Every channel four times in a row: what pixel shuffle turns into nearest-neighbour interpolation."""
    return x.repeat_interleave(4, dim=1)


class ToRGB(ModulatedConv):
    """A picture from features: no demodulation, within +-256."""

    def __init__(self, d_in: int, w_dim: int) -> None:
        super().__init__(d_in, 3, w_dim, demodulate=False)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 3, H, W]."""
        if torch.is_grad_enabled():
            return super().forward(x, w).clamp(-CLAMP, CLAMP)
        batch, _, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height * width, -1)
        y = torch.baddbmm(self.bias.to(x.dtype), rows, self.matrix(w).to(x.dtype).transpose(1, 2))
        return y.clamp_(-CLAMP, CLAMP).transpose(1, 2).reshape(batch, 3, height, width)


class UpsamplingBlock(nn.Module):
    """One block of the upsampler: twice the size, and a picture of its own.

    Three style codes: of the doubling convolution, the second one, and RGB (which the next block's first one shares).
    """

    def __init__(self, d_in: int, d_out: int, w_dim: int) -> None:
        super().__init__()
        self.conv0 = SynthesisConv(d_in, d_out, w_dim, up=True)
        self.conv1 = SynthesisConv(d_out, d_out, w_dim, up=False)
        self.torgb = ToRGB(d_out, w_dim)

    def forward(self, x: Tensor, ws: Tensor, skip_up: bool = False) -> tuple[Tensor, Tensor]:
        """Features and picture.

        Args:
            x: [B, in, h, w]; ws: [B, 3, w_dim].
            skip_up: stay at the size of `x`.

        Returns:
            [B, out, 2h, 2w] and [B, 3, 2h, 2w].
        """
        x = self.conv0(x, ws[:, 0], skip_up)
        x = self.conv1(x, ws[:, 1])
        return x, self.torgb(x, ws[:, 2])
