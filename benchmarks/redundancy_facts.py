"""What `redundancy.py` makes of measured numbers: choices, summaries of a model, intervals over sets.

A set is one witness: its attentions, layers and draws are averaged first. Growth is averaged on the log scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, permutations
from typing import Any, TypeVar

import torch

from tsprune.evaluation.intervals import LEVEL
from tsprune.evaluation.student import two_sided_quantile
from tsprune.lens._orders import ABLATION, FISHER, HIGH, LOW, SEEDS, random_name
from tsprune.scores._ranks import spearman

T = TypeVar("T")
Curves = Mapping[str, Sequence[float | None]]
"""Growth of the loss without the first n heads of an order, n from 0 on, by order; None for infinite."""
Spread = dict[str, Any]
RANDOM = tuple(random_name(draw) for draw in range(SEEDS))


def number(value: float | None) -> float:
    """Infinite where JSON has none."""
    return math.inf if value is None else value


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def published(curves: Curves, limit: float, orders: Sequence[str] = (LOW, HIGH)) -> tuple[str, int]:
    """The rule of 2602.01605: the order with the lower mean growth, and the most heads with which the limit is met.

    Fewer heads of the same order may well exceed the limit. All windows are used for all of it.
    """
    order = min(orders, key=lambda one: mean([number(y) for y in curves[one][1:]]))
    return order, max(n for n, growth in enumerate(curves[order]) if number(growth) <= limit)


def steady(curve: Sequence[float | None], limit: float) -> int:
    """How many heads can go one after the other without the limit being exceeded on the way."""
    return next((n for n, growth in enumerate(curve) if number(growth) > limit), len(curve)) - 1


def taken(items: Sequence[T], values: Sequence[float], count: int) -> list[T]:
    """The items of the lowest values; equal ones in their order."""
    return [items[place] for place in sorted(range(len(items)), key=lambda place: values[place])[:count]]


def share_of(share: float, count: int) -> int:
    """So many are a share, at least one."""
    return max(1, round(share * count))


def over_sets(values: Sequence[float], back: Callable[[float], float] = float) -> Spread:
    """Mean of one number per set and its 95 % interval by Student's t; none with fewer than two sets.

    Args:
        values: such as logs of growth.
        back: applied to mean and ends, such as `math.exp`.
    """
    middle, count = mean(values), len(values)
    found: Spread = {"mean": back(middle), "low": None, "high": None, "sets": count}
    if count > 1:
        spread = math.sqrt(sum((value - middle) ** 2 for value in values) / (count - 1) / count)
        reach = two_sided_quantile(LEVEL, count - 1) * spread
        found |= {"low": back(middle - reach), "high": back(middle + reach)}
    return found


def grown(values: Sequence[float]) -> Spread:
    """Of growth: geometric mean and its interval."""
    return over_sets([math.log(value) for value in values], math.exp)


def cells_of(sets: Mapping[str, Any], what: str) -> dict[str, Any]:
    return {name: cells[what] for name, cells in sets.items() if what in cells}


def heads_summary(sets: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """How many heads stay at one limit, by rule; what the choice does on later windows; the same at random.

    The control of a rule is the same rule given random orders: the published rule the better of two of them, ours the
    best of four.
    """
    found = cells_of(sets, "heads")
    layers: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, cell in found.items():
        growth, heads = cell["facts"]["growth"], cell["later"]["ours"]["heads"]
        gone = {
            rule: {one: len(cell["later"][rule]["gone"].get(one, ())) for one in heads} for rule in cell["later"]
        }  # fmt: skip
        gone["published, random orders"] = {
            one: mean([published(curves, limit, pair)[1] for pair in combinations(RANDOM, 2)])
            for one, curves in growth.items()
        }
        gone["ours, random orders"] = {
            one: mean([max(steady(curves[o], limit) for o in four) for four in combinations(RANDOM, 4)])
            for one, curves in growth.items()
        }
        for one, count in heads.items():
            layer = layers.setdefault(one.removesuffix("/head"), {"heads": count})
            for rule, numbers in gone.items():
                layer.setdefault(rule, {})[name] = count - numbers[one]
        row = next(row for row in cell["together"]["rows"] if row[0] == f"{100 * (limit - 1):g} %")
        facts = cell["facts"]["removable"][f"{100 * (limit - 1):g}"]
        rows[name] = {
            "heads": sum(heads.values()),
            "gone": {rule: sum(numbers.values()) for rule, numbers in gone.items()},
            "together": {
                "gone": len(facts["together"]), "first": row[4], "growth": row[5], "low": row[6], "high": row[7],
                "word": row[8], "random": math.exp(mean([math.log(number(g)) for g in facts["random"]])),
            },
            "later": {rule: _later(one, limit) for rule, one in cell["later"].items()},
        }  # fmt: skip
    return {"sets": rows, "attentions": layers}


def _later(one: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """What later windows say of the choice of one rule."""
    words = [word(entry, limit) for entry in one["alone"].values()]
    return {
        "at once": one["at once"],
        "random": math.exp(mean([math.log(number(g)) for g in one["random"]])),
        "choices": len(words),
        "within": sum(number(entry["growth"]) <= limit for entry in one["alone"].values()),
        **{kind: words.count(kind) for kind in ("confirmed", "refuted", "open")},
    }


def word(entry: Mapping[str, float | None], limit: float) -> str:
    """Whether the interval lies within the limit, beyond it, or on both sides."""
    if entry["low"] is None:
        return "open"
    return "confirmed" if number(entry["high"]) <= limit else "refuted" if entry["low"] > limit else "open"


def area(curve: Sequence[float | None]) -> float:
    """Mean growth between no head and all heads off, where orders can differ."""
    return mean([number(y) for y in curve[1:-1]])


def orders_summary(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Area under the curve of each order over the mean area of random orders, and in how many attentions it is less.

    `either direction` is the better one of low and high first in each attention; its control is the better one of two
    random orders. `a random order` is each random order against the others.
    """
    logs: dict[str, dict[str, list[float]]] = {}
    areas: dict[str, list[dict[str, float]]] = {}
    for name, cell in cells_of(sets, "heads").items():
        for attention, curves in cell["facts"]["growth"].items():
            if len(curves[LOW]) < 3:  # A single head is in one order.
                continue
            found = {order: area(curve) for order, curve in curves.items()}
            for order, value in _against_random(found).items():
                logs.setdefault(order, {}).setdefault(name, []).append(value)
            areas.setdefault(attention, []).append(found)
    rows = {}
    for order, by_set in logs.items():
        every = [value for values in by_set.values() for value in values]
        rows[order] = {
            "ratio": over_sets([mean(values) for values in by_set.values()], math.exp),
            "better": sum(value < 0 for value in every),
            "of": len(every),
            "by set": {name: math.exp(mean(values)) for name, values in by_set.items()},
        }
    directions = {
        "attentions": len(areas),
        "low first": sum(one[LOW] < one[HIGH] for by_set in areas.values() for one in by_set),
        "of": sum(map(len, areas.values())),
        "same direction on all sets": _lasting(areas, LOW, HIGH),
        "same for two random orders": mean([_lasting(areas, *pair) for pair in combinations(RANDOM, 2)]),
    }
    return {"orders": rows, "directions": directions}


def _lasting(areas: Mapping[str, Sequence[Mapping[str, float]]], first: str, second: str) -> int:
    """In how many attentions the same one of two orders is better on every set.

    Any two orders may agree so, since the same heads matter on all sets.
    """
    signs = [[one[first] < one[second] for one in by_set] for by_set in areas.values()]
    return sum(all(found) or not any(found) for found in signs)


def _against_random(areas: Mapping[str, float]) -> dict[str, float]:
    """Logs of areas over the mean of random ones; a random order is compared with the others, averaged over all."""
    random = [areas[name] for name in RANDOM]
    found = {order: math.log(areas[order] / mean(random)) for order in (LOW, HIGH, FISHER, ABLATION)}
    found["stable rank, either direction"] = min(found[LOW], found[HIGH])
    pairs = [math.log(min(pair) / mean(random)) for pair in combinations(random, 2)]
    found["random, the better of two"] = mean(pairs)
    others = [math.log(one / mean([*random[:place], *random[place + 1 :]])) for place, one in enumerate(random)]
    found["a random order"] = others[0]
    return found


def send_summary(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Rank correlations with leave-one-out by set, their mean over sets, and what random rankings give."""
    found = cells_of(sets, "send")
    pairs = {
        "SEND, first windows": "SEND and the loss without it",
        "SEND, later windows": "SEND and the loss without it on later windows",
        "Taylor term, later windows": "Taylor term and the loss without it on later windows",
        "first and later windows": "the loss without it on first and later windows",
    }
    rows: dict[str, Any] = {}
    for label, name in pairs.items():
        values = {one: cell["facts"]["agreements"].get(name) for one, cell in found.items()}
        known = {one: a for one, a in values.items() if a is not None and a["value"] is not None}
        if known:
            rows[label] = {
                "attentions": max(a["count"] for a in known.values()),
                "by set": {one: a["value"] for one, a in known.items()},
                "mean": over_sets([a["value"] for a in known.values()]),
                "random": random_correlation(max(a["count"] for a in known.values())),
            }
    return rows


def random_correlation(count: int) -> list[float]:
    """The middle 95 % of rank correlations between an order of so many and all (or many random) others."""
    first = torch.arange(count, dtype=torch.float64)
    if count <= 7:
        orders = [torch.tensor(order, dtype=torch.float64) for order in permutations(range(count))]
    else:
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(count, generator=generator).double() for _ in range(4000)]
    values = sorted(value for order in orders if (value := spearman(first, order)) is not None)
    cut = int(len(values) * (1 - LEVEL) / 2)
    return [values[cut], values[len(values) - 1 - cut]]


def over_models(found: Mapping[str, Any], what: str) -> dict[str, Spread]:
    """Averages over models within each set that all of them have, then over sets.

    Ratios to random by order, or rank correlations by what is ranked; only what every model has.

    Args:
        found: summaries by model.
        what: "orders", "send", or "cuts", in which the keys are `pool share: order`.
    """
    many = [_by_set(one, what) for one in found.values()]
    said = {}
    for name in [name for name in many[0] if all(name in one for one in many)]:
        common = [place for place in many[0][name] if all(place in one[name] for one in many)]
        if common and what == "send":
            said[name] = over_sets([mean([one[name][place] for one in many]) for place in common])
        elif common:
            said[name] = over_sets([mean([math.log(one[name][place]) for one in many]) for place in common], math.exp)
    return said


def _by_set(one: Mapping[str, Any], what: str) -> dict[str, Mapping[str, float]]:
    if what == "cuts":
        return {
            f"{pool} {share}: {order}": by_set
            for pool, shares in one["cuts"].items()
            for share, entry in shares.items()
            for order, by_set in entry["over random by set"].items()
        }
    rows = one["orders"]["orders"] if what == "orders" else one["send"]
    return {name: entry["by set"] for name, entry in rows.items()}
