"""What every family promises, whatever its network looks like."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tsprune
from tests.families._kit import Public
from tests.tiny import ALL_FAMILIES, TESTED, family_facts, grouped_batch, tiny_batch, tiny_config, tiny_model, waves
from tsprune import registry
from tsprune.blocks.gate import Rows, Tap
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster, window_index
from tsprune.slimming import make_plan, meta_twin, slim

every_family = pytest.mark.parametrize("family", ALL_FAMILIES)
every_variant = pytest.mark.parametrize(
    ("family", "changes"),
    [(family, changes) for family in ALL_FAMILIES for changes in ({}, *family_facts(family).variants)],
)
PUBLIC = [(family, public) for family in ALL_FAMILIES for public in family_facts(family).public]


def kind(family: str) -> type[Forecaster]:
    found: type[Forecaster] = registry.find("tsprune.models", family).FAMILY
    return found


def fitting_batch(model: Forecaster, seed: int = 0) -> Batch:
    """All that the family can use: groups, covariates, gaps."""
    able = model.capabilities
    if not able.multivariate:
        return tiny_batch(seed=seed)
    batch = grouped_batch(seed)
    if able.known_covariates:
        return batch
    batch = replace(batch, future=None)
    if able.past_covariates:
        return batch
    whole = tiny_batch(5, seed=seed)
    return replace(whole, group_ids=batch.group_ids)


def as_double(batch: Batch) -> Batch:
    """The batch with its floating point tensors in double precision."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return Batch(**{n: v.double() if v is not None and v.is_floating_point() else v for n, v in values.items()})


def test_every_family_has_its_facts_for_these_tests() -> None:
    assert registry.names("tsprune.models") == TESTED


@every_family
def test_a_family_says_which_public_checkpoints_it_reads_and_under_which_licence(family: str) -> None:
    for checkpoint in kind(family).checkpoints:
        assert checkpoint.name
        assert checkpoint.millions > 0
        assert checkpoint.licence
    assert kind(family).family == family


@pytest.mark.parametrize(("family", "public"), PUBLIC, ids=[public.name for _, public in PUBLIC])
def test_parameter_count_at_the_public_dimensions_is_the_public_one(family: str, public: Public) -> None:
    with torch.device("meta"):
        model = kind(family).from_config(public.config)
    found = (model.parameter_count() - public.extra(model)) / 1e6
    assert found == pytest.approx(public.millions, abs=public.within)


@every_family
@pytest.mark.parametrize(("length", "horizon"), [(1, 1), (5, 3), (44, 16), (200, 17), (64, 50)])
def test_any_context_and_any_horizon_give_finite_quantiles_of_that_shape(
    family: str, length: int, horizon: int
) -> None:
    model = tiny_model(family)
    found = model.forecast(Batch(waves(3, length)), horizon)
    assert found.shape == (3, len(model.levels), horizon)
    assert torch.isfinite(found).all()


@every_variant
def test_missing_values_never_leak_into_forecast_loss_or_gradient(family: str, changes: dict[str, Any]) -> None:
    model = tiny_model(family, **changes)
    context = waves(4, 40)
    context[0] = torch.nan
    context[1, ::2] = torch.nan
    context[2, -24:] = torch.nan
    target = torch.full((4, model.native_horizon), torch.nan)
    target[1:, ::3] = 1.0
    assert torch.isfinite(model.forecast(Batch(context), 40)).all()
    losses = model.loss(Batch(context, target))
    assert losses.shape == (4,)
    assert losses[0] == 0
    losses.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@every_variant
def test_rows_side_by_side_equal_each_row_alone(family: str, changes: dict[str, Any]) -> None:
    model = tiny_model(family, **changes).double()
    together = as_double(tiny_batch(3, 48, model.native_horizon))
    assert together.target is not None
    alone = [Batch(together.context[[row]], together.target[[row]]) for row in range(3)]
    forecast = torch.cat([model.forecast(batch, 40) for batch in alone])
    torch.testing.assert_close(model.forecast(together, 40), forecast, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.loss(together), torch.cat([model.loss(batch) for batch in alone]))


@every_family
def test_rows_of_different_length_in_one_batch_equal_each_row_alone(family: str) -> None:
    if not family_facts(family).ragged:
        pytest.skip(f"{family} does not promise it: see its file in tests/families")
    model = tiny_model(family)
    long, short = waves(2, 60).split(1)
    short = short[:, -21:]
    padded = torch.nn.functional.pad(short, (39, 0), value=torch.nan)
    target = waves(2, model.native_horizon, seed=5)
    together = Batch(torch.cat([long, padded]), target)
    alone = [Batch(long, target[:1]), Batch(short, target[1:])]
    forecast = torch.cat([model.forecast(batch, 40) for batch in alone])
    torch.testing.assert_close(model.forecast(together, 40), forecast, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(model.loss(together), torch.cat([model.loss(batch) for batch in alone]))


@every_family
def test_only_the_last_context_length_steps_matter(family: str) -> None:
    model = tiny_model(family)
    context = waves(2, model.context_length + 26)
    changed = context.clone()
    changed[:, :26] = 1e4
    assert torch.equal(model.forecast(Batch(context), 20), model.forecast(Batch(changed), 20))


@every_family
def test_forecasts_follow_shift_and_scale_of_the_series(family: str) -> None:
    model, facts = tiny_model(family), family_facts(family)
    scale, shift = (50.0 if facts.scales else 1.0), (-300.0 if facts.shifts else 0.0)
    context = waves(3, 48)
    moved, plain = model.forecast(Batch(context * scale + shift), 16), model.forecast(Batch(context), 16)
    torch.testing.assert_close(moved, plain * scale + shift, rtol=1e-3, atol=1e-2 * scale)


@every_family
def test_masks_that_keep_everything_change_no_bit(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    plain = model.forecast(batch, 40)
    with model.masked({name: range(group.units) for name, group in model.unit_groups().items()}):
        assert torch.equal(model.forecast(batch, 40), plain)
    assert torch.equal(model.forecast(batch, 40), plain)


@every_family
def test_every_unit_matters_when_masked_and_comes_back_afterwards(family: str) -> None:
    model = tiny_model(family).double()
    batch, idle = as_double(fitting_batch(model)), family_facts(family).idle
    horizon = 2 * model.native_horizon
    with torch.no_grad():
        losses, forecast = model.loss(batch), model.forecast(batch, horizon)
        for name, group in model.unit_groups().items():
            with model.masked({name: range(max(1, group.floor) if group.units > 1 else 0)}):
                # The tokens of a loss may all pass by an expert that a longer forecast needs.
                same = torch.equal(model.loss(batch), losses) and torch.equal(model.forecast(batch, horizon), forecast)
                assert same == idle(model, group), name
        assert torch.equal(model.loss(batch), losses)


@every_family
def test_the_cost_of_a_unit_is_what_the_model_loses_with_it(family: str) -> None:
    model = meta_twin(tiny_model(family))
    before = model.parameter_count()
    for name, group in model.unit_groups().items():
        if group.kind in ("in_channel", "out_channel") or group.units <= group.floor:
            continue
        left = slim(model, {name: range(1, group.units)}).parameter_count()
        assert before - left == int(group.costs[0]), name


@every_family
@pytest.mark.parametrize("seed", range(3))
def test_a_slim_model_equals_its_mask_and_reloads_bit_equal(family: str, seed: int, tmp_path: Path) -> None:
    model = tiny_model(family, seed)
    batch, draw = fitting_batch(model, seed), np.random.default_rng(seed)
    kept: dict[str, list[int]] = {}
    for name, group in model.unit_groups().items():
        if group.kind in ("in_channel", "out_channel") and draw.random() < 0.5:
            continue
        if group.kind in ("attention", "ffn", "layer"):
            kept[name] = [0] if draw.random() < 0.9 else []
            continue
        # Now and then nothing stays.
        count = group.floor if draw.random() < 0.1 else max(group.floor, int(draw.integers(1, group.units + 1)))
        kept[name] = sorted(draw.choice(group.units, count, replace=False).tolist())
    horizon = model.native_horizon + 3
    smaller = slim(model, kept)
    assert smaller.parameter_count() < model.parameter_count()
    for wide, narrow, given, bound in (
        (model, smaller, batch, 1e-5),
        (copy.deepcopy(model).double(), copy.deepcopy(smaller).double(), as_double(batch), 1e-11),
    ):
        with wide.masked(kept):
            expected, losses = wide.forecast(given, horizon), wide.loss(given)
        found = narrow.forecast(given, horizon)
        spread = max(float(expected.std()), 1e-3 * float(expected.abs().max()))
        assert float((found - expected).abs().max()) <= bound * spread
        torch.testing.assert_close(narrow.loss(given), losses, rtol=10 * bound, atol=10 * bound)
    tsprune.save(smaller, tmp_path / "slim", make_plan(model, kept, base_model="tiny"))
    again = tsprune.load(tmp_path / "slim")
    assert again.family == family
    assert torch.equal(again.forecast(batch, horizon), smaller.forecast(batch, horizon))


@every_family
def test_tensors_go_to_the_public_layout_and_back(family: str) -> None:
    model = tiny_model(family)
    state = model.state_dict()
    back = model.tensors_from_public(model.tensors_to_public())
    assert {name: t for name, t in back.items() if name in state}.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@every_family
def test_deep_copies_are_independent(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    before = model.forecast(batch, 16)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model.forecast(batch, 16), before)
    assert not torch.equal(twin.forecast(batch, 16), before)


def explicit_gate_gradients(model: Forecaster, batch: Batch, name: str) -> Tensor:
    """Derivative of each window's loss to gates of its own, by multiplying them in."""
    group = model.unit_groups()[name]
    (gate,) = group.gates
    windows, owners = model.network_windows(batch), gate.owners
    values = torch.ones(int(windows.max()) + 1, gate.units, dtype=torch.float64, requires_grad=True)

    def multiply(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        x, rows = given[0], given[1] if len(given) > 1 else None
        factors = values[windows][:, owners]
        if isinstance(rows, Rows):
            return (x * factors[rows.index], rows)
        return (x * factors.view(len(windows), *[1] * (x.ndim - 2), -1), *given[1:])

    handle = gate.register_forward_pre_hook(multiply)
    model.loss(batch).sum().backward()  # type: ignore[no-untyped-call]
    handle.remove()
    assert values.grad is not None
    return values.grad


@every_family
@pytest.mark.parametrize("grouped", [False, True])
def test_tapped_gate_gradients_equal_those_of_explicit_gates_window_by_window(family: str, grouped: bool) -> None:
    model = tiny_model(family).double()
    batch = as_double(fitting_batch(model) if grouped else tiny_batch())
    plain = model.loss(batch)
    groups = {n: g for n, g in model.unit_groups().items() if g.kind in ("head", "ffn_channel")}
    for group in groups.values():
        group.gates[0].tap = group.gates[0].new_tap()
    tapped = model.loss(batch)
    assert torch.equal(tapped, plain)
    tapped.sum().backward()  # type: ignore[no-untyped-call]
    windows = model.network_windows(batch)
    taps = {}
    for name, group in groups.items():
        tap, group.gates[0].tap = group.gates[0].tap, None
        assert isinstance(tap, Tap)
        if tap.gradient is not None:
            rows = tap.gradient
            taps[name] = torch.zeros(len(plain), group.units, dtype=rows.dtype).index_add(0, windows, rows)
    assert len(taps) > len(groups) / 2
    for name, found in taps.items():
        torch.testing.assert_close(found, explicit_gate_gradients(model, batch, name), rtol=1e-7, atol=1e-9)
    assert any(float(found.abs().max()) > 1e-4 for found in taps.values())


@every_family
def test_taps_work_on_frozen_weights(family: str) -> None:
    model = tiny_model(family).requires_grad_(False)
    name, group = next((n, g) for n, g in model.unit_groups().items() if g.kind in ("head", "ffn_channel"))
    group.gates[0].tap = group.gates[0].new_tap()
    batch = tiny_batch()
    model.loss(batch).sum().backward()  # type: ignore[no-untyped-call]
    assert group.gates[0].tap.gradient is not None, name
    assert group.gates[0].tap.gradient.shape == (len(model.network_windows(batch)), group.units)


@every_family
def test_loss_falls_on_sines_in_a_few_steps(family: str) -> None:
    model = tiny_model(family)
    steps = model.native_horizon
    values = torch.sin(torch.arange(64 + steps) / 4)[None] * torch.tensor([[1.0], [3.0], [0.5]]) + 2
    batch = Batch(values[:, :64], values[:, 64:])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = float(model.loss(batch).mean().detach())
    for _ in range(30):
        optimizer.zero_grad()
        model.loss(batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(model.loss(batch).mean().detach()) < first - 0.4 * abs(first)


@every_family
def test_bfloat16_runs_and_stays_near_float32(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    exact = model.forecast(batch, 40)
    half = copy.deepcopy(model).to(torch.bfloat16)
    found = half.forecast(batch, 40)
    assert found.dtype == torch.float32
    assert float((found - exact).abs().mean()) < 0.1 * float(exact.std())
    half.loss(batch).mean().backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(p.grad).all() for p in half.parameters() if p.grad is not None)


@pytest.mark.parametrize("family", [family for family in ALL_FAMILIES if family_facts(family).dropout])
def test_dropout_acts_in_training_and_never_in_a_forecast(family: str) -> None:
    model, batch = tiny_model(family, **family_facts(family).dropout).train(), tiny_batch()
    assert not torch.equal(model.loss(batch), model.loss(batch))
    assert torch.equal(model.forecast(batch, 16), model.forecast(batch, 16))
    assert model.training


@every_family
def test_own_levels_come_back_bit_equal_and_others_lie_between(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    own = model.forecast(batch, 16)
    assert torch.equal(model.forecast(batch, 16, model.levels), own)
    assert 0.5 in model.levels
    middle = [(low + high) / 2 for low, high in zip(model.levels, model.levels[1:], strict=False)]
    between = model.forecast(batch, 16, [0.001, *middle])
    assert torch.equal(between[:, 0], own[:, 0])
    torch.testing.assert_close(between[:, 1:], (own[:, :-1] + own[:, 1:]) / 2)
    assert model.capabilities.quantiles == (len(model.levels) > 1)


@every_family
def test_impossible_requests_are_refused(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    most = model.native_horizon
    with pytest.raises(TspruneError, match="horizon is 0"):
        model.forecast(batch, 0)
    with pytest.raises(TspruneError, match="strictly between 0 and 1"):
        model.forecast(batch, 4, [1.0])
    with pytest.raises(TspruneError, match="no target"):
        model.loss(Batch(batch.context))
    with pytest.raises(TspruneError, match=f"{most + 1} steps is longer than the {most}"):
        model.loss(Batch(batch.context, torch.zeros(4, most + 1)))


@every_family
def test_what_a_family_cannot_use_is_refused_by_its_name(family: str) -> None:
    model, batch = tiny_model(family), grouped_batch()
    able = model.capabilities
    refused = [] if able.known_covariates else [replace(batch, is_target=None)]
    refused += [] if able.past_covariates else [replace(batch, future=None)]
    for given in refused:
        with pytest.raises(TspruneError, match=f"{family} cannot use covariates"):
            model.forecast(given, 8)
        with pytest.raises(TspruneError, match=f"{family} cannot use covariates"):
            model.loss(given)


@every_family
def test_rows_of_a_group_inform_each_other_where_the_family_says_so_and_no_others(family: str) -> None:
    model = tiny_model(family)
    batch = tiny_batch(4)
    grouped = replace(batch, group_ids=torch.tensor([2, 2, 5, 9]))
    alone, mixed = model.forecast(batch, 16), model.forecast(grouped, 16)
    assert torch.allclose(alone[:2], mixed[:2]) != model.capabilities.multivariate
    torch.testing.assert_close(alone[2:], mixed[2:], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "change", "named"), [(f, c, n) for f in ALL_FAMILIES for c, n in family_facts(f).bad]
)
def test_a_config_entry_that_is_missing_or_impossible_is_named(family: str, change: dict[str, Any], named: str) -> None:
    with pytest.raises(TspruneError, match=named):
        kind(family).from_config(tiny_config(family, **change))


@every_family
def test_the_loss_of_a_window_is_the_mean_over_its_target_rows(family: str) -> None:
    model = tiny_model(family)
    batch = fitting_batch(model)
    if batch.group_ids is None:
        batch = replace(tiny_batch(5), group_ids=torch.tensor([7, 7, 3, 7, 3]))
    rows, scored = model.row_losses(batch), batch.is_target
    index = window_index(batch)
    means = []
    for window in range(int(index.max()) + 1):
        own = index == window if scored is None else (index == window) & scored
        means.append(rows[own].mean())
    torch.testing.assert_close(model.loss(batch), torch.stack(means))


@every_family
def test_a_config_of_the_family_is_recognised_by_it_alone(family: str) -> None:
    config = tiny_config(family)
    assert [name for name in ALL_FAMILIES if kind(name).recognises(config)] == [family]
