"""A lens from the first probe to `lens.json` and `lens.html`; every finished probe is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tsprune import lens
from tsprune.__about__ import __version__
from tsprune.blocks.prepacked import prepacked
from tsprune.data.words import many
from tsprune.errors import TspruneError
from tsprune.evaluation.machine import machine_line, versions
from tsprune.lens._probe import Probe, Study
from tsprune.lens._study import study_of
from tsprune.preparing import Prepared
from tsprune.progress import Progress
from tsprune.registry import known
from tsprune.stages import Run, read_json, write_json

SCHEMA = 1
FOUND = "findings.json"


def look(
    ready: Prepared, out: Path, *, probes: Sequence[str] = (), windows: int = 64, later: int = 64,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run probes and write what they found.

    Killed at any moment, the same call goes on with the probes that are not finished.

    Args:
        ready: data, split and model.
        out: directory for `lens.json` and `lens.html`.
        probes: names; all where none is named.
        windows: windows that measure.
        later: windows that confirm.
        progress: told what happens, and before a probe starts, what it costs.

    Returns:
        The content of `lens.json`.

    Raises:
        TspruneError: an unknown probe, one that was named and does not apply, or no window.
    """
    progress = progress or Progress(quiet=True)
    chosen = [known("tsprune.lens", name, "--probes") for name in probes] or lens.names()
    study, notes = study_of(ready, windows, later)
    refused = {name: why for name in chosen if (why := lens.find(name).refusal(ready.model))}
    if probes and refused:
        name, why = next(iter(refused.items()))
        raise TspruneError(f"--probes {name}: {why}; leave it out")
    workplace = Run(out, progress.say)
    second = _seconds_per_pass(study)
    inputs = {"tsprune": __version__, **ready.identity, "windows": windows, "later": later}
    found: dict[str, Any] = {}
    try:
        for name in chosen:
            probe = lens.find(name)
            facts = {"title": probe.title, "question": probe.question, "source": probe.source}
            if name in refused:
                found[name] = {**facts, "refused": refused[name]}
                continue
            folder = workplace.stage(f"lens-{name}", {**inputs, "probe": name}, _maker(probe, study, second, progress))
            found[name] = {**facts, **read_json(folder / FOUND)}
        content = _content(ready, found, notes)
        write_json(out / "lens.json", content)
        from tsprune.lens._page import write_lens_page

        write_lens_page(out / "lens.html", content)
    finally:
        workplace.close()
    return content


def _maker(probe: Probe, study: Study, second: float, progress: Progress) -> Any:
    def make(work: Path) -> None:
        passes = probe.passes(study)
        cost = f"about {passes * second:.0f} s" if passes * second >= 1 else "under a second"
        progress.say(f"{probe.title}: {many(round(passes), 'forward pass', 'forward passes')}, {cost}")
        with progress.stage(probe.title.lower(), max(1, round(passes))) as bar, prepacked(study.model):
            found = probe.run(study, bar.advance).to_json()
        write_json(work / FOUND, found)

    return make


def _seconds_per_pass(study: Study) -> float:
    """One forward pass over the first windows, timed."""
    started = time.perf_counter()
    with torch.no_grad():
        for batch in study.first:
            study.model.loss(batch)
    return time.perf_counter() - started


def _content(ready: Prepared, found: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    model = ready.model
    return {
        "schema": SCHEMA,
        "model": ready.task.model,
        "family": model.family,
        "parameters": model.parameter_count(),
        "data": Path(ready.panel.source).name if ready.panel.source else "table",
        "horizon": ready.horizon,
        "context": ready.split.context,
        "split": ready.split.describe(),
        "windows": notes,
        "notes": list(ready.notes),
        "probes": found,
        "machine": machine_line(threads=torch.get_num_threads()),
        "versions": versions(),
        "seed": ready.task.seed,
    }
