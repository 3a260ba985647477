"""The commands about plans: show one, compare two. Heavy modules are imported inside, so that help is instant."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune.commands import Command
from tsprune.data.words import many
from tsprune.errors import TspruneError
from tsprune.flags import Chosen
from tsprune.settings import option
from tsprune.several import alone

if TYPE_CHECKING:
    from tsprune.plan import Plan
    from tsprune.plandiff import PlanDiff

HELP = "Look at a plan, or compare two."


@dataclass(frozen=True)
class ShowSettings:
    """Which plan to show."""

    plan: str = option("", "plan.json, or a directory that has one: a run, or a pruned model.")


@dataclass(frozen=True)
class DiffSettings:
    """Which plans to compare, and where the result goes."""

    first: str = option("", "The first plan: plan.json, or a directory that has one.")
    second: str = option("", "The second plan.")
    out: str = option("", "File for the comparison: .json for all numbers, .html for a page with the heat map.")


def plan_path(given: str, flag: str) -> Path:
    """The file of a plan, given itself or as a directory that has one.

    Raises:
        TspruneError: nothing was given, or there is no such file; names the argument.
    """
    if not given:
        raise TspruneError(f"{flag} is missing; give a plan.json, or a directory that has one")
    path = Path(given)
    if path.is_file():
        return path
    if not path.is_dir():
        raise TspruneError(f"{flag} {given}: no such file; 'tsprune prune' and 'tsprune specialize' write plan.json")
    inside = [folder / "plan.json" for folder in (path, path / "model")]
    found = next((entry for entry in inside if entry.is_file()), None)
    if found is None:
        raise TspruneError(f"{flag} {given}: the directory has no plan.json; name the file of a plan")
    return found


def read_plan(given: str, flag: str) -> Plan:
    """The plan there; raises TspruneError that names the argument where there is none that can be read."""
    from tsprune.plan import Plan

    try:
        return Plan.read(plan_path(given, flag))
    except TspruneError as error:
        raise TspruneError(str(error) if str(error).startswith(flag) else f"{flag} {error}") from None


def run_diff(chosen: Chosen, quiet: bool) -> None:
    """Show what two plans share: units kept and removed by both, against chance, and layer by layer."""
    from tsprune.plandiff import diff
    from tsprune.report.agreement import agreement_map, page
    from tsprune.stages import writable_file, write_json, write_text

    settings = chosen.make(DiffSettings)
    out = Path(settings.out)
    if settings.out:
        if out.suffix not in (".json", ".html"):
            raise TspruneError(f"--out {settings.out} ends in {out.suffix or 'nothing'!r}, expected .json or .html")
        writable_file(out)
    found = diff(read_plan(settings.first, "FIRST"), read_plan(settings.second, "SECOND"))
    content = found.to_dict()
    cells = agreement_map((_facts(found.plans[0]), _facts(found.plans[1])))
    if out.suffix == ".json":
        write_json(out, content)
    elif out.suffix == ".html":
        write_text(out, page(content, cells))
    if not quiet:
        for name, given, plan in (("A", settings.first, found.plans[0]), ("B", settings.second, found.plans[1])):
            print(f"{name}: {given}, {_about(plan)}")
        for note in found.notes:
            print(f"note: {note}")
    _tables(found, content, cells)
    if settings.out:
        print(f"written to {out}")


def _tables(found: PlanDiff, content: dict[str, Any], cells: Any) -> None:
    from tsprune.report.agreement import kind_rows, map_rows, rich_map, text_table

    if found.all is None:
        print("both plans leave the model whole")
        return
    print(text_table(*kind_rows(content)))
    print("chance: expected for random plans that keep as many units of every kind\n")
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_map(cells))
    else:
        print("kept by A, by B | by both, Jaccard")
        print(text_table(*map_rows(cells)))


def run_show(chosen: Chosen, quiet: bool) -> None:
    """Show where a plan comes from, and what it keeps of every kind of unit and of every layer."""
    from tsprune.report.agreement import text_table
    from tsprune.report.removal import removal_map

    plan = read_plan(chosen.make(ShowSettings).plan, "PLAN")
    found = removal_map(_facts(plan))
    print(_about(plan))
    if not found.rows:
        print("the plan leaves the model whole")
        return
    print(found.sentence() + "\n")
    head = ["layer", *(column.replace("\n", " ") for column in found.columns), "whole parts"]
    rows = [
        [row.label, *(row.cells[c].text if c in row.cells else "" for c in found.columns), row.whole]
        for row in found.rows
    ]
    print(text_table(head, rows))


def _facts(plan: Plan) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(plan.to_json())
    return facts


def _about(plan: Plan) -> str:
    before, after = plan.parameters["before"], plan.parameters["after"]
    how = f"score {plan.score or 'unknown'}, {plan.schedule or 'unknown schedule'}"
    told = f"for {plan.base_model} ({plan.family}), {how}: {before:,} -> {after:,} parameters ({after / before:.0%})"
    return f"{told}, {many(len(plan.folded), 'attention')} folded" if plan.folded else told


COMMANDS = (
    Command("show", alone(run_show, "plan show"), (ShowSettings,), "plan"),
    Command("diff", alone(run_diff, "plan diff"), (DiffSettings,), "first second"),
)
