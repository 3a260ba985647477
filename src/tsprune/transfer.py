"""A structure found elsewhere, on other series or another model with the same groups, applied to this one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.plan import Plan
from tsprune.plandiff import gone_whole, inside_any
from tsprune.preparing import Prepared
from tsprune.ranking import Prunable
from tsprune.settings import PruneSettings
from tsprune.stagework import one_shot


def prune_by_plan(ready: Prepared, settings: PruneSettings, path: Path, out: Path) -> tuple[Plan, list[str]]:
    """Cut the prepared model by a stored plan, repaired on its own series if so set, and check masked == slim.

    Args:
        ready: model and series; the plan may come from others.
        settings: only `repair` and `prune_windows` matter, as the plan says which units go.
        path: a plan.json.
        out: where `plan.json`, `equivalence.json` and `model/` go.

    Returns:
        The new plan, with this model and these series as its origin, and what differs from where it was found.

    Raises:
        TspruneError: the file is no plan, or the plan does not fit the model; names the groups.
    """
    try:
        plan = Plan.read(path)
    except TspruneError as error:
        raise TspruneError(f"--plan {error}") from None
    check_fit(plan, ready.model, path)
    # The name of a file says nothing to those who get the new plan, the model it was found on does.
    schedule = f"transferred from a plan for {plan.base_model} ({plan.schedule or 'unknown schedule'})"
    made = one_shot(ready, settings, ready.model, plan.kept, out, score=plan.score, schedule=schedule)
    return made, origins(plan, ready)


def check_fit(plan: Plan, model: Forecaster, path: Path) -> None:
    """Refuse a plan of another family, for other groups, or one that leaves a group fewer units than it needs."""
    if plan.family != model.family:
        raise TspruneError(
            f"--plan {path} is for a model of the family {plan.family} ({plan.base_model}), this one is of "
            f"{model.family}; use a plan of the same family"
        )
    try:
        plan.check(model)
    except TspruneError as error:
        raise TspruneError(f"--plan {path}: {error}; use a plan for a model of the same shape") from None
    gone = gone_whole(plan.groups)
    groups = model.unit_groups()
    short = [
        f"{name} (keeps {len(group.kept)}, needs {groups[name].floor})"
        for name, group in plan.groups.items()
        if len(group.kept) < groups[name].floor and not inside_any(name, gone)
    ]
    if short:
        raise TspruneError(
            f"--plan {path} leaves {len(short)} groups with fewer units than they need: {'; '.join(short[:5])}; keep "
            "more units there"
        )
    if not Prunable(model, list(plan.groups)).spares_essential(plan.kept):
        raise TspruneError(
            f"--plan {path} takes every head of blocks of which at least one is needed, such as a decoder's "
            "cross-attentions; keep one"
        )


def origins(plan: Plan, ready: Prepared) -> list[str]:
    """Where the plan was found, as far as that is not here; one line each."""
    notes = []
    if plan.base_fingerprint != ready.identity["model"]:
        notes.append(f"the plan was made for {plan.base_model}, with other weights than {ready.task.model}")
    if plan.data_fingerprint != ready.identity["data"]:
        notes.append("the plan was found on other series than these")
    return notes


def unused(chosen: Sequence[str]) -> list[str]:
    """Flags that `--plan` makes void, among the options that the user chose.

    Raises:
        TspruneError: one of them asks for another way to say what stays.
    """
    flags = {name: "--" + name.replace("_", "-") for name in sorted(chosen)}
    for name in ("scores", "keep", "keep_of", "speedup", "uniform"):
        if name in flags:
            raise TspruneError(f"--plan says which units stay, and so does {flags[name]}; give one of them")
    free = {"repair", "prune_windows", "max_memory"}
    names = set(PruneSettings.__dataclass_fields__) - free
    return [flag for name, flag in flags.items() if name in names]
