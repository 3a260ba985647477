"""What only the first generation of Moirai promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.families import _packed
from tests.tiny import grouped_batch, tiny_batch, tiny_config, tiny_model, waves
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models.moirai import Moirai


def model(seed: int = 0, **changes: Any) -> Moirai:
    made = tiny_model("moirai", seed, **changes)
    assert isinstance(made, Moirai)
    return made


def test_samples_packed_into_one_row_do_not_see_each_other() -> None:
    made = model()
    one, two = (made._windows(Batch(waves(1, 48, seed)), 16, 8).packed for seed in (0, 1))
    names = ("values", "observed", "sample_id", "time_id", "variate_id", "predicted", "patch_size")
    joined = {name: torch.cat([getattr(one, name), getattr(two, name)], dim=1) for name in names}
    joined["sample_id"] = torch.cat([one.sample_id, two.sample_id * 2], dim=1)
    together = made(type(one)(**joined))[0]
    for name, value in together.items():
        alone = torch.cat([made(one)[0][name], made(two)[0][name]], dim=1)
        torch.testing.assert_close(value, alone, rtol=1e-4, atol=1e-5)


def test_the_order_of_series_in_a_window_does_not_matter() -> None:
    made, batch = model(), grouped_batch()
    order = torch.tensor([4, 2, 3, 1, 0])
    assert batch.group_ids is not None
    assert batch.future is not None
    assert batch.is_target is not None
    shuffled = Batch(batch.context[order], None, batch.group_ids[order], batch.future[order], batch.is_target[order])
    torch.testing.assert_close(made.forecast(shuffled, 20), made.forecast(batch, 20)[order], rtol=1e-3, atol=1e-3)


def test_windows_with_different_numbers_of_series_equal_each_window_alone() -> None:
    made, batch = model(), grouped_batch()
    together, losses = made.forecast(batch, 16), made.row_losses(batch)
    for rows in ([0, 1, 3], [2, 4]):
        parts = {name: getattr(batch, name)[rows] for name in ("context", "target", "group_ids", "future", "is_target")}
        torch.testing.assert_close(made.forecast(Batch(**parts), 16), together[rows], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(made.row_losses(Batch(**parts)), losses[rows])


def test_covariates_change_the_targets_of_their_window_only() -> None:
    made, batch = model(), replace(grouped_batch(), target=None)
    assert batch.future is not None
    plain = made.forecast(batch, 16)
    known = made.forecast(replace(batch, future=batch.future * torch.linspace(0.5, 1.5, 16)), 16)
    assert ((plain - known).abs().amax((1, 2)) > 1e-4).tolist() == [True, True, False, True, False]
    context = batch.context.clone()
    context[4] = context[4] ** 2
    past = made.forecast(replace(batch, context=context), 16)
    assert ((plain - past).abs().amax((1, 2)) > 1e-4).tolist() == [False, False, True, False, True]


def test_quantiles_are_those_of_the_mixture() -> None:
    made, batch = model().double(), tiny_batch()
    batch = replace(batch, context=batch.context.double())
    mixture, _, scale = made._mixture(made._windows(batch, 16, 8), 16, 8)
    found = made.forecast(batch, 16)
    for number, level in enumerate(made.levels):
        # The cdf jumps where counts begin.
        assert (mixture.cdf(found[:, number] + 1e-9 * scale) >= level).all()
        assert (mixture.cdf(found[:, number] - 1e-9 * scale) <= level).all()
    drawn = mixture.sample(torch.rand(4000, generator=torch.Generator().manual_seed(0)))
    spread = float(found[:, -1].sub(found[:, 0]).mean())
    assert float((drawn.quantile(0.5, dim=0) - found[:, 4]).abs().mean()) < 0.05 * spread


def test_the_loss_is_the_packed_loss_but_for_the_scale() -> None:
    made, batch = model(), tiny_batch()
    windows = made._windows(replace(batch, target=None), 16, 8)
    packed = windows.packed
    parameters, location, scale = made(packed)
    values, observed = packed.values.clone(), packed.observed.clone()
    assert batch.target is not None
    values[:, -2:, :8] = torch.nan_to_num(batch.target).view(4, 2, 8)
    observed[:, -2:, :8] = ~torch.isnan(batch.target).view(4, 2, 8)
    log_prob, _ = _packed.measured(made, parameters, location, scale, values)
    whole = _packed.packed_mean(-log_prob, observed & packed.predicted[..., None], packed)
    torch.testing.assert_close(made.row_losses(batch).mean() + scale[:, -1, 0].log().mean(), whole)


def test_by_squared_error_the_predictive_mean_is_tuned_on_the_scale_of_the_series() -> None:
    made, batch = model(), tiny_batch()
    mixture, _, scale = made._mixture(made._windows(batch, 16, 8), 16, 8)
    made.objective = "mse"
    assert batch.target is not None
    error = ((mixture.mean - batch.target) / scale).square().nanmean(-1)
    torch.testing.assert_close(made.row_losses(batch), error)
    moved = replace(batch, context=batch.context * 10, target=batch.target * 10)
    torch.testing.assert_close(made.row_losses(moved), error, rtol=1e-3, atol=1e-3)


def test_without_a_chosen_patch_size_the_one_nearest_to_32_is_taken() -> None:
    for sizes, expected in (([8, 16, 32, 64, 128], 32), ([8, 16], 16), ([64, 128], 64), ([16, 64], 16)):
        changes = {"patch_sizes": sizes, "patch_size": None, "context_length": None, "prediction_length": None}
        config = {name: value for name, value in tiny_config("moirai", **changes).items() if value is not None}
        made = Moirai.from_config(config | {"max_seq_len": 512})
        assert made.patch == expected
        assert made.context_length == 2048
        assert made.native_horizon == 1024


def test_context_and_horizon_fit_into_the_tokens_that_the_model_knows() -> None:
    config = {n: v for n, v in tiny_config("moirai").items() if n not in ("context_length", "prediction_length")}
    made = Moirai.from_config(config | {"max_seq_len": 30})
    assert made.context_length == 20 * 8
    assert made.native_horizon == 10 * 8


def test_an_automatic_patch_size_is_chosen_for_each_window_by_its_last_steps() -> None:
    made = model(seed=1, patch_size="auto")
    batch = replace(tiny_batch(6, length=60), group_ids=torch.tensor([0, 0, 1, 2, 2, 3]), target=None)
    fixed = {size: made._quantiles(batch, 16, made.levels, size) for size in (8, 16)}
    past = Batch(batch.context[:, :-16], batch.context[:, -16:], batch.group_ids)
    losses = []
    for size in (8, 16):
        one = model(patch_size=size, context_length=64, prediction_length=16)
        one.load_state_dict(made.state_dict())
        losses.append(one.loss(past))
    best = torch.stack(losses).argmin(0)
    assert 0 < int(best.sum()) < len(best)
    found = made.forecast(batch, 16)
    for row, window in enumerate((0, 0, 1, 2, 2, 3)):
        torch.testing.assert_close(found[row], fixed[(8, 16)[int(best[window])]][row], rtol=1e-4, atol=1e-3)


def test_windows_too_short_to_try_patch_sizes_take_the_usual_one() -> None:
    automatic, batch = model(patch_size="auto"), Batch(waves(3, 12))
    usual = automatic._quantiles(batch, 16, automatic.levels, automatic.patch)
    torch.testing.assert_close(automatic.forecast(batch, 16), usual)


def test_missing_values_count_as_missing() -> None:
    """What stands at a gap is 0 in own units, so a series around 0 with zeros in its place is another series."""
    made = model()
    context = waves(1, 48) + 40
    gap = context.clone()
    gap[0, 20:26] = torch.nan
    zero = torch.nan_to_num(gap, nan=0.0)
    whole, missing, filled = (made.forecast(Batch(x), 16) for x in (context, gap, zero))
    assert float((missing - whole).abs().max()) < float((filled - whole).abs().max())


def test_every_horizon_token_sees_its_context_through_attention_alone() -> None:
    made = model()
    (paths,) = made.essential()
    assert len(paths) == 2
    groups = {name: [] for name in made.unit_groups() if name.rsplit("/", 1)[0] in paths and name.endswith("/head")}
    context = waves(1, 48)
    other = context.flip(-1)
    with made.masked(groups):
        torch.testing.assert_close(made.forecast(Batch(context), 16), made.forecast(Batch(other), 16))
    assert not torch.allclose(made.forecast(Batch(context), 16), made.forecast(Batch(other), 16))


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ({"_target_": "uni2ts.distribution.pareto.ParetoFixedAlphaOutput"}, "ParetoFixedAlphaOutput"),
        ({"_target_": "uni2ts.distribution.student_t.StudentTOutput", "df": 3}, "entry 'df'"),
        ({"_target_": "uni2ts.distribution.normal.NormalFixedScaleOutput", "scale": 0.0}, "not positive"),
        ("StudentT", "StudentT"),
    ],
)
def test_distributions_that_are_not_known_are_refused(component: Any, message: str) -> None:
    described = {"_target_": "uni2ts.distribution.mixture.MixtureOutput", "components": [component]}
    with pytest.raises(TspruneError, match=message):
        Moirai.from_config(tiny_config("moirai", distr_output=described))


def test_the_fixed_scale_of_a_component_is_read() -> None:
    described = {
        "_target_": "uni2ts.distribution.mixture.MixtureOutput",
        "components": [{"_target_": "uni2ts.distribution.normal.NormalFixedScaleOutput", "scale": 0.5}],
    }
    made = model(distr_output=described)
    found = made.forecast(Batch(waves(2, 48)), 16, [0.1, 0.9])
    _, scale = (value[:, -1, 0] for value in made(made._windows(Batch(waves(2, 48)), 16, 8).packed)[1:])
    expected = 2 * 1.2815516 * 0.5 * scale[:, None]
    torch.testing.assert_close(found[:, 1] - found[:, 0], expected.expand(2, 16), rtol=1e-3, atol=1e-3)
