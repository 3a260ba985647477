"""The parts of a TinyTimeMixer around its stacks of mixers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.mixerstack import MixerStack, StackShape
from tsprune.blocks.positions import sinusoids
from tsprune.blocks.prepacked import Linear
from tsprune.errors import TspruneError


class Positions(nn.Module):
    """Positions that are added to the tokens: learned, or sines and cosines that are stored but do not train."""

    position_enc: Tensor

    def __init__(self, patches: int, width: int, kind: str) -> None:
        super().__init__()
        if kind == "random":
            self.position_enc = nn.Parameter(0.1 * torch.randn(patches, width))
            return
        if kind != "sincos":
            raise TspruneError(f"config.json: positional_encoding_type is {kind!r}, expected 'sincos' or 'random'")
        self.register_buffer("position_enc", sinusoids(patches, width))

    def forward(self, x: Tensor) -> Tensor:
        """`[W, C, N, D]` in and out."""
        return x + self.position_enc


class Encoder(nn.Module):
    """Patch embedding, an optional token for the time resolution in front, positions, mixers."""

    def __init__(self, shape: StackShape, patch: int, vocabulary: int, positions: str) -> None:
        super().__init__()
        width = shape.width
        self.patcher = Linear(patch, width)
        self.freq_mod: nn.Sequential | None = None
        if vocabulary:
            middle = (patch + width) // 2
            self.freq_mod = nn.Sequential(
                nn.Embedding(vocabulary, patch), Linear(patch, middle), nn.GELU(), Linear(middle, width)
            )
        self.positional_encoder = Positions(shape.patches, width, positions) if positions else None
        self.mlp_mixer_encoder = MixerStack(shape)

    def forward(self, patches: Tensor, freq_token: Tensor) -> Tensor:
        """Patches `[W, C, N, P]` and tokens `[W]` to `[W, C, N or N + 1, D]`."""
        x = self.patcher(patches)
        if self.freq_mod is not None:
            prefix = self.freq_mod(freq_token)[:, None, None].expand(-1, x.shape[1], -1, -1)
            x = torch.cat([prefix, x], dim=2)
        if self.positional_encoder is not None:
            x = self.positional_encoder(x)
        out: Tensor = self.mlp_mixer_encoder(x)
        return out


class Decoder(nn.Module):
    """Mixers of their own width, on the encoder's tokens and, with `raw`, on the patches themselves."""

    def __init__(self, width: int, patch: int, shape: StackShape, raw: bool) -> None:
        super().__init__()
        self.adapter = Linear(width, shape.width) if width != shape.width else None
        self.decoder_raw_embedding = Linear(patch, shape.width) if raw else None
        self.decoder_block = MixerStack(shape)

    def forward(self, x: Tensor, patches: Tensor) -> Tensor:
        """Tokens `[W, C, N, D]` and patches `[W, C, N, P]` to `[W, C, N, D']`."""
        if self.adapter is not None:
            x = self.adapter(x)
        if self.decoder_raw_embedding is not None:
            # The place of the resolution token has no patch.
            x = x + self.decoder_raw_embedding(F.pad(patches, (0, 0, x.shape[2] - patches.shape[2], 0)))
        out: Tensor = self.decoder_block(x)
        return out


class Head(nn.Module):
    """One linear map from all tokens of a series to its forecast."""

    def __init__(self, inputs: int, steps: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.base_forecast_block = Linear(inputs, steps)

    def forward(self, x: Tensor) -> Tensor:
        """`[W, C, N, D]` to `[W, C, H]`."""
        out: Tensor = self.base_forecast_block(self.dropout(x.flatten(2)))
        return out
