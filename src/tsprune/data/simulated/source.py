"""Draws training windows from every family, deterministically in seed and step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tsprune.data.simulated import groups, mixing
from tsprune.data.simulated.composed import draw_composed
from tsprune.data.simulated.intermittent import draw_intermittent
from tsprune.data.simulated.kernels import draw_kernels
from tsprune.data.simulated.noise import Array
from tsprune.data.simulated.physical import draw_physical
from tsprune.data.simulated.walks import draw_walks
from tsprune.data.simulated.waveforms import draw_restless, draw_waveforms
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from tsprune.data.corpus import Corpus

_SINGLE, _GROUPED = 0, 1


@dataclass(frozen=True)
class Shares:
    """Relative share of each family among the windows; they need not sum to 1.

    `real` counts only where a corpus is given.
    """

    waveforms: float = 0.32
    restless: float = 0.10
    kernels: float = 0.08
    composed: float = 0.06
    walks: float = 0.12
    intermittent: float = 0.03
    physical: float = 0.07
    real: float = 0.22

    def __post_init__(self) -> None:
        """Refuse shares that cannot be drawn from."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        wrong = [name for name, value in values.items() if not (np.isfinite(value) and value >= 0)]
        if wrong:
            raise TspruneError(f"share {wrong[0]}={values[wrong[0]]}: expected a number of at least 0")
        if sum(value for name, value in values.items() if name != "real") <= 0:
            raise TspruneError("all shares of simulated families are 0: give at least one a positive share")


FAMILIES: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "waveforms": draw_waveforms,
    "restless": draw_restless,
    "kernels": draw_kernels,
    "composed": draw_composed,
    "walks": draw_walks,
    "intermittent": draw_intermittent,
    "physical": draw_physical,
}


class WindowSource:
    """An endless, reproducible supply of training windows.

    The same seed and step always give the same windows, whatever was drawn before, so that an interrupted
    training resumes on the data it would have seen.

    Args:
        length: steps per window (context and horizon together), at least 32.
        seed: any non-negative whole number.
        real: real series to draw a share of the windows from, or None.
        shares: how often each family is drawn.
        horizon: steps at the end of a window that will be forecast; places the guard and short series.
            Default: a quarter of `length`.

    Raises:
        TspruneError: `length`, `seed` or `horizon` out of range.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        real: Corpus | None = None,
        shares: Shares | None = None,
        *,
        horizon: int | None = None,
    ) -> None:
        """Set up the supply; nothing is drawn yet."""
        if length < 32:
            raise TspruneError(f"window length {length}: expected at least 32 steps")
        if seed < 0:
            raise TspruneError(f"seed {seed}: expected a whole number of at least 0")
        ahead = length // 4 if horizon is None else horizon
        if not 1 <= ahead <= length - 8:
            raise TspruneError(f"horizon {ahead}: expected 1 to {length - 8} for windows of {length} steps")
        self.length = length
        self.seed = seed
        self.real = real
        self.shares = shares if shares is not None else Shares()
        self.context = length - ahead

    def _generator(self, step: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([self.seed, step, purpose])))

    def _simulated(self, rng: np.random.Generator, n: int, length: int) -> Array:
        """`n` simulated windows `[n, length]`, standardised and without gaps, families in random order."""
        weights = np.array([getattr(self.shares, name) for name in FAMILIES])
        counts = rng.multinomial(n, weights / weights.sum())
        parts = [draw(rng, int(k), length) for draw, k in zip(FAMILIES.values(), counts, strict=True) if k]
        values = np.concatenate(parts)[rng.permutation(n)]
        values = mixing.reshape(rng, mixing.mix_rows(rng, values, 0.08))
        return mixing.sense(rng, values)

    def _guarded(self, rng: np.random.Generator, values: Array) -> Array:
        """`values` with unusable rows replaced by fresh repeated waveforms, then by a plain cosine."""
        for _ in range(4):
            rows = np.flatnonzero(mixing.unusable(values, self.context))
            if not rows.size:
                return values
            values[rows] = draw_waveforms(rng, rows.size, self.length)
        rows = np.flatnonzero(mixing.unusable(values, self.context))
        values[rows] = np.cos(np.arange(self.length, dtype=np.float32) * (2 * np.pi / 24))
        return values

    def draw(self, n: int, step: int) -> NDArray[np.float32]:
        """`n` windows `[n, length]`, float32, about unit spread around a random offset, NaN = missing."""
        if n < 1 or step < 0:
            raise TspruneError(f"{n} windows of step {step}: expected at least 1 window and a step of at least 0")
        rng = self._generator(step, _SINGLE)
        taken = 0
        if self.real is not None:
            total = sum(getattr(self.shares, field.name) for field in fields(self.shares))
            taken = int(rng.binomial(n, self.shares.real / total))
        parts = []
        if taken < n:
            parts.append(mixing.lose(rng, self._simulated(rng, n - taken, self.length), self.context))
        if taken and self.real is not None:
            parts.append(self.real.draw(rng, taken, self.length, self.length - self.context))
        values = mixing.rescale(rng, np.concatenate(parts)[rng.permutation(n)])
        return self._guarded(rng, values)

    def draw_groups(self, n_groups: int, size: int, step: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Groups of related series.

        Row 0 of a group is the one that drives the others where one does, so it can stand in for a covariate
        that is known ahead.

        Args:
            n_groups: number of groups.
            size: series per group.
            step: training step.

        Returns:
            Windows `[n_groups * size, length]` float32 (NaN = missing), a group's rows side by side, and
            their group ids `[n_groups * size]` int64.
        """
        if n_groups < 1 or size < 1 or step < 0:
            raise TspruneError(
                f"{n_groups} groups of {size} at step {step}: expected at least 1 group, 1 series, and step 0"
            )
        rng = self._generator(step, _GROUPED)
        latent = self._simulated(rng, n_groups * groups.LATENT, self.length + groups.LONGEST_LAG)
        own = self._simulated(rng, n_groups * size, self.length)
        values = groups.related(rng, latent.reshape(n_groups, groups.LATENT, -1), own.reshape(n_groups, size, -1))
        if self.real is not None and size > 1:
            rows = np.flatnonzero(rng.random(n_groups) < 0.3)
            if rows.size and self.real.has_groups:
                values[rows] = self.real.draw_groups(rng, rows.size, size, self.length)
        flat = mixing.lose(rng, values.reshape(n_groups * size, self.length), self.context)
        flat = self._guarded(rng, mixing.rescale(rng, flat))
        return flat, np.repeat(np.arange(n_groups, dtype=np.int64), size)
