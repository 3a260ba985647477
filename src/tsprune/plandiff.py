"""What two plans share: which units both keep and both remove, against what chance would give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import lgamma
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsprune.blocks.kinds import WHOLE
from tsprune.errors import TspruneError
from tsprune.plan import Plan, PlanGroup

NEGLIGIBLE = 1e-15
Floats = NDArray[np.float64]
Sizes = tuple[int, int, int]
"""Units of a pool, how many of them the first plan has, and how many the second."""


@dataclass(frozen=True)
class Overlap:
    """How far two plans agree on some units.

    Args:
        units: how many units there are.
        first: how many of them the first plan keeps.
        second: how many the second keeps.
        both: how many both keep.
        kept: Jaccard index of the kept units, both over either; None where neither keeps any.
        kept_by_chance: its expected value for plans of the same sizes that draw their units at random from all units
            of a kind.
        kept_by_chance_in_groups: the same, where the plans also keep as many units of every group as they do.
        removed: Jaccard index of the removed units; None where neither removes any.
        removed_by_chance: as for the kept units.
        removed_by_chance_in_groups: as for the kept units.
    """

    units: int
    first: int
    second: int
    both: int
    kept: float | None
    kept_by_chance: float | None
    kept_by_chance_in_groups: float | None
    removed: float | None
    removed_by_chance: float | None
    removed_by_chance_in_groups: float | None


@dataclass(frozen=True)
class PlanDiff:
    """Two plans side by side.

    Args:
        groups: by group name, in network order as the plans have it.
        kinds: by kind of unit.
        all: over all groups; None where the plans name no group.
        notes: what the reader should know, one line each.
        plans: the two plans over the same groups, with what lies inside removed layers and branches gone as well.
    """

    groups: Mapping[str, Overlap]
    kinds: Mapping[str, Overlap]
    all: Overlap | None
    notes: tuple[str, ...]
    plans: tuple[Plan, Plan]

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        heads = ("base_model", "base_fingerprint", "family", "score", "schedule", "data_fingerprint", "seed")
        return {
            "schema": 1,
            "plans": [
                {name: getattr(plan, name) for name in heads} | {"parameters": dict(plan.parameters)}
                for plan in self.plans
            ],
            "notes": list(self.notes),
            "all": None if self.all is None else asdict(self.all),
            "kinds": {name: asdict(found) for name, found in self.kinds.items()},
            "groups": {name: asdict(found) for name, found in self.groups.items()},
        }


def diff(first: Plan, second: Plan) -> PlanDiff:
    """Compare two plans for the same model, or for models with the same groups.

    A group that only one of them names stays whole in the other. Units inside a layer or branch that a plan removes
    as a whole count as removed.

    Raises:
        TspruneError: the plans are for different families, or for models whose groups differ; names the groups.
    """
    names = _common_groups(first, second)
    plans = (_whole(first, second, names), _whole(second, first, names))
    groups = {name: _overlap([_sets(plans, name)]) for name in names}
    kinds = {
        kind: _overlap([_sets(plans, name) for name in names if plans[0].groups[name].kind == kind])
        for kind in dict.fromkeys(plans[0].groups[name].kind for name in names)
    }
    everything = _overlap([_sets(plans, name) for name in names], _pools(kinds)) if names else None
    return PlanDiff(groups, kinds, everything, tuple(_notes(first, second)), plans)


def jaccard(both: int, first: int, second: int) -> float | None:
    """Size of the intersection over that of the union; None where both sets are empty."""
    either = first + second - both
    return both / either if either else None


def expected_jaccard(pools: Sequence[Sizes]) -> float | None:
    """Expected Jaccard index of two random sets that have given numbers of elements in every pool.

    The size of the intersection is a sum of independent hypergeometric variables, one for each pool, whose
    distributions are convolved; what is less likely than 1e-15 is left out.

    Args:
        pools: elements of the pool, those of the first set, those of the second.

    Returns:
        None where both sets are empty.
    """
    size = sum(a + b for _, a, b in pools)
    if not size:
        return None
    start, chances = 0, np.ones(1)
    for pool in pools:
        low, own = _intersections(*pool)
        start, chances = start + low, np.convolve(chances, own)
        likely = np.flatnonzero(chances > NEGLIGIBLE)
        start, chances = start + int(likely[0]), chances[likely[0] : likely[-1] + 1]
    both = start + np.arange(len(chances))
    return float((chances * both / (size - both)).sum() / chances.sum())


def _intersections(units: int, first: int, second: int) -> tuple[int, Floats]:
    """Smallest intersection of random subsets of these sizes, and how likely it and the following ones are."""
    low, high = max(0, first + second - units), min(first, second)
    both = range(low, high + 1)
    # C(first, i) C(units - first, second - i), up to a factor that is the same for all.
    logs = np.array(
        [
            -lgamma(i + 1) - lgamma(first - i + 1) - lgamma(second - i + 1) - lgamma(units - first - second + i + 1)
            for i in both
        ]
    )
    chances = np.exp(logs - logs.max())
    return low, chances / chances.sum()


def _common_groups(first: Plan, second: Plan) -> list[str]:
    """Names of the groups of both plans, those of the first in its order."""
    if first.family != second.family:
        raise TspruneError(
            f"the plans are for different families, {first.family} ({first.base_model}) and {second.family} "
            f"({second.base_model}); only plans for the same groups of units can be compared"
        )
    wrong = [
        f"{name} ({group.kind}, {group.units} units, in the other {second.groups[name].units})"
        for name, group in first.groups.items()
        if name in second.groups and second.groups[name].units != group.units
    ]
    if not wrong and first.parameters["before"] != second.parameters["before"]:
        # Between models of one size, a group that one plan does not name is whole in it; here it may not exist at all.
        alone = sorted(set(first.groups) ^ set(second.groups))
        wrong = [f"{name} (in one plan only)" for name in alone]
    if wrong:
        raise TspruneError(
            f"the plans are for models that differ ({first.base_model}: {first.parameters['before']:,} parameters, "
            f"{second.base_model}: {second.parameters['before']:,}); {len(wrong)} of their groups do not match: "
            + "; ".join(wrong[:5])
        )
    return [*first.groups, *(name for name in second.groups if name not in first.groups)]


def _whole(plan: Plan, other: Plan, names: Sequence[str]) -> Plan:
    """The plan over all the groups, with what lies inside removed layers and branches gone."""
    groups = {}
    for name in names:
        group = plan.groups.get(name)
        if group is None:
            group = replace(other.groups[name], kept=tuple(range(other.groups[name].units)))
        groups[name] = group
    gone = gone_whole(groups)
    return replace(
        plan,
        groups={name: replace(group, kept=()) if inside_any(name, gone) else group for name, group in groups.items()},
    )


def gone_whole(groups: Mapping[str, PlanGroup]) -> list[str]:
    """Paths of the layers and branches that are removed as a whole."""
    return [name.rsplit("/", 1)[0] for name, group in groups.items() if group.kind in WHOLE and not group.kept]


def inside_any(name: str, paths: Iterable[str]) -> bool:
    """Whether a group lies inside one of these layers or branches; the group of a branch itself does not."""
    path, kind = name.rsplit("/", 1)
    return any((path == outer and kind not in WHOLE) or path.startswith(outer + ".") for outer in paths)


def _sets(plans: tuple[Plan, Plan], name: str) -> tuple[PlanGroup, PlanGroup]:
    return plans[0].groups[name], plans[1].groups[name]


def _overlap(pairs: Sequence[tuple[PlanGroup, PlanGroup]], pools: Sequence[Sizes] = ()) -> Overlap:
    """The agreement over some groups; `pools` are what chance draws from, by default all of them together."""
    inside = [(a.units, len(a.kept), len(b.kept)) for a, b in pairs]
    units, first, second = (sum(sizes[place] for sizes in inside) for place in range(3))
    both = sum(len(set(a.kept) & set(b.kept)) for a, b in pairs)
    neither = units - first - second + both
    pools = pools or [(units, first, second)]
    return Overlap(
        units, first, second, both,
        jaccard(both, first, second), expected_jaccard(pools), expected_jaccard(inside),
        jaccard(neither, units - first, units - second), expected_jaccard(_removed(pools)),
        expected_jaccard(_removed(inside)),
    )  # fmt: skip


def _removed(pools: Iterable[Sizes]) -> list[Sizes]:
    return [(units, units - first, units - second) for units, first, second in pools]


def _pools(kinds: Mapping[str, Overlap]) -> list[Sizes]:
    return [(found.units, found.first, found.second) for found in kinds.values()]


def _notes(first: Plan, second: Plan) -> list[str]:
    notes = []
    if first.base_fingerprint != second.base_fingerprint:
        notes.append(f"the plans are for other weights: {first.base_model} and {second.base_model}")
    for one, other, word in ((first, second, "first"), (second, first, "second")):
        if missing := [name for name in other.groups if name not in one.groups]:
            more = ", ..." if len(missing) > 3 else ""
            notes.append(
                f"{len(missing)} groups are not named in the {word} plan and so are whole there: "
                f"{', '.join(missing[:3])}{more}"
            )
    return notes
