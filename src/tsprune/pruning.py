"""Scores to a plan: what stays, round by round, with validation after each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsprune.blocks.prepacked import prepacked
from tsprune.budgets import Budget, Sizes
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models import fingerprint
from tsprune.models._forecaster import Forecaster
from tsprune.pruning_state import Checkpoints, Progressed, data_digest
from tsprune.ranking import RANKS, Alive, Prunable, shortest
from tsprune.registry import find
from tsprune.repair import output_weights, repair_masked
from tsprune.rounds import Round, choose, within
from tsprune.schedules._schedule import Schedule
from tsprune.schedules.progressive import Progressive

__all__ = ["Alive", "Outcome", "Round", "choose", "parameters_to_reach", "prune", "random_plan", "within"]

Report = Callable[[Round], None]
# Nothing approaches everything by shares of what is left, so a budget that takes all would take it in round 1.
NEARLY_ALL = 0.99


@dataclass(frozen=True)
class Outcome:
    """All rounds, the one that was kept, and the uncut model that is to be cut to it, with its repairs.

    Args:
        rounds: in order, the unpruned model first.
        best: the one that was kept.
        model: uncut; repaired for that round where this was asked for.
        missed: whether a budget was out of reach, as everything that may go is gone.
    """

    rounds: tuple[Round, ...]
    best: Round
    model: Forecaster
    missed: bool = False


def validation_loss(model: Forecaster, batches: Sequence[Batch]) -> float:
    """Mean training loss per window over the batches, in float64, without gradient."""
    training = model.training
    model.eval()
    total, windows = 0.0, 0
    with torch.no_grad(), prepacked(model, sum(batch.rows for batch in batches)):
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
    schedule: Schedule | None = None,
    kinds: Sequence[str] = ("head", "ffn_channel"),
    rank: str = "magnitude",
    tolerance: float = 0.03,
    seed: int = 0,
    refit: bool = False,
    budget: Budget | None = None,
    uniform: bool = False,
    regrow: bool = False,
    directory: Path | None = None,
    report: Report | None = None,
) -> Outcome:
    """Prune round by round, to a budget, or as far as validation allows.

    Without a budget the smallest model whose validation loss is within the tolerance of the best is kept (or what the
    schedule keeps); the unpruned model is round 0 and can be the one. With a budget the last round, which ends on it,
    is kept. The model passed in is not changed.

    Args:
        model: the model to prune.
        macro_batches: training windows by number (from 1), with targets; one is scored at a time.
        validation: windows that judge every round.
        score: name of a score in `tsprune.scores`.
        schedule: how much goes when; None means the default.
        kinds: kinds of units that may go.
        rank: see `Prunable.order`.
        tolerance: relative rise of the validation loss over the best round that a smaller model may have.
        seed: for scores that draw.
        refit: repair what stays after every round (see `tsprune.repair`), on a copy, before it is scored again.
        budget: how small the model has to become; None leaves it to validation.
        uniform: take the same share of every group, so that equal layers stay equal.
        regrow: score the uncut model in every round and choose among all its units, so that a unit that has gone
            comes back when its score has risen above that of units that are there. Repairs start from the uncut
            model each time.
        directory: where every round is stored; a pruning that was killed goes on there, with the same outcome. A
            state of other settings, data or weights is not continued.
        report: called after every round, and for rounds that were found stored.

    Returns:
        Every round and the one kept.

    Raises:
        TspruneError: an unknown word, no windows, or scores that cannot be ranked.
    """
    schedule = schedule or Progressive()
    if rank not in RANKS:
        raise TspruneError(f"--rank {rank!r} is unknown; use signed or magnitude")
    pruner = _Pruner(model, macro_batches, validation, score, schedule, kinds, rank, tolerance, seed)
    pruner.refit, pruner.budget, pruner.uniform, pruner.regrow = refit, budget, uniform, regrow
    return pruner.run(directory, report)


class _Pruner:
    """One pruning; see `prune`."""

    refit: bool
    budget: Budget | None
    uniform: bool
    regrow: bool

    def __init__(
        self,
        model: Forecaster,
        macro_batches: Callable[[int], Sequence[Batch]],
        validation: Sequence[Batch],
        score: str,
        schedule: Schedule,
        kinds: Sequence[str],
        rank: str,
        tolerance: float,
        seed: int,
    ) -> None:
        self.original, self.macro_batches, self.validation = model, macro_batches, validation
        self.score, self.scores = score, find("tsprune.scores", score)
        self.schedule, self.kinds = schedule, schedule.kinds(kinds)
        self.rank, self.tolerance, self.seed = rank, tolerance, seed
        names = [name for name, group in model.unit_groups().items() if group.kind in self.kinds]
        self.prunable = Prunable(model, names)
        self.parameters = Sizes.of(model)

    def run(self, directory: Path | None, report: Report | None) -> Outcome:
        """All rounds that are still to be done."""
        self.sizes = self.parameters if self.budget is None else Sizes(self.parameters.twin, self.budget.measure)
        self.bare = self._bare()
        self.model = copy.deepcopy(self.original) if self.refit else self.original
        checkpoints = Checkpoints(directory, self._identity() if directory else None)
        state = checkpoints.load()
        if state is None:
            state = self._begin()
            checkpoints.store(state)
        for done in state.rounds if report else ():
            report(done)  # type: ignore[misc]
        self.model.load_state_dict(state.weights, strict=False)
        while not self._over(state):
            self._round(state)
            checkpoints.store(state)
            if report:
                report(state.rounds[-1])
        best = self._best(state)
        if self.refit:
            self.model.load_state_dict(state.kept_weights, strict=False)
        missed = self.budget is not None and self.sizes(best.kept) > self.budget.goal
        return Outcome(tuple(state.rounds), best, self.model, missed)

    def _begin(self) -> Progressed:
        alive = self.prunable.everything()
        loss = validation_loss(self.original, self.validation)
        weights = output_weights(self.original) if self.refit else {}
        whole = int(self.parameters(alive))
        return Progressed([Round(0, alive, whole, 0.0, loss)], weights=weights, kept_weights=weights)

    def _bare(self) -> Alive:
        """What is left once all that may go is gone, whatever the scores."""
        everything = self.prunable.everything()
        zeros = {name: torch.zeros(len(units)) for name, units in everything.items()}
        order = self.prunable.order(zeros, everything, self.rank)
        return shortest(self.prunable, everything, order, self.sizes, float("-inf"))[0]

    def _over(self, state: Progressed) -> bool:
        if state.over:
            return True
        last = self.schedule.last(self.budget is not None)
        if last is not None and len(state.rounds) > last:
            return True
        return self.budget is None and self.schedule.stops(state.rounds, self.tolerance)

    def _best(self, state: Progressed) -> Round:
        if self.budget is not None:
            return state.rounds[-1]
        return self.schedule.choose(state.rounds, self.tolerance)

    def _round(self, state: Progressed) -> None:
        """Score, cut, repair, validate."""
        number, before = len(state.rounds), state.rounds[-1].kept
        alive: Alive = {name: list(units) for name, units in before.items()}
        windows: list[Batch] = []
        for cut in range(self.schedule.cuts):
            counter = (number - 1) * self.schedule.cuts + cut + 1
            windows = self._windows(counter)
            state.smoothed = self.schedule.smooth(state.smoothed, self._scored(alive, windows, counter))
            alive, state.over = self._cut(alive, state.smoothed, number)
            if state.over:
                break
        if self.refit:
            self._repair({} if self.regrow else before, alive, windows)
            state.weights = output_weights(self.model)
        with self.model.masked(alive):
            loss = validation_loss(self.model, self.validation)
        most, least = self.parameters(self.prunable.everything()), self.parameters(self.bare)
        size = self.parameters(alive)
        share = (most - size) / (most - least) if most > least else 0.0
        state.rounds.append(Round(number, alive, int(size), share, loss))
        if self.refit and self._best(state) is state.rounds[-1]:
            state.kept_weights = state.weights

    def _windows(self, counter: int) -> list[Batch]:
        """The macro-batches of one scoring."""
        draws = self.schedule.draws
        return [batch for n in range(draws) for batch in self.macro_batches((counter - 1) * draws + n + 1)]

    def _scored(self, alive: Alive, windows: Sequence[Batch], counter: int) -> dict[str, Tensor]:
        """Scores of what is there; with regrowth of all units, as a masked unit leaves no trace in the loss."""
        found: dict[str, Tensor]
        if self.regrow:
            found = self.scores.scores(self.original, windows, kinds=self.kinds, seed=self.seed + counter)
        else:
            with self.model.masked(alive):
                found = self.scores.scores(self.model, windows, kinds=self.kinds, seed=self.seed + counter)
        return found

    def _cut(self, alive: Alive, scores: Mapping[str, Tensor], number: int) -> tuple[Alive, bool]:
        """What stays, and whether that is the end: the budget is reached, or nothing is left that could go."""
        start = self.prunable.everything() if self.regrow else alive
        order = self.prunable.order(scores, start, self.rank, self.uniform)
        goal, final = self._goal(number)
        if goal is not None:
            left, _ = shortest(self.prunable, start, order, self.sizes, goal)
        else:
            # What leaves no trace in the loss goes at once and for free (2505.23195).
            idle = sum(float(scores[name][unit]) == 0.0 for name, unit in order)
            there = int(_units(alive)) - idle
            left, _ = shortest(self.prunable, start, order, self._units, there - self.schedule.count(there))
            if final is not None and self.sizes(left) < final:
                # So many units would be more than the budget asks for.
                left, _ = shortest(self.prunable, start, order, self.sizes, final)
        reached = final is not None and self.sizes(left) <= final
        return left, reached or left == self.prunable.without(start, order) or _units(left) <= _units(self.bare)

    def _units(self, alive: Alive) -> float:
        return _units(self.prunable.settled(alive))

    def _goal(self, number: int) -> tuple[float | None, float | None]:
        """The size after a round (None where units are counted), and that of the budget."""
        whole, least = self.sizes(self.prunable.everything()), self.sizes(self.bare)
        final = wanted = None
        if self.budget is not None:
            final = self.budget.goal
            wanted = min(NEARLY_ALL, (whole - final) / (whole - least)) if whole > least else NEARLY_ALL
        share = self.schedule.share(number, wanted)
        if share is None:
            return None, final
        if final is not None and number == self.schedule.last(True):
            return final, final
        goal = whole - share * (whole - least)
        return (goal if final is None else max(goal, final)), final

    def _repair(self, before: Mapping[str, list[int]], alive: Alive, windows: Sequence[Batch]) -> None:
        if self.regrow:
            self.model.load_state_dict(output_weights(self.original), strict=False)
        repair_masked(self.model, before, alive, windows)

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the outcome."""
        return {
            "model": fingerprint(self.original),
            "windows": data_digest(self.macro_batches(1)),
            "validation": data_digest(self.validation),
            "score": self.score,
            "schedule": repr(self.schedule),
            "budget": None if self.budget is None else [self.budget.words, self.budget.goal, self.budget.identity],
            "groups": list(self.prunable.groups),
            "settings": [self.rank, self.tolerance, self.seed, self.refit, self.uniform, self.regrow],
        }


def _units(alive: Mapping[str, Sequence[int]]) -> float:
    return float(sum(len(units) for units in alive.values()))


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
        rank: see `Prunable.order`.
    """
    return reach(model, scores, Sizes.of(model), parameters, rank)[0]


def reach(
    model: Forecaster,
    scores: Mapping[str, Tensor],
    sizes: Sizes,
    goal: float,
    rank: str = "magnitude",
    uniform: bool = False,
) -> tuple[Alive, bool]:
    """Units that stay when the lowest leave in one shot until a size is reached, and whether it was.

    Args:
        model: the model to prune.
        scores: importance `[U]` of the groups that may lose units.
        sizes: measures the model cut in any way.
        goal: the size to reach; out of reach, all that may go goes.
        rank: see `Prunable.order`.
        uniform: see `Prunable.order`.

    Raises:
        TspruneError: the scores are not of this model.
    """
    everything = model.unit_groups()
    for name in scores:
        if name not in everything or len(scores[name]) != everything[name].units:
            raise TspruneError(f"scores for {name!r} do not fit the model; score this model again")
    prunable = Prunable(model, list(scores))
    alive = prunable.everything()
    return shortest(prunable, alive, prunable.order(scores, alive, rank, uniform), sizes, goal)
