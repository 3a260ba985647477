"""The code that only runs while a network is traced gives what the usual code gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import ALL_FAMILIES, tiny_model, waves
from tests.tiny_experts import tiny_experts
from tsprune import registry
from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.patching import InstanceScale, context_patches, fill_gaps, left_fill
from tsprune.blocks.positions import looked_up_buckets, relative_buckets
from tsprune.blocks.tracing import fitted, neighbours, newest, tracing
from tsprune.data.batch import Batch
from tsprune.exports._graph import TRACED, UNTRACED, passes, untraceable
from tsprune.models._rollout import weighted_quantiles
from tsprune.models._timer import _whole_tokens

FLAG = "torch.compiler.is_exporting"


@pytest.fixture
def as_traced(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A switch to the code of the tracer; off at first."""
    return monkeypatch


def both(patch: pytest.MonkeyPatch, work):  # type: ignore[no-untyped-def]
    usual = work()
    with patch.context() as within:
        within.setattr(FLAG, lambda: True)
        assert tracing()
        return usual, work()


@st.composite
def observed(draw: st.DrawFn) -> torch.Tensor:
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    flags = draw(st.lists(st.booleans(), min_size=rows * length, max_size=rows * length))
    return torch.tensor(flags).view(rows, length)


@settings(max_examples=60, deadline=None)
@given(observed())
def test_neighbours_are_the_nearest_observed_steps_on_both_sides(flags: torch.Tensor) -> None:
    last, after = neighbours(flags)
    for row, values in enumerate(flags.tolist()):
        there = [step for step, value in enumerate(values) if value]
        for step in range(len(values)):
            assert last[row, step] == max((t for t in there if t <= step), default=-1)
            assert after[row, step] == min((t for t in there if t >= step), default=len(values))


@settings(max_examples=60, deadline=None)
@given(observed(), st.integers(1, 12))
def test_filling_and_cutting_are_the_same_to_the_bit(flags: torch.Tensor, size: int) -> None:
    x = torch.where(flags, waves(*flags.shape), torch.nan)
    with pytest.MonkeyPatch.context() as patch:
        for work in (
            lambda: fill_gaps(x),
            lambda: left_fill(x, size),
            lambda: newest(x, size),
            lambda: fitted(x, size),
            lambda: _whole_tokens(x, size),
        ):
            usual, traced = both(patch, work)
            assert torch.equal(usual.nan_to_num(1e9), traced.nan_to_num(1e9))


@settings(max_examples=60, deadline=None)
@given(observed(), st.floats(-1e6, 1e6), st.booleans())
def test_the_instance_scale_and_patches_are_the_same_to_the_bit(
    flags: torch.Tensor, level: float, constant: bool
) -> None:
    x = torch.where(flags, level + (0 if constant else 1) * waves(*flags.shape), torch.nan).double()
    with pytest.MonkeyPatch.context() as patch:
        usual, traced = both(patch, lambda: InstanceScale(x))
        assert torch.equal(usual.location, traced.location)
        assert torch.equal(usual.scale, traced.scale)
        for stride in (4, 3):
            usual, traced = both(patch, lambda stride=stride: context_patches(x.float(), flags, 4, stride))
            assert all(map(torch.equal, usual, traced))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 7, 40, 300])
def test_buckets_that_are_looked_up_are_those_that_are_computed(length: int, bidirectional: bool) -> None:
    for buckets, reach in ((32, 128), (8, 10), (4, 3)):
        computed = relative_buckets(length, length, bidirectional=bidirectional, buckets=buckets, max_distance=reach)
        found = looked_up_buckets(length, bidirectional=bidirectional, buckets=buckets, max_distance=reach)
        assert torch.equal(found, computed)


def test_quantiles_of_weighted_samples_are_the_same_to_the_bit(as_traced: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    samples, weights = torch.randn(3, 40, 5).round(decimals=1), torch.rand(40)
    usual, traced = both(as_traced, lambda: weighted_quantiles(samples, weights, (0.05, 0.3, 0.5, 0.99)))
    assert torch.equal(usual, traced)


def test_experts_that_pick_their_tokens_are_experts_that_are_sent_them(as_traced: pytest.MonkeyPatch) -> None:
    for mixture in (m for m in tiny_experts().modules() if isinstance(m, MixtureOfExperts)):
        x = torch.randn(3, 11, _width(mixture))
        usual, traced = both(as_traced, lambda x=x, mixture=mixture: mixture(x))
        torch.testing.assert_close(usual, traced, rtol=1e-6, atol=1e-6)


def _width(mixture: MixtureOfExperts) -> int:
    expert = next(iter(mixture.experts.values()))
    return int(expert.output.out_features)


@pytest.mark.parametrize("family", [family for family in ALL_FAMILIES if family in TRACED])
def test_a_family_forecasts_the_same_on_the_tracers_way(family: str, as_traced: pytest.MonkeyPatch) -> None:
    model = tiny_model(family).double()
    for length, rows in ((1, 1), (5, 2), (37, 3), (64, 1), (70, 2)):
        context = waves(rows, length).double()
        context[0, 1::3] = torch.nan
        context[-1, : length // 2] = torch.nan
        if rows == 3:
            context[1] = torch.nan
        steps = 2 * model.native_horizon + 3
        usual, traced = both(as_traced, lambda c=context, s=steps: model.forecast(Batch(c), s))
        torch.testing.assert_close(usual, traced, rtol=1e-9, atol=1e-9)


def test_every_family_is_traced_or_says_why_not() -> None:
    assert sorted({*TRACED, *UNTRACED}) == registry.names("tsprune.models")
    assert not TRACED & set(UNTRACED)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_tiny_model_of_a_family_is_traced_or_refused_with_a_reason(family: str) -> None:
    reason = untraceable(tiny_model(family))
    assert (reason == "") == (family in TRACED)
    if reason:
        assert family in reason
        assert not reason.endswith(".")


def test_models_that_need_more_than_one_series_or_invert_a_distribution_are_refused() -> None:
    assert "a distribution" in untraceable(tiny_model("patchtst", loss="nll"))
    assert "exactly 3 series" in untraceable(
        tiny_model("ttm", num_input_channels=3, mode="mix_channel", decoder_mode="mix_channel")
    )
    tuned = tiny_model("chronos2")
    tuned.config["tsprune_task"] = {"together": True}
    assert "together" in untraceable(tuned)
    tuned.config["tsprune_task"] = {"together": False, "known_covariates": ["price"]}
    assert "price" in untraceable(tuned)
    other = tiny_model("chronos2")
    other.family = "unheard"  # type: ignore[misc]
    assert "has not been tried" in untraceable(other)


def test_passes_are_those_that_the_roll_out_makes() -> None:
    for family in sorted(TRACED):
        model = tiny_model(family)
        assert passes(model, 1) == 1
        assert passes(model, model.native_horizon) == 1
        assert passes(model, model.native_horizon + 1) == 2
    two = tiny_model("time_moe", horizon_lengths=[1, 8])
    assert passes(two, 19) == 2 + 3
