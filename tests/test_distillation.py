"""Distillation against its formula written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sines import VALIDATION, Killed, Sines, dying, same, weights
from tests.tiny import FAMILIES, grouped_batch, tiny_batch, tiny_model
from tsprune.data.batch import Batch
from tsprune.distillation import Distillation
from tsprune.errors import TspruneError
from tsprune.finetuning import Tuned, finetune
from tsprune.models._forecaster import Forecaster
from tsprune.settings import FinetuneSettings

every_family = pytest.mark.parametrize("family", FAMILIES)
SHORT = FinetuneSettings(steps=4, search_steps=1, learning_rates=(1e-3, 4e-3), batch=6, evaluations=2, distill=0.4)


def quantiles(model: Forecaster, batch: Batch, steps: int) -> Any:
    """On the instance scale, `[B, Q, steps]`, straight from the network."""
    if model.family == "chronos2":
        found, _ = model(batch.context, steps=16, group_ids=batch.group_ids, future=batch.future)
    else:
        found, _ = model(batch.context)
    return found[..., :steps]


@pytest.mark.parametrize("horizon", [16, 13])
@every_family
def test_when_a_forecast_is_off_by_one_then_the_unit_is_what_the_family_asks_for_it(family: str, horizon: int) -> None:
    model = tiny_model(family)
    found = Distillation(model, 0.5, tiny_batch(horizon=horizon)).unit
    # Chronos-2 sums over five levels and averages over two whole patches; Chronos-Bolt does it the other way round.
    assert found == pytest.approx(5 * horizon / 16 if family == "chronos2" else horizon)


@pytest.mark.parametrize("horizon", [16, 13])
@every_family
def test_when_a_student_follows_then_the_loss_is_the_formula(family: str, horizon: int) -> None:
    student, teacher, batch = tiny_model(family, seed=1), tiny_model(family, seed=2), tiny_batch(horizon=horizon)
    subject = Distillation(teacher, 0.3, batch)
    found = subject.loss(student, batch)
    own, wanted = quantiles(student, batch, horizon).detach(), quantiles(teacher, batch, horizon).detach()
    for row in range(batch.rows):
        total = 0.0
        for level in range(5):
            for step in range(horizon):
                total += abs(float(own[row, level, step] - wanted[row, level, step]))
        expected = 0.7 * float(student.loss(batch)[row].detach()) + 0.3 * subject.unit * total / (5 * horizon)
        assert float(found[row].detach()) == pytest.approx(expected, rel=1e-5)


def test_when_the_loss_is_differentiated_then_the_gradient_is_that_worked_out_by_hand() -> None:
    """The last bias of Chronos-Bolt adds to each quantile directly, so its gradient is a sum of signs."""
    student, teacher, batch = tiny_model("chronos_bolt", seed=1), tiny_model("chronos_bolt", seed=2), tiny_batch()
    assert batch.target is not None
    subject = Distillation(teacher, 0.3, batch)
    subject.loss(student, batch).mean().backward()
    prediction, scale = student(batch.context)
    own, wanted, target = prediction.detach(), quantiles(teacher, batch, 16), scale.apply(batch.target)
    gradient = torch.zeros(5, 16)
    for row in range(4):
        for level, q in enumerate((0.1, 0.25, 0.5, 0.75, 0.9)):
            for step in range(16):
                if not torch.isnan(target[row, step]):
                    over = own[row, level, step] >= target[row, step]
                    # Twice the quantile loss, averaged over five levels, summed over steps.
                    gradient[level, step] += 0.7 * 2 * ((1 - q) if over else -q) / 5 / 4
                sign = 1.0 if own[row, level, step] > wanted[row, level, step] else -1.0
                gradient[level, step] += 0.3 * 16 * sign / (5 * 16) / 4
    bias = student.get_parameter("output_patch_embedding.output_layer.bias")
    assert bias.grad is not None
    torch.testing.assert_close(bias.grad.view(5, 16), gradient)
    assert all(p.grad is None for p in teacher.parameters())


def test_when_rows_belong_to_groups_then_only_targets_count() -> None:
    student, teacher, batch = tiny_model("chronos2", seed=1), tiny_model("chronos2", seed=2), grouped_batch()
    subject = Distillation(teacher, 0.5, tiny_batch())
    found = subject.loss(student, batch)
    rows = (quantiles(student, batch, 16) - quantiles(teacher, batch, 16)).abs().mean((1, 2))
    # Window 7 has rows 0, 1 (a covariate) and 3; window 3 has rows 2 and 4 (a covariate).
    distance = torch.stack([(rows[0] + rows[3]) / 2, rows[2]])
    torch.testing.assert_close(found, 0.5 * student.loss(batch) + 0.5 * subject.unit * distance)


@every_family
def test_when_a_series_is_shifted_and_stretched_then_its_distance_stays(family: str) -> None:
    student, teacher, batch = tiny_model(family, seed=1), tiny_model(family, seed=2), tiny_batch()
    assert batch.target is not None
    subject = Distillation(teacher, 0.99, batch)
    large = Batch(1000 * batch.context + 500, 1000 * batch.target + 500)
    torch.testing.assert_close(subject.loss(student, large), subject.loss(student, batch), rtol=1e-3, atol=1e-3)


@every_family
def test_when_the_student_is_its_own_teacher_then_only_the_task_is_left(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    found = Distillation(model, 0.25, batch).loss(model, batch)
    torch.testing.assert_close(found, 0.75 * model.loss(batch))


# ---- in a fine-tuning


def tune(model: Forecaster, settings: FinetuneSettings = SHORT, **more: Any) -> Tuned:
    return finetune(model, Sines(), VALIDATION, settings, **more)


def test_when_the_weight_is_0_then_a_teacher_changes_nothing() -> None:
    model, teacher = tiny_model("chronos2", seed=1), tiny_model("chronos2", seed=2)
    off = replace(SHORT, distill=0.0)
    found, expected = tune(model, off, teacher=teacher), tune(model, off)
    assert same(weights(found.model), weights(expected.model))
    assert not same(weights(tune(model, teacher=teacher).model), weights(expected.model))


def test_when_the_weight_is_high_then_the_student_comes_closer_to_its_teacher() -> None:
    teacher = tiny_model("chronos_bolt", seed=1)
    student = tiny_model("chronos_bolt", seed=1)
    with torch.no_grad():
        for parameter in student.get_submodule("output_patch_embedding").parameters():
            parameter.mul_(0.5)

    batch = VALIDATION[0]

    def distance(model: Forecaster) -> float:
        return float((quantiles(model, batch, 16) - quantiles(teacher, batch, 16)).detach().abs().mean())

    before, subject = distance(student), Distillation(teacher, 0.95, batch)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        subject.loss(student, batch).mean().backward()
        optimizer.step()
    assert distance(student) < 0.5 * before


@pytest.mark.parametrize("at", [1, 4])
def test_when_distillation_is_killed_then_it_continues_to_bit_equal_weights(at: int, tmp_path: Path) -> None:
    model = tiny_model("chronos2", seed=1, dropout_rate=0.2)
    teacher = tiny_model("chronos2", seed=2, dropout_rate=0.2)
    expected = tune(model, teacher=teacher)
    with pytest.raises(Killed):
        tune(model, teacher=teacher, directory=tmp_path, report=dying(at))
    found = tune(model, teacher=teacher, directory=tmp_path)
    assert same(weights(found.model), weights(expected.model))
    # Another teacher's checkpoint is not continued.
    other = tiny_model("chronos2", seed=3)
    found, expected = tune(model, teacher=other, directory=tmp_path), tune(model, teacher=other)
    assert same(weights(found.model), weights(expected.model))


def test_when_there_is_no_teacher_or_one_of_another_kind_then_it_is_refused() -> None:
    model = tiny_model("chronos2")
    with pytest.raises(TspruneError, match=r"--distill 0.4 needs a dense model to follow; give one with --teacher"):
        tune(model)
    with pytest.raises(TspruneError, match="teacher's family is chronos_bolt, the model's is chronos2"):
        tune(model, teacher=tiny_model("chronos_bolt"))
    with pytest.raises(TspruneError, match="teacher's levels"):
        tune(model, teacher=tiny_model("chronos2", quantiles=[0.1, 0.5, 0.9]))


def test_when_the_teacher_drops_out_then_its_forecasts_do_not() -> None:
    """A teacher in training mode with dropout is heard in eval mode, and is left as it was."""
    teacher = tiny_model("chronos2", seed=2, dropout_rate=0.5).train()
    student, batch = tiny_model("chronos2", seed=1), tiny_batch()
    subject = Distillation(teacher, 0.5, batch)
    assert torch.equal(subject.loss(student, batch), subject.loss(student, batch))
    assert teacher.training
    assert all(p.requires_grad for p in teacher.parameters())
