"""Score stability: whether importance scores stay the same on other windows, other draws and other data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from tsprune.bench.gathering import Gathered
from tsprune.bench.jobs import Arrays, Job
from tsprune.bench.kinds.stability import KIND
from tsprune.bench.recipes._recipe import Look, Recipe
from tsprune.bench.spec import Spec
from tsprune.errors import TspruneError
from tsprune.registry import known
from tsprune.scores._ranks import spearman
from tsprune.settings import PruneSettings

SCORES = ("fisher", "taylor_abs", "wanda", "head_norm", "stable_rank")


class Stability(Recipe):
    """Scores on every data set, several draws of windows each; nothing is trained but the brief tuning."""

    def settled(self, spec: Spec) -> Spec:
        """Refuse a grid with nothing to draw twice."""
        if len(spec.seeds) < 2:
            raise TspruneError("recipe stability needs at least two seeds: each draws other windows")
        return spec

    def waves(self) -> list[Callable[[Spec, Look], list[Job]]]:
        """All at once."""
        return [jobs]

    def summary(self, gathered: Gathered) -> dict[str, Any]:
        """Rank correlations by model, score and kind of unit: within one draw, between draws, between data sets."""
        within = [
            {**{key: row[key] for key in _PLACE}, "unit": unit, **agreement}
            for row in gathered.rows
            if row["kind"] == KIND
            for unit, agreement in row["agreement"].items()
        ]
        return {"stability": {"within": within, "pairs": pairs(gathered)}}

    def told(self, summary: dict[str, Any]) -> tuple[str, list[dict[str, Any]]] | None:
        """A table of mean rank correlations by model, score and kind of unit."""
        within, across = summary["stability"]["within"], summary["stability"]["pairs"]
        rows = []
        for model, score, unit in dict.fromkeys((one["model"], one["candidate"], one["unit"]) for one in within):
            own = [one for one in within if (one["model"], one["candidate"], one["unit"]) == (model, score, unit)]
            other = [one for one in across if (one["model"], one["score"], one["unit"]) == (model, score, unit)]
            halves = _mean([one["halves"] for one in own])
            ages = _mean([one["early_late"] for one in own])
            seeds, data = (_mean([o["spearman"] for o in other if o["between"] == b]) for b in ("seed", "data"))
            rows.append([f"{model}, {score}, {unit}", *(_shown(value) for value in (halves, ages, seeds, data))])
        head = ["scores", "random halves", "early and late windows", "other draws", "other data"]
        text = [
            "Spearman's rank correlation of the importance of units, means over data sets and draws; 1 is full "
            "agreement. Scores that need no window agree with themselves."
        ]
        title = "Agreement of scores"
        part: dict[str, Any] = {"title": title, "text": text}
        part |= {"table": {"head": head, "rows": rows}} if rows else {"missing": "nothing is done yet"}
        return f"How far importance scores agree with themselves: {len(rows)} scores by model and kind of unit.", [part]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


_PLACE = ("model", "data", "horizon", "share", "seed", "candidate")


def pairs(gathered: Gathered) -> list[dict[str, Any]]:
    """Agreement of scores of other draws of windows on the same data, and of other data at the same seed."""
    cells = [
        (job, name, gathered.store.arrays(key, name))
        for job, key in gathered.keyed
        for name in job.wanted
        if gathered.done(key, name)
    ]
    found = []
    for (one, score, first), (two, other, second) in combinations(cells, 2):
        apart = [field for field in ("data", "seed") if getattr(one, field) != getattr(two, field)]
        alike = (one.model, one.horizon, one.share, score) == (two.model, two.horizon, two.share, other)
        if not alike or len(apart) != 1:
            continue
        for unit, value in _agree(first, second).items():
            place = {"model": one.model, "score": score, "unit": unit, "horizon": one.horizon, "between": apart[0]}
            found.append({**place, "data": [one.data, two.data], "seeds": [one.seed, two.seed], "spearman": value})
    return found


def jobs(spec: Spec, look: Look) -> list[Job]:
    """One for every model, data set, horizon and seed."""
    scores = wanted(spec)
    return [
        Job("stability", model.name, entry.name, horizon, share, seed, scores)
        for seed in spec.seeds
        for horizon in spec.horizons
        for entry in spec.data
        for share in spec.shares
        for model in spec.models
        if seed in spec.seeds_of(model)
    ]


def wanted(spec: Spec) -> tuple[str, ...]:
    """The score that the grid names, or the usual ones."""
    named = spec.settings.get("score")
    return (known("tsprune.scores", str(named), "score"),) if named else SCORES


def _agree(first: Arrays, second: Arrays) -> dict[str, float | None]:
    kinds = dict.fromkeys(name.split("|")[0] for name in first)
    magnitude = PruneSettings.rank == "magnitude"
    found = {}
    for kind in kinds:
        names = [name for name in first if name.split("|")[0] == kind and name in second]
        one, two = (
            torch.from_numpy(np.concatenate([part[name].ravel() for name in names])) for part in (first, second)
        )
        found[kind] = spearman(one.abs(), two.abs()) if magnitude else spearman(one, two)
    return found


RECIPE = Stability()
