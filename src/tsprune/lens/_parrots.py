"""How much a forecast repeats its context, and how seasonal it is; and a forecaster that does nothing but repeat.

Letters: R rows, L steps of context, H steps to forecast.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tsprune.blocks.patching import fill_gaps

Floats = NDArray[np.float64]

DELAYS, NEIGHBOURS = 10, 5
"""Length of the windows that are compared and how many are followed (arXiv 2602.01605, released code)."""
FEWEST_STEPS = 5
"""Least horizon of which a season's share is taken: a level, a sine and a cosine fit three steps exactly."""
FINER = 8
"""Factor of zeros behind the context, so that the peak of the spectrum is not tied to whole cycles."""


def parroting(forecast: Floats, context: Floats, spread: Floats, counted: NDArray[np.bool_]) -> Floats:
    """Parroting index: 1 - min over tau of RMSE(forecast, context[tau : tau + H]) / std(context).

    1 for a copy of some stretch of the context; for anything smooth it is far above 0, which is why it has to be
    compared with the index of what really came.

    Args:
        forecast: `[R, H]`, or what came, NaN only where it is not counted.
        context: `[R, L]`, NaN = missing; stretches with a gap are left out.
        spread: standard deviation of the context `[R]`; NaN where there is none.
        counted: which steps of the forecast are compared `[R, H]`.

    Returns:
        `[R]`, NaN where no stretch is whole or nothing is counted.
    """
    steps = forecast.shape[1]
    found = np.full(len(forecast), np.nan)
    if context.shape[1] < steps:
        return found
    stretches = np.lib.stride_tricks.sliding_window_view(context, steps, axis=1)
    for row, (values, steps_counted) in enumerate(zip(forecast, counted, strict=True)):
        if not steps_counted.any() or np.isnan(spread[row]):
            continue
        apart = stretches[row][:, steps_counted] - values[steps_counted]
        errors = np.sqrt((apart**2).mean(1))
        whole = ~np.isnan(stretches[row]).any(1)
        if whole.any():
            found[row] = 1 - errors[whole].min() / spread[row]
    return found


def dominant_period(context: Floats, longest: int) -> Floats:
    """Period with the most power in the context, after its straight line is taken off, in steps `[R]`.

    Only periods of 2 to `longest` steps that the context holds twice are looked at: longer ones cannot be told from a
    trend. Gaps are filled by straight lines. NaN where there is no such period, or no power.
    """
    found = np.full(len(context), np.nan)
    for row, values in enumerate(_filled(context)):
        values = values[~np.isnan(values)]
        count = len(values)
        if min(longest, count // 2) < 2:
            continue
        time = np.arange(count) - (count - 1) / 2
        values = values - values.mean()
        values = values - time * (time @ values) / (time @ time)
        power = np.abs(np.fft.rfft(values, FINER * count)) ** 2
        periods = FINER * count / np.maximum(np.arange(len(power)), 1e-9)
        power[(periods > min(longest, count / 2)) | (periods < 2)] = 0
        if power.max() > 1e-18 * count**2 * max(1.0, float(np.nanmax(np.abs(context[row])))) ** 2:
            found[row] = periods[int(power.argmax())]
    return found


def season_share(values: Floats, period: Floats, counted: NDArray[np.bool_]) -> Floats:
    """Share of the power of `[R, H]`, its mean taken off, that a sine of the row's period explains: `[R]`, 0 to 1.

    By least squares, since the period need not fit the horizon a whole number of times. 0 for a flat line; NaN without
    a period or with fewer than 5 counted steps.
    """
    found = np.full(len(values), np.nan)
    for row, length in enumerate(period):
        steps = np.flatnonzero(counted[row])
        if np.isnan(length) or len(steps) < FEWEST_STEPS:
            continue
        angle = 2 * np.pi * steps / length
        waves = np.stack([np.ones(len(steps)), np.cos(angle), np.sin(angle)], axis=1)
        wanted = values[row, steps]
        total = float(((wanted - wanted.mean()) ** 2).sum())
        if total <= 1e-20 * max(1.0, float((wanted**2).sum())):
            found[row] = 0.0
            continue
        fitted = waves @ np.linalg.lstsq(waves, wanted, rcond=None)[0]
        found[row] = 1 - float(((wanted - fitted) ** 2).sum()) / total
    return found


def repeated(context: Floats, steps: int) -> Floats:
    """Forecasts of a Nadaraya-Watson parrot `[R, H]` from contexts `[R, L]`, NaN = missing.

    The last 10 values are compared with every stretch of 10 that another 10 follow, by Euclidean distance. What
    follows the 5 nearest, weighted by exp(-d^2 / (2 h^2)) with h the 5th distance, are the next 10 values; then it goes
    on from these. The block of 10 is our choice. NaN where the context has fewer than 5 such stretches.
    """
    found = np.full((len(context), steps), np.nan)
    for row, values in enumerate(_filled(context)):
        values = values[~np.isnan(values)]
        if len(values) < 2 * DELAYS + NEIGHBOURS - 1:
            continue
        stretches = np.lib.stride_tricks.sliding_window_view(values, 2 * DELAYS)
        past, after = stretches[:, :DELAYS], stretches[:, DELAYS:]
        path = values[-DELAYS:]
        while len(path) < DELAYS + steps:
            apart = ((past - path[-DELAYS:]) ** 2).sum(1)
            nearest = np.argsort(apart, kind="stable")[:NEIGHBOURS]
            width = apart[nearest[-1]]
            weights = np.exp(-apart[nearest] / (2 * width)) if width > 0 else np.ones(NEIGHBOURS)
            path = np.concatenate([path, weights @ after[nearest] / weights.sum()])
        found[row] = path[DELAYS : DELAYS + steps]
    return found


def _filled(context: Floats) -> Floats:
    """Gaps filled by straight lines; what is missing in front stays so."""
    filled: Floats = fill_gaps(torch.from_numpy(context)).numpy()
    return filled
