"""Distillation: the forecasts of a dense model as a second aim while another one is tuned."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tsprune.blocks.patching import InstanceScale
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster, window_mean

Quantiles = tuple[Tensor, InstanceScale]


class Distillation:
    """The loss of a student that also follows a teacher's quantile forecasts.

    `(1 - w) * task loss + w * u * d`. The distance d of a window is the mean absolute difference between the quantiles
    of student and teacher over its target rows, all levels and the steps of the target, observed or not. It is taken on
    the instance scale, so in standard deviations of the row's own context (after the arcsinh, where the family has
    one): series of large values weigh no more than others. The constant u is the task loss of a forecast that is off
    by 1 everywhere on that scale, so that both terms count in the same measure in every family. (Soft targets as in
    arXiv 1503.02531, with quantiles in the place of class probabilities.)

    Args:
        teacher: the dense model; runs in eval mode, in float32, without gradient; not changed.
        weight: w, above 0 and below 1.
        sample: some training windows, of which u is computed.

    Raises:
        TspruneError: a weight out of range, or a family that does not give its quantiles in one pass.
    """

    def __init__(self, teacher: Forecaster, weight: float, sample: Batch) -> None:
        if not 0 < weight < 1:
            raise TspruneError(f"--distill {weight:g} must be 0 or more and below 1; 0 is off")
        self.weight = weight
        self.teacher = copy.deepcopy(teacher).float().eval().requires_grad_(False)
        self.unit = _unit(self.teacher, sample.to(self.teacher.device))

    def check(self, student: Forecaster) -> None:
        """Raise TspruneError when the student's forecasts cannot be laid beside the teacher's."""
        for what in ("family", "levels", "native_horizon"):
            own, other = getattr(student, what), getattr(self.teacher, what)
            if own != other:
                raise TspruneError(
                    f"--distill: the teacher's {what.replace('_', ' ')} is {other}, the model's is {own}; "
                    "take the dense model that this one was pruned from"
                )

    def loss(self, student: Forecaster, batch: Batch) -> Tensor:
        """Loss of each window `[N]`, from one forward pass of each of the two."""
        with torch.no_grad(), _heard(self.teacher) as wanted:
            self.teacher.loss(batch)
        with _heard(student) as own:
            task = student.loss(batch)
        steps = 0 if batch.target is None else batch.target.shape[1]
        difference = (_only(own, student)[0] - _only(wanted, student)[0])[..., :steps]
        distance = window_mean(difference.abs().mean((1, 2)), batch)
        return (1 - self.weight) * task + self.weight * self.unit * distance


@contextmanager
def _heard(model: Forecaster, change: Callable[[Tensor], Tensor] | None = None) -> Iterator[list[Any]]:
    """What the network gives in the block, quantiles and scale; `change` puts other quantiles in their place."""
    found: list[Any] = []

    def hear(_: Any, __: Any, out: Any) -> Any:
        found.append(out)
        return None if change is None else (change(out[0]), *out[1:])

    handle = model.register_forward_hook(hear)
    try:
        yield found
    finally:
        handle.remove()


def _only(found: list[Any], model: Forecaster) -> Quantiles:
    out = found[0] if len(found) == 1 else None
    if isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], Tensor) and isinstance(out[1], InstanceScale):
        return out
    raise TspruneError(
        f"--distill: family {model.family} does not give its quantiles in one pass, so no forecast can be followed; "
        "leave --distill out"
    )


@torch.no_grad()
def _unit(model: Forecaster, batch: Batch) -> float:
    """Task loss where every quantile is off by 1 on the instance scale, as the mean of too high and too low."""
    if batch.target is None:
        raise TspruneError("the batch has no target; a loss needs one")
    with _heard(model) as found:
        model.loss(batch)
    scale = _only(found, model)[1]
    # A target in the middle of the scale, without gaps, is 0 there.
    middle = scale.location.expand(-1, batch.target.shape[1]).to(batch.target.dtype)
    level = replace(batch, target=middle)
    found_losses = []
    for off in (1.0, -1.0):
        with _heard(model, lambda quantiles, off=off: torch.full_like(quantiles, off)):  # type: ignore[misc]
            found_losses.append(float(model.loss(level).mean()))
    return sum(found_losses) / 2
