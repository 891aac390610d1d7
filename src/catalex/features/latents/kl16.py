"""The KL-16 autoencoder of latent diffusion (arXiv 2112.10752) as MAR trained it: 16 channels, side / 16.

Module names are those of the published checkpoints, so that a state dict loads strictly. Encoder and decoder
mirror each other: five resolutions of 128 x (1, 1, 2, 2, 4) channels, two residual blocks each (three in the
decoder), and self-attention over all cells at the coarsest one.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 128
"""Channels at the finest resolution."""

MULTIPLES = (1, 1, 2, 2, 4)
"""Channels of each resolution, fine to coarse, in units of the width."""

CHANNELS = 16
"""C, channels of the latents."""


class Kl16(nn.Module):
    """Both halves; the decoder is left out when there are no weights for it."""

    def __init__(self, *, width: int = WIDTH, decoder: bool = True) -> None:
        super().__init__()
        self.encoder = Encoder(width)
        self.quant_conv = nn.Conv2d(2 * CHANNELS, 2 * CHANNELS, 1)
        if decoder:
            self.decoder = Decoder(width)
            self.post_quant_conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``(B, 16, S/16, S/16)`` of pixels ``(B, 3, S, S)`` in [-1, 1]."""
        mean, log_variance = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)  # the range of the published code

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels ``(B, 3, 16h, 16w)``, about in [-1, 1], of latents ``(B, 16, h, w)``."""
        pixels: Tensor = self.decoder(self.post_quant_conv(latents))
        return pixels


class Encoder(nn.Module):
    """Pixels to both moments ``(B, 32, S/16, S/16)``, before `quant_conv`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        inside = width
        for level, multiple in enumerate(MULTIPLES):
            last = level == len(MULTIPLES) - 1
            stage = Stage(inside, multiple * width, blocks=2, attention=last)
            inside = multiple * width
            if not last:
                stage.downsample = Downsample(inside)
            self.down.append(stage)
        self.mid = Middle(inside)
        self.norm_out = _norm(inside)
        self.conv_out = nn.Conv2d(inside, 2 * CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latents, after `post_quant_conv`, to pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inside = MULTIPLES[-1] * width
        self.conv_in = nn.Conv2d(CHANNELS, inside, 3, padding=1)
        self.mid = Middle(inside)
        stages = []
        for level in reversed(range(len(MULTIPLES))):
            stage = Stage(inside, MULTIPLES[level] * width, blocks=3, attention=False)
            inside = MULTIPLES[level] * width
            if level:
                stage.upsample = Upsample(inside)
            stages.append(stage)
        self.up = nn.ModuleList(reversed(stages))  # numbered from the finest, as in the checkpoints
        self.norm_out = _norm(inside)
        self.conv_out = nn.Conv2d(inside, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for stage in reversed(self.up):
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """The blocks of one resolution, and the way to the next."""

    def __init__(self, inside: int, outside: int, *, blocks: int, attention: bool) -> None:
        super().__init__()
        sizes = [inside, *[outside] * blocks]
        self.block = nn.ModuleList(Residual(a, b) for a, b in pairwise(sizes))
        self.attn = nn.ModuleList(Attention(outside) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        for move in (self.downsample, self.upsample):
            if move is not None:
                x = move(x)
        return x


class Middle(nn.Module):
    """Residual, attention, residual at the coarsest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = Residual(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = Residual(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two normalised convolutions around an identity (or a 1 x 1 convolution where the width changes)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2, self.conv2 = _norm(outside), nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.nin_shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        change = self.conv1(F.silu(self.norm1(x)))
        change = self.conv2(F.silu(self.norm2(change)))
        straight = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return straight + change  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Every cell attends to every cell, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (project(normed).flatten(2).mT.unsqueeze(1) for project in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1).mT.unflatten(2, x.shape[2:])
        return x + self.proj_out(mixed)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Half the side; the input is padded on the right and below only, as the weights were trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Twice the side: repeated pixels, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)
