"""AutoTheta: the best of four Theta models (Fiorucci et al. 2016), seasonally adjusted where a test asks for it."""

from __future__ import annotations

from tsprune.evaluation.baselines._statistical import Statistical


class AutoTheta(Statistical):
    """The standard, optimised and dynamic forms of Theta, by in-sample error, for every window; see `Statistical`.

    The library's intervals are simulated with a fixed seed, from residuals in which it leaves the seasonal component:
    where a series is seasonal, they are wider than they need be.
    """

    name = "AutoTheta"


BASELINE = AutoTheta
