"""Comparing models on the same windows: who leads, by how much, and whether "better" may be said.

Letters: R rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsprune.data.words import listed, many
from tsprune.errors import TspruneError
from tsprune.evaluation.diebold_mariano import DieboldMariano, compare_rows
from tsprune.evaluation.intervals import LEVEL, REPLICATES, Draws, Interval, shared_terms
from tsprune.evaluation.metrics import RowErrors
from tsprune.evaluation.student import two_sided_quantile
from tsprune.evaluation.timeblocks import Blocks

CLIP = (0.01, 100.0)
"""Bounds of a ratio within a geometric mean, as in fev: one error of 0 must not decide it."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """How models are compared.

    Args:
        measure: one of `metrics.MEASURES`.
        level: confidence level; "better" needs a Diebold-Mariano p below 1 - level and an interval that excludes 1.
        replicates: of the bootstrap.
        seed: of the bootstrap.
    """

    measure: str = "mse"
    level: float = LEVEL
    replicates: int = REPLICATES
    seed: int = 0

    def draws(self, models: Mapping[str, RowErrors], blocks: Blocks) -> Draws:
        """The bootstrap's replicates of these models."""
        return Draws(models, blocks, self.measure, level=self.level, replicates=self.replicates, seed=self.seed)


def compare(
    models: Mapping[str, RowErrors],
    reference: str,
    blocks: Blocks,
    options: Options | None = None,
    draws: Draws | None = None,
) -> dict[str, Any]:
    """Rank models by their error and compare each with a reference, and the best with the second.

    Args:
        models: errors by name, all on the same rows; at least two.
        reference: name of the model that all are compared with.
        blocks: the units of the rows.
        options: measure, confidence level, replicates and seed.
        draws: what `Options.draws` gave of these models, where they were drawn already.

    Returns:
        Plain data: `measure`, `level`, `reference`, `rows`, `blocks`; `ranking`, the best first, each with `name`,
        `value` (estimate and interval), `ratio` to the reference (likewise), `win_rate` (share of units in which the
        model's loss is below the reference's, ties counting half), `diebold_mariano` and `verdict` against the
        reference ("better", "worse", "undecided", "reference"); `top`, the best against the second, with `first`,
        `second`, `ratio`, `diebold_mariano` and `better`; `notes`; and `sentence` for people.

    Raises:
        TspruneError: for fewer than two models, an unknown reference, rows of other windows, or a measure that has no
            denominator in these windows.
    """
    chosen = options or Options()
    if len(models) < 2 or reference not in models:
        raise TspruneError(
            f"the reference is {reference!r} and the models are {listed(list(models)) or 'none'}, expected at least "
            "two models and the name of one of them"
        )
    values = {name: rows.value(chosen.measure) for name, rows in models.items()}
    if unknown := [name for name, value in values.items() if value is None]:
        raise TspruneError(
            f"{chosen.measure} has no denominator in these windows ({listed(unknown)}); choose another measure"
        )
    # Equal errors keep the order in which the models were given.
    order = sorted(models, key=lambda name: values[name] or 0.0)
    drawn = draws or chosen.draws(models, blocks)
    ranking = [_against(name, reference, drawn) for name in order]
    top = _top(order[0], order[1], drawn)
    return {
        "measure": chosen.measure,
        "level": chosen.level,
        "reference": reference,
        "rows": len(models[reference]),
        "blocks": blocks.describe(),
        "ranking": ranking,
        "top": top,
        "notes": blocks.notes(),
        "sentence": _sentence(top, chosen),
    }


def verdict(ratio: Interval, test: DieboldMariano, level: float = LEVEL) -> str:
    """What may be said of a model against another: "better" or "worse" only if interval and test both say so."""
    significant = test.p_value is not None and test.p_value < 1 - level
    if ratio.estimate is None or not significant or not ratio.excludes(1):
        return "undecided"
    return "better" if ratio.estimate < 1 else "worse"


def pair(name: str, other: str, draws: Draws) -> dict[str, Any]:
    """One model against another, as plain data: `ratio` of their errors, `diebold_mariano`, and `verdict`.

    Args:
        name: of the model.
        other: name of the model that it is compared with.
        draws: of both.
    """
    ratio = draws.ratio(name, other)
    test = compare_rows(draws.models[name], draws.models[other], draws.blocks, draws.measure)
    return {
        "ratio": ratio.to_json(),
        "diebold_mariano": test.to_json(),
        "verdict": verdict(ratio, test, draws.level),
    }


def win_rate(rows: RowErrors, reference: RowErrors, blocks: Blocks, measure: str) -> float:
    """Share of units in which a model's loss is below the reference's; ties count half."""
    sums = blocks.sums(np.stack(shared_terms(measure, rows, reference), axis=1))
    return _wins(*sums[sums[:, 2] > 0][:, :2].T)


def mean_ratio(rows: RowErrors, reference: RowErrors, blocks: Blocks, measure: str = "mae") -> dict[str, Any]:
    """Geometric mean over series or origins of a model's error relative to the reference's.

    With units that are series, and the mean absolute error of each, this is AvgRelMAE (Davydenko and Fildes 2013).
    Ratios are clipped to `CLIP`; 0 over 0 counts as 1.

    Returns:
        Plain data: `ratio`, `units`, `clipped` (how many ratios were).

    Raises:
        TspruneError: for an unknown measure or rows of other windows, or where nothing was measured.
    """
    sums = blocks.sums(np.stack(shared_terms(measure, rows, reference), axis=1))
    sums = sums[sums[:, 2] > 0]
    if not len(sums):
        raise TspruneError(f"{measure} has no denominator in these windows; choose another measure")
    logs, clipped = _log_ratios(sums[:, 0], sums[:, 1])
    return {"ratio": math.exp(math.fsum(logs.tolist()) / len(logs)), "units": len(logs), "clipped": clipped}


@dataclass(frozen=True)
class Overall:
    """A model against a reference over several tasks.

    Attributes:
        name: of the model.
        ratio: geometric mean of the ratios of errors.
        low: lower end of its interval; None with fewer than two data sets.
        high: upper end.
        win_rate: share of tasks in which the error is below the reference's; ties count half.
        mean_rank: mean rank of the error among all models, 1 being the best; ties share their ranks.
        tasks: how many tasks.
        clipped: how many ratios were clipped to `CLIP`.
    """

    name: str
    ratio: float
    low: float | None
    high: float | None
    win_rate: float
    mean_rank: float
    tasks: int
    clipped: int


def overall(
    errors: Mapping[str, Mapping[str, float]],
    reference: str,
    *,
    data_sets: Mapping[str, str] | None = None,
    level: float = LEVEL,
) -> dict[str, Any]:
    """Summarise models over several tasks, such as data sets and horizons.

    The geometric mean of ratios does not depend on units, and no data set with large errors decides it (Fleming and
    Wallace 1986). Its interval is Student's t over the log ratios of data sets, taken as drawn from all data sets one
    might ask about; tasks of the same data set are averaged first, since they are not independent.

    Args:
        errors: error by model, by task; every task with the same models.
        reference: name of the model that all are compared with.
        data_sets: the data set of each task; every task is one of its own by default.
        level: confidence level.

    Returns:
        Plain data: `reference`, `level`, `data_sets`, `models` (one `Overall` each, lowest ratio first), `sentence`.

    Raises:
        TspruneError: for no task, tasks with other models, an unknown reference, or errors that are no numbers.
    """
    names = _same_models(errors, reference)
    sets = {task: task if data_sets is None else data_sets[task] for task in errors}
    table = np.array([[errors[task][name] for name in names] for task in errors], np.float64)
    if not (np.isfinite(table) & (table >= 0)).all():
        raise TspruneError("some errors are not finite or negative, expected an error of 0 or more in every task")
    base = table[:, names.index(reference)]
    ranks = _ranks(table)
    found = []
    for column, name in enumerate(names):
        logs, clipped = _log_ratios(table[:, column], base)
        mean, half = _mean_over_sets(logs, list(sets.values()), level)
        low, high = (None, None) if half is None else (math.exp(mean - half), math.exp(mean + half))
        wins, rank = _wins(table[:, column], base), float(ranks[:, column].mean())
        found.append(Overall(name, math.exp(mean), low, high, wins, rank, len(table), clipped))
    found.sort(key=lambda one: one.ratio)
    count = len(set(sets.values()))
    return {
        "reference": reference,
        "level": level,
        "data_sets": count,
        "models": [asdict(one) for one in found],
        "sentence": _overall_sentence(found, reference, count, level),
    }


def _against(name: str, reference: str, draws: Draws) -> dict[str, Any]:
    found = {
        "name": name,
        "value": draws.interval(name).to_json(),
        "win_rate": win_rate(draws.models[name], draws.models[reference], draws.blocks, draws.measure),
        **pair(name, reference, draws),
    }
    return found | {"verdict": "reference"} if name == reference else found


def _top(first: str, second: str, draws: Draws) -> dict[str, Any]:
    found = pair(first, second, draws)
    better = found.pop("verdict") == "better"
    return {"first": first, "second": second, **found, "better": better}


def _sentence(top: Mapping[str, Any], options: Options) -> str:
    first, second, ratio = top["first"], top["second"], top["ratio"]
    name = {"smape": "sMAPE"}.get(options.measure, options.measure.upper())
    p_value, estimate = top["diebold_mariano"]["p_value"], ratio["estimate"]
    tested = "no Diebold-Mariano test" if p_value is None else f"Diebold-Mariano p {_p(p_value)}"
    if estimate is None or estimate == 1:
        return f"{first} and {second} have the same {name}; neither is better."
    said = f"{first} has {1 - estimate:.1%} less {name} than {second} ({_range(ratio, options.level)}, {tested})"
    return f"{said}: it is better." if top["better"] else f"{said}: that may be chance, so neither is called better."


def _range(ratio: Mapping[str, Any], level: float) -> str:
    low, high = ratio["low"], ratio["high"]
    if low is None and high is None:
        return f"ratio {ratio['estimate']:.3f}, no interval"
    upper = "unbounded" if high is None else f"{high:.3f}"
    return f"ratio {ratio['estimate']:.3f}, {level:.0%} interval {low:.3f} to {upper}"


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def _overall_sentence(found: Sequence[Overall], reference: str, count: int, level: float) -> str:
    best = next((one for one in found if one.name != reference), found[0])
    over = f"{many(best.tasks, 'task')} on {many(count, 'data set')}"
    said = f"{best.name} against {reference} over {over}: geometric mean ratio {best.ratio:.3f}"
    if best.low is None or best.high is None:
        return f"{said}, no interval from one data set; it wins {best.win_rate:.0%} of the tasks."
    said += f" ({level:.0%} interval {best.low:.3f} to {best.high:.3f}); it wins {best.win_rate:.0%} of the tasks"
    return f"{said}." if best.high < 1 or best.low > 1 else f"{said}. A ratio of 1 is within the interval."


def _log_ratios(values: _Floats, base: _Floats) -> tuple[_Floats, int]:
    """Logarithms of clipped ratios `[N]`, and how many were clipped."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(values == base, 1.0, values / base)
    clipped = np.clip(ratios, *CLIP)
    return np.log(clipped), int((clipped != ratios).sum())


def _wins(values: ArrayLike, base: ArrayLike) -> float:
    one, two = np.asarray(values, np.float64), np.asarray(base, np.float64)
    return float(((one < two) + 0.5 * (one == two)).mean()) if len(one) else 0.5


def _ranks(table: _Floats) -> _Floats:
    """Rank of every entry within its row, ties sharing the mean of theirs, of the same shape."""
    below = (table[:, :, None] > table[:, None, :]).sum(axis=2)
    ties = (table[:, :, None] == table[:, None, :]).sum(axis=2)
    return np.asarray(below + (ties + 1) / 2, np.float64)


def _mean_over_sets(logs: _Floats, sets: Sequence[str], level: float) -> tuple[float, float | None]:
    """Mean over data sets of the mean log ratio of each, and half the width of its interval."""
    if not 0 < level < 1:
        raise TspruneError(f"the confidence level is {level}, expected a number between 0 and 1, such as 0.95")
    means = np.array([logs[[other == one for other in sets]].mean() for one in dict.fromkeys(sets)])
    if len(means) < 2:
        return float(means.mean()), None
    error = float(means.std(ddof=1)) / math.sqrt(len(means))
    return float(means.mean()), two_sided_quantile(level, len(means) - 1) * error


def _same_models(errors: Mapping[str, Mapping[str, float]], reference: str) -> list[str]:
    if not errors:
        raise TspruneError("there is no task to summarise, expected at least one")
    names = list(next(iter(errors.values())))
    for task, by_model in errors.items():
        if odd := set(names) ^ set(by_model):
            raise TspruneError(
                f"task {task!r} has other models than the first one ({listed(sorted(odd))}); every task needs the same "
                "models, or means over tasks would not be comparable"
            )
    if reference not in names:
        raise TspruneError(f"the reference {reference!r} is not among the models {listed(names)}")
    return names
