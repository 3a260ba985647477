"""What every family promises, whatever its network looks like."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.tiny import FAMILIES, LEVELS, grouped_batch, tiny_batch, tiny_config, tiny_model, waves
from tsprune import registry
from tsprune.blocks.across import SingleStepAttention
from tsprune.blocks.gate import Tap
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster, window_index

every_family = pytest.mark.parametrize("family", FAMILIES)

PUBLIC = {
    "bolt tiny": ("chronos_bolt", {"d_model": 256, "d_ff": 1024, "num_layers": 4, "num_heads": 4}, 8.65),
    "bolt mini": ("chronos_bolt", {"d_model": 384, "d_ff": 1536, "num_layers": 4, "num_heads": 8}, 21.24),
    "bolt small": ("chronos_bolt", {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8}, 47.72),
    "bolt base": ("chronos_bolt", {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}, 205.29),
    "chronos-2": ("chronos2", {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}, 119.48),
}


def kind(family: str) -> type[Forecaster]:
    found: type[Forecaster] = registry.find("tsprune.models", family).FAMILY
    return found


def test_every_family_file_is_tested_here() -> None:
    assert set(registry.names("tsprune.models")) == set(FAMILIES)


@pytest.mark.parametrize("name", PUBLIC)
def test_parameter_count_at_the_public_dimensions_is_the_public_one(name: str) -> None:
    family, sizes, millions = PUBLIC[name]
    levels = [0.01, *[round(0.05 * k, 2) for k in range(1, 20)], 0.99]
    if family == "chronos_bolt":
        levels = [round(0.1 * k, 1) for k in range(1, 10)]
    sizes = sizes | {"d_kv": 64, "input_patch_size": 16, "input_patch_stride": 16, "quantiles": levels}
    sizes |= {"prediction_length": 64} if family == "chronos_bolt" else {"output_patch_size": 16}
    if "num_decoder_layers" in tiny_config(family):
        sizes["num_decoder_layers"] = sizes["num_layers"]
    with torch.device("meta"):
        model = kind(family).from_config(tiny_config(family, **sizes))
    tables = [p.numel() for n, p in model.named_parameters() if n.endswith("relative_attention_bias.weight")]
    # Public checkpoints hold one table per stack, we hold one per block.
    extra = sum(tables) - 2 * tables[0] if tables else 0
    assert (model.parameter_count() - extra) / 1e6 == pytest.approx(millions, abs=0.005)


@every_family
@pytest.mark.parametrize(("length", "horizon"), [(1, 1), (5, 3), (44, 16), (200, 17), (64, 50)])
def test_any_context_and_any_horizon_give_finite_quantiles_of_that_shape(
    family: str, length: int, horizon: int
) -> None:
    model = tiny_model(family)
    found = model.forecast(Batch(waves(3, length)), horizon)
    assert found.shape == (3, len(LEVELS), horizon)
    assert torch.isfinite(found).all()


@every_family
@pytest.mark.parametrize("token", [True, False])
def test_missing_values_never_leak_into_forecast_loss_or_gradient(family: str, token: bool) -> None:
    model = tiny_model(family, use_reg_token=token)
    context = waves(4, 40)
    context[0] = torch.nan
    context[1, ::2] = torch.nan
    context[2, -24:] = torch.nan
    target = torch.full((4, 16), torch.nan)
    target[1:, ::3] = 1.0
    assert torch.isfinite(model.forecast(Batch(context), 40)).all()
    losses = model.loss(Batch(context, target))
    assert losses.shape == (4,)
    assert losses[0] == 0
    losses.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@every_family
def test_rows_of_different_length_in_one_batch_equal_each_row_alone(family: str) -> None:
    model = tiny_model(family)
    long, short = waves(2, 60).split(1)
    short = short[:, -21:]
    padded = torch.nn.functional.pad(short, (39, 0), value=torch.nan)
    target = waves(2, 16, seed=5)
    together = Batch(torch.cat([long, padded]), target)
    alone = [Batch(long, target[:1]), Batch(short, target[1:])]
    forecast = torch.cat([model.forecast(batch, 40) for batch in alone])
    torch.testing.assert_close(model.forecast(together, 40), forecast, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model.loss(together), torch.cat([model.loss(batch) for batch in alone]))


@every_family
def test_only_the_last_context_length_steps_matter(family: str) -> None:
    model = tiny_model(family)
    context = waves(2, 90)
    changed = context.clone()
    changed[:, :26] = 1e4
    assert torch.equal(model.forecast(Batch(context), 20), model.forecast(Batch(changed), 20))


@every_family
def test_forecasts_follow_shift_and_scale_of_the_series(family: str) -> None:
    model = tiny_model(family)
    context = waves(3, 48)
    moved = model.forecast(Batch(context * 50 - 300), 16)
    torch.testing.assert_close(moved, model.forecast(Batch(context), 16) * 50 - 300, rtol=1e-4, atol=1e-1)


@every_family
def test_masks_that_keep_everything_change_no_bit(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    plain = model.forecast(batch, 40)
    with model.masked({name: range(group.units) for name, group in model.unit_groups().items()}):
        assert torch.equal(model.forecast(batch, 40), plain)
    assert torch.equal(model.forecast(batch, 40), plain)


@every_family
def test_every_unit_matters_when_masked_and_comes_back_afterwards(family: str) -> None:
    model, batch = tiny_model(family, feed_forward_proj="gelu"), grouped_batch()
    if not model.capabilities.known_covariates:
        batch = tiny_batch()
    plain = model.forecast(batch, 16)
    for name, group in model.unit_groups().items():
        # A softmax over one entry is 1 whatever query and key, so these alone cannot matter.
        single = isinstance(model.get_submodule(group.path.removesuffix(".q").removesuffix(".k")), SingleStepAttention)
        idle = single and (group.kind == "qk_pair" or group.path.endswith((".q", ".k")))
        with model.masked({name: range(1, group.units)}):
            assert torch.equal(model.forecast(batch, 16), plain) == idle, name
    assert torch.equal(model.forecast(batch, 16), plain)


@every_family
def test_masking_a_group_or_unit_that_does_not_exist_is_refused_by_name(family: str) -> None:
    model = tiny_model(family)
    name = next(iter(model.unit_groups()))
    with pytest.raises(TspruneError, match="no unit group 'nowhere/head'"), model.masked({"nowhere/head": [0]}):
        pass
    with pytest.raises(TspruneError, match=name.replace("/", "/")), model.masked({name: [99]}):
        pass


@every_family
def test_parameters_of_the_units_add_up_to_the_blocks(family: str) -> None:
    model = tiny_model(family)
    for name, group in model.unit_groups().items():
        block = model.get_submodule(group.path)
        if group.kind == "qk_pair":
            own = block.q.weight.numel() + block.k.weight.numel()
        elif group.kind == "value_dim":
            own = block.v.weight.numel() + block.o.weight.numel()
        else:
            own = sum(p.numel() for p in block.parameters())
        assert int(group.costs.sum()) == group.units * group.parameters == own, name


def explicit_gate_gradients(model: Forecaster, batch: Batch, name: str) -> torch.Tensor:
    """Derivative of each window's loss to gates of its own, by multiplying them in."""
    group = model.unit_groups()[name]
    (gate,) = group.gates
    windows = window_index(batch)
    values = torch.ones(int(windows.max()) + 1, gate.units, dtype=torch.float64, requires_grad=True)

    def multiply(_: Any, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return given[0] * values[windows].repeat_interleave(gate.width, 1)[:, None, :]

    handle = gate.register_forward_pre_hook(multiply)
    model.loss(batch).sum().backward()  # type: ignore[no-untyped-call]
    handle.remove()
    assert values.grad is not None
    return values.grad


@every_family
@pytest.mark.parametrize("grouped", [False, True])
def test_tapped_gate_gradients_equal_those_of_explicit_gates_window_by_window(family: str, grouped: bool) -> None:
    model = tiny_model(family).double()
    batch = grouped_batch() if grouped else tiny_batch()
    if grouped and not model.capabilities.known_covariates:
        batch = replace(batch, future=None, is_target=None)
    batch = replace(
        batch, context=batch.context.double(), target=None if batch.target is None else batch.target.double()
    )
    plain = model.loss(batch)
    groups = {n: g for n, g in model.unit_groups().items() if g.kind in ("head", "ffn_channel")}
    for group in groups.values():
        group.gates[0].tap = Tap(group.units)
    tapped = model.loss(batch)
    assert torch.equal(tapped, plain)
    tapped.sum().backward()
    windows = window_index(batch)
    taps = {}
    for name, group in groups.items():
        tap, group.gates[0].tap = group.gates[0].tap, None
        assert tap is not None
        assert tap.gradient is not None
        rows = tap.gradient
        taps[name] = torch.zeros(len(plain), group.units, dtype=rows.dtype).index_add(0, windows, rows)
    for name in groups:
        torch.testing.assert_close(taps[name], explicit_gate_gradients(model, batch, name), rtol=1e-8, atol=1e-10)
    assert any(float(found.abs().max()) > 1e-3 for found in taps.values())


@every_family
def test_taps_work_on_frozen_weights(family: str) -> None:
    model = tiny_model(family).requires_grad_(False)
    name, group = next((n, g) for n, g in model.unit_groups().items() if g.kind == "head")
    group.gates[0].tap = Tap(group.units)
    model.loss(tiny_batch()).sum().backward()
    assert group.gates[0].tap.gradient is not None, name
    assert group.gates[0].tap.gradient.shape == (4, group.units)


@every_family
def test_loss_falls_on_sines_in_a_few_steps(family: str) -> None:
    model = tiny_model(family, dropout_rate=0.0)
    values = torch.sin(torch.arange(80) / 4)[None] * torch.tensor([[1.0], [3.0], [0.5]]) + 2
    batch = Batch(values[:, :64], values[:, 64:])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = float(model.loss(batch).mean().detach())
    for _ in range(30):
        optimizer.zero_grad()
        model.loss(batch).mean().backward()
        optimizer.step()
    assert float(model.loss(batch).mean().detach()) < 0.6 * first


@every_family
def test_bfloat16_runs_and_stays_near_float32(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    exact = model.forecast(batch, 40)
    half = copy.deepcopy(model).to(torch.bfloat16)
    found = half.forecast(batch, 40)
    assert found.dtype == torch.float32
    assert float((found - exact).abs().mean()) < 0.1 * float(exact.std())
    half.loss(batch).mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in half.parameters() if p.grad is not None)


@every_family
def test_dropout_acts_in_training_and_never_in_a_forecast(family: str) -> None:
    model, batch = tiny_model(family, dropout_rate=0.3).train(), tiny_batch()
    assert not torch.equal(model.loss(batch), model.loss(batch))
    assert torch.equal(model.forecast(batch, 16), model.forecast(batch, 16))
    assert model.training


@every_family
def test_own_levels_come_back_bit_equal_and_others_lie_between(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    own = model.forecast(batch, 16)
    assert torch.equal(model.forecast(batch, 16, LEVELS), own)
    between = model.forecast(batch, 16, [0.01, 0.375])
    assert torch.equal(between[:, 0], own[:, 0])
    torch.testing.assert_close(between[:, 1], (own[:, 1] + own[:, 2]) / 2)


@every_family
def test_impossible_requests_are_refused(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    with pytest.raises(TspruneError, match="horizon is 0"):
        model.forecast(batch, 0)
    with pytest.raises(TspruneError, match="strictly between 0 and 1"):
        model.forecast(batch, 4, [1.0])
    with pytest.raises(TspruneError, match="no target"):
        model.loss(Batch(batch.context))
    with pytest.raises(TspruneError, match="17 steps is longer than the 16"):
        model.loss(Batch(batch.context, torch.zeros(4, 17)))


@every_family
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"d_model": None}, "d_model"),
        ({"d_kv": "six"}, "d_kv"),
        ({"quantiles": [0.5, 0.1]}, "quantiles"),
        ({"feed_forward_proj": "snake"}, "snake"),
        ({"feed_forward_proj": "half-gelu"}, "feed_forward_proj"),
        ({"input_patch_size": 0}, "input_patch_size"),
        ({"chronos_config": None}, "chronos_config"),
    ],
)
def test_a_config_entry_that_is_missing_or_impossible_is_named(family: str, change: dict[str, Any], named: str) -> None:
    config = tiny_config(family, **change) if "chronos_config" not in change else tiny_config(family) | change
    with pytest.raises(TspruneError, match=named):
        kind(family).from_config(config)


@every_family
def test_the_loss_of_a_window_is_the_mean_over_its_target_rows(family: str) -> None:
    model, batch = tiny_model(family), grouped_batch()
    if not model.capabilities.known_covariates:
        batch = replace(batch, future=None, is_target=None)
    rows = model.row_losses(batch)
    targets = [[0, 3], [2]] if batch.is_target is not None else [[0, 1, 3], [2, 4]]
    torch.testing.assert_close(model.loss(batch), torch.stack([rows[index].mean() for index in targets]))


def test_chronos_bolt_refuses_covariates_by_its_name() -> None:
    model, batch = tiny_model("chronos_bolt"), grouped_batch()
    for refused in (replace(batch, is_target=None), replace(batch, future=None)):
        with pytest.raises(TspruneError, match="chronos_bolt cannot use covariates"):
            model.forecast(refused, 8)
        with pytest.raises(TspruneError, match="chronos_bolt cannot use covariates"):
            model.loss(refused)


def test_chronos_2_mixes_the_rows_of_a_group_and_no_others() -> None:
    model, batch = tiny_model("chronos2"), tiny_batch(4)
    grouped = replace(batch, group_ids=torch.tensor([2, 2, 5, 9]))
    alone, mixed = model.forecast(batch, 16), model.forecast(grouped, 16)
    assert not torch.allclose(alone[:2], mixed[:2])
    torch.testing.assert_close(alone[2:], mixed[2:])
    order = torch.tensor([3, 1, 2, 0])
    shuffled = Batch(batch.context[order], group_ids=torch.tensor([9, 2, 5, 2]))
    torch.testing.assert_close(model.forecast(shuffled, 40), model.forecast(grouped, 40)[order], rtol=1e-4, atol=1e-3)


def test_chronos_2_known_future_of_a_covariate_changes_the_other_rows_of_its_group_only() -> None:
    model = tiny_model("chronos2")
    batch = replace(grouped_batch(), target=None)
    assert batch.future is not None
    plain = model.forecast(batch, 16)
    other = model.forecast(replace(batch, future=batch.future + 3), 16)
    changed = (plain - other).abs().amax((1, 2)) > 1e-4
    assert changed.tolist() == [True, True, False, True, False]
