"""AutoETS: exponential smoothing, its form chosen by information criterion (Hyndman and Khandakar 2008)."""

from __future__ import annotations

from tsprune.evaluation.baselines._statistical import Statistical


class AutoETS(Statistical):
    """Error, trend and seasonality none, additive or multiplicative, by AICc, for every window; see `Statistical`."""

    name = "AutoETS"


BASELINE = AutoETS
