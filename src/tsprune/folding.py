"""Folding: attentions in which every query has one live key become the linear maps that they are, exactly.

A softmax over one entry is 1 whatever query and key, so such an attention applies W_O W_V and nothing else. That is so
for the self-attention of a decoder that runs a single step, and for attention across series where each is alone.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from tsprune.blocks.across import AcrossSeriesAttention, SingleStepAttention
from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch
from tsprune.blocks.folded import FoldedAttention, foldable, thin
from tsprune.data.batch import Batch
from tsprune.data.words import many
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.slimming import difference, slim

Model = TypeVar("Model", bound=Forecaster)

ONE_MAP, TWO_MAPS, LEFT = "one map", "two thin maps", "left as it was"


@dataclass(frozen=True)
class FoldedPlace:
    """What became of one attention.

    Args:
        path: of the attention.
        form: `one map`; `two thin maps`, where the product of the value and the output map is smaller than one map
            would be and only queries and keys went; or `left as it was`.
        why: the reason, for people.
        before: its parameters.
        after: its parameters afterwards.
        across: whether it runs across series, so that folding it holds for single series only.
    """

    path: str
    form: str
    why: str
    before: int
    after: int
    across: bool


@dataclass(frozen=True)
class Folding:
    """What became of every attention that might have one live key per query.

    Args:
        places: in network order; empty where the model has no such attention.
        why: where nothing has changed, the reason; else empty.
        before: parameters of the model.
        after: those of the folded one.
    """

    places: tuple[FoldedPlace, ...]
    why: str
    before: int
    after: int

    @property
    def paths(self) -> tuple[str, ...]:
        """The attentions that are one map now."""
        return tuple(place.path for place in self.places if place.form == ONE_MAP)

    @property
    def dropped(self) -> tuple[str, ...]:
        """The attentions that lost their queries and keys alone."""
        return tuple(place.path for place in self.places if place.form == TWO_MAPS)

    def words(self) -> str:
        """One line for people."""
        if self.why:
            return f"nothing was folded: {self.why}"
        forms = (
            (self.paths, "one linear map", ""),
            (self.dropped, "two thin maps", ", which are smaller than one would be"),
        )
        said = [
            f"{many(len(paths), 'attention')} of one live key became {words}{' each' * (len(paths) > 1)}{why}"
            for paths, words, why in forms
            if paths
        ]
        return f"{' and '.join(said)}; {self.before:,} -> {self.after:,} parameters"

    def to_json(self) -> dict[str, Any]:
        """The fields and `words`, JSON-able."""
        return asdict(self) | {"places": [asdict(place) for place in self.places], "words": self.words()}


def fold(model: Model, *, single_series: bool) -> tuple[Model, Folding]:
    """A copy whose attentions with one live key per query are one linear map each, computed in float64.

    The copy forecasts what the model forecasts, up to the rounding of the new weights, and can be tuned, cut, saved and
    loaded like any other; the units of a folded attention are gone, but for the branch as a whole.

    Args:
        model: any model, cut or not; left as it is.
        single_series: whether it will only see windows of one series without covariates. Then attention across series
            is folded as well, and the copy refuses groups of several series.

    Returns:
        The copy, and what became of every attention in question.
    """
    places = {path: _place(path, *found, single_series) for path, found in _attentions(model).items()}
    folded = slim(model, {f"{path}/qk_pair": [] for path, place in places.items() if place.form == TWO_MAPS})
    for path, (branch, attention) in _attentions(folded).items():
        if places[path].form == ONE_MAP:
            _replace(folded, path, branch, FoldedAttention.of(attention, branch.gate.width))
    before, after = model.parameter_count(), folded.parameter_count()
    return folded, Folding(tuple(places.values()), _why(model, list(places.values())), before, after)


def refolded(model: Model, paths: Collection[str], where: Path | str) -> Model:
    """The same for the attentions of a stored model, in place and on the meta device, whatever their size.

    Args:
        model: cut to the sizes of the stored one, without memory.
        paths: the attentions that are folded there.
        where: the file that names them, for errors.

    Raises:
        TspruneError: one of them is not there or is not of one live key.
    """
    if not paths:
        return model
    known = {path: found for path, found in _attentions(model).items() if foldable(found[1], single_series=True)}
    able = [path for path, (_, attention) in known.items() if attention.heads]
    for path in paths:
        if path not in able:
            raise TspruneError(
                f"{where}: entry 'folded' names {path!r}, which is no attention of one live key that this "
                f"{model.family} model has; such are: {', '.join(able[:5]) or 'none'}. Restore the file"
            )
        branch, attention = known[path]
        _replace(model, path, branch, FoldedAttention.of(attention, branch.gate.width))
    return model


def folding_error(model: Forecaster, folded: Forecaster, batch: Batch, horizon: int) -> dict[str, float]:
    """How far a folded model's forecasts are from those of the model it was made of, on the same windows.

    Args:
        model: before the folding.
        folded: after it.
        batch: windows to compare on.
        horizon: steps H.

    Returns:
        `max_abs_difference` in original units and `relative`, as a share of the standard deviation of the forecasts,
        both in float32 and with the weights as they are stored; `relative_float64` with both models and the new weights
        in float64, where there is nothing to be seen but a mistake.
    """
    single = any(attention.across for attention in folded.folded.values())
    wide = copy.deepcopy(model).to(torch.float64)
    absolute, relative = difference(model, folded, {}, batch, horizon, torch.float32)
    _, exact = difference(wide, fold(wide, single_series=single)[0], {}, batch, horizon, torch.float64)
    return {"max_abs_difference": absolute, "relative": relative, "relative_float64": exact}


def _attentions(model: Forecaster) -> dict[str, tuple[Branch, Attention]]:
    """Attentions across series or over one step, by path, each behind the branch around it."""
    return {
        f"{path}.{branch.inner_name}": (branch, inner)
        for path, branch in model.named_modules()
        if isinstance(branch, Branch) and isinstance(inner := branch.inner, AcrossSeriesAttention | SingleStepAttention)
    }


def _place(path: str, branch: Branch, attention: Attention, single_series: bool) -> FoldedPlace:
    """What folding will do to the attention of a branch."""
    width = branch.gate.width
    before = after = sum(parameter.numel() for parameter in attention.parameters())
    product = attention.v.weight.numel() + attention.o.weight.numel()
    sizes = f"its value and output maps hold {product:,} weights, one map would hold {width * width:,}"
    form, why = LEFT, "windows hold several series, so that its queries have several keys"
    if foldable(attention, single_series=single_series):
        if not attention.heads:
            why = "no head is left in it, only a bias"
        elif not thin(attention, width):
            biased = any(layer.bias is not None for layer in (attention.v, attention.o))
            form, why, after = ONE_MAP, sizes, width * width + width * biased
        elif any(group.kind == "qk_pair" for group in attention.groups("")):
            idle = [parameter for layer in (attention.q, attention.k) for parameter in layer.parameters()]
            form, why, after = TWO_MAPS, sizes, before - sum(parameter.numel() for parameter in idle)
        else:
            why = f"{sizes}, and no queries and keys are left that could go"
    return FoldedPlace(path, form, why, before, after, isinstance(attention, AcrossSeriesAttention))


def _why(model: Forecaster, places: list[FoldedPlace]) -> str:
    """Why nothing has changed, or nothing where something has."""
    if any(place.form != LEFT for place in places):
        return ""
    if places:
        reasons = dict.fromkeys(place.why for place in places)
        return f"of {many(len(places), 'attention')} in question none can change ({'; '.join(reasons)})"
    if model.folded:
        return f"{many(len(model.folded), 'attention')} of one live key were folded before"
    return f"this {model.family} model has no attention whose queries have one live key whatever the batch"


def _replace(model: Forecaster, path: str, branch: Branch, folded: FoldedAttention) -> None:
    """Put a folded attention in an attention's place, and a branch without memory of its old units around it."""
    home, _, name = path.removesuffix(f".{branch.inner_name}").rpartition(".")
    setattr(model.get_submodule(home), name, branch.holding(folded))
