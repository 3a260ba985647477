"""The parts of PatchTST under the names that the transformers class gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tsprune.blocks.branch import Layer
from tsprune.blocks.distributions import Component, Normal, StudentT
from tsprune.blocks.positions import sinusoids
from tsprune.blocks.prepacked import Linear

SMALL = 0.02
"""Deviation of fresh positions and of a fresh token that stands for the series, as published."""


class EncoderLayer(Layer):
    """Self-attention over the patches of a series, feed-forward."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D]` in and out."""
        for branch in self.branches:
            x = branch(x)
        return x


class Positions(nn.Module):
    """Adds positions, and a token in front that stands for the whole series where the model has one.

    Args:
        tokens: patches of a series, without that token.
        width: D.
        learned: whether positions are learned; else they are sinusoids, which training leaves alone.
        token: whether there is a token for the series.
        dropout: probability on the patches, in training.
    """

    def __init__(self, tokens: int, width: int, *, learned: bool, token: bool, dropout: float) -> None:
        super().__init__()
        table = torch.empty(tokens + token, width)
        if token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, 1, width))
            nn.init.normal_(self.cls_token, std=SMALL)
        self.token = token
        if learned:
            self.position_enc = nn.Parameter(table)
            nn.init.normal_(self.position_enc, std=SMALL)
        else:
            self.register_buffer("position_enc", sinusoids(tokens + token, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, D]` in, `[B, N or N + 1, D]` out."""
        table: Tensor = self.position_enc
        if not self.token:
            placed: Tensor = self.dropout(x + table)
            return placed
        first = (self.cls_token[0] + table[:1]).expand(x.shape[0], -1, -1)
        return torch.cat([first.to(x.dtype), self.dropout(x + table[1:])], dim=1)


class Encoder(nn.Module):
    """Embedding of patches, positions, the stack of layers.

    Args:
        patch: steps of a patch.
        width: D.
        positions: see `Positions`.
        layers: in order.
    """

    def __init__(self, patch: int, width: int, positions: Positions, layers: Sequence[EncoderLayer]) -> None:
        super().__init__()
        self.embedder = nn.ModuleDict({"input_embedding": Linear(patch, width)})
        self.positional_encoder = positions
        self.layers = nn.ModuleList(layers)

    def forward(self, patches: Tensor) -> Tensor:
        """`[B, N, P]` to `[B, T, D]`."""
        x: Tensor = self.positional_encoder(self.embedder["input_embedding"](patches))
        for layer in self.layers:
            x = layer(x)
        return x


class Head(nn.Module):
    """From the last state to one value for each step, or to the parameters of a distribution.

    Args:
        inputs: size of the pooled state.
        steps: of the forecast.
        pool: from `[B, T, D]` to `[B, inputs]`.
        parameters: of the distribution, 0 for a point forecast.
        dropout: probability on the pooled state, in training.
    """

    def __init__(
        self, inputs: int, steps: int, pool: Callable[[Tensor], Tensor], *, parameters: int, dropout: float
    ) -> None:
        super().__init__()
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.spreads = parameters > 0
        maps = [Linear(inputs, steps) for _ in range(max(1, parameters))]
        self.projection = nn.ModuleDict({"proj": nn.ModuleList(maps)}) if parameters else maps[0]

    @property
    def maps(self) -> list[nn.Module]:
        """The map of each output."""
        return list(self.projection["proj"]) if self.spreads else [self.projection]  # type: ignore[index, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D]` to `[B, outputs, steps]`."""
        pooled = self.dropout(self.pool(x))
        return torch.stack([one(pooled) for one in self.maps], dim=1)


def student(parameters: Tensor) -> Component:
    """Student's t from `[B, 3, T]`: degrees of freedom above 2, location, scale."""
    freedom, location, scale = parameters[..., None].unbind(1)
    return StudentT(2.0 + above_zero(freedom), location, above_zero(scale))


def normal(parameters: Tensor) -> Component:
    """A normal distribution from `[B, 2, T]`: location, scale."""
    location, scale = parameters[..., None].unbind(1)
    return Normal(location, above_zero(scale))


def above_zero(x: Tensor) -> Tensor:
    """The positive root of y (y - x) = 1, not below the type's precision: a smooth way to positive numbers."""
    # For negative x the plain formula would subtract nearly equal numbers.
    root = (x.square() + 4.0).sqrt()
    found = torch.where(x > 0, (x + root) / 2, 2 / (root - x).clamp(min=1.0))
    return found.clamp(min=torch.finfo(x.dtype).eps)


DISTRIBUTIONS: dict[str, tuple[int, Callable[[Tensor], Component]]] = {"student_t": (3, student), "normal": (2, normal)}
"""Number of parameters, and what makes the distribution of them."""
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "first": lambda x: x[:, 0],
    "mean": lambda x: x.mean(1),
    "max": lambda x: x.max(1).values,
    "all": lambda x: x.flatten(1),
}
"""From all tokens to what the head reads."""
