"""Windows as packed tokens: their layout, their statistics, and the way back to rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.tiny import grouped_batch, tiny_batch, waves
from tsprune.blocks.patchsizes import PatchSizeLinear, chosen_sizes
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._packedwindows import (
    PATHS,
    PackedWindows,
    all_rows,
    by_paths,
    causal_mean_fill,
    pack_windows,
    pooled_quantiles,
    zero_fill,
)
from tsprune.models._packing import Packed, packed_scale

NAN = torch.nan


def packed(batch: Batch, ahead: int = 2, *, size: int = 8, limit: int = 64, teach: bool = False) -> PackedWindows:
    return pack_windows(batch, size, 16, limit=limit, fill=zero_fill, ahead=ahead, teach=teach)


def series_of(windows: PackedWindows, window: int, variate: int) -> Tensor:
    """Token numbers of one series, in order of time."""
    tokens = windows.packed
    own = (tokens.variate_id[window] == variate).nonzero().flatten()
    return own[tokens.time_id[window, own].argsort(stable=True)]


def test_a_series_lies_in_patches_filled_on_the_left_and_marked_where_observed() -> None:
    batch = Batch(torch.tensor([[1.0, NAN, 3.0, 4.0, 5.0]]))
    windows = pack_windows(batch, 2, 3, limit=64, fill=zero_fill, ahead=1)
    tokens = windows.packed
    assert tokens.values[0].tolist() == [[0, 1, 0], [0, 3, 0], [4, 5, 0], [0, 0, 0]]
    assert tokens.observed[0].int().tolist() == [[0, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert tokens.predicted[0].tolist() == [False, False, False, True]
    assert tokens.time_id[0].tolist() == [0, 1, 2, 3]
    assert tokens.sample_id[0].tolist() == [1, 1, 1, 1]
    assert tokens.patch_size[0].tolist() == [2, 2, 2, 2]


def test_time_counts_from_the_first_observed_patch_and_what_lies_before_is_padding() -> None:
    batch = Batch(torch.tensor([[NAN, NAN, NAN, NAN, NAN, 6.0, 7.0, NAN]]))
    tokens = pack_windows(batch, 2, 2, limit=64, fill=zero_fill, ahead=2).packed
    assert tokens.sample_id[0].tolist() == [0, 0, 1, 1, 1, 1]
    assert tokens.time_id[0].tolist() == [0, 0, 0, 1, 2, 3]


def test_a_window_has_a_row_with_targets_first_then_known_then_past_covariates() -> None:
    batch = grouped_batch()
    windows = packed(batch)
    tokens = windows.packed
    past, ahead = windows.past, windows.ahead
    assert len(tokens.values) == 2
    assert windows.rows.tolist() == [0, 2, 3]
    # Two places for targets, one for a known covariate, one for a past covariate, which has no future.
    assert tokens.values.shape[1] == 2 * (past + ahead) + (past + ahead) + past
    # The second window has one target, its place for another is padding.
    assert tokens.sample_id[0][tokens.variate_id[0] == 1].gt(0).any()
    assert tokens.sample_id[1][tokens.variate_id[1] == 1].eq(0).all()
    known = series_of(windows, 0, 2)[-ahead:]
    assert batch.future is not None
    torch.testing.assert_close(tokens.values[0, known, :8].flatten(), batch.future[1])
    assert tokens.observed[0, known, :8].all()
    assert not tokens.predicted[0, known].any()


def test_tokens_of_targets_come_back_row_by_row() -> None:
    batch = replace(tiny_batch(5, length=40), group_ids=torch.tensor([7, 7, 3, 7, 3]))
    windows = packed(batch, teach=True)
    target = windows.horizon(windows.packed.values)[..., :8].flatten(1)
    assert batch.target is not None
    torch.testing.assert_close(target, torch.nan_to_num(batch.target)[windows.rows])
    last = windows.last(windows.packed.values)[:, :8]
    torch.testing.assert_close(last, torch.nan_to_num(batch.context[:, -8:])[windows.rows])
    torch.testing.assert_close(windows.recent(windows.packed.values, 3)[:, -1, :8], last)


def test_statistics_are_those_of_each_series_without_its_horizon_and_gaps() -> None:
    draw = torch.Generator().manual_seed(0)
    values = 3 + 2 * torch.randn(2, 9, 4, generator=draw)
    observed = torch.rand(2, 9, 4, generator=draw) < 0.8
    sample = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 0]])
    variate = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 3, 3, 3, 3, 0]])
    predicted = torch.zeros(2, 9, dtype=torch.bool)
    predicted[0, 1] = predicted[1, 3] = predicted[1, 7] = True
    tokens = Packed(values, observed, sample, sample * 0, variate, predicted, sample * 0 + 4)
    location, scale = packed_scale(tokens)
    for row in range(2):
        for token in range(9):
            if sample[row, token] == 0:
                assert location[row, token] == 0
                assert scale[row, token] == 1
                continue
            own = (sample[row] == sample[row, token]) & (variate[row] == variate[row, token]) & ~predicted[row]
            seen = values[row][own[:, None] & observed[row]].double()
            torch.testing.assert_close(location[row, token, 0], seen.mean())
            torch.testing.assert_close(scale[row, token, 0], (seen.var() + 1e-5).sqrt())


def test_a_series_of_one_value_and_one_of_none_have_a_scale() -> None:
    tokens = packed(Batch(torch.tensor([[NAN, 5.0], [NAN, NAN]]))).packed
    location, scale = packed_scale(tokens)
    assert location[:, -1, 0].tolist() == [5, 0]
    torch.testing.assert_close(scale[:, -1, 0], torch.full((2,), 1e-5, dtype=torch.float64).sqrt())


def test_missing_values_become_the_mean_of_what_came_before() -> None:
    x = torch.tensor([[NAN, NAN, 2.0, NAN, NAN, 8.0, NAN], [NAN] * 7, [1.0, 2, 3, 4, 5, 6, 7]])
    filled = causal_mean_fill(x)
    # Gaps count as their last value: 2, 2, 2 and 8 come before the last one.
    assert filled[0].tolist() == [2, 2, 2, 2, 2, 8, 3.5]
    assert filled[1].tolist() == [0] * 7
    assert torch.equal(filled[2], x[2])
    assert torch.equal(causal_mean_fill(x[:1, 2:]), filled[:1, 2:])


def test_every_patch_size_has_a_map_of_its_own_whose_bias_reaches_everywhere() -> None:
    torch.manual_seed(0)
    linear = PatchSizeLinear([2, 3], [4, 5])
    with torch.no_grad():
        linear.weight.normal_()
        linear.bias.normal_()
    x = torch.randn(1, 4, 3)
    sizes = torch.tensor([[10, 20, 10, 0]])
    out = linear(x, chosen_sizes(sizes, [10, 20]))
    small = torch.cat([linear.weight[0, :4, :2] @ x[0, 0, :2], torch.zeros(1)]) + linear.bias[0]
    large = linear.weight[1] @ x[0, 1] + linear.bias[1]
    torch.testing.assert_close(out[0, 0], small)
    torch.testing.assert_close(out[0, 1], large)
    assert out[0, 3].eq(0).all()
    alone = linear(x[:, :1], chosen_sizes(sizes[:, :1], [10, 20]))
    torch.testing.assert_close(alone, out[:, :1])


def test_a_target_with_known_future_values_is_refused() -> None:
    batch = grouped_batch()
    with pytest.raises(TspruneError, match="row 1 of the batch is a target and has known future values"):
        packed(replace(batch, is_target=None))


def test_covariates_keep_what_is_known_of_them_and_else_their_mean() -> None:
    batch = grouped_batch()
    assert batch.future is not None
    found = all_rows(batch, torch.tensor([0, 2, 3]), torch.zeros(3, 9, 20))
    torch.testing.assert_close(found[1, :, :16], batch.future[1].expand(9, -1))
    mean = batch.context.nanmean(-1)
    torch.testing.assert_close(found[1, :, 16:], mean[1].expand(9, 4))
    torch.testing.assert_close(found[4], mean[4].expand(9, 20))
    assert found[[0, 2, 3]].eq(0).all()


def test_a_long_forecast_feeds_back_ten_paths_and_pools_them() -> None:
    """With forecasts that only move the last value by their level, the pool of all paths is known."""
    seen: list[Batch] = []

    def block(batch: Batch, steps: int, levels: Sequence[float]) -> Tensor:
        seen.append(batch)
        moved = batch.context[:, -1:] + torch.tensor(list(levels)) - 0.5
        return moved[..., None].expand(-1, -1, steps).clone()

    batch = replace(grouped_batch(), is_target=torch.tensor([True, False, True, True, True]))
    found = by_paths(batch, 11, 4, [0.1, 0.5, 0.9], block)
    assert found.shape == (5, 3, 11)
    start, targets = batch.context[:, -1], torch.tensor([0, 2, 3, 4])
    torch.testing.assert_close(found[targets, :, 0], start[targets, None] + torch.tensor([-0.4, 0.0, 0.4]))
    for step, moves in ((4, 2), (8, 3)):
        # The sum of uniform moves has no bias, and about the spread that it has in the limit of many paths.
        torch.testing.assert_close(found[targets, 1, step], start[targets], rtol=0, atol=1e-4)
        above, below = found[targets, 2, step] - start[targets], start[targets] - found[targets, 0, step]
        torch.testing.assert_close(above, below, rtol=0, atol=1e-4)
        draws = torch.rand(moves, 100_000, generator=torch.Generator().manual_seed(0)).sum(0) - moves / 2
        torch.testing.assert_close(above, draws.quantile(0.9).expand(4), rtol=0.05, atol=0)
    longer = seen[1]
    assert longer.context.shape == (50, batch.context.shape[1] + 4)
    assert longer.group_ids is not None
    assert len(longer.group_ids.unique()) == 20
    # The known covariate is fed what was known of it, in every path, and keeps what is known beyond.
    assert batch.future is not None
    assert longer.future is not None
    for path, level in enumerate(PATHS):
        torch.testing.assert_close(longer.context[10 + path, -4:], batch.future[1, :4])
        torch.testing.assert_close(longer.future[10 + path], batch.future[1, 4:])
        torch.testing.assert_close(longer.context[path, -4:], (start[0] + level - 0.5).expand(4))


def test_what_is_not_known_of_a_covariate_is_missing_in_a_long_forecast() -> None:
    seen: list[Batch] = []

    def block(batch: Batch, steps: int, levels: Sequence[float]) -> Tensor:
        seen.append(batch)
        return torch.zeros(batch.rows, len(levels), steps)

    by_paths(grouped_batch(), 8, 4, [0.5], block)
    fed = seen[1].context.view(5, 10, -1)[..., -4:]
    assert torch.isnan(fed[4]).all()
    assert fed[[0, 2, 3]].eq(0).all()


def test_pooled_quantiles_of_evenly_spread_samples_are_their_levels() -> None:
    samples = (torch.arange(100)[torch.randperm(100)] + 0.5)[None, :, None] / 100
    levels = [0.001, 0.1, 0.25, 0.5, 0.77, 0.999]
    found = pooled_quantiles(samples, levels)[0, :, 0]
    torch.testing.assert_close(found, torch.tensor(levels).clamp(0.005, 0.995))


def test_context_beyond_the_limit_is_cut() -> None:
    context = waves(1, 100)
    tokens = packed(Batch(context), limit=32).packed
    assert tokens.values.shape[1] == 4 + 2
    torch.testing.assert_close(tokens.values[0, :4, :8].flatten(), context[0, -32:])
