"""What only Timer-XL and Timer-84M promise, and the family's contract for its second layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import test_families as contract
from tests.families import timer_xl as facts
from tests.tiny import tiny_batch, tiny_config, tiny_model, waves
from tsprune.blocks.variates import one_sequence
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._timer import TokenDecoder
from tsprune.models.timer_xl import Timer, Timer84M, TimerXL

F = "timer_xl"
HUB = facts.HUB_FAMILY


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models of the family are those of the hub's layout."""
    monkeypatch.setattr(facts, "FAMILY", HUB)


def xl(seed: int = 0, **changes: Any) -> TimerXL:
    model = tiny_model(F, seed, **changes)
    assert isinstance(model, TimerXL)
    return model


def hub_model(**changes: Any) -> Timer84M:
    torch.manual_seed(0)
    model = Timer.from_config(facts.hub_config() | changes)
    assert isinstance(model, Timer84M)
    return model.eval()


PROMISES: list[Callable[[str], None]] = [
    contract.test_rows_of_different_length_in_one_batch_equal_each_row_alone,
    contract.test_only_the_last_context_length_steps_matter,
    contract.test_forecasts_follow_shift_and_scale_of_the_series,
    contract.test_masks_that_keep_everything_change_no_bit,
    contract.test_every_unit_matters_when_masked_and_comes_back_afterwards,
    contract.test_the_cost_of_a_unit_is_what_the_model_loses_with_it,
    contract.test_tensors_go_to_the_public_layout_and_back,
    contract.test_deep_copies_are_independent,
    contract.test_taps_work_on_frozen_weights,
    contract.test_loss_falls_on_sines_in_a_few_steps,
    contract.test_bfloat16_runs_and_stays_near_float32,
    contract.test_own_levels_come_back_bit_equal_and_others_lie_between,
    contract.test_impossible_requests_are_refused,
    contract.test_what_a_family_cannot_use_is_refused_by_its_name,
    contract.test_rows_of_a_group_inform_each_other_where_the_family_says_so_and_no_others,
    contract.test_the_loss_of_a_window_is_the_mean_over_its_target_rows,
    contract.test_a_config_of_the_family_is_recognised_by_it_alone,
]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_the_hub_layout_keeps(promise: Callable[[str], None]) -> None:
    promise(F)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("seed", range(3))
def test_a_slim_model_of_the_hub_layout_equals_its_mask_and_reloads(seed: int, tmp_path: Path) -> None:
    contract.test_a_slim_model_equals_its_mask_and_reloads_bit_equal(F, seed, tmp_path)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("length", "horizon"), [(1, 1), (5, 3), (44, 16), (200, 17), (64, 50)])
def test_the_hub_layout_takes_any_context_and_any_horizon(length: int, horizon: int) -> None:
    contract.test_any_context_and_any_horizon_give_finite_quantiles_of_that_shape(F, length, horizon)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("grouped", [False, True])
def test_gate_gradients_of_the_hub_layout_equal_those_of_explicit_gates(grouped: bool) -> None:
    contract.test_tapped_gate_gradients_equal_those_of_explicit_gates_window_by_window(F, grouped)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("changes", [{}, *HUB.variants])
def test_rows_and_gaps_of_the_hub_layout_do_not_leak(changes: dict[str, Any]) -> None:
    contract.test_missing_values_never_leak_into_forecast_loss_or_gradient(F, changes)
    contract.test_rows_side_by_side_equal_each_row_alone(F, changes)


@pytest.mark.parametrize(("change", "named"), HUB.bad)
def test_an_impossible_entry_of_the_hub_layout_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(TspruneError, match=named):
        Timer84M.from_config(facts.hub_config() | change)


def test_dropout_of_the_hub_layout_acts_in_training_only() -> None:
    model, batch = hub_model(**HUB.dropout).train(), tiny_batch()
    assert not torch.equal(model.loss(batch), model.loss(batch))
    assert torch.equal(model.forecast(batch, 16), model.forecast(batch, 16))


# Which layout.


def test_the_config_decides_the_layout_and_other_models_are_not_taken() -> None:
    open_config, hub_config = facts.config(), facts.hub_config()
    assert isinstance(Timer.from_config(open_config), TimerXL)
    assert isinstance(Timer.from_config(hub_config), Timer84M)
    bare = {name: value for name, value in hub_config.items() if name not in ("architectures", "model_type")}
    assert Timer.recognises(bare)
    assert Timer.recognises(open_config | {"model": "timer_xl"})
    assert not Timer.recognises(open_config | {"model": "timer"})
    assert not Timer.recognises(bare | {"model_type": "sundial"})
    assert not Timer.recognises(bare | {"architectures": ["SundialForPrediction"]})
    assert not Timer.recognises({name: value for name, value in open_config.items() if name != "input_token_len"})


def test_a_named_config_without_its_sizes_is_recognised_and_the_missing_size_named() -> None:
    for name, missing in (("timer_xl", "output_token_len"), ("timer", "output_token_lens")):
        assert Timer.recognises({"model_type": name})
        with pytest.raises(TspruneError, match=missing):
            Timer.from_config({"model_type": name})


def test_public_feed_forward_maps_are_convolutions_and_flat_ones_are_read_too() -> None:
    model = xl()
    public = model.tensors_to_public()
    name = "blocks.attn_layers.1.conv2.weight"
    assert public[name].shape == (16, 24, 1)
    flat = model.tensors_from_public(public | {name: public[name][..., 0]})
    assert torch.equal(flat[model.names.ours(name)], public[name][..., 0])


def test_every_activation_but_relu_is_gelu_as_in_the_original_code() -> None:
    batch = tiny_batch()
    named = {name: xl(activation=name).forecast(batch, 16) for name in ("relu", "gelu", "silu")}
    assert torch.equal(named["silu"], named["gelu"])
    assert not torch.equal(named["relu"], named["gelu"])


def test_a_hidden_width_of_null_is_four_times_the_model_width() -> None:
    groups = xl(d_ff=None).unit_groups()
    assert groups["blocks.attn_layers.0.layer.1.feed_forward/ffn_channel"].units == 64


# The sequence of a window.


@pytest.mark.parametrize("covariate", [False, True])
def test_who_sees_whom_in_one_sequence_follows_the_definition(covariate: bool) -> None:
    live = torch.tensor([[[1, 1, 1], [0, 1, 1], [1, 1, 1]], [[0, 1, 1], [0, 0, 1], [0, 0, 0]]]).bool()
    readers = torch.tensor([[False, False, True], [False, True, False]])
    found = one_sequence(live, readers if covariate else None)
    assert found.mask is not None and found.same is not None and not found.causal
    positions = found.positions.expand(2, -1)
    for window in range(2):
        own = int(live[window].any(0).sum())
        for query in range(9):
            (v, t), (u, s) = divmod(query, 3), (0, 0)
            if live[window, v, t]:
                assert int(positions[window, query]) == v * own + t - (3 - own)
            for key in range(9):
                u, s = divmod(key, 3)
                seen = s <= t
                if covariate:
                    reads = bool(readers[window, v]) and not bool(readers[window, u])
                    seen = reads or (v == u and s <= t)
                expected = query == key or (seen and bool(live[window, u, s]))
                assert bool(found.mask[window, 0, query, key]) == expected, (window, query, key)
                assert int(found.same[query, key]) == (u == v)


def test_a_single_whole_series_needs_no_mask_and_no_biases() -> None:
    found = one_sequence(torch.ones(2, 1, 5, dtype=torch.bool))
    assert found.causal
    assert found.mask is None
    assert found.same is None


def windows_of(*sizes: int, ragged: bool = False, horizon: int = 16) -> list[Batch]:
    """Windows of so many series each, the last of each a target, the others its covariates where there are several."""
    found = []
    for number, size in enumerate(sizes):
        values = waves(size, 56 + horizon, seed=number)
        context, target = values[:, :56].clone(), values[:, 56:].clone()
        if ragged:
            context[:, : 13 * number] = torch.nan
            context[0, : 13 * number + 9] = torch.nan
        is_target = torch.arange(size) == size - 1
        target[~is_target] = torch.nan
        found.append(Batch(context, target, torch.full((size,), 9 - number), is_target=is_target))
    return found


def together(batches: list[Batch]) -> Batch:
    """All rows in one batch, the rows of the windows mixed."""
    names = ("context", "target", "group_ids", "is_target")
    rows = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
    order = torch.randperm(len(rows["group_ids"]), generator=torch.Generator().manual_seed(3))
    return Batch(**{name: value[order] for name, value in rows.items()})


def by_window(batch: Batch, values: Tensor, group: int) -> Tensor:
    assert batch.group_ids is not None
    return values[batch.group_ids == group]


@pytest.mark.parametrize("covariate", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_windows_of_different_size_and_length_in_one_batch_equal_each_alone(covariate: bool, ragged: bool) -> None:
    model = xl(covariate=covariate).double()
    alone = windows_of(3, 1, 2, ragged=ragged)
    mixed = together(alone)
    forecast, losses = model.forecast(mixed, 40), model.row_losses(mixed)
    assert len(model.network_windows(mixed)) == 3
    for number, batch in enumerate(alone):
        # The order of the series counts, so a window alone has its rows in the order of the mixed batch.
        rows = by_window(mixed, torch.arange(mixed.rows), 9 - number)
        names = ("context", "target", "group_ids", "is_target")
        own = Batch(**{name: getattr(mixed, name)[rows] for name in names})
        assert own.rows == batch.rows
        torch.testing.assert_close(forecast[rows], model.forecast(own, 40), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(losses[rows], model.row_losses(own), rtol=1e-5, atol=1e-6)


def test_groups_of_one_row_equal_rows_without_groups() -> None:
    model, batch = xl(), tiny_batch()
    grouped = replace(batch, group_ids=torch.tensor([4, 2, 9, 1]))
    assert torch.equal(model.forecast(grouped, 24), model.forecast(batch, 24))
    torch.testing.assert_close(model.loss(grouped), model.loss(batch))


def changed(batch: Batch, row: int, steps: slice) -> Batch:
    context = batch.context.clone()
    context[row, steps] += 3 * torch.sin(torch.arange(context.shape[1])[steps].float())
    return replace(batch, context=context)


def test_in_covariate_mode_the_target_alone_sees_the_others_also_their_later_tokens() -> None:
    (batch,) = windows_of(3)
    model = xl(covariate=True)
    before = model.forecast(batch, 16)
    after = model.forecast(changed(batch, 0, slice(None)), 16)
    assert not torch.allclose(after[2], before[2])
    torch.testing.assert_close(after[1], before[1])
    after = model.forecast(changed(batch, 2, slice(None)), 16)
    torch.testing.assert_close(after[:2], before[:2])


@pytest.mark.parametrize("covariate", [False, True])
def test_only_a_target_of_covariate_mode_sees_later_tokens_of_other_series(covariate: bool) -> None:
    (batch,) = windows_of(3)
    model = xl(covariate=covariate)
    windows = model.windows(batch)
    past = model.read(batch.context)
    later = past.tokens.clone()
    later[0, -1] += 1.0
    before, after = model.states(past, windows), model.states(replace(past, tokens=later), windows)
    assert torch.allclose(before[2, :-1], after[2, :-1]) != covariate
    assert torch.allclose(before[1], after[1], atol=1e-5) == covariate
    torch.testing.assert_close(before[0, :-1], after[0, :-1])


def test_in_covariate_mode_without_named_targets_the_last_row_is_the_target() -> None:
    (batch,) = windows_of(3)
    model = xl(covariate=True)
    named = model.forecast(batch, 16)
    assert torch.equal(model.forecast(replace(batch, is_target=None), 16), named)
    assert torch.equal(model.forecast(replace(batch, is_target=torch.ones(3, dtype=torch.bool)), 16), named)


def test_in_covariate_mode_every_target_of_a_window_reads_the_covariates_and_no_other_target() -> None:
    (batch,) = windows_of(4)
    batch = replace(batch, target=None, is_target=torch.tensor([True, False, True, False]))
    model = xl(covariate=True)
    before = model.forecast(batch, 16)
    after = model.forecast(changed(batch, 1, slice(None)), 16)
    assert not torch.allclose(after[0], before[0])
    assert not torch.allclose(after[2], before[2])
    after = model.forecast(changed(batch, 0, slice(None)), 16)
    torch.testing.assert_close(after[1:], before[1:])


def test_biases_between_series_matter_in_windows_of_several_series_only() -> None:
    model = xl()
    (batch,) = windows_of(2)
    alone = replace(batch, group_ids=None, is_target=None)
    before = model.forecast(alone, 16), model.forecast(batch, 16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("relative_attention_bias.weight"):
                parameter[0] += 2.0
    after = model.forecast(alone, 16), model.forecast(batch, 16)
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1])


# Tokens, statistics, loss.


@pytest.mark.parametrize("model", [xl(), hub_model()], ids=["open", "hub"])
def test_a_ragged_context_loses_its_oldest_values(model: TokenDecoder) -> None:
    context = waves(2, 45)
    moved = context.clone()
    moved[:, :5] = 1e3
    assert torch.equal(model.forecast(Batch(context), 40), model.forecast(Batch(context[:, 5:]), 40))
    assert torch.equal(model.forecast(Batch(moved), 40), model.forecast(Batch(context), 40))


def test_a_history_shorter_than_a_token_has_its_mean_in_front() -> None:
    past = xl().read(torch.tensor([[1.0, 2.0, 6.0]]))
    assert past.live.tolist() == [[True]]
    spread = (14 / 3) ** 0.5
    expected = torch.tensor([0, 0, 0, 0, 0, -2 / spread, -1 / spread, 3 / spread])
    torch.testing.assert_close(past.tokens[0, 0], expected)


def test_the_hub_layout_divides_by_the_deviation_of_a_sample() -> None:
    values = waves(2, 40)
    past = hub_model().read(values)
    torch.testing.assert_close(past.scale.scale, values.std(-1, keepdim=True))
    torch.testing.assert_close(xl().read(values).scale.scale, values.std(-1, unbiased=False, keepdim=True))


def test_forecasts_of_timer_xl_are_those_of_the_original_rule_for_series_of_unit_size() -> None:
    model = xl(output_token_len=8)
    values = waves(3, 48)
    values = (values - values.mean(-1, keepdim=True)) / values.std(-1, unbiased=False, keepdim=True)
    given = facts.XL().forward(model, {"x": values.T[None]}, {})["forecast"][0].T
    batch = Batch(values, group_ids=torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(model.forecast(batch, 8)[:, 0], given, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [[8], [8, 16], [4, 8, 16]])
def test_forecasts_of_the_hub_layout_are_those_of_the_original_generation(lengths: list[int]) -> None:
    model = hub_model(output_token_lens=lengths, max_position_embeddings=100)
    given = facts.Hub().rollout(model, {"context": waves(3, 45)}, {"max_new_tokens": 24})["generate"]
    torch.testing.assert_close(model.forecast(Batch(waves(3, 45)), 24)[:, 0], given, rtol=1e-4, atol=1e-4)


def test_the_head_is_the_longest_that_does_not_overshoot_else_the_first() -> None:
    model = hub_model(output_token_lens=[4, 8, 16])
    assert [model.lengths[model.head_for(steps)] for steps in (1, 4, 7, 8, 15, 16, 99)] == [4, 4, 4, 8, 8, 16, 16]


def test_forecasts_join_the_context_and_its_statistics() -> None:
    for model in (xl(), hub_model(output_token_lens=[16])):
        batch = Batch(waves(2, 40))
        first = model.forecast(batch, 16)
        more = Batch(torch.cat([batch.context, first[:, 0]], dim=1))
        expected = torch.cat([first, model.forecast(more, 16)], dim=-1)
        torch.testing.assert_close(model.forecast(batch, 32), expected)


def brute_loss(model: TokenDecoder, row: Tensor, target: Tensor, *, last_only: bool) -> float:
    """The loss of one row without gaps in its context, value by value."""
    size = model.patch
    row = row[len(row) % size :]
    count = len(row) // size
    past = model.read(row[None])
    hidden = model.states(past, None)[0].detach()
    series = torch.cat([row, target])
    means = []
    for head, length in zip(model.network.heads, model.lengths, strict=True):
        errors = []
        for token in range(count - 1 if last_only else 0, count):
            given = head(hidden[token]).detach() * past.scale.scale[0, 0] + past.scale.location[0, 0]
            for step in range(length):
                place = (token + 1) * size + step
                if place < len(series) and not torch.isnan(series[place]):
                    errors.append(float(((given[step] - series[place]) / past.scale.scale[0, 0]) ** 2))
        if errors:
            means.append(sum(errors) / len(errors))
    return sum(means) / len(means)


@pytest.mark.parametrize("objective", ["own", "mse"])
@pytest.mark.parametrize("make", [xl, hub_model], ids=["open", "hub"])
def test_the_loss_is_the_mean_squared_error_of_all_next_values_or_of_the_target(
    make: Callable[[], TokenDecoder], objective: str
) -> None:
    model = make().double()
    model.objective = objective
    context, target = waves(2, 45).double(), waves(2, 60, seed=3)[:, :11].double()
    target[0, 3:5] = torch.nan
    losses = model.row_losses(Batch(context, target))
    expected = [brute_loss(model, context[row], target[row], last_only=objective == "mse") for row in range(2)]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_a_gap_in_the_context_is_filled_but_never_a_label() -> None:
    model = xl()
    context, target = waves(1, 40), waves(1, 16, seed=2)
    context[0, 21:24] = torch.nan
    filled = context.clone()
    filled[0, 20:25] = torch.lerp(context[0, 20], context[0, 24], torch.linspace(0, 1, 5))
    torch.testing.assert_close(model.forecast(Batch(context), 16), model.forecast(Batch(filled), 16))
    past, whole = model.read(context), model.read(filled)
    torch.testing.assert_close(past.tokens, whole.tokens)
    assert int(torch.isnan(past.observed).sum()) == 3
    losses = [model.loss(Batch(given, target)).detach() for given in (context, filled)]
    assert not torch.allclose(losses[0], losses[1])


def test_without_normalisation_the_network_sees_the_values_as_they_are() -> None:
    model = xl(use_norm=False)
    values = waves(2, 40)
    assert torch.equal(model.read(values).tokens.flatten(1), values)
    hidden = model.states(model.read(values), None)[:, -1]
    torch.testing.assert_close(model.forecast(Batch(values), 16)[:, 0], model.head(hidden).detach())


def test_configs_say_how_long_a_context_may_be() -> None:
    assert xl(seq_len=67).context_length == 64
    assert Timer.from_config(tiny_config(F) | {"seq_len": None}).context_length == 2880
    assert hub_model(max_position_embeddings=10000).context_length == 2880


def test_a_jump_after_a_constant_past_weighs_as_much_as_its_size() -> None:
    model = tiny_model("timer_xl")
    context = torch.full((3, 64), 2.0)
    context[1] = 0.0
    context[2] = waves(1, 64)[0]
    target = torch.full((3, 16), 3.0)
    losses = model.row_losses(Batch(context, target))
    assert bool(torch.isfinite(losses).all())
    assert float(losses.detach().max()) < 100
