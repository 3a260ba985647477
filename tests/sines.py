"""Noisy sines to train on, and ways to kill a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster


class Sines:
    """Windows of noisy sines, numbered."""

    def __len__(self) -> int:
        return 300

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        where = torch.as_tensor(np.asarray(indices)).float()[:, None]
        time = torch.arange(56).float()[None]
        values = 3 + torch.sin((time + 1.7 * where) * (2 * math.pi / 12)) + 0.05 * torch.sin(7.3 * time * (1 + where))
        return Batch(values[:, :40], values[:, 40:])


VALIDATION = [Sines().batch(range(300, 316)), Sines().batch(range(316, 320))]


class Killed(Exception):
    """Stands for a kill -9."""


class Counted:
    """Training windows that die when asked for the k-th batch."""

    def __init__(self, dies_at: int) -> None:
        self.inner, self.asked, self.dies_at = Sines(), 0, dies_at

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        self.asked += 1
        if self.asked == self.dies_at:
            raise Killed
        return self.inner.batch(indices)


def dying(at: int) -> Callable[[str, int, int, float], None]:
    heard = []

    def report(label: str, step: int, total: int, loss: float) -> None:
        heard.append(step)
        if len(heard) == at:
            raise Killed

    return report


def weights(model: Forecaster) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())
