"""What `redundancy.py` makes of layers, feed-forward parts and shares of heads that were off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from redundancy_facts import cells_of, grown, mean, number, over_sets


def middle_layers(count: int) -> list[int]:
    """Layers of the middle, as the probe `layer_sweep` has it; none of fewer than three."""
    edge = max(1, count // 3)
    return list(range(edge, count - edge)) if count > 2 else []


def layers_summary(sets: Mapping[str, Any]) -> dict[str, Any]:
    """By stack and part: growth by depth, middle layers against the others, and pairs of layers off, later windows.

    The control of the middle pair is a random pair: the mean over all pairs of layers, the middle one among them.
    """
    found: dict[str, Any] = {}
    for name, cell in cells_of(sets, "layers").items():
        for stack, parts in cell["later"].items():
            for part, rows in parts.items():
                one = found.setdefault(stack, {}).setdefault(part, {"by depth": {}, "pairs": {}})
                one["by depth"][name] = [number(entry["growth"]) for entry in rows["alone"]]
                one["pairs"][name] = {pair: number(entry["growth"]) for pair, entry in rows["pairs"].items()}
    return {stack: {part: _summed(one) for part, one in parts.items()} for stack, parts in found.items()}


def _summed(one: Mapping[str, Any]) -> dict[str, Any]:
    depths: dict[str, list[float]] = one["by depth"]
    count = len(next(iter(depths.values())))
    said: dict[str, Any] = {
        "layers": count,
        "growth": [grown([values[layer] for values in depths.values()]) for layer in range(count)],
        "random layer": grown([math.exp(mean([math.log(v) for v in values])) for values in depths.values()]),
    }
    inside = middle_layers(count)
    if not inside:
        return said
    gaps = {}
    for name, values in depths.items():
        logs = [math.log(value) for value in values]
        gaps[name] = mean([logs[at] for at in inside]) - mean([v for at, v in enumerate(logs) if at not in inside])
    said |= {
        "middle": inside,
        "middle over others": over_sets(list(gaps.values()), math.exp),
        "sets where the middle matters less": sum(gap < 0 for gap in gaps.values()),
        "sets": len(gaps),
    }
    if len(inside) == 2:
        said["pair"] = _pair(one["pairs"], f"{inside[0]} {inside[1]}")
    return said


def _pair(pairs: Mapping[str, Mapping[str, float]], own: str) -> dict[str, Any]:
    """The middle pair off together, beside all pairs."""
    random = {name: math.exp(mean([math.log(v) for v in by.values()])) for name, by in pairs.items()}
    return {
        "middle": grown([by[own] for by in pairs.values()]),
        "random": grown(list(random.values())),
        "over random": grown([by[own] / random[name] for name, by in pairs.items()]),
        "rank": {name: 1 + sum(value < by[own] for value in by.values()) for name, by in pairs.items()},
        "of": len(next(iter(pairs.values()))),
    }


def feedforward_summary(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Feed-forward parts alone, in pairs and all off, beside attentions alone; later windows, means over sets.

    A random pair is the mean over all pairs of one stack, averaged over stacks.
    """
    found = cells_of(sets, "layers")

    def of(part: str, what: str) -> list[float]:
        """One number per set: geometric mean over layers of all stacks, or over pairs of each stack."""
        values = []
        for cell in found.values():
            logs = []
            for parts in cell["later"].values():
                rows = parts.get(part, {}).get(what, [])
                entries = rows.values() if isinstance(rows, dict) else rows
                logs += [math.log(number(entry["growth"])) for entry in entries]
            values.append(math.exp(mean(logs)))
        return values

    worst = [
        max(number(e["growth"]) for parts in cell["later"].values() for e in parts["feed-forward"]["alone"])
        for cell in found.values()
    ]
    stacks: dict[str, list[float]] = {}
    for cell in found.values():
        for stack, parts in cell["later"].items():
            stacks.setdefault(stack, []).append(number(parts["feed-forward"]["all"]["growth"]))
    alone, attention = of("feed-forward", "alone"), of("attention", "alone")
    return {
        "one feed-forward part off": grown(alone),
        "the most needed feed-forward part": grown(worst),
        "one attention off": grown(attention),
        "feed-forward over attention": grown([a / b for a, b in zip(alone, attention, strict=True)]),
        "two feed-forward parts at random": grown(of("feed-forward", "pairs")),
        "two attentions at random": grown(of("attention", "pairs")),
        "all feed-forward parts off": grown([number(cell["no feed-forward"]["growth"]) for cell in found.values()]),
        "all off by set": {name: cell["no feed-forward"] for name, cell in found.items()},
        "all of a stack off": {stack: grown(values) for stack, values in stacks.items()},
        "idle channels": idle_channels(cells_of(sets, "idle")),
    }


def idle_channels(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Share of all feed-forward channels that the probe `sparsity` calls idle, over sets."""
    shares = []
    for cell in cells.values():
        where = cell["networks"]["head"].index("channels"), cell["networks"]["head"].index("idle")
        channels, idle = (sum(row[at] for row in cell["networks"]["rows"]) for at in where)
        shares.append(idle / channels)
    return over_sets(shares)


def cuts_summary(sets: Mapping[str, Any]) -> dict[str, Any]:
    """A share of heads off: growth on later windows by order, and over that at random in the same set."""
    found: dict[str, Any] = {}
    by_pool: dict[tuple[str, str], dict[str, Any]] = {}
    for name, cell in cells_of(sets, "cuts").items():
        for pool in ("middle", "all"):
            for share, entry in cell[pool]["shares"].items():
                by_pool.setdefault((pool, share), {})[name] = (cell[pool]["heads"], entry)
    for (pool, share), entries in by_pool.items():
        heads, first = next(iter(entries.values()))
        found.setdefault(pool, {})[share] = {"heads": heads, "gone": first["count"], **_orders(entries)}
    return found


def _orders(entries: Mapping[str, Any]) -> dict[str, Any]:
    growth: dict[str, list[float]] = {}
    ratio: dict[str, dict[str, float]] = {}
    drawn: list[float] = []
    for name, (_, entry) in entries.items():
        orders = dict(entry["orders"])
        random = [orders.pop(name) for name in list(orders) if name.startswith("random")]
        values = [math.log(number(one["growth"])) for one in random]
        drawn += [math.exp(value) for value in values]
        rows = {order: math.log(number(one["growth"])) for order, one in orders.items()} | _chosen(orders, random)
        for order, value in rows.items():
            growth.setdefault(order, []).append(math.exp(value))
            ratio.setdefault(order, {})[name] = math.exp(value - mean(values))
        growth.setdefault("random", []).append(math.exp(mean(values)))
    return {
        "growth": {order: grown(values) for order, values in growth.items()},
        "over random": {order: grown(list(by.values())) for order, by in ratio.items()},
        "over random by set": ratio,
        "better than random": {order: sum(v < 1 for v in by.values()) for order, by in ratio.items()},
        "lowest draw": min(drawn), "highest draw": max(drawn), "draws": len(drawn),
    }  # fmt: skip


def _chosen(orders: Mapping[str, Any], random: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The direction that is better on the first windows, and as a control the better of two random draws there."""
    found = {}
    for rank in ("stable rank", "attention stable rank", "attention effective rank"):
        ends = [orders[f"{rank}, {end} first"] for end in ("low", "high")]
        if all("first" in one for one in ends):
            best = min(ends, key=lambda one: number(one["first"]))
            found[f"{rank}, direction by first windows"] = math.log(number(best["growth"]))
    if random and all("first" in one for one in random):
        pairs = zip(random[::2], random[1::2], strict=False)
        best_of = [min(pair, key=lambda one: number(one["first"])) for pair in pairs]
        found["the better of two random draws on first windows"] = mean(
            [math.log(number(o["growth"])) for o in best_of]
        )
    return found
