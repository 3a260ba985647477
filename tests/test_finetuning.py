"""Fine-tuning: never worse than untuned, the same for the same seed, and the same after any kill."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.sines import VALIDATION, Counted, Killed, Sines, dying, same, weights
from tests.tiny import FAMILIES, tiny_config, tiny_model
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.finetuning import Tuned, Windows, _Run, _Task, finetune
from tsprune.models._forecaster import Forecaster
from tsprune.models.chronos_bolt import ChronosBolt
from tsprune.pruning import validation_loss
from tsprune.settings import FinetuneSettings
from tsprune.slimming import slim

every_family = pytest.mark.parametrize("family", FAMILIES)
SHORT = FinetuneSettings(steps=6, search_steps=4, learning_rates=(1e-3, 4e-3), batch=6, evaluations=3, patience=9)


def tune(model: Forecaster, settings: FinetuneSettings = SHORT, train: Windows | None = None, **more: Any) -> Tuned:
    return finetune(model, Sines() if train is None else train, VALIDATION, settings, **more)


@every_family
def test_loss_falls_on_a_sine_and_the_model_passed_in_stays(family: str) -> None:
    model = tiny_model(family, seed=1)
    model.get_parameter("shared.weight").requires_grad_(False)
    before, state = weights(model), torch.get_rng_state()
    settings = FinetuneSettings(steps=60, search_steps=0, learning_rates=(4e-3,), batch=16, evaluations=4)
    tuned = tune(model, settings)
    start = validation_loss(model, VALIDATION)
    assert tuned.best.validation_loss < 0.7 * start
    assert tuned.best.validation_loss == validation_loss(tuned.model, VALIDATION)
    assert not tuned.model.training
    assert same(weights(model), before)
    assert not model.get_parameter("shared.weight").requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in tuned.model.parameters()}


@every_family
def test_an_absurd_learning_rate_gives_the_untuned_weights_back(family: str) -> None:
    model = tiny_model(family, seed=1)
    settings = FinetuneSettings(steps=6, search_steps=2, learning_rates=(30.0, 50.0), batch=6, evaluations=3)
    tuned = tune(model, settings)
    assert tuned.best.best_step == 0
    assert tuned.best.validation_loss == validation_loss(model, VALIDATION)
    assert same(weights(tuned.model), weights(model))
    # Between trials that end at step 0 the smallest rate is the safest.
    assert tuned.best.learning_rate == 30.0


def test_the_search_takes_the_rate_that_validates_best() -> None:
    settings = FinetuneSettings(steps=4, search_steps=8, learning_rates=(50.0, 1e-7, 4e-3), batch=8, evaluations=2)
    tuned = tune(tiny_model("chronos2", seed=1), settings)
    assert [t.learning_rate for t in tuned.trials] == [50.0, 1e-7, 4e-3, 4e-3]
    assert min(tuned.trials[:3], key=lambda t: t.validation_loss).learning_rate == 4e-3


def test_the_best_validated_weights_of_search_and_full_run_win() -> None:
    model = tiny_model("chronos2", seed=1)
    for search, steps, winner in ((12, 2, 1), (2, 12, 2), (4, 4, 2)):
        settings = FinetuneSettings(
            steps=steps, search_steps=search, learning_rates=(1e-7, 4e-3), batch=8, evaluations=2
        )
        tuned = tune(model, settings)
        # Of a full run and a search trial that end equal, the full run counts.
        assert tuned.best is tuned.trials[winner]
        assert tuned.best.validation_loss == min(trial.validation_loss for trial in tuned.trials)
        assert tuned.best.validation_loss == validation_loss(tuned.model, VALIDATION)
        assert all(p.grad is None for p in tuned.model.parameters())


def test_without_a_search_the_first_rate_is_taken() -> None:
    settings = FinetuneSettings(steps=2, search_steps=0, learning_rates=(1e-3, 4e-3), batch=4)
    assert [t.learning_rate for t in tune(tiny_model("chronos2"), settings).trials] == [1e-3]


def test_patience_ends_a_run_and_the_best_step_is_returned() -> None:
    settings = FinetuneSettings(steps=40, search_steps=0, learning_rates=(30.0,), batch=4, evaluations=20, patience=3)
    heard: list[tuple[str, int, int, float]] = []
    tuned = tune(tiny_model("chronos2"), settings, report=lambda *told: heard.append(told))
    assert [told[:3] for told in heard] == [("full 30", 2, 40), ("full 30", 4, 40), ("full 30", 6, 40)]
    assert (tuned.best.steps, tuned.best.best_step) == (6, 0)


def test_what_is_kept_is_the_running_mean_of_the_weights() -> None:
    model = tiny_model("chronos2", seed=1)
    plain = FinetuneSettings(
        steps=3, search_steps=0, learning_rates=(1e-3,), batch=8, evaluations=3, patience=9, averaging=0.0
    )
    seen = [weights(model)]

    def after(steps: int, averaging: float) -> dict[str, Tensor]:
        task = _Task(model, Sines(), VALIDATION, replace(plain, averaging=averaging), 0, math.inf, None, "")
        run = _Run(task, "full", 1e-3, 3, 3)
        run.model.train()
        for _ in range(steps):
            run._one_step()
        return {name: value.clone() for name, value in run.mean.items()}

    seen += [after(steps, 0.0) for steps in (1, 2, 3)]
    expected = seen[0]
    for step, own in enumerate(seen[1:], start=1):
        decay = min(0.25, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * own[name] for name, value in expected.items()}
    found = after(3, 0.25)
    assert not same(found, seen[-1])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@every_family
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(family: str) -> None:
    model = tiny_model(family, dropout_rate=0.2)
    first, again, other = (tune(model, seed=seed) for seed in (1, 1, 2))
    assert same(weights(first.model), weights(again.model))
    assert first.trials == again.trials
    assert not same(weights(first.model), weights(other.model))
    assert first.best.best_step > 0


# ---- kills


@functools.cache
def uninterrupted(family: str) -> tuple[Tuned, list[tuple[str, int]]]:
    """A whole run with dropout, and where it reported."""
    heard: list[tuple[str, int]] = []
    tuned = tune(
        tiny_model(family, dropout_rate=0.2), seed=1, report=lambda label, step, *_: heard.append((label, step))
    )
    assert tuned.best.best_step > 0
    return tuned, heard


@every_family
@pytest.mark.parametrize("at", range(1, 8))
def test_a_run_killed_at_any_validation_continues_to_bit_equal_weights(family: str, at: int, tmp_path: Path) -> None:
    expected, heard = uninterrupted(family)
    assert [label for label, _ in heard] == ["search 0.001"] * 2 + ["search 0.004"] * 2 + ["full 0.004"] * 3
    model = tiny_model(family, dropout_rate=0.2)
    with pytest.raises(Killed):
        tune(model, seed=1, directory=tmp_path, report=dying(at))
    torch.manual_seed(1234 + at)
    rest: list[tuple[str, int]] = []
    tuned = tune(model, seed=1, directory=tmp_path, report=lambda label, step, *_: rest.append((label, step)))
    assert same(weights(tuned.model), weights(expected.model))
    assert tuned.trials == expected.trials
    # It went on where it stood: what was reported before is not done again.
    assert rest == heard[at:]


@pytest.mark.parametrize("at", [1, 2, 4, 7, 9, 11, 14])
def test_a_run_killed_between_validations_continues_to_bit_equal_weights(at: int, tmp_path: Path) -> None:
    expected, _ = uninterrupted("chronos2")
    model = tiny_model("chronos2", dropout_rate=0.2)
    with pytest.raises(Killed):
        tune(model, train=Counted(at), seed=1, directory=tmp_path)
    again = Counted(-1)
    tuned = tune(model, train=again, seed=1, directory=tmp_path)
    assert same(weights(tuned.model), weights(expected.model))
    assert tuned.trials == expected.trials
    # 14 steps in all; at most the one or two steps since the last checkpoint are repeated.
    assert again.asked <= 14 - (at - 1) + 1


def test_a_run_killed_again_and_again_ends_the_same(tmp_path: Path) -> None:
    expected, heard = uninterrupted("chronos2")
    model = tiny_model("chronos2", dropout_rate=0.2)
    for _ in heard:
        with pytest.raises(Killed):
            tune(model, seed=1, directory=tmp_path, report=dying(1))
    tuned = tune(model, seed=1, directory=tmp_path)
    assert same(weights(tuned.model), weights(expected.model))
    assert tuned.trials == expected.trials


@pytest.mark.parametrize("what", ["seed", "settings", "model", "sizes"])
def test_a_checkpoint_of_something_else_is_not_continued(what: str, tmp_path: Path) -> None:
    model = tiny_model("chronos2", dropout_rate=0.2)
    tune(model, seed=1, directory=tmp_path)
    seed, settings = 1, SHORT
    if what == "seed":
        seed = 2
    elif what == "settings":
        settings = FinetuneSettings(**{**vars(SHORT), "weight_decay": 0.2})
    elif what == "model":
        model = tiny_model("chronos2", seed=9, dropout_rate=0.2)
    else:
        model = slim(model, {"encoder.block.0.layer.2.mlp/ffn_channel": [1, 2, 3]})
    expected = tune(model, settings, seed=seed)
    found = tune(model, settings, seed=seed, directory=tmp_path)
    assert same(weights(found.model), weights(expected.model))
    assert found.trials == expected.trials


# ---- slim models


@every_family
def test_a_slim_model_trains_and_keeps_its_sizes(family: str) -> None:
    model = tiny_model(family, seed=1)
    kept = {}
    for name, group in model.unit_groups().items():
        if group.kind in ("head", "ffn_channel"):
            kept[name] = [] if "block.0" in name and group.kind == "head" else list(range(group.units // 2))
    small = slim(model, kept)
    tuned = tune(small)
    assert tuned.best.best_step > 0
    found, before = weights(tuned.model), weights(small)
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in before.items()}
    assert not same(found, before)
    assert tuned.model.kept == small.kept
    assert tuned.best.validation_loss < validation_loss(small, VALIDATION)


def test_a_half_precision_model_trains_in_float32_and_is_judged_in_it() -> None:
    model = tiny_model("chronos2", seed=1).to(torch.bfloat16)
    settings = FinetuneSettings(steps=2, search_steps=0, learning_rates=(30.0,), batch=4)
    tuned = tune(model, settings)
    assert model.dtype == torch.bfloat16
    assert tuned.model.dtype == torch.float32
    assert tuned.best.best_step == 0
    assert tuned.best.validation_loss == validation_loss(tuned.model, VALIDATION)


# ---- losses that are no numbers


class Spoilt(Sines):
    """Sines whose targets are infinite in some of the batches."""

    def __init__(self, every: int) -> None:
        self.every, self.asked = every, 0

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        self.asked += 1
        found = super().batch(indices)
        if self.asked % self.every or found.target is None:
            return found
        return Batch(found.context, torch.full_like(found.target, torch.inf))


@every_family
def test_batches_without_a_finite_loss_are_passed_over(family: str) -> None:
    model = tiny_model(family, seed=1)
    settings = FinetuneSettings(steps=12, search_steps=0, learning_rates=(4e-3,), batch=8, evaluations=3)
    tuned = tune(model, settings, Spoilt(2))
    assert all(bool(torch.isfinite(value).all()) for value in weights(tuned.model).values())
    assert tuned.best.validation_loss < validation_loss(model, VALIDATION)
    nothing = tune(model, settings, Spoilt(1))
    assert nothing.best.best_step == 0
    assert same(weights(nothing.model), weights(model))


class Explosive(ChronosBolt):
    """A finite loss whose gradient is no number, in the first training step."""

    calls = 0

    def row_losses(self, batch: Batch, *, mask: Tensor | None = None) -> Tensor:
        losses = super().row_losses(batch, mask=mask)
        if self.training:
            self.calls += 1
            if self.calls == 1:
                weight = self.shared.weight
                losses = losses + torch.sqrt((weight - weight).sum())
        return losses


def test_a_gradient_that_is_no_number_does_not_spoil_the_run() -> None:
    torch.manual_seed(0)
    model = Explosive(tiny_config("chronos_bolt")).eval()
    settings = FinetuneSettings(steps=12, search_steps=0, learning_rates=(4e-3,), batch=8, evaluations=3)
    tuned = tune(model, settings)
    assert tuned.best.best_step == 12
    assert tuned.best.validation_loss < validation_loss(model, VALIDATION)


def test_a_model_that_starts_without_a_finite_loss_comes_back_as_it_was() -> None:
    model = tiny_model("chronos2", seed=1)
    with torch.no_grad():
        model.get_parameter("shared.weight")[1, 0] = torch.nan
    tuned = tune(model)
    assert tuned.best.best_step == 0
    assert math.isnan(tuned.best.validation_loss)


# ---- refusals


class Nothing(Sines):
    def __len__(self) -> int:
        return 0


def test_no_window_to_train_or_to_judge_on_is_refused() -> None:
    model = tiny_model("chronos2")
    with pytest.raises(TspruneError, match="no training window"):
        tune(model, train=Nothing())
    with pytest.raises(TspruneError, match="no validation window"):
        finetune(model, Sines(), [], SHORT)


def test_fewer_windows_than_a_batch_are_all_taken_once() -> None:
    seen: list[list[int]] = []

    class Few(Sines):
        def __len__(self) -> int:
            return 3

        def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
            seen.append([int(i) for i in indices])
            return super().batch(indices)

    tune(tiny_model("chronos2"), train=Few())
    assert seen
    assert all(indices == [0, 1, 2] for indices in seen)
