"""Human names and number formats shared by the verdict, the table and the HTML report."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from functools import cache
from typing import Any

from tsprune.candidates import SCRATCH
from tsprune.errors import TspruneError
from tsprune.registry import names

Results = Mapping[str, Any]
"""The content of results.json, schema 1."""

NAMES = {
    "seasonal_naive": "seasonal naive",
    "auto_ets": "AutoETS",
    "auto_theta": "AutoTheta",
    "nlinear": "NLinear",
    "dlinear": "DLinear",
    "zero_shot": "zero-shot",
    "full_finetuning": "full fine-tuning",
    "random_prune_finetune": "random prune, then fine-tune",
    "prune_then_finetune": "prune, then fine-tune",
    "head_only": "fine-tuning the head only",
    "lora": "LoRA",
    "magnitude_prune_finetune": "magnitude prune, then fine-tune",
    "layer_drop_finetune": "layer drop, then fine-tune",
    "patchtst_scratch": "PatchTST from scratch",
    "itransformer_scratch": "iTransformer from scratch",
    "specialist": "chosen by validation",
}
CONTROLS = {
    "random_prune_finetune": "random pruning",
    "magnitude_prune_finetune": "pruning by magnitude",
    "layer_drop_finetune": "dropping whole layers",
}
"""Candidates that are cut to the same size without the score, and the way they are cut."""
SAME = 1.0
"""Differences below this many percent are "about the same"."""


def human(name: str) -> str:
    """Name of a candidate as a forecaster would say it; unknown names lose only their underscores."""
    return NAMES.get(name, name.replace("_", " "))


@cache
def baselines() -> frozenset[str]:
    """Names of the candidates that are no model to be handed back."""
    return frozenset(names("tsprune.evaluation.baselines"))


def rivals(found: Mapping[str, Results]) -> list[str]:
    """The candidates that owe nothing to the pretrained model: baselines, and networks trained from scratch."""
    return [name for name in found if name in baselines() or name.endswith(SCRATCH)]


def references(found: Mapping[str, Results]) -> list[str]:
    """What the chosen candidate is compared with: the model as it came, fully tuned, seasonal naive, the best rival.

    The best rival is the one with the lowest test MSE, where that is not seasonal naive already.
    """
    errors = {name: metric(found[name], "test", "mse") for name in rivals(found)}
    known = {name: error for name, error in errors.items() if not math.isnan(error)}
    best = [min(known, key=lambda name: known[name])] if known else []
    named = dict.fromkeys(("zero_shot", "full_finetuning", "seasonal_naive", *best))
    return [name for name in named if name in found]


def number(value: Any) -> float:
    """A float, with NaN for None, for infinities and for whatever is no number; NumPy scalars are numbers."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        found = float(value)
    except OverflowError:  # an int beyond float
        return math.nan
    return found if math.isfinite(found) else math.nan


def metric(candidate: Results, part: str, name: str) -> float:
    """One error (`mse`, `mae`, `mase`, `wql`) of `part` (`validation`, `test`); NaN where not measured."""
    errors = candidate.get(part)
    return number(errors.get(name)) if isinstance(errors, Mapping) else math.nan


def candidates_by_name(results: Results) -> dict[str, Results]:
    """Candidates keyed by name, in their order; raises TspruneError if the chosen one is not among them."""
    found = {str(c["name"]): c for c in results.get("candidates") or []}
    chosen = results.get("chosen")
    if chosen not in found:
        listed = ", ".join(found) or "none"
        raise TspruneError(
            f"results: chosen candidate {chosen!r} is not among the candidates ({listed}); "
            "set 'chosen' to one of them or run the evaluation again"
        )
    return found


def change(value: float, reference: float) -> float:
    """Percent by which `value` lies above `reference` (negative: below); NaN if that has no meaning."""
    if math.isnan(value) or math.isnan(reference):
        return math.nan
    if reference <= 0:
        return 0.0 if value == reference else math.nan
    return number((value / reference - 1) * 100)


def percent(size: float) -> str:
    """A percentage without sign: one decimal below 10, none above."""
    size = abs(size)
    return f"{size:.1f} %" if round(size, 1) < 10 else f"{size:,.0f} %"


def error_text(value: float, missing: str = "-") -> str:
    """An error measure with about four figures."""
    if math.isnan(value):
        return missing
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-4:
        return f"{value:.2e}"
    digits = 4 if size < 10 else 3 if size < 100 else 2 if size < 1000 else 0
    return f"{value:.{digits}f}"


def count_text(value: float, missing: str = "-") -> str:
    """A count with three figures and k, M, G or T."""
    if math.isnan(value):
        return missing
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:  # 999.6 k would round to 1000 k
            scaled = value / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f} {letter}"
    return f"{value:.0f}"


def milliseconds(value: float, missing: str = "-") -> str:
    """A duration in milliseconds with about three figures, without the unit."""
    if math.isnan(value):
        return missing
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def seconds(value: float, missing: str = "-") -> str:
    """A duration for people: `0.4 s`, `12.3 s`, `4 min 5 s`, `2 h 3 min`."""
    if math.isnan(value):
        return missing
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60} min"
