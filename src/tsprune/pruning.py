"""Scores and a schedule become a plan: what stays, round by round, with validation after each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from tsprune.blocks.units import UnitGroup
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.registry import find
from tsprune.repair import output_weights, repair_masked
from tsprune.schedules.progressive import Progressive
from tsprune.slimming import meta_twin, slim

Alive = dict[str, list[int]]
WHOLE = ("attention", "ffn", "layer")


@dataclass(frozen=True)
class Round:
    """State after one round.

    Args:
        round: 0 is the unpruned model.
        kept: units that stay, by group.
        parameters: parameters of the model cut accordingly.
        removed_share: share of the prunable parameters that is gone.
        validation_loss: mean training loss over the validation windows, before any tuning.
    """

    round: int
    kept: Mapping[str, list[int]]
    parameters: int
    removed_share: float
    validation_loss: float


@dataclass(frozen=True)
class Outcome:
    """All rounds, the one that was kept, and the uncut model that is to be cut to it, with its repairs."""

    rounds: tuple[Round, ...]
    best: Round
    model: Forecaster


def lowest(
    scores: Mapping[str, Tensor],
    groups: Mapping[str, UnitGroup],
    alive: Mapping[str, Sequence[int]],
    parameters: float,
    rank: str = "magnitude",
) -> Alive:
    """One global ranking over all layers: units leave from the lowest score per parameter upwards.

    Dividing by the unit's parameters lets a head compete with the feed-forward channels it costs as much as; among
    units of equal cost it changes nothing. Where whole branches or layers may go as well, what is inside goes with
    them, and is counted once.

    Args:
        scores: importance `[U]` by group, higher = keep.
        groups: the model's groups; their floors are never broken.
        alive: units still there.
        parameters: units leave until at least so many parameters are gone.
        rank: `signed` removes first what is predicted to lower the loss; `magnitude` ranks by absolute score.

    Returns:
        The units that stay.

    Raises:
        TspruneError: an unknown rank, or a score that is not a number.
    """
    if rank not in ("signed", "magnitude"):
        raise TspruneError(f"--rank {rank!r} is unknown; use signed or magnitude")
    entries = []
    for name, units in alive.items():
        if not bool(torch.isfinite(scores[name]).all()):
            raise TspruneError(
                f"the scores of {name!r} are not all finite, so they cannot be ranked; the loss of some window is "
                "infinite or not a number: look for extreme values in the data, or score in float32"
            )
        cost = max(1, groups[name].parameters)
        for unit in units:
            value = float(scores[name][unit])
            entries.append(((abs(value) if rank == "magnitude" else value) / cost, name, unit))
    entries.sort()
    ledger = _Ledger(groups, alive)
    removed = 0.0
    for _, name, unit in entries:
        if removed >= parameters:
            break
        if len(ledger.alive[name]) > groups[name].floor:
            removed += ledger.remove(name, unit)
    return {name: sorted(units) for name, units in ledger.alive.items()}


class _Ledger:
    """Which units are still there, and what leaves with one, when groups may lie inside one another.

    Args:
        groups: the groups by name; one of a whole branch or layer holds the groups under its path.
        alive: units still there.
    """

    def __init__(self, groups: Mapping[str, UnitGroup], alive: Mapping[str, Sequence[int]]) -> None:
        self.groups = groups
        self.alive = {name: set(units) for name, units in alive.items()}
        whole = [name for name in alive if groups[name].kind in WHOLE]
        self.around = {name: [outer for outer in whole if _inside(groups[name], groups[outer])] for name in alive}
        self.inside: dict[str, list[str]] = {outer: [] for outer in whole}
        for name, around in self.around.items():
            for outer in around:
                self.inside[outer].append(name)
        for outer in whole:
            if not self.alive[outer]:
                self._empty(outer)
        # Parameters gone from within each whole branch or layer that is still there; the innermost are told first.
        self.lost = dict.fromkeys(whole, 0)
        for name in sorted(alive, key=lambda n: len(self.around[n]), reverse=True):
            gone = groups[name].parameters * groups[name].units - self._left(name)
            for outer in self.around[name]:
                self.lost[outer] += gone - self.lost.get(name, 0)

    def _left(self, name: str) -> int:
        """Parameters of the units of a group that are still there, what is inside them included."""
        count = len(self.alive[name])
        return self.groups[name].parameters * count - (self.lost.get(name, 0) if count else 0)

    def _empty(self, outer: str) -> None:
        for inner in self.inside.get(outer, ()):
            self.alive[inner].clear()

    def remove(self, name: str, unit: int) -> int:
        """Take one unit away; returns the parameters that leave with it."""
        if unit not in self.alive[name]:
            return 0
        before = self._left(name)
        self.alive[name].discard(unit)
        leaves = before - self._left(name)
        for outer in self.around[name]:
            self.lost[outer] += leaves
        self._empty(name)
        return leaves

    def left(self) -> int:
        """Parameters of everything still there, each counted once."""
        return sum(self._left(name) for name, around in self.around.items() if not around)


def _inside(inner: UnitGroup, outer: UnitGroup) -> bool:
    return inner.path.startswith(outer.path + ".")


def validation_loss(model: Forecaster, batches: Sequence[Batch]) -> float:
    """Mean training loss per window over the batches, in float64, without gradient."""
    training = model.training
    model.eval()
    total, windows = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            losses = model.loss(batch.to(model.device))
            total += float(losses.double().sum())
            windows += len(losses)
    model.train(training)
    if not windows:
        raise TspruneError("there is no validation window; use more data, a shorter --horizon or another --split")
    return total / windows


def prune(
    model: Forecaster,
    macro_batches: Callable[[int], Sequence[Batch]],
    validation: Sequence[Batch],
    *,
    score: str = "fisher",
    schedule: Progressive | None = None,
    kinds: Sequence[str] = ("head", "ffn_channel"),
    rank: str = "magnitude",
    tolerance: float = 0.03,
    seed: int = 0,
    refit: bool = False,
    report: Callable[[Round], None] | None = None,
) -> Outcome:
    """Prune round by round; the smallest model whose validation loss is within the tolerance of the best is kept.

    The unpruned model is round 0 and can be the one that is kept. The model passed in is not changed.

    Args:
        model: the model to prune.
        macro_batches: training windows of a round (from 1), with targets.
        validation: windows that judge every round.
        score: name of a score in `tsprune.scores`.
        schedule: how much goes when; None means the default.
        kinds: kinds of units that may go.
        rank: see `lowest`.
        tolerance: relative rise of the validation loss over the best round that a smaller model may have.
        seed: for scores that draw.
        refit: repair what stays after every round (see `tsprune.repair`), on a copy, before it is scored again.
        report: called after every round.

    Returns:
        Every round and the one kept.
    """
    schedule = schedule or Progressive()
    module = find("tsprune.scores", score)
    groups = {name: group for name, group in model.unit_groups().items() if group.kind in kinds}
    alive: Alive = {name: list(range(group.units)) for name, group in groups.items()}
    prunable = prunable_parameters(groups, alive)
    first = Round(0, alive, model.parameter_count(), 0.0, validation_loss(model, validation))
    rounds = [first]
    if report:
        report(first)
    twin = meta_twin(model)
    model = copy.deepcopy(model) if refit else model
    kept_weights = output_weights(model) if refit else {}
    smoothed: dict[str, Tensor] | None = None
    late = 0
    for number, amount in enumerate(schedule.amounts(), start=1):
        windows = macro_batches(number)
        with model.masked(alive):
            new = module.scores(model, windows, kinds=kinds, seed=seed + number)
        smoothed = schedule.smooth(smoothed, new)
        target = amount * prunable_parameters(groups, alive)
        before, alive = alive, lowest(smoothed, groups, alive, target, rank)
        if refit:
            repair_masked(model, before, alive, windows)
        with model.masked(alive):
            loss = validation_loss(model, validation)
        left = prunable_parameters(groups, alive)
        parameters = slim(twin, alive).parameter_count()
        rounds.append(Round(number, alive, parameters, 1 - left / prunable, loss))
        if report:
            report(rounds[-1])
        late = 0 if rounds[-1] in within(rounds, tolerance) else late + 1
        # Every round is smaller than those before, so the choice moves to the newest round or stays.
        if refit and choose(rounds, tolerance) is rounds[-1]:
            kept_weights = output_weights(model)
        if late >= schedule.patience or left == 0:
            break
    if refit:
        model.load_state_dict(kept_weights, strict=False)
    return Outcome(tuple(rounds), choose(rounds, tolerance), model)


def choose(rounds: Sequence[Round], tolerance: float) -> Round:
    """The smallest round within the tolerance of the lowest validation loss."""
    return min(within(rounds, tolerance), key=lambda r: (r.parameters, r.validation_loss))


def within(rounds: Sequence[Round], tolerance: float) -> list[Round]:
    """Rounds whose validation loss is within the tolerance of the lowest; without any finite loss, the first alone."""
    finite = [r for r in rounds if isfinite(r.validation_loss)]
    if not finite:
        return list(rounds[:1])
    best = min(r.validation_loss for r in finite)
    return [r for r in finite if r.validation_loss <= best + tolerance * abs(best)]


def prunable_parameters(groups: Mapping[str, UnitGroup], alive: Mapping[str, Sequence[int]]) -> int:
    """Parameters in the units still there; those of a unit inside another that may go as well are counted once."""
    return _Ledger(groups, alive).left()


def random_plan(
    model: Forecaster, parameters: int, *, kinds: Sequence[str] = ("head", "ffn_channel"), seed: int = 0
) -> Alive:
    """Units that stay when random ones leave until the model has at most `parameters` parameters."""
    values = find("tsprune.scores", "random").scores(model, (), kinds=kinds, seed=seed)
    return parameters_to_reach(model, values, parameters)


def parameters_to_reach(
    model: Forecaster, scores: Mapping[str, Tensor], parameters: int, rank: str = "magnitude"
) -> Alive:
    """Units that stay when the lowest leave in one shot until the model has at most `parameters` parameters.

    Args:
        model: the model to prune.
        scores: importance `[U]` of the groups that may lose units.
        parameters: goal for the whole model; where even removing everything is not enough, all that may go goes.
        rank: see `lowest`.
    """
    everything = model.unit_groups()
    for name in scores:
        if name not in everything or len(scores[name]) != everything[name].units:
            raise TspruneError(f"scores for {name!r} do not fit the model; score this model again")
    groups = {name: group for name, group in everything.items() if name in scores}
    alive: Alive = {name: list(range(group.units)) for name, group in groups.items()}
    twin = meta_twin(model)
    missing = model.parameter_count() - parameters
    while missing > 0:
        before, alive = alive, lowest(scores, groups, alive, missing, rank)
        if alive == before:
            break
        missing = slim(twin, alive).parameter_count() - parameters
    return alive
