"""The command `lens`: what a model uses on your series."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tsprune import registry
from tsprune.data.reading import ReadOptions
from tsprune.errors import TspruneError
from tsprune.flags import Chosen
from tsprune.progress import Progress
from tsprune.settings import TaskSettings, option

PERCENT = (0.0, 1.0, 5.0)
"""Limits for the growth of the loss that heads_at and what_may_go look for."""


@dataclass(frozen=True)
class LensSettings:
    """What to look at, and where findings go."""

    out: str = option("tsprune-lens", "Directory for lens.json and lens.html. Finished probes there are kept.")
    probes: tuple[str, ...] = option(
        (), f"Probes to run: {', '.join(registry.names('tsprune.lens'))}. Default: all that apply to the model."
    )
    windows: int = option(64, "Validation windows on which probes measure and choose, evenly spread.")
    later: int = option(64, "Later validation windows that confirm what was chosen.")
    write_plan: str = option(
        "", "File for a plan of what may go, for 'tsprune prune --plan' and 'tsprune plan show'. Default: no plan."
    )
    plan_from: Literal["heads_at", "what_may_go"] = option(
        "heads_at",
        "Probe whose findings the plan takes: heads_at (heads of all layers together) or what_may_go (heads, whole "
        "attentions, feed-forward parts, layers and experts).",
    )
    within: float = option(
        1.0, "How much the loss may grow on the first windows by what the plan takes, in percent: 0, 1 or 5."
    )

    def __post_init__(self) -> None:
        """Refuse a limit that no probe knows, and a plan of a probe that is not to run."""
        if self.within not in PERCENT:
            known = ", ".join(f"{percent:g}" for percent in PERCENT)
            raise TspruneError(f"--within {self.within:g} is not among the limits that probes look for: {known}")
        if self.write_plan and self.probes and self.plan_from not in self.probes:
            raise TspruneError(
                f"--write-plan takes its plan from --plan-from {self.plan_from}, which --probes leaves out; name it "
                "there too"
            )


def run_lens(chosen: Chosen, quiet: bool) -> None:
    """Show which layers, heads and feed-forward networks of a model your series use, and what may go."""
    from tsprune.lens._plan import check_source, plan_of
    from tsprune.lens._run import look
    from tsprune.preparing import prepare

    settings, progress = chosen.make(LensSettings), Progress(quiet)
    for name in settings.probes:
        registry.known("tsprune.lens", name, "--probes")
    if settings.write_plan:
        from tsprune.stages import writable_file

        writable_file(Path(settings.write_plan), "--write-plan")
    ready = prepare(chosen.make(TaskSettings), chosen.make(ReadOptions))
    for line in (*ready.panel.describe(), *(f"note: {note}" for note in ready.notes)):
        progress.say(line)
    if settings.write_plan:
        check_source(ready.model, settings.plan_from)
    out = Path(settings.out)
    found = look(ready, out, probes=settings.probes, windows=settings.windows, later=settings.later, progress=progress)
    for one in found["probes"].values():
        print(f"{one['title']}: {one.get('answer') or 'does not apply: ' + one['refused']}")
    print(f"findings: {out / 'lens.json'}\npage: {out / 'lens.html'}")
    if settings.write_plan:
        plan = plan_of(ready, found, settings.plan_from, settings.within)
        plan.write(settings.write_plan)
        before, after = plan.parameters["before"], plan.parameters["after"]
        data = f" --data {ready.task.data} --horizon {ready.horizon}" if ready.task.data else ""
        print(
            f"plan: {settings.write_plan} ({before:,} -> {after:,} parameters, {after / before:.0%}); cut by it with: "
            f"tsprune prune --model {ready.task.model}{data} --plan {settings.write_plan}"
        )
