"""An attention in which every query has one live key, as what it is: one linear map."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from tsprune.blocks.across import AcrossSeriesAttention, Groups, SingleStepAttention
from tsprune.blocks.attention import Attention
from tsprune.blocks.linear import ChannelLinear
from tsprune.blocks.prepacked import Linear
from tsprune.blocks.units import Block, UnitGroup
from tsprune.errors import TspruneError


class FoldedAttention(Block):
    """What is left of an attention whose softmax always runs over one entry: `x W^T + b`.

    Heads, value entries, pairs and channels are not there any more; only the branch around it can go, as a whole.

    Args:
        width: residual width D.
        bias: whether the map has one.
        across: whether it was an attention across series, so that it holds for single series only.
    """

    def __init__(self, width: int, *, bias: bool, across: bool) -> None:
        super().__init__()
        # Without memory first: a constructor would draw from the global random state.
        self.map = Linear(width, width, bias=bias, device="meta")
        self.across = across

    @classmethod
    def of(cls, attention: Attention, width: int) -> FoldedAttention:
        """The map of an attention with one live key per query, computed in float64.

        Args:
            attention: with heads; left as it is. May lie on the meta device.
            width: residual width D.
        """
        values, out = attention.v, attention.o
        bias = any(layer.bias is not None for layer in (values, out))
        folded = cls(width, bias=bias, across=isinstance(attention, AcrossSeriesAttention))
        trained = values.weight.requires_grad or out.weight.requires_grad
        with torch.no_grad():
            weight, shift = _product(attention, width)
            folded.map.weight = nn.Parameter(weight.to(out.weight.dtype), requires_grad=trained)
            if bias:
                folded.map.bias = nn.Parameter(shift.to(out.weight.dtype), requires_grad=trained)
        return folded.train(attention.training)

    def forward(self, x: Tensor, *, groups: Groups | None = None, observed: Tensor | None = None) -> Tensor:
        """`[B, T, D]` in and out; see `AcrossSeriesAttention` for the groups.

        Raises:
            TspruneError: some group has several rows, which this map cannot mix.
        """
        if groups is not None and not groups.alone:
            raise TspruneError(
                f"this model was folded for single series, and the batch has groups of up to "
                f"{groups.members.shape[1]} rows; forecast every series alone, or use the model from before the folding"
            )
        out: Tensor = self.map(x)
        return out

    @property
    def silent(self) -> bool:
        """Whether nothing is left that it could contribute: never, since what is silent is not folded."""
        return False

    def unit_groups(self, path: str) -> list[UnitGroup]:
        """None of its own."""
        return []

    def cut(self, kept: Mapping[str, Sequence[int]], indexed: Collection[str] = ()) -> FoldedAttention:
        """Itself: there is nothing to choose."""
        self.settled(kept)
        return self


def foldable(attention: object, *, single_series: bool) -> bool:
    """Whether every query of an attention has exactly one live key, whatever the batch.

    Args:
        attention: any module.
        single_series: whether no batch will hold several series, or covariates, of a window.
    """
    return isinstance(attention, SingleStepAttention) or (
        single_series and isinstance(attention, AcrossSeriesAttention)
    )


def _product(attention: Attention, width: int) -> tuple[Tensor, Tensor]:
    """W_O W_V and what the biases add, float64; without memory where the attention is, and then nothing is multiplied.

    A product on the meta device would make torch load its symbolic algebra, half a second for every loaded model.
    """
    values, out = attention.v, attention.o
    if values.weight.is_meta:
        empty = torch.empty(width, width, dtype=torch.float64, device="meta")
        return empty, empty.new_empty(width)
    entries = attention.shape.value_of_column.to(values.weight.device)
    reading, writing = _whole_rows(values, width), _whole_columns(out, width)
    weight = writing @ reading.index_select(0, entries)
    shift = weight.new_zeros(width)
    if values.bias is not None:
        shift += writing @ values.bias.double().index_select(0, entries)
    if out.bias is not None:
        shift += _placed(out, out.bias.double(), width)
    return weight, shift


def thin(attention: Attention, width: int) -> bool:
    """Whether its value and output maps together hold no more weights than one map of the residual width would."""
    return attention.v.weight.numel() + attention.o.weight.numel() <= width * width


def mixes(network: nn.Module) -> bool:
    """Whether attentions across series can still tell the series of a group apart.

    So it is while one of them has queries and keys left, or while none has any heads, and none is folded.
    """
    modules = list(network.modules())
    if any(isinstance(module, FoldedAttention) and module.across for module in modules):
        return False
    across = [module for module in modules if isinstance(module, AcrossSeriesAttention) and module.heads]
    return not across or any(attention.shape.pair_width for attention in across)


def _whole_rows(layer: ChannelLinear, width: int) -> Tensor:
    """The weight of a map from the residual width, `[O, D]` in float64, where it reads by an index or not."""
    weight = layer.weight.double()
    if layer.reads is None:
        return weight
    return weight.new_zeros(len(weight), width).index_copy(1, layer.reads.to(weight.device), weight)


def _whole_columns(layer: ChannelLinear, width: int) -> Tensor:
    """The weight of a map onto the residual width, `[D, I]` in float64, where it writes by an index or not."""
    return _placed(layer, layer.weight.double(), width)


def _placed(layer: ChannelLinear, rows: Tensor, width: int) -> Tensor:
    """Outputs of a map in their places on the residual width, zeros elsewhere."""
    if layer.writes is None:
        return rows
    return rows.new_zeros(width, *rows.shape[1:]).index_copy(0, layer.writes.to(rows.device), rows)
