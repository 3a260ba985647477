"""Which units stay: reviewable, and reusable on any model with the same groups."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune.blocks.kinds import KINDS
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from tsprune.models._forecaster import Forecaster

SCHEMA = 1


@dataclass(frozen=True)
class PlanGroup:
    """One group of units in a plan.

    Args:
        kind: what a unit is, one of `KINDS`.
        units: how many the model has before pruning, U.
        kept: sorted indices of those that stay, each in `0..U-1`.
    """

    kind: str
    units: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Which units stay, and how that was decided.

    Args:
        base_model: id or directory of the model that the plan was made for.
        base_fingerprint: fingerprint of its tensors.
        family: its family.
        score: name of the score.
        schedule: name of the schedule.
        data_fingerprint: fingerprint of the panel.
        seed: seed of the pruning.
        parameters: `before` and `after`, number of parameters.
        flops: `before` and `after`, floating point operations.
        groups: by group name; a group that is not named stays whole.
        indexed: groups of channels on the residual width whose removed channels are cut by an index, where that was
            measured to be faster; those of other such groups are zeroed in place, and still count as parameters.
        folded: paths of attentions that were made one linear map after the cut, see `tsprune.folding`; `parameters` and
            `flops` count the folded model. Whoever applies the plan to another model cuts, and folds anew.
    """

    base_model: str
    base_fingerprint: str
    family: str
    score: str
    schedule: str
    data_fingerprint: str
    seed: int
    parameters: Mapping[str, int]
    flops: Mapping[str, int]
    groups: Mapping[str, PlanGroup] = field(default_factory=dict)
    indexed: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()

    @property
    def kept(self) -> dict[str, list[int]]:
        """Indices of the units that stay, by group name."""
        return {name: list(group.kept) for name, group in self.groups.items()}

    def check(self, model: Forecaster) -> None:
        """Raise TspruneError listing the groups that do not fit the model: unknown, or of another size."""
        have = model.unit_groups()
        wrong = []
        for name, group in self.groups.items():
            if name not in have:
                wrong.append(f"{name} (the model has no such group)")
            elif have[name].units != group.units:
                wrong.append(f"{name} ({group.units} units, the model has {have[name].units})")
        if wrong:
            shown = "; ".join(wrong[:5])
            raise TspruneError(
                f"the plan for {self.base_model} does not fit, {len(wrong)} of its groups differ: {shown}"
            )

    def to_json(self) -> str:
        """The plan as JSON text, groups in network order, one per line."""
        facts = asdict(self)
        groups = facts.pop("groups")
        facts["indexed"] = list(self.indexed)
        if folded := facts.pop("folded"):
            # Files of models without any are as they were before there was folding.
            facts["folded"] = list(folded)
        head = json.dumps({"schema": SCHEMA, **facts}, indent=1)[:-2]
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(group)}" for name, group in groups.items())
        return f'{head},\n "groups": {{\n{lines}\n }}\n}}\n' if lines else f'{head},\n "groups": {{}}\n}}\n'

    @classmethod
    def from_json(cls, text: str, source: str = "plan.json") -> Plan:
        """Read a plan.

        Args:
            text: JSON.
            source: file named in errors.

        Raises:
            TspruneError: names the entry that is missing or impossible.
        """
        try:
            facts = json.loads(text)
        except ValueError as error:
            raise TspruneError(f"{source}: not valid JSON ({error})") from error
        if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
            found = facts.get("schema") if isinstance(facts, dict) else type(facts).__name__
            raise TspruneError(f"{source}: entry 'schema' is {found!r}, this version reads schema {SCHEMA}")
        strings = ("base_model", "base_fingerprint", "family", "score", "schedule", "data_fingerprint")
        values: dict[str, Any] = {name: _typed(facts, name, str, source) for name in strings}
        values["seed"] = _typed(facts, "seed", int, source)
        for name in ("parameters", "flops"):
            section = _typed(facts, name, dict, source)
            values[name] = {key: _typed(section, key, int, f"{source}: {name}") for key in ("before", "after")}
        groups = _typed(facts, "groups", dict, source)
        indexed = _typed(facts, "indexed", list, source) if "indexed" in facts else []
        if wrong := [name for name in indexed if name not in groups]:
            raise TspruneError(f"{source}: indexed names {wrong[0]!r}, which is not among the groups")
        folded = _typed(facts, "folded", list, source) if "folded" in facts else []
        if odd := [path for path in folded if not isinstance(path, str)]:
            raise TspruneError(f"{source}: folded holds {odd[0]!r}, expected paths of attentions")
        return cls(
            **values,
            groups={name: _group(name, group, source) for name, group in groups.items()},
            indexed=tuple(indexed),
            folded=tuple(folded),
        )

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan from a file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TspruneError(f"{path}: cannot be read as a plan ({error})") from error
        return cls.from_json(text, str(path))

    def write(self, path: str | Path) -> None:
        """Write the plan whole or not at all."""
        from tsprune.stages import write_text

        write_text(Path(path), self.to_json())


def _typed(section: Mapping[str, Any], name: str, kind: type, source: str) -> Any:
    if name not in section:
        raise TspruneError(f"{source}: entry {name!r} is missing")
    value = section[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TspruneError(f"{source}: entry {name!r} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _group(name: str, group: Any, source: str) -> PlanGroup:
    where = f"{source}: groups: {name}"
    if not isinstance(group, dict):
        raise TspruneError(f"{where}: is {type(group).__name__}, expected kind, units and kept")
    kind, units = _typed(group, "kind", str, where), _typed(group, "units", int, where)
    kept = _typed(group, "kept", list, where)
    if kind not in KINDS or not name.endswith(f"/{kind}"):
        raise TspruneError(f"{where}: kind is {kind!r}, expected one of {', '.join(KINDS)}, as the name ends")
    if units < 1:
        raise TspruneError(f"{where}: units is {units}, expected 1 or more")
    if wrong := [unit for unit in kept if type(unit) is not int or not 0 <= unit < units]:
        raise TspruneError(f"{where}: kept has {wrong[0]!r}, expected integers from 0 to {units - 1}")
    if any(left >= right for left, right in itertools.pairwise(kept)):
        raise TspruneError(f"{where}: kept must be increasing, each unit once")
    return PlanGroup(kind, units, tuple(kept))
