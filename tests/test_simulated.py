"""The supply of simulated windows: reproducible, well formed, and with the structure it claims."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsprune.data.corpus import Corpus, CorpusSeries
from tsprune.data.simulated import Shares, WindowSource, groups, mixing, noise
from tsprune.data.simulated.intermittent import draw_intermittent
from tsprune.data.simulated.source import FAMILIES
from tsprune.data.simulated.walks import draw_walks
from tsprune.data.simulated.waveforms import draw_periods, draw_tables, draw_waveforms, repeated
from tsprune.errors import TspruneError


def only(name: str) -> Shares:
    return Shares(**{family: float(family == name) for family in FAMILIES}, real=0.0)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first, second, equal_nan=True)


def test_same_seed_and_step_give_the_same_windows_whatever_was_drawn_before() -> None:
    fresh = WindowSource(128, seed=3)
    used = WindowSource(128, seed=3)
    used.draw(5, 0)
    used.draw_groups(2, 2, 7)
    assert same(fresh.draw(16, 7), used.draw(16, 7))
    first, second = fresh.draw_groups(3, 4, 7), used.draw_groups(3, 4, 7)
    assert same(first[0], second[0])


def test_other_seed_or_step_gives_other_windows() -> None:
    source = WindowSource(128, seed=3)
    windows = source.draw(16, 7)
    assert not same(windows, source.draw(16, 8))
    assert not same(windows, WindowSource(128, seed=4).draw(16, 7))


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(32, 900),
    n=st.integers(1, 40),
    step=st.integers(0, 10**6),
    family=st.sampled_from([None, *FAMILIES]),
)
def test_windows_of_any_length_are_well_formed_and_pass_the_guard(
    length: int, n: int, step: int, family: str | None
) -> None:
    source = WindowSource(length, 1, shares=only(family) if family else Shares())
    windows = source.draw(n, step)
    assert windows.shape == (n, length) and windows.dtype == np.float32
    assert not np.isinf(windows).any()
    assert not mixing.unusable(windows, source.context).any()
    assert np.nanmax(np.abs(windows)) < 200


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_alone_gives_finite_float32(family: str) -> None:
    drawn = FAMILIES[family](np.random.default_rng(0), 200, 300)
    assert drawn.shape == (200, 300) and drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    assert len(np.unique(drawn, axis=0)) > 190
    assert (drawn.std(axis=1) > 1e-3).mean() > 0.9


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), period=st.integers(2, 350), offset=st.integers(0, 10**5))
def test_repeated_waveform_without_noise_repeats_exactly_and_not_sooner(seed: int, period: int, offset: int) -> None:
    tables = draw_tables(np.random.default_rng(seed), 3)
    values = repeated(tables, np.full(3, period), np.full(3, offset), 3 * period + 5)
    assert np.array_equal(values[:, period:], values[:, :-period])
    # Random numbers in float32 coincide now and then; those of a ramp never do.
    ramp = np.arange(512, dtype=np.float32)[None]
    once = repeated(ramp, np.array([period]), np.array([offset]), period)
    assert len(np.unique(once)) == period


def test_periods_cover_every_value_and_half_are_calendar_ones() -> None:
    periods = draw_periods(np.random.default_rng(0), 20_000, 350)
    assert set(periods) == set(range(2, 351))
    assert 0.5 < np.isin(periods, (4, 7, 12, 24, 48, 52, 96, 144, 168, 288, 336)).mean() < 0.65


def test_copying_the_season_beats_the_last_value_on_waveforms_and_loses_on_walks() -> None:
    rng = np.random.default_rng(0)

    def errors(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        past, future = values[:, :600], values[:, 600:]
        last = np.abs(future - past[:, -1:]).mean(axis=1)
        copies = [past[:, -p:][:, np.arange(60) % p] for p in range(2, 301)]
        backtest = [np.abs(past[:, p:] - past[:, :-p]).mean(axis=1) for p in range(2, 301)]
        best = np.argmin(backtest, axis=0)
        copied = np.stack([copies[k][row] for row, k in enumerate(best)])
        return last, np.abs(future - copied).mean(axis=1)

    last, copied = errors(draw_waveforms(rng, 200, 660))
    assert (copied < last).mean() > 0.7
    last, copied = errors(draw_walks(rng, 200, 660))
    assert np.median(last / copied) < 1.02


def test_white_noise_has_no_memory_and_autoregressive_noise_has_the_asked_one() -> None:
    rng = np.random.default_rng(0)
    phi = np.array([0.0, 0.5, 0.9], dtype=np.float32)
    values = noise.autoregressive(rng, np.repeat(phi, 300), 600).reshape(3, 300, 600)
    lagged = (values[:, :, 1:] * values[:, :, :-1]).mean(axis=(1, 2)) / (values**2).mean(axis=(1, 2))
    assert lagged == pytest.approx(phi, abs=0.02)
    assert values.var(axis=(1, 2)) == pytest.approx(1.0, abs=0.1)


def test_counts_are_not_negative_and_some_series_are_mostly_zero() -> None:
    values = draw_intermittent(np.random.default_rng(0), 200, 300)
    assert values.min() == 0
    assert ((values == 0).mean(axis=1) > 0.5).sum() > 20


def test_guard_finds_flat_blind_and_exploding_windows() -> None:
    wave = np.sin(np.arange(100, dtype=np.float32))
    rows = np.tile(wave, (6, 1))
    rows[1, :75] = 4.0
    rows[2, 75:] = 100.0
    rows[3, :70] = np.nan
    rows[4, 80] = np.inf
    rows[5, 75:] = np.nan
    assert mixing.unusable(rows, 75).tolist() == [False, True, True, True, True, True]


def test_flat_real_series_are_replaced_by_the_guard() -> None:
    values = np.zeros(400, dtype=np.float32)
    values[-1] = 1.0
    real = Corpus([CorpusSeries("flat", "flat.csv", values)])
    shares = Shares(real=1e6)
    source = WindowSource(100, 0, real, shares)
    windows = source.draw(32, 0)
    assert not mixing.unusable(windows, source.context).any()


def test_some_windows_lack_values_and_most_do_not() -> None:
    lacking = np.isnan(np.concatenate([WindowSource(256, 0).draw(64, step) for step in range(10)])).any(axis=1)
    assert 0.05 < lacking.mean() < 0.4


def test_groups_have_one_id_each_and_their_rows_are_related() -> None:
    windows, ids = WindowSource(300, 0).draw_groups(40, 4, 0)
    assert windows.shape == (160, 300) and windows.dtype == np.float32
    assert ids.dtype == np.int64 and np.array_equal(ids, np.repeat(np.arange(40), 4))

    def similarity(pairs: list[tuple[int, int]]) -> float:
        found = []
        for a, b in pairs:
            both = np.isfinite(windows[a]) & np.isfinite(windows[b])
            spreads = [windows[row, both].std() for row in (a, b)] if both.sum() > 100 else [0.0]
            if min(spreads) > 1e-3:
                found.append(abs(np.corrcoef(windows[a, both], windows[b, both])[0, 1]))
        return float(np.mean(found))

    within = similarity([(4 * g, 4 * g + r) for g in range(40) for r in (1, 2, 3)])
    across = similarity([(4 * g, (4 * g + 4 + r) % 160) for g in range(40) for r in (1, 2, 3)])
    assert within > across + 0.15


def test_lag_moves_a_series_later_by_exactly_that_many_steps() -> None:
    latent = np.arange(100 + groups.LONGEST_LAG, dtype=np.float32)[None, None]
    moved = groups.lagged(latent, np.array([[5.0]], dtype=np.float32), 100)
    now = groups.lagged(latent, np.array([[0.0]], dtype=np.float32), 100)
    assert np.array_equal(moved[0, 0, 5:], now[0, 0, :-5])


@pytest.mark.parametrize(
    ("length", "seed", "horizon", "named"),
    [(10, 0, None, "length 10"), (64, -1, None, "seed -1"), (64, 0, 64, "horizon 64")],
)
def test_impossible_settings_are_refused_by_name(length: int, seed: int, horizon: int | None, named: str) -> None:
    with pytest.raises(TspruneError, match=named):
        WindowSource(length, seed, horizon=horizon)


def test_negative_share_and_no_windows_are_refused() -> None:
    with pytest.raises(TspruneError, match="walks"):
        Shares(walks=-0.1)
    with pytest.raises(TspruneError, match="all shares"):
        Shares(**dict.fromkeys(FAMILIES, 0.0))
    with pytest.raises(TspruneError, match="0 windows"):
        WindowSource(64, 0).draw(0, 0)
