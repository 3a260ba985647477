"""The command `lens`: what a model uses on your series."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tsprune import registry
from tsprune.data.reading import ReadOptions
from tsprune.flags import Chosen
from tsprune.progress import Progress
from tsprune.settings import TaskSettings, option


@dataclass(frozen=True)
class LensSettings:
    """What to look at, and where findings go."""

    out: str = option("tsprune-lens", "Directory for lens.json and lens.html. Finished probes there are kept.")
    probes: tuple[str, ...] = option(
        (), f"Probes to run: {', '.join(registry.names('tsprune.lens'))}. Default: all that apply to the model."
    )
    windows: int = option(64, "Validation windows on which probes measure and choose, evenly spread.")
    later: int = option(64, "Later validation windows that confirm what was chosen.")


def run_lens(chosen: Chosen, quiet: bool) -> None:
    """Show which layers, heads and feed-forward networks of a model your series use, and what may go."""
    from tsprune.lens._run import look
    from tsprune.preparing import prepare

    settings, progress = chosen.make(LensSettings), Progress(quiet)
    for name in settings.probes:
        registry.known("tsprune.lens", name, "--probes")
    ready = prepare(chosen.make(TaskSettings), chosen.make(ReadOptions))
    for line in (*ready.panel.describe(), *(f"note: {note}" for note in ready.notes)):
        progress.say(line)
    out = Path(settings.out)
    found = look(ready, out, probes=settings.probes, windows=settings.windows, later=settings.later, progress=progress)
    for one in found["probes"].values():
        print(f"{one['title']}: {one.get('answer') or 'does not apply: ' + one['refused']}")
    print(f"findings: {out / 'lens.json'}\npage: {out / 'lens.html'}")
