"""Least squares over all training windows at once, from sums that are collected batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.data.windows import WindowSet

Rows = Callable[[Batch], tuple[Tensor, Tensor]]
"""Inputs `[n, L]` and outputs `[n, H]` of a batch in float64; outputs may be NaN, inputs may not."""
ROWS = 4096
"""Rows of a batch."""
ROOM = 2**28
"""Bytes for the Gram matrices of single steps; with more steps than fit, the windows are gone through again."""


@dataclass(frozen=True)
class Moments:
    """Sums of products over rows, in float64; a 1 that follows each row's L inputs stands for the intercept.

    Steps whose output is missing in some rows have sums over the other rows.

    Attributes:
        gram: X^T X over all rows `[L + 1, L + 1]`.
        cross: X^T Y `[L + 1, H]`, over the rows where each step's output is there.
        rows: number of rows.
        seen: rows where each step's output is there `[H]`.
        windows: where the rows come from.
        read: makes rows of a batch.
    """

    gram: Tensor
    cross: Tensor
    rows: int
    seen: Tensor
    windows: WindowSet
    read: Rows

    @classmethod
    def of(cls, windows: WindowSet, read: Rows) -> Moments:
        """One pass over the windows."""
        size, horizon = windows.context + 1, windows.horizon
        gram = torch.zeros(size, size, dtype=torch.float64)
        cross, seen = torch.zeros(size, horizon, dtype=torch.float64), torch.zeros(horizon, dtype=torch.int64)
        rows = 0
        for inputs, outputs in _batches(windows, read):
            there = ~torch.isnan(outputs)
            gram += inputs.T @ inputs
            cross += inputs.T @ outputs.nan_to_num(0.0)
            seen += there.sum(dim=0)
            rows += len(inputs)
        return cls(gram, cross, rows, seen, windows, read)

    def grams(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Steps `[n]` with the Gram matrix over the rows that count for all of them; every step comes once.

        Steps that no row lacks share one matrix; the others have one each, less what the rows contribute that lack
        them. At most `ROOM` bytes of them are held at a time, for another pass over the windows each time.
        """
        whole = self.seen == self.rows
        if bool(whole.any()):
            yield whole.nonzero()[:, 0], self.gram
        lacking = (~whole).nonzero()[:, 0]
        for steps in torch.split(lacking, max(1, ROOM // (8 * self.gram.numel()))):
            own = self.gram.repeat(len(steps), 1, 1)
            for inputs, outputs in _batches(self.windows, self.read):
                missing = torch.isnan(outputs[:, steps])
                for place in missing.any(dim=0).nonzero()[:, 0].tolist():
                    without = inputs[missing[:, place]]
                    own[place] -= without.T @ without
            for step, gram in zip(steps, own, strict=True):
                yield step[None], gram


def ridge(gram: Tensor, cross: Tensor, strengths: tuple[float, ...]) -> Tensor:
    """Ridge regression by its normal equations, the intercept free.

    Args:
        gram: `[P + 1, P + 1]`, the last row and column being those of the intercept.
        cross: `[P + 1, H]`.
        strengths: what is added to the diagonal, as a multiple of the mean of its first P entries, so that neither
            the number of rows nor the scale of the inputs matters.

    Returns:
        `[S, P + 1, H]`, one solution per strength.
    """
    mean = float(gram.diagonal()[:-1].mean())
    found = []
    for strength in strengths:
        pulled = gram.clone()
        # Inputs that are 0 throughout say nothing: with any pull at all their weights become 0.
        pulled.diagonal()[:-1] += strength * mean if mean > 0 else 1.0
        found.append(torch.cholesky_solve(cross, torch.linalg.cholesky(pulled)))
    return torch.stack(found)


def _batches(windows: WindowSet, read: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs with the intercept's 1 `[n, L + 1]`, and outputs `[n, H]`."""
    for _, batch in windows.batches(max(1, ROWS // windows.rows_per_window)):
        inputs, outputs = read(batch)
        yield torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1), outputs
