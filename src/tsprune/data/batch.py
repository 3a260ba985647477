"""The tensors a forecaster sees at once."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of context with what is known about their future.

    A row is one variate of one window. Rows with the same group id belong to one window and may inform each
    other in families that mix variates; without group ids every row is a window of its own.

    Args:
        context: past values `[B, L]`, float, NaN = missing (left padding included).
        target: future values to be forecast `[B, H]`, NaN = missing; rows that are no target are all NaN.
        group_ids: window of each row `[B]`, int64, or None.
        future: known future values of covariate rows `[B, H]`, NaN = unknown, or None.
        is_target: which rows are forecast and scored `[B]`, bool; None means all.
        location: what was taken off each row `[B]` before it was divided by `scale`; None means 0.
        scale: what each row was divided by `[B]`, positive; None means 1, the rows being in the units of the data.
    """

    context: Tensor
    target: Tensor | None = None
    group_ids: Tensor | None = None
    future: Tensor | None = None
    is_target: Tensor | None = None
    location: Tensor | None = None
    scale: Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return self.context.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        moved = {
            name: value.to(device)
            for name in ("context", "target", "group_ids", "future", "is_target", "location", "scale")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def repeated(self, times: int) -> Batch:
        """The batch so many times over, one copy behind the other; windows of different copies stay apart."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        copies = {name: torch.cat([value] * times) for name, value in given.items() if value is not None}
        if self.group_ids is not None and self.rows:
            # Ids may be any numbers: their places among the sorted ones keep both their order and them apart.
            ids, place = torch.unique(self.group_ids, return_inverse=True)
            copies["group_ids"] = torch.cat([place + copy * len(ids) for copy in range(times)])
        return Batch(**copies)
