"""A forecaster with one head that copies what followed the last time, and studies of windows for probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.feedforward import FeedForward
from tsprune.data.batch import Batch
from tsprune.lens._probe import Study
from tsprune.models._forecaster import Forecaster

PATCH = 4
WIDTH = 3 * PATCH
SHARP = 200.0


class Copier(Forecaster):
    """Tokens are (patch, direction of the patch before, forecast); head 1 of layer 0 copies into the third part.

    The others do nothing. Its queries are patches, its keys the patches before, so a patch attends to what
    followed its own copy.
    """

    family = "copier"

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.levels, self.native_horizon, self.context_length, self.patch = (0.5,), PATCH, 64, PATCH
        self.block = nn.ModuleList(
            Layer([_branch("attention", _still()), _branch("mlp", _feed())]) for _ in range(layers)
        )
        inner = self.block[0].branches[0].inner
        assert isinstance(inner, Attention)
        with torch.no_grad():
            own = slice(PATCH, 2 * PATCH)
            inner.q.weight[own, :PATCH] = SHARP * torch.eye(PATCH)
            inner.k.weight[own, PATCH : 2 * PATCH] = torch.eye(PATCH)
            inner.v.weight[own, :PATCH] = torch.eye(PATCH)
            inner.o.weight[2 * PATCH :, own] = torch.eye(PATCH)

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        return False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls()

    def forward(self, context: Tensor) -> Tensor:
        """The next patch `[B, PATCH]`."""
        patches = context.view(len(context), -1, PATCH)
        before = nn.functional.pad(patches[:, :-1], (0, 0, 1, 0))
        before = nn.functional.normalize(before, dim=-1)
        x = torch.cat([patches, before, torch.zeros_like(patches)], dim=-1)
        for layer in self.block:
            attention, feed = layer.branches
            x = feed(attention(x, causal=True))
        return x[:, -1, 2 * PATCH :]

    def row_losses(self, batch: Batch) -> Tensor:
        assert batch.target is not None
        return (self(batch.context) - batch.target[:, :PATCH]).square().mean(-1)

    def predict(self, batch: Batch, steps: int) -> Tensor:
        context = batch.context
        while context.shape[1] < batch.context.shape[1] + steps:
            context = torch.cat([context, self(context)], dim=1)
        return context[:, None, batch.context.shape[1] :][..., :steps]


def _branch(name: str, inner: Any) -> Branch:
    return Branch(name, inner, nn.Identity(), WIDTH)


def _still() -> Attention:
    inner = Attention(WIDTH, 3, PATCH, scale=1.0)
    for weight in inner.parameters():
        nn.init.zeros_(weight)
    return inner


def _feed() -> FeedForward:
    inner = FeedForward(WIDTH, 2, act="relu")
    for weight in inner.parameters():
        nn.init.zeros_(weight)
    return inner


def study(
    model: Forecaster, first: Sequence[Batch], later: Sequence[Batch] = (), *, horizon: int = 16, stride: int = 1000
) -> Study:
    """A study of these windows; with the default stride their targets do not overlap."""
    ready = SimpleNamespace(model=model, horizon=horizon, validation=(None, stride))
    return Study(cast(Any, ready), list(first), list(later))


def quiet(_: str) -> None:
    """Told of progress, says nothing."""
