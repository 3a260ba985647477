"""What only Toto promises: causal statistics, fading positions, sample paths beside each other, fused tensors."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily
from torch.distributions import StudentT as TorchStudentT

import tsprune
from tests.families.toto import mean_path
from tests.tiny import grouped_batch, tiny_batch, tiny_config, tiny_model, waves
from tsprune.blocks.across import AcrossSeriesAttention, Groups
from tsprune.blocks.causalscale import PatchScaling
from tsprune.blocks.distributions import Mixture, StudentT
from tsprune.blocks.positions import rotate
from tsprune.blocks.quickt import QuickStudentT
from tsprune.blocks.xpos import fading_tables
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._recognising import family_of
from tsprune.models._toto_outlook import Outlook
from tsprune.models._toto_paths import Paths, path_quantiles, spread_uniforms
from tsprune.models.toto import Toto
from tsprune.slimming import make_plan, slim


def toto(seed: int = 0, **changes: Any) -> Toto:
    model = tiny_model("toto", seed, **changes)
    assert isinstance(model, Toto)
    return model


def gappy(rows: int, length: int, seed: int = 0) -> Tensor:
    """Waves in double precision, a third of them missing."""
    values = waves(rows, length, seed).double()
    draw = torch.Generator().manual_seed(seed + 1)
    return values.masked_fill(torch.rand(rows, length, generator=draw) < 0.3, torch.nan)


@pytest.mark.parametrize("exponent", [None, 0.1, 10.0])
def test_a_patch_is_scaled_by_all_observed_steps_up_to_its_end(exponent: float | None) -> None:
    context = gappy(3, 24)
    context[2, :12] = torch.nan
    context[0] *= 1e-3
    found = PatchScaling(4, None if exponent is None else 10**exponent).over(context, ~torch.isnan(context))
    for row in range(3):
        every = context[row].numpy()
        whole = np.sqrt(np.nanvar(every) + 0.1)
        for patch in range(6):
            past = every[: 4 * patch + 4]
            past = past[~np.isnan(past)]
            mean = past.mean() if len(past) else 0.0
            scale = np.sqrt((past.var(ddof=1) if len(past) > 1 else 0.0) + 0.1)
            if exponent is not None:
                scale = min(max(scale, 0.1, whole * 10**-exponent), whole * 10**exponent)
            assert float(found.location[row, patch]) == pytest.approx(mean)
            assert float(found.scale[row, patch]) == pytest.approx(scale)


def test_statistics_that_go_on_equal_those_of_the_whole_and_bounds_stay_those_of_the_context() -> None:
    scaling, context = PatchScaling(4, 1.2), gappy(2, 16)
    paths = torch.stack([waves(2, 8, seed).double() * 5 for seed in (3, 4, 5)], dim=1)
    later = scaling.behind(scaling.behind(scaling.over(context, ~torch.isnan(context)), paths[..., :4]), paths[..., 4:])
    assert later.scale.shape == (2, 3, 1)
    for path in range(3):
        whole = torch.cat([context, paths[:, path]], dim=-1)
        anew = PatchScaling(4).over(whole, ~torch.isnan(whole))
        torch.testing.assert_close(later.location[:, path], anew.location[:, -1])
        bound = (context.nan_to_num().new_tensor([np.nanvar(row) for row in context.numpy()]) + 0.1).sqrt()[:, None]
        expected = torch.minimum(torch.maximum(anew.scale[:, -1], bound / 1.2), bound * 1.2)
        torch.testing.assert_close(later.scale[:, path], expected)


def test_missing_steps_enter_as_the_location_wherever_the_series_lies() -> None:
    context = gappy(2, 12)
    scaling, missing = PatchScaling(4), torch.isnan(context).view(2, 3, 4)
    for shift in (0.0, 1e6):
        moved = (context + shift).view(2, 3, 4)
        scaled = scaling.over(context + shift, ~torch.isnan(context)).apply(moved)
        assert bool((scaled[missing] == 0).all())
        assert float(scaled.abs().max()) < 10


def test_fading_positions_turn_neighbours_and_fade_with_the_distance_whatever_the_centre() -> None:
    width, draw = 6, torch.Generator().manual_seed(0)
    query, key = torch.randn(5, width, generator=draw), torch.randn(5, width, generator=draw)
    products = []
    for centre in (0, 2, 7):
        turn, key_turn = fading_tables(torch.arange(5) * 40, width, centre)
        products.append(rotate(query, turn, True) @ rotate(key, key_turn, True).T)
    expected = torch.zeros(5, 5)
    for i in range(5):
        for j in range(5):
            for entry in range(width):
                pair, first = entry // 2, entry % 2 == 0
                angle = 40 * 10000 ** (-2 * pair / width)
                q, k = (
                    x[i_, entry] * np.cos(i_ * angle)
                    + (-x[i_, entry + 1] if first else x[i_, entry - 1]) * np.sin(i_ * angle)
                    for x, i_ in ((query, i), (key, j))
                )
                base = (2 * (entry % (width // 2)) + 0.4 * width) / (1.4 * width)
                expected[i, j] += q * k * base ** (40 * (i - j) / 512)
    for product in products:
        torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-4)


def test_the_quick_cdf_stays_near_the_exact_one_and_rises() -> None:
    df = torch.tensor([2.0, 2.2, 3.0, 3.5, 6.0, 40.0]).double()
    x = torch.linspace(-50, 50, 5001).double()[:, None]
    loc, scale = torch.full_like(df, 0.3), torch.full_like(df, 1.7)
    exact, quick = StudentT(df, loc, scale).cdf(x), QuickStudentT(df, loc, scale).cdf(x)
    assert float((exact - quick).abs().max()) < 2.1e-4
    assert float((exact - quick)[:, 3:].abs().max()) < 4e-6
    assert bool((quick.diff(dim=0) >= 0).all())
    levels = [0.001, 0.2, 0.5, 0.77, 0.9999]
    found = Mixture(torch.zeros(6, 1).double(), (QuickStudentT(*(v[:, None] for v in (df, loc, scale))),)).quantile(
        levels
    )
    again = QuickStudentT(df, loc, scale).cdf(found)
    torch.testing.assert_close(again, torch.tensor(levels).double()[:, None].expand(-1, 6), rtol=0, atol=2.1e-4)


def outlook_of(model: Toto, context: Tensor, groups: Groups | None = None) -> Outlook:
    found: Outlook = model(context, groups=groups)
    return found


@pytest.mark.parametrize("changes", [{}, {"spacewise_first": True}, {"spacewise_every_n_layers": -1}])
def test_paths_beside_each_other_equal_reading_each_of_them_anew(changes: dict[str, Any]) -> None:
    model = toto(**changes).double()
    context = gappy(3, 48)
    context[1, :20] = torch.nan
    ids = torch.tensor([4, 9, 4])
    paths = Paths(model.model, context, ~torch.isnan(context), Groups.of(ids))
    walked = torch.stack([waves(3, 48, seed).double() for seed in (7, 8)], dim=1)
    for step in range(3):
        known = torch.cat([context[:, None].expand(-1, 2, -1), walked[..., : 16 * step]], dim=-1)
        for path in range(2):
            anew = outlook_of(model, known[:, path].contiguous(), Groups.of(ids))
            own = min(path, paths.outlook.logits.shape[1] - 1)
            torch.testing.assert_close(paths.outlook.logits[:, own], anew.logits[:, -1], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(paths.outlook.own.mean[:, own], anew.own.mean[:, -1], rtol=1e-5, atol=1e-5)
        paths.follow(walked[..., 16 * step : 16 * step + 16])


def test_the_public_cache_strays_from_the_third_patch_on_and_ours_does_not() -> None:
    model, context = toto().double(), waves(2, 48).double()
    everything = torch.ones_like(context, dtype=torch.bool)
    kept = mean_path(model, context, everything, None, 80)
    moving = mean_path(model, context, everything, None, 80, moving=True)
    anew = context
    with torch.no_grad():
        for _ in range(5):
            anew = torch.cat([anew, outlook_of(model, anew).own.mean[:, -1]], dim=-1)
    torch.testing.assert_close(kept, anew[:, 48:], rtol=1e-5, atol=1e-5)
    same = (moving - kept).abs().amax(0).view(5, 16).amax(-1) < 1e-5
    # Three tokens have their centre at 1 and so has the fourth, number 3; only the fifth moves it to 2.
    assert same.tolist() == [True, True, False, False, False]


def test_layers_across_series_stand_where_the_config_says() -> None:
    def places(**changes: Any) -> list[bool]:
        layers = toto(**changes).model.layers
        return [isinstance(layer.branches[0].inner, AcrossSeriesAttention) for layer in layers]

    assert places() == [False, True, False, True]
    assert places(spacewise_first=True) == [True, False, True, False]
    assert places(spacewise_every_n_layers=4) == [False, False, False, True]
    assert places(spacewise_every_n_layers=-1) == [False] * 4


def test_without_layers_across_series_covariates_are_refused() -> None:
    model, batch = toto(spacewise_every_n_layers=-1), replace(grouped_batch(), future=None)
    assert not model.capabilities.multivariate
    with pytest.raises(TspruneError, match="toto cannot use covariates"):
        model.forecast(batch, 8)


def test_a_past_covariate_informs_the_targets_of_its_group_and_has_no_loss() -> None:
    model, batch = toto(), replace(grouped_batch(), future=None)
    changed = batch.context.clone()
    changed[1] = changed[1].flip(0) * 3
    plain, other = model.forecast(batch, 24), model.forecast(replace(batch, context=changed), 24)
    assert ((plain - other).abs().amax((1, 2)) > 1e-4).tolist() == [True, True, False, True, False]
    losses = model.row_losses(batch)
    assert losses[1] == 0 and losses[4] == 0
    assert bool((losses[[0, 2, 3]] != 0).all())


def test_padding_before_a_whole_group_changes_nothing() -> None:
    model = toto()
    batch = Batch(waves(3, 40), waves(3, 16, 1), torch.tensor([1, 1, 2]))
    padded = replace(batch, context=torch.nn.functional.pad(batch.context, (24, 0), value=torch.nan))
    torch.testing.assert_close(model.forecast(padded, 40), model.forecast(batch, 40), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(model.loss(padded), model.loss(batch))


def test_a_row_loss_is_the_mean_over_observed_steps_of_context_and_target_that_a_patch_came_before() -> None:
    model = toto()
    batch = tiny_batch(3, 40)
    context = torch.nn.functional.pad(batch.context, (8, 0), value=torch.nan)
    outlook = outlook_of(model, context)
    parts = TorchStudentT(outlook.parts.df, outlook.parts.loc, outlook.parts.scale)
    mixture = MixtureSameFamily(Categorical(logits=outlook.logits), parts)
    assert batch.target is not None
    labels = torch.cat([context[:, 16:], batch.target], dim=-1).view(3, 3, 16)
    normal = (labels - outlook.scale.location.float()) / outlook.scale.scale.float()
    robust = torch.log1p(50 * (mixture.mean - normal) ** 2)
    every = 0.575 * -mixture.log_prob(normal.nan_to_num()) + 0.425 * robust
    # The first row begins at its nineteenth step, so its first patch is hidden and forecasts nothing.
    every[0, 0] = torch.nan
    expected = torch.stack(
        [row[~torch.isnan(label) & ~torch.isnan(row)].mean() for row, label in zip(every, labels, strict=True)]
    )
    torch.testing.assert_close(model.row_losses(batch), expected)


def test_a_target_shorter_than_a_patch_is_what_a_patch_with_missing_steps_is() -> None:
    model, batch = toto(), tiny_batch()
    assert batch.target is not None
    short = replace(batch, target=batch.target[:, :5])
    holed = batch.target.clone()
    holed[:, 5:] = torch.nan
    assert torch.equal(model.row_losses(short), model.row_losses(replace(batch, target=holed)))


def test_a_forecast_is_the_same_again_and_other_seeds_change_it_behind_the_first_patch_only() -> None:
    model, batch = toto(), tiny_batch()
    plain = model.forecast(batch, 48)
    assert torch.equal(model.forecast(batch, 48), plain)
    assert torch.equal(model.forecast(batch, 20), plain[..., :20])
    model.seed = 5
    other = model.forecast(batch, 48)
    assert torch.equal(other[..., :16], plain[..., :16])
    assert not torch.allclose(other[..., 16:], plain[..., 16:])
    assert bool((plain.diff(dim=1) >= 0).all())


def test_more_sample_paths_bring_the_forecast_nearer_to_that_of_very_many() -> None:
    model, batch = toto(), tiny_batch(2)

    def later(samples: int, seed: int) -> Tensor:
        model.num_samples, model.seed = samples, seed
        return model.forecast(batch, 32)[..., 16:]

    many = later(500, 1)
    errors = [float(torch.stack([later(count, seed) - many for seed in (2, 3, 4)]).abs().mean()) for count in (4, 64)]
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.1 * float((many[:, -1] - many[:, 0]).mean())


def test_no_sample_path_at_all_is_refused() -> None:
    model = toto()
    model.num_samples = 0
    with pytest.raises(TspruneError, match="num_samples is 0"):
        model.forecast(tiny_batch(), 20)


def test_uniform_numbers_have_one_in_each_part_and_come_again_with_their_seed() -> None:
    first, second = islice(spread_uniforms(8, 5, 3), 2)
    assert first.shape == (8, 5)
    for numbers in (first, second):
        assert torch.equal((numbers * 8).floor().sort(dim=0).values, torch.arange(8.0).double()[:, None].expand(8, 5))
    assert not torch.equal(first, second)
    assert torch.equal(first, next(spread_uniforms(8, 5, 3)))
    assert not torch.equal(first, next(spread_uniforms(8, 5, 4)))


def test_quantiles_over_paths_that_expect_the_same_are_those_of_the_mixture() -> None:
    model, context = toto(), waves(2, 48)
    with torch.no_grad():
        paths = Paths(model.model, context, torch.ones_like(context, dtype=torch.bool), None)
        paths.follow(waves(2, 16, 3).double()[:, None].expand(-1, 64, -1))
    found = path_quantiles(paths.outlook, spread_uniforms(64, 16, 0), model.levels)
    exact = paths.outlook.own.quantile(model.levels)[:, :, 0].transpose(0, 1)
    spread = (exact[:, -1] - exact[:, 0])[:, None]
    errors = ((found - exact) / spread).abs()
    assert float(errors.mean()) < 0.005
    assert float(errors.max()) < 0.05


def test_the_fused_projection_has_heads_fastest_and_fused_kernels_only_other_names() -> None:
    model = toto()
    public = model.tensors_to_public()
    fused = public["model.transformer.layers.1.attention.wQKV.weight"]
    attention = model.model.layers[1].branches[0].inner
    assert attention is not None and fused.shape == (72, 24)
    for number, part in enumerate("qkv"):
        own = getattr(attention, part).weight
        for head in range(3):
            for entry in range(8):
                assert torch.equal(fused[number * 24 + entry * 3 + head], own[head * 8 + entry])
    both = public["model.transformer.layers.0.mlp.0.bias"]
    feed = model.model.layers[0].branches[1].inner
    assert torch.equal(both, torch.cat([feed.wi_0.bias, feed.wi_1.bias]))  # type: ignore[union-attr]
    renamed = {n.replace("mlp.0.", "mlp.0.w12.").replace("mlp.2.", "mlp.0.w3."): t for n, t in public.items()}
    renamed["model.transformer.layers.0.attention.rotary_emb.freqs"] = torch.zeros(4)
    back = model.tensors_from_public(renamed)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_even_heads_are_saved_fused_and_uneven_ones_under_our_names(tmp_path: Path) -> None:
    model, batch = toto(), tiny_batch()
    path = "model.transformer.layers.2.layer.0.attention"
    for kept, fused in (({f"{path}/head": [0, 2]}, True), ({f"{path}/value_dim": range(1, 24)}, False)):
        smaller = slim(model, kept)
        names = smaller.tensors_to_public()
        assert ("model.transformer.layers.2.attention.wQKV.weight" in names) == fused
        assert (f"{path}.q.weight" in names) != fused
        tsprune.save(smaller, tmp_path / str(fused), make_plan(model, kept, base_model="tiny"))
        assert torch.equal(tsprune.load(tmp_path / str(fused)).forecast(batch, 20), smaller.forecast(batch, 20))


def test_toto_2_is_refused_by_its_name() -> None:
    config = {
        "patch_size": 32,
        "d_model": 64,
        "num_heads": 4,
        "num_layers": 4,
        "layer_group_size": 4,
        "num_variate_layers_per_group": 1,
        "variate_layer_first": False,
    }
    kind = family_of(config, None, Path("config.json"))
    assert kind is Toto
    with pytest.raises(TspruneError, match="this is a Toto 2 model"):
        kind.from_config(config)


def test_a_public_config_without_a_context_length_gets_that_of_pretraining() -> None:
    config = tiny_config("toto")
    del config["context_length"]
    assert Toto.from_config(config).context_length == 4096


def test_rows_worked_on_a_few_at_a_time_forecast_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = toto(), tiny_batch(5)
    plain = model.forecast(batch, 40)
    monkeypatch.setattr("tsprune.models._toto_network.AT_ONCE", 2 * 16 * 24)
    torch.testing.assert_close(model.forecast(batch, 40), plain, rtol=1e-4, atol=1e-3)
