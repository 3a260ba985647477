"""What reference cases and contract tests of the T5 networks share."""

from __future__ import annotations

import re

import torch
from tests.families._kit import Adapter
from torch import Tensor

from tsprune.models._forecaster import Forecaster


class T5Adapter(Adapter):
    """One public table of relative biases per stack."""

    def gradient(self, model: Forecaster, name: str) -> Tensor | None:
        if not name.endswith("relative_attention_bias.weight"):
            return super().gradient(model, name)
        # The public table serves every block of its stack, so its gradient is the sum over our tables.
        pattern = re.escape(name).replace("block\\.0", "block\\.\\d+")
        tables = [own for own, _ in model.named_parameters() if re.fullmatch(pattern, own)]
        parts = [part for own in tables if (part := super(T5Adapter, self).gradient(model, own)) is not None]
        return torch.stack(parts).sum(0) if parts else None


def tables(model: Forecaster) -> int:
    """Entries of the tables that we hold beside the public ones: those have one table per stack, we one per block."""
    sizes = [p.numel() for name, p in model.named_parameters() if name.endswith("relative_attention_bias.weight")]
    return sum(sizes) - 2 * sizes[0]
