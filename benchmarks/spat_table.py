"""What rules for dropping whole attentions come to, from the cells of `spat.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from tsprune.evaluation.student import two_sided_quantile

METRICS = ("mse", "mae", "flops", "parameters")
RULES = ("send", "leave_one_out", "random")
Row = Mapping[str, Any]


def chosen(row: Row, rule: str, count: int) -> list[str]:
    """Keys of the sets of attentions that a rule drops: one, or for random choice all of that size."""
    sizes = [key for key in row["sets"] if len(key.split()) == count]
    if rule == "random" or not count:
        return sizes
    order = sorted(range(len(row["modules"])), key=lambda place: row[rule][place])
    return [" ".join(map(str, sorted(order[:count])))]


def by_validation(row: Row, rule: str) -> int:
    """How many attentions validation would have dropped, after tuning; 0 leaves the network whole."""

    def judged(count: int) -> float:
        return mean(row["sets"][key]["tuned"]["validation"] for key in chosen(row, rule, count))

    return min(range(len(row["modules"]) + 1), key=judged)


def log_ratios(row: Row, keys: Sequence[str], stage: str) -> dict[str, float]:
    """Log ratios to the whole network, tuned alike; before tuning to the whole one before it. Mean over the keys."""
    whole = row["sets"][""][stage]
    return {m: mean(math.log(row["sets"][key][stage][m] / whole[m]) for key in keys) for m in METRICS}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Percent of change for every rule and number dropped, networks apart and together, seeds averaged first."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    found: dict[str, Any] = {}
    for label, some in [("all", list(rows)), *((n, [r for r in rows if r["network"] == n]) for n in names)]:
        table: dict[str, Any] = {}
        for rule in RULES:
            for stage in ("tuned", "before"):
                fixed: Callable[[Row], int] = lambda row: 1  # noqa: E731
                table[f"{rule}, one dropped, {stage}"] = _mean(some, _pick(rule, fixed, stage))
            fixed = lambda row: len(row["modules"]) - 1  # noqa: E731
            table[f"{rule}, all but one dropped, tuned"] = _mean(some, _pick(rule, fixed, "tuned"))
            table[f"{rule}, number by validation, tuned"] = _mean(
                some, _pick(rule, lambda row, rule=rule: by_validation(row, rule), "tuned")
            )
        table["all attentions dropped, tuned"] = _mean(some, _pick("random", lambda r: len(r["modules"]), "tuned"))
        table["heads, operations of send's one, tuned"] = _mean(some, _heads)
        found[label] = table
    found["number_by_validation"] = {
        rule: [by_validation(row, rule) for row in rows if rule != "random"] for rule in RULES[:2]
    }
    found["same_first_choice"] = mean(float(chosen(row, "send", 1) == chosen(row, "leave_one_out", 1)) for row in rows)
    found["same_first_choice_by_chance"] = mean(1 / len(row["modules"]) for row in rows)
    found["send_first_is_stable"] = mean(
        float(len({_lowest(part) for part in row["send_by_half"]}) == 1) for row in rows
    )
    found["elsewhere"] = _mean(some := [row for row in rows if row.get("elsewhere")], _elsewhere) if rows else {}
    found["elsewhere_cells"] = len(some)
    return found


def _lowest(values: Sequence[float]) -> int:
    return min(range(len(values)), key=lambda place: values[place])


def _pick(rule: str, count: Callable[[Row], int], stage: str) -> Callable[[Row], dict[str, float]]:
    return lambda row: log_ratios(row, chosen(row, rule, count(row)), stage)


def _heads(row: Row) -> dict[str, float]:
    whole, own = row["sets"][""]["tuned"], row["heads"]["tuned"]
    return {m: math.log(own[m] / whole[m]) for m in METRICS}


def _elsewhere(row: Row) -> dict[str, float]:
    found = row["elsewhere"]
    return {m: math.log(found["without"][m] / found["whole"][m]) for m in METRICS}


def _mean(rows: Sequence[Row], ratios: Callable[[Row], dict[str, float]]) -> dict[str, Any]:
    """Percent of change and its 95 % interval over networks and sets, on logs; how many tasks these are."""
    tasks: dict[tuple[str, str], list[dict[str, float]]] = {}
    for row in rows:
        tasks.setdefault((row["network"], row["set"]), []).append(ratios(row))
    found: dict[str, Any] = {"tasks": len(tasks)}
    for metric in METRICS:
        logs = [mean(one[metric] for one in seeds) for seeds in tasks.values()]
        centre = mean(logs)
        found[metric] = percent(centre)
        if metric in ("mse", "mae") and len(logs) > 1:
            half = two_sided_quantile(0.95, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
            found[f"{metric}_low"], found[f"{metric}_high"] = percent(centre - half), percent(centre + half)
    return found


def percent(log: float) -> float:
    """A log ratio as percent of change."""
    return round(100 * (math.exp(log) - 1), 2)
