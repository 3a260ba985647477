"""Attention across the series of a group, and over a sequence of one step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tsprune.blocks.attention import Attention
from tsprune.blocks.linear import together


@dataclass(frozen=True)
class Groups:
    """Which rows of a batch belong together, as a padded table.

    Args:
        members: `[G, M]` row indices, padded with 0.
        present: `[G, M]` bool, False on padding.
        place: `[B]` where each row stands in the flattened table.
    """

    members: Tensor
    present: Tensor
    place: Tensor

    @property
    def alone(self) -> bool:
        """Whether every row is a group of its own."""
        return self.members.shape[1] == 1

    @classmethod
    def single(cls, rows: Tensor) -> Groups:
        """Every row `[B, ...]` by itself."""
        place = torch.arange(rows.shape[0], device=rows.device)
        return cls(place[:, None], torch.ones_like(place, dtype=torch.bool)[:, None], place)

    @classmethod
    def of(cls, group_ids: Tensor) -> Groups:
        """From group ids `[B]`; ids may be any integers in any order."""
        _, group = torch.unique(group_ids, return_inverse=True)
        order = torch.argsort(group, stable=True)
        counts = torch.bincount(group)
        starts = torch.cumsum(counts, 0) - counts
        rank = torch.arange(len(group), device=group.device) - starts[group[order]]
        size = int(counts.max())
        members = torch.zeros(len(counts), size, dtype=torch.long, device=group.device)
        members[group[order], rank] = order
        present = torch.arange(size, device=group.device)[None, :] < counts[:, None]
        place = torch.empty_like(group)
        place[order] = group[order] * size + rank
        return cls(members, present, place)


class AcrossSeriesAttention(Attention):
    """Attention among the rows of a group at each time position: no positions, no order (Chronos-2)."""

    def forward(  # type: ignore[override]
        self, x: Tensor, *, groups: Groups | None = None, observed: Tensor | None = None
    ) -> Tensor:
        """Mix rows of the same group.

        Args:
            x: `[B, T, D]`.
            groups: the rows' groups; None means every row is alone.
            observed: bool `[B, T]`, False for tokens nobody may attend to; None means all observed.

        Returns:
            `[B, T, D]`.
        """
        if self.heads == 0:
            return self._without_heads(x)
        if groups is None or groups.alone:
            return self._alone(x)
        length = x.shape[1]
        count, size = groups.members.shape
        table = groups.members.reshape(-1)

        def lay_out(part: Tensor) -> Tensor:
            heads, width = part.shape[1], part.shape[3]
            rows = part.transpose(1, 2)[table].view(count, size, length, heads, width)
            return rows.permute(0, 2, 3, 1, 4).reshape(count * length, heads, size, width)

        allowed = groups.present[:, :, None].expand(count, size, length)
        if observed is not None:
            allowed = allowed & observed[table].view(count, size, length)
        allowed = allowed.permute(0, 2, 1).reshape(count * length, 1, 1, size)
        q, k, v = together(self.packed, (self.q, self.k, self.v), x)
        query, key, value = lay_out(self._queries(x, q)), lay_out(self._keys(x, k)), lay_out(self._values(x, v))
        # Where nobody of a group is observed the weights become uniform; such positions are never read later.
        mixed = self._attend(query, key, value, self._full_mask(allowed, None, query), live=allowed)
        heads, width = mixed.shape[1], mixed.shape[3]
        mixed = mixed.view(count, length, heads, size, width).permute(0, 3, 1, 2, 4)
        return self._join(mixed.reshape(count * size, length, heads * width)[groups.place])


class SingleStepAttention(Attention):
    """Self-attention over a sequence of length one, such as a decoder that runs a single step (Chronos-Bolt).

    Queries, keys and the bias table exist in the public checkpoint but cannot matter.
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """`[B, 1, D]` in and out."""
        return self._without_heads(x) if self.heads == 0 else self._alone(x)
