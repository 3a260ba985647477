"""The progressive schedule: what is gone after n rounds, and the moving average of scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import tiny_model
from tsprune.errors import TspruneError
from tsprune.pruning import lowest, prunable_parameters
from tsprune.schedules.progressive import Progressive
from tsprune.scores import random


@given(ratio=st.floats(0.01, 0.99), rounds=st.integers(1, 40))
def test_every_round_takes_the_same_share_of_what_is_alive(ratio: float, rounds: int) -> None:
    amounts = list(Progressive(ratio=ratio, rounds=rounds).amounts())
    alive = 1.0
    for amount in amounts:
        alive -= amount * alive
    assert len(amounts) == rounds
    assert alive == pytest.approx((1 - ratio) ** rounds, rel=1e-9)


def test_share_of_a_real_model_gone_after_each_round_follows_the_closed_form() -> None:
    model = tiny_model("chronos_bolt", d_ff=200, d_kv=2)
    groups = {name: g for name, g in model.unit_groups().items() if g.kind in ("head", "ffn_channel")}
    alive = {name: list(range(g.units)) for name, g in groups.items()}
    everything = prunable_parameters(groups, alive)
    largest = max(g.parameters for g in groups.values())
    scores = random.scores(model, (), seed=1)
    for number, amount in enumerate(Progressive(ratio=0.2, rounds=5).amounts(), start=1):
        alive = lowest(scores, groups, alive, amount * prunable_parameters(groups, alive))
        left = prunable_parameters(groups, alive)
        # Units are whole: each round may take up to one unit more.
        assert 0.8**number * everything - number * largest <= left <= 0.8**number * everything + 1e-6


@given(ema=st.floats(0.01, 1.0), values=st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_smoothing_equals_the_closed_form(ema: float, values: list[float]) -> None:
    schedule = Progressive(ema=ema)
    smoothed = None
    for value in values:
        smoothed = schedule.smooth(smoothed, {"a": torch.tensor([value, -value], dtype=torch.float64)})
    assert smoothed is not None
    n = len(values)
    # The first counts in full: (1 - a)^(n-1) s_1 + sum_j a (1 - a)^(n-j) s_j.
    expected = (1 - ema) ** (n - 1) * values[0]
    expected += sum(ema * (1 - ema) ** (n - 1 - j) * values[j] for j in range(1, n))
    assert smoothed["a"].tolist() == pytest.approx([expected, -expected], rel=1e-9, abs=1e-12)


def test_smoothing_does_not_change_its_inputs() -> None:
    before, new = {"a": torch.tensor([1.0])}, {"a": torch.tensor([3.0])}
    assert Progressive(ema=0.25).smooth(before, new)["a"].tolist() == [1.5]
    assert (before["a"].item(), new["a"].item()) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"ratio": 0.0}, "--ratio 0.0"),
        ({"ratio": 1.0}, "--ratio 1.0"),
        ({"ratio": float("nan")}, "--ratio nan"),
        ({"ema": 0.0}, "--ema 0.0"),
        ({"ema": 1.5}, "--ema 1.5"),
        ({"rounds": 0}, "--rounds 0"),
        ({"patience": 0}, "--prune-patience 0"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_by_its_flag(settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(TspruneError, match=flag):
        Progressive(**settings)
