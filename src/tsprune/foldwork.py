"""Folding on its way through a run: what is folded, how that is checked, and what is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tsprune.errors import TspruneError
from tsprune.evaluation.cost import flops
from tsprune.folding import ONE_MAP, TWO_MAPS, Folding, fold, folding_error
from tsprune.models import load, save
from tsprune.models._forecaster import Forecaster
from tsprune.plan import Plan, PlanGroup
from tsprune.preparing import Prepared
from tsprune.progress import Progress
from tsprune.slimming import meta_twin
from tsprune.stages import Run, read_json, write_json
from tsprune.stagework import EQUIVALENCE_LIMIT, EQUIVALENCE_WINDOWS

FOLDING = "folding.json"
ROUNDING = 1e-5
"""Share of the forecasts' spread by which the rounding of folded weights may move them without being mentioned."""


def single_series(ready: Prepared) -> bool:
    """Whether every window holds one series and nothing else."""
    return not (ready.task.together or ready.panel.past_names or ready.panel.known_names)


def foreseen(ready: Prepared, model: Forecaster) -> Folding:
    """What folding would do to a model, without doing it."""
    return fold(meta_twin(model), single_series=single_series(ready))[1]


def fold_to(ready: Prepared, source: Path, out: Path, *, plan: Plan | None = None) -> Folding:
    """Fold the model of a stage; writes `model/` and `folding.json`, which says what became of what and how exactly.

    Args:
        ready: data and task.
        source: has the `model/`.
        out: where the folded one goes; may be the same.
        plan: that made a slim model.

    Raises:
        TspruneError: forecasts differ, which would be a defect.
    """
    model = load(source / "model", device=ready.task.device)
    folded, found = fold(model, single_series=single_series(ready))
    facts: dict[str, Any] = found.to_json()
    if not found.why:
        sizes = {"context": ready.split.context, "horizon": ready.horizon}
        facts["flops"] = {"before": flops(model, **sizes), "after": flops(folded, **sizes)}
        facts["equivalence"] = checked(ready, model, folded)
        if plan is not None:
            plan = replace(plan, flops={**plan.flops, "after": facts["flops"]["after"]})
        save(folded, out / "model", plan)
    write_json(out / FOLDING, facts)
    return found


def settle_folding(ready: Prepared, wanted: bool, plan: Plan, out: Path, progress: Progress) -> Plan:
    """Fold what a pruning wrote, if wanted, and say so in its `plan.json`; else take an earlier `folding.json` away.

    Args:
        ready: data and the model that was pruned.
        wanted: whether `--fold` was given.
        plan: the pruning's.
        out: has `model/` and `plan.json`.
        progress: told what became of it.

    Returns:
        The plan, with the sizes of the folded model where something was folded.
    """
    if not wanted:
        (out / FOLDING).unlink(missing_ok=True)
        return plan
    found = fold_to(ready, out, out, plan=plan)
    facts = read_json(out / FOLDING)
    for note in notes_of(facts):
        progress.say(f"note: --fold: {note}")
    if found.why:
        return plan
    plan = folded_plan(plan, ready, facts)
    plan.write(out / "plan.json")
    return plan


def fold_stages(
    ready: Prepared,
    workplace: Run,
    base: Mapping[str, Any],
    tuned: Mapping[str, Path],
    plans: Mapping[str, Plan | None],
    progress: Progress,
) -> dict[str, Path]:
    """A stage for every trained candidate in which something can be folded; the others stay where they are.

    Folding is exact and needs no training, so it comes last: tunings are the same with and without it, and are taken as
    they stand when it is asked for later. The dense candidate is folded like the pruned ones: were it these alone, what
    folding gives would pass for a gain of pruning.

    Args:
        ready: data and task.
        workplace: the run's directory.
        base: what every stage depends on.
        tuned: the folder of every candidate, by name.
        plans: those that made them slim.
        progress: told where nothing can be folded.

    Returns:
        The folder whose `model/` is compared and handed back, by name.
    """
    found = {}
    for name, folder in tuned.items():
        outlook = foreseen(ready, load(folder / "model"))
        if outlook.why:
            progress.say(f"note: --fold: {name}: {outlook.words()}")
            found[name] = folder
            continue

        def make(work: Path, name: str = name) -> None:
            fold_to(ready, tuned[name], work, plan=plans.get(name))

        inputs = {**base, "from": folder.name, "single_series": single_series(ready)}
        found[name] = workplace.stage(f"fold-{name.replace('_', '-')}", inputs, make)
    return found


def folding_of(folder: Path) -> dict[str, Any] | None:
    """What a stage folded: the content of its `folding.json`, or None."""
    return dict(read_json(folder / FOLDING)) if (folder / FOLDING).exists() else None


def checked(ready: Prepared, model: Forecaster, folded: Forecaster) -> dict[str, Any]:
    """The folded model against the model itself on training windows; too large a difference stops the run."""
    batch = ready.macro_batch(0, EQUIVALENCE_WINDOWS)[0]
    found = folding_error(model, folded, batch, ready.horizon)
    if not found["relative_float64"] <= EQUIVALENCE_LIMIT:
        raise TspruneError(
            f"the folded model differs from the one it was made of by {found['relative_float64']:.2e} of the "
            f"forecasts' spread in float64, over {EQUIVALENCE_LIMIT:g}; this is a defect of tsprune, please report it"
        )
    return {**found, "windows": batch.rows}


def folded_plan(plan: Plan, ready: Prepared, facts: Mapping[str, Any]) -> Plan:
    """The plan of a cut with what folding did to the model after it.

    Args:
        plan: counts the units of the prepared model.
        ready: has that model.
        facts: content of `folding.json`.
    """
    forms = {place["path"]: place["form"] for place in facts["places"]}
    groups, units = dict(plan.groups), ready.model.unit_groups()
    for path in (path for path, form in forms.items() if form == TWO_MAPS):
        if (group := units.get(f"{path}/qk_pair")) is not None:
            groups[group.name] = PlanGroup(group.kind, group.units, ())
    return replace(
        plan,
        groups={name: groups[name] for name in units if name in groups},
        parameters={**plan.parameters, "after": facts["after"]},
        flops={**plan.flops, "after": facts["flops"]["after"]},
        folded=tuple(path for path, form in forms.items() if form == ONE_MAP),
    )


def notes_of(facts: Mapping[str, Any]) -> list[str]:
    """What a user should know of a folding, one line each; `facts` is the content of `folding.json`."""
    notes = [facts["words"]]
    if facts["why"]:
        return notes
    if facts["equivalence"]["relative"] > ROUNDING:
        notes.append(
            f"rounding of the folded weights moves forecasts by {facts['equivalence']['relative']:.1e} of their spread"
        )
    if any(place["across"] and place["form"] == ONE_MAP for place in facts["places"]):
        notes.append("folded for single series: refuses --together and covariates")
    return notes
