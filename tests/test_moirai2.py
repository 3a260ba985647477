"""What only the second generation of Moirai promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tests.tiny import grouped_batch, tiny_batch, tiny_config, tiny_model, waves
from tsprune.data.batch import Batch
from tsprune.models.moirai2 import Moirai2


def model(**changes: Any) -> Moirai2:
    made = tiny_model("moirai2", **changes)
    assert isinstance(made, Moirai2)
    return made


def test_a_token_sees_nothing_of_later_patches() -> None:
    made = model()
    packed = made._windows(tiny_batch(), 16, teach=True).packed
    before, _, _ = made(packed)
    later = packed.time_id >= 4
    # Horizon values take no part in the scale.
    changed = replace(packed, values=packed.values + 9 * packed.predicted[..., None])
    after, _, _ = made(changed)
    shown = packed.predicted & later
    torch.testing.assert_close(after[~packed.predicted], before[~packed.predicted])
    assert not torch.allclose(after[shown], before[shown])


def test_the_loss_counts_every_forecast_of_a_target_patch() -> None:
    made, batch = model(), tiny_batch()
    windows = made._windows(batch, 16, teach=True)
    prediction, location, scale = made(windows.packed)
    values = ((windows.packed.values - location) / scale).detach().numpy()
    for row in range(4):
        total: list[float] = []
        tokens = windows.past + 2
        for source in range(tokens):
            for offset in (1, 2):
                target = source + offset
                live = windows.packed.sample_id[row, source] > 0
                if not windows.past <= target < tokens or not live:
                    continue
                for step in range(8):
                    if not windows.packed.observed[row, target, step]:
                        continue
                    error = values[row, target, step] - prediction[row, source, offset - 1, :, step].detach().numpy()
                    levels = np.array(made.levels)
                    total.append(float(np.maximum(levels * error, (levels - 1) * error).mean()))
        torch.testing.assert_close(
            float(made.row_losses(batch)[row].detach()), float(np.mean(total)), rtol=1e-4, atol=1e-6
        )


def test_by_squared_error_the_median_from_the_context_is_tuned() -> None:
    made, batch = model(), tiny_batch()
    windows = made._windows(batch, 16)
    _, _, scale = made(windows.packed)
    median = made.forecast(batch, 16, [0.5])[:, 0]
    made.objective = "mse"
    assert batch.target is not None
    error = ((median - batch.target) / scale[:, -1]).square().nanmean(-1)
    torch.testing.assert_close(made.row_losses(batch), error, rtol=1e-4, atol=1e-5)


def test_a_longer_forecast_begins_with_the_shorter_one() -> None:
    made, batch = model(), tiny_batch()
    long = made.forecast(batch, 45)
    for steps in (3, 16, 17, 40):
        torch.testing.assert_close(made.forecast(batch, steps), long[..., :steps])


def test_each_path_is_fed_back_on_its_own() -> None:
    """The third patch: quantiles of what every path forecasts once its first two patches stand as observed."""
    made, context = model(), waves(2, 48)
    first = made.forecast(Batch(context), 16)
    samples = []
    for path in range(9):
        longer = torch.cat([context, first[:, path]], dim=-1)
        samples.append(made.forecast(Batch(longer), 8))
    pooled = torch.cat(samples, dim=1)
    expected = torch.quantile(pooled, torch.tensor(made.levels), dim=1).transpose(0, 1)
    torch.testing.assert_close(made.forecast(Batch(context), 24)[..., 16:], expected, rtol=1e-4, atol=1e-3)


def test_gaps_are_shown_to_the_network_as_such() -> None:
    made, context = model(), waves(1, 48)
    gap = context.clone()
    gap[0, 30:34] = torch.nan
    mean = gap.clone()
    mean[0, 30:34] = (context[0, :30].sum() + context[0, 29] * torch.arange(4)) / (30 + torch.arange(4))
    packed = [made._windows(Batch(x), 8).packed for x in (gap, mean)]
    torch.testing.assert_close(packed[0].values[:, :6], packed[1].values[:, :6])
    assert int((packed[0].observed != packed[1].observed).sum()) == 4
    assert not torch.allclose(made.forecast(Batch(gap), 8), made.forecast(Batch(mean), 8))


def test_a_context_that_fills_no_patch_follows_shifts_of_the_series() -> None:
    made, context = model(), waves(2, 45)
    moved = made.forecast(Batch(context + 300), 16)
    torch.testing.assert_close(moved, made.forecast(Batch(context), 16) + 300, rtol=0, atol=1e-2)


def test_past_covariates_reach_the_targets_of_their_window() -> None:
    made, batch = model(), replace(grouped_batch(), future=None, target=None)
    plain = made.forecast(batch, 16)
    context = batch.context.clone()
    context[4] = context[4] ** 2
    changed = made.forecast(replace(batch, context=context), 16)
    assert ((plain - changed).abs().amax((1, 2)) > 1e-4).tolist() == [False, False, True, False, True]


def test_without_a_chosen_context_it_is_2048_steps_or_what_fits() -> None:
    config = {name: value for name, value in tiny_config("moirai2").items() if name != "context_length"}
    assert Moirai2.from_config(config | {"max_seq_len": 512, "patch_size": 16}).context_length == 2048
    assert Moirai2.from_config(config | {"max_seq_len": 20}).context_length == 18 * 8
