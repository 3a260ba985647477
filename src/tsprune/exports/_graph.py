"""A forecaster as one graph from raw series to quantiles, and which forecasters can become one."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster

MOST_PASSES = 8
"""Times that the network may stand in a graph behind itself, for horizons beyond the native one."""
LARGEST = 1 << 20
"""Rows, and steps of context, that a graph takes at most; of the steps only the newest are used."""
TRACED = {
    "chronos2", "chronos_bolt", "itransformer", "moirai2", "patchtst", "time_moe", "timer_xl", "timesfm", "ttm",
}  # fmt: skip
"""Families whose way from series to forecast is known to trace; the tests export each of them."""
_ITERATES = (
    "its quantiles come from inverting the distribution function of a mixture, by an iteration that goes on for each "
    "value until that is found, which is no fixed graph"
)
UNTRACED = {
    "chronos_t5": "it forecasts by sampling paths token by token, which is no fixed graph",
    "moirai": _ITERATES,
    "moirai_moe": _ITERATES,
    "toto": _ITERATES,
}


class ForecastGraph(nn.Module):
    """Raw series in, quantiles out: scaling, patches, gaps and roll-out are inside.

    Args:
        model: in eval mode.
        steps: to forecast H.
    """

    def __init__(self, model: Forecaster, steps: int) -> None:
        super().__init__()
        self.model = model
        self.steps = steps

    def forward(self, context: Tensor) -> Tensor:
        """`[B, L]` in original units, NaN = missing, to quantiles `[B, Q, H]`; every row by itself."""
        return self.model.predict(Batch(context), self.steps).to(context.dtype)


def untraceable(model: Forecaster) -> str:
    """Why a model cannot become a graph, one sentence without a full stop; "" where it can."""
    family, alone = model.family, "the graph takes every series by itself"
    if family in UNTRACED:
        return f"family {family} cannot be exported as a graph: {UNTRACED[family]}"
    if family not in TRACED:
        return f"family {family} has not been tried as a graph; known to work: {', '.join(sorted(TRACED))}"
    if model.window_rows > 1:
        return f"this {family} model mixes exactly {model.window_rows} series, but {alone}"
    if family == "patchtst" and model.capabilities.quantiles:
        return f"this patchtst model gives a distribution, and {_ITERATES}"
    if model.task.get("together"):
        return f"the model was tuned to forecast series together, but {alone}"
    if told := [name for key in ("past_covariates", "known_covariates") for name in model.task.get(key) or ()]:
        return f"the model was tuned with covariates ({', '.join(map(str, told[:5]))}), but {alone}"
    return ""


def passes(model: Forecaster, steps: int) -> int:
    """How often the network runs, one after the other, for so many steps."""
    lengths = getattr(model, "lengths", None) or getattr(model, "horizons", None)
    if lengths is None:
        return -(-steps // model.native_horizon)
    count = 0
    while steps > 0:
        steps -= lengths[model.head_for(steps)]  # type: ignore[operator]
        count += 1
    return count


def in_float32(model: Forecaster) -> Forecaster:
    """The model in eval mode and float32; a copy where it is not."""
    same = model.dtype == torch.float32 and not model.training
    return model if same else copy.deepcopy(model).float().eval()


def traced(model: Forecaster, steps: int) -> Any:
    """The graph as an exported program of torch, with any number of rows and steps of context.

    Args:
        model: in eval mode; left as it is.
        steps: to forecast.

    Raises:
        TspruneError: torch cannot trace the model's way to so many steps.
    """
    import torch.fx.experimental._config as symbols

    # Sizes that nothing hinges on: neither 1, nor whole patches, nor the whole context.
    example = torch.randn(3, min(2 * model.patch + 5, max(2, model.context_length - 1)), dtype=model.dtype)
    rows, length = (torch.export.Dim(name, min=1, max=LARGEST) for name in ("batch", "length"))
    with torch.no_grad(), quiet(), symbols.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        # Questions about sizes are settled as for the example, which the check at every kind of size then confirms.
        try:
            return torch.export.export(
                # A copy: what a block keeps for later calls, such as indices, would be symbols from here on.
                ForecastGraph(copy.deepcopy(model), steps),
                (example,),
                dynamic_shapes=({0: rows, 1: length},),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except RuntimeError as error:
            said = str(error).strip().partition("\n")[0]
            raise TspruneError(
                f"this {model.family} model could not be traced for {steps} steps ({said}); try a --horizon of at most "
                f"{model.native_horizon}, which is one pass"
            ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's remarks about its own insides."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
