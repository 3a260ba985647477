"""A tiny causal forecaster with every block that no bundled family has: grouped queries, biases, experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from tests.tiny import LEVELS, tiny_batch
from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.norms import RMSNorm
from tsprune.blocks.patching import InstanceScale, pinball
from tsprune.blocks.positions import rotary_table
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Capabilities, Forecaster

WIDTH, HEADS, GROUPS, HEAD_WIDTH, PATCH, STEPS = 12, 6, 3, 4, 4, 16


class CausalLayer(Layer):
    """Causal attention, then experts or a gated network."""

    def forward(self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """`[B, T, D]` in and out."""
        attention, feed = self.branches
        out: Tensor = feed(attention(x, mask=mask, rotary=rotary))
        return out


class TinyExperts(Forecaster):
    """Patches, causal layers, quantiles of all steps from the last token."""

    family = "tiny_experts"
    capabilities = Capabilities()

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.levels = tuple(LEVELS)
        self.native_horizon, self.context_length = STEPS, 64
        bias, self.rotary = bool(config["bias"]), bool(config["rotary"])

        def network() -> FeedForward:
            return FeedForward(WIDTH, 10, act="silu", gated=True, bias=bias)

        def experts() -> MixtureOfExperts:
            parts = [FeedForward(WIDTH, 7, act="silu", gated=True) for _ in range(5)]
            return MixtureOfExperts(WIDTH, parts, 2, normalise=True, shared=network(), shared_gate=True)

        def attention() -> Attention:
            return Attention(WIDTH, HEADS, HEAD_WIDTH, kv_heads=GROUPS, rotary=self.rotary, bias=bias)

        self.embed = nn.Linear(2 * PATCH, WIDTH)
        self.layers = nn.ModuleList(
            CausalLayer(
                [
                    Branch("attention", attention(), RMSNorm(WIDTH), WIDTH),
                    Branch("mlp", experts() if number == 0 else network(), RMSNorm(WIDTH), WIDTH),
                ]
            )
            for number in range(2)
        )
        self.norm = RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(LEVELS) * STEPS)

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By its own name only."""
        return config.get("family") == cls.family

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights."""
        return cls(config)

    def _quantiles(self, context: Tensor) -> tuple[Tensor, InstanceScale]:
        scale = InstanceScale(context, arcsinh=False)
        seen = (~torch.isnan(context)).to(context.dtype)
        values = scale.apply(context).nan_to_num() * seen
        rows = context.shape[0]
        tokens = torch.cat([values.view(rows, -1, PATCH), seen.view(rows, -1, PATCH)], -1)
        x = self.embed(tokens.to(self.dtype))
        length = x.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()[None, None]
        table = rotary_table(torch.arange(length, device=x.device), HEAD_WIDTH) if self.rotary else None
        for layer in self.layers:
            x = layer(x, mask, table)
        out = self.head(self.norm(x)[:, -1])
        return out.view(rows, len(LEVELS), STEPS).to(context.dtype), scale

    def row_losses(self, batch: Batch) -> Tensor:
        """Pinball on the instance scale."""
        assert batch.target is not None
        prediction, scale = self._quantiles(batch.context)
        target = scale.apply(batch.target)
        known = ~torch.isnan(target)
        levels = torch.tensor(self.levels, device=target.device)
        return (pinball(prediction, target.nan_to_num(), levels) * known[:, None]).mean(-1).sum(-1)

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Quantiles `[B, Q, steps]`, at most one pass."""
        prediction, scale = self._quantiles(batch.context)
        return scale.invert(prediction)[..., :steps]


def tiny_experts(seed: int = 0, *, bias: bool = True, rotary: bool = True) -> TinyExperts:
    """In eval mode, biases and norms random too."""
    torch.manual_seed(seed)
    model = TinyExperts({"family": "tiny_experts", "bias": bias, "rotary": rotary})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def experts_batch(rows: int = 4, seed: int = 0) -> Batch:
    """Windows that the model can take."""
    return tiny_batch(rows, 44, STEPS, seed)
