"""Stacks of mixers over series, patches and channels, with adaptive patching (TTM, 2401.03955)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.mixer import Mixer
from tsprune.blocks.norms import ChannelBatchNorm
from tsprune.errors import TspruneError

MIXERS = ("channel_feature_mixer", "patch_mixer", "feature_mixer")
"""The branches of a layer, in order: they mix series (axis -3), patches (-2), channels (-1)."""
NARROWEST = 4
"""A level of adaptive patching whose tokens would be this narrow or narrower is not split."""


@dataclass(frozen=True)
class StackShape:
    """Sizes of a stack of mixers.

    Args:
        width: channels of a token D.
        patches: tokens N.
        series: series of a window C that are mixed; 0 for none.
        layers: layers, of each level where there are levels.
        levels: levels of adaptive patching; 0 for plain layers.
        expansion: hidden channels per entry of the mixed axis.
        gated: whether mixers have a softmax gate.
        batch_norm: batch norm in place of layer norm.
        eps: of the norms.
        dropout: inside the mixers.
    """

    width: int
    patches: int
    series: int
    layers: int
    levels: int
    expansion: int
    gated: bool
    batch_norm: bool
    eps: float
    dropout: float


class MixerLayer(Layer):
    """Mixing of series, of patches, of channels. What a model does not have is an empty branch, so places are fixed."""

    def __init__(self, shape: StackShape) -> None:
        # A single patch is not mixed, a single series is.
        there = (shape.series > 0, shape.patches > 1, True)
        made = [_branch(name, shape, place - len(MIXERS)) for place, name in enumerate(MIXERS)]
        super().__init__([full if wanted else full.cut({"ffn": []}) for full, wanted in zip(made, there, strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        """`[W, C, N, D]` in and out."""
        for branch in self.branches:
            x = branch(x)
        return x


def _branch(name: str, shape: StackShape, axis: int) -> Branch:
    """Mixing along an axis, counted from the end of `[W, C, N, D]`; only that of series has its gate first."""
    size = max(1, (shape.series, shape.patches, shape.width)[axis])
    hidden = size * shape.expansion
    inner = Mixer(size, hidden, axis=axis, gated=shape.gated, gate_first=axis == -3, dropout=shape.dropout)
    norm = ChannelBatchNorm if shape.batch_norm else nn.LayerNorm
    return Branch(name, inner, norm(shape.width, eps=shape.eps), shape.width)


class Level(nn.Module):
    """Layers on tokens split into narrower ones, twice as many at each further level (adaptive patching)."""

    def __init__(self, shape: StackShape, level: int) -> None:
        super().__init__()
        self.factor = 2**level if shape.width // 2**level > NARROWEST else 1
        if shape.width % self.factor:
            raise TspruneError(
                f"tokens of width {shape.width} cannot be split into {self.factor} for level {level} of adaptive "
                "patching; the width must be a multiple of 2 to the power of the highest level"
            )
        narrow = replace(shape, width=shape.width // self.factor, patches=shape.patches * self.factor)
        self.mixer_layers = nn.ModuleList(MixerLayer(narrow) for _ in range(shape.layers))

    def forward(self, x: Tensor) -> Tensor:
        """`[W, C, N, D]` in and out."""
        split = x.reshape(*x.shape[:2], x.shape[2] * self.factor, x.shape[3] // self.factor)
        for layer in self.mixer_layers:
            split = layer(split)
        return split.reshape(x.shape)


class MixerStack(nn.Module):
    """Layers, or levels of layers from the finest tokens to the coarsest."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        if shape.levels:
            self.mixers = nn.ModuleList(Level(shape, level) for level in reversed(range(shape.levels)))
        else:
            self.mixers = nn.ModuleList(MixerLayer(shape) for _ in range(shape.layers))

    def forward(self, x: Tensor) -> Tensor:
        """`[W, C, N, D]` in and out."""
        for mixer in self.mixers:
            x = mixer(x)
        return x
