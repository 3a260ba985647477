"""Series that are copies of each other are found, whatever was done to them; others are not."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsprune.evaluation.copies import Copy, find_copies

FLOATS = np.float32


def walk(length: int, seed: int) -> np.ndarray:
    """Season, random walk and noise, as float32."""
    draw = np.random.default_rng(seed)
    steps = np.arange(length)
    season = 5 * np.sin(2 * np.pi * steps / 24) * (1 + 0.2 * draw.standard_normal())
    return (20 + season + 0.1 * np.cumsum(draw.standard_normal(length)) + draw.standard_normal(length)).astype(FLOATS)


def counts(length: int, seed: int, rate: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(rate, length).astype(FLOATS)


@settings(max_examples=40, deadline=None)
@given(
    length=st.sampled_from([30, 120, 400, 3000]),
    share=st.floats(-0.4, 0.4),
    scale=st.floats(0.01, 100) | st.floats(-100, -0.01),
    offset=st.floats(-50, 50),
    missing=st.floats(0, 0.02),
    seed=st.integers(0, 10**6),
)
def test_affine_and_shifted_copies_are_found_with_their_shift(
    length: int, share: float, scale: float, offset: float, missing: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    shift = int(share * length)
    whole = walk(length + abs(shift), seed)
    one = whole[:length] if shift >= 0 else whole[-length:]
    other = (scale * (whole[shift:] if shift >= 0 else whole[:length]) + offset).astype(FLOATS)
    if length > 100:
        one, other = (np.where(draw.random(len(x)) < missing, np.nan, x).astype(FLOATS) for x in (one, other))
    (found,) = find_copies([walk(length, seed + 1), one, other, walk(length + 7, seed + 2)])
    assert (found.one, found.other, found.shift) == (1, 2, shift)
    assert found.last - found.first > 0.9 * (length - abs(shift)) - 3
    assert not np.isnan(one[found.first + shift])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rate=st.sampled_from([0.05, 0.5, 3.0, 40.0]))
def test_series_of_their_own_are_not(seed: int, rate: float) -> None:
    series = [walk(300, seed + k) for k in range(4)] + [counts(60, seed + k, rate) for k in range(30)]
    series += [np.round(walk(24, seed + 50 + k)).astype(FLOATS) for k in range(30)]
    assert find_copies(series) == []


def test_stretches_that_tell_nothing_are_no_copies() -> None:
    steps = np.arange(400, dtype=FLOATS)
    pulse = np.where(steps % 50 == 0, 7, 0).astype(FLOATS)
    bent = np.minimum(steps, 200).astype(FLOATS)
    plain = [
        np.zeros(400, FLOATS),
        np.full(400, 3.1, FLOATS),
        steps,
        0.1 * steps + 4,
        np.exp(steps / 90).astype(FLOATS),
    ]
    waves = [np.sin(2 * np.pi * (steps + k) / 24).astype(FLOATS) for k in (0, 5)]
    gaps = [np.full(400, np.nan, FLOATS), np.zeros(0, FLOATS), np.ones(3, FLOATS)]
    both = [np.concatenate([np.zeros(300, FLOATS), counts(100, seed)]) for seed in (1, 2)]
    stairs = [np.repeat(counts(20, seed), 20) for seed in (3, 4)]
    assert find_copies([*plain, *waves, pulse, pulse[3:], bent, bent[7:], *gaps, *both, *stairs]) == []
    assert find_copies([]) == find_copies([steps]) == []


def test_a_copy_of_a_part_is_found_and_its_stretch_ends_where_it_ends() -> None:
    one, other = walk(5000, 1), walk(900, 2)
    other[100:700] = one[2300:2900]
    (found,) = find_copies([one, other])
    assert found == Copy(0, 1, 2200, 100, 700)


def test_nearly_equal_series_are_not_copies() -> None:
    one = walk(2000, 3)
    noise = np.random.default_rng(4).standard_normal(2000)
    assert len(find_copies([one, (one + 1e-6 * noise).astype(FLOATS)])) == 1
    assert find_copies([one, (one + 1e-2 * noise).astype(FLOATS)]) == []


def test_many_copies_are_paired_one_after_another() -> None:
    one = walk(200, 5)
    found = find_copies([one, 2 * one, walk(200, 6), one + 1, one[20:]])
    assert {(copy.one, copy.other) for copy in found} == {(0, 1), (1, 3), (3, 4)}


@pytest.mark.parametrize(("series", "length"), [(21, 20_000), (1000, 120)])
def test_large_panels_take_little_time(series: int, length: int) -> None:
    values = [walk(length, seed) for seed in range(series)]
    values[7] = (3 * values[5] + 1).astype(FLOATS)
    before = time.process_time()
    assert [(copy.one, copy.other) for copy in find_copies(values)] == [(5, 7)]
    assert time.process_time() - before < 4
