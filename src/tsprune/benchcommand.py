"""The command `bench`: a grid from its file to its tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsprune.bench import SPECIALIST
from tsprune.candidates import PRUNED
from tsprune.data.words import many
from tsprune.errors import TspruneError
from tsprune.flags import Chosen
from tsprune.progress import Progress
from tsprune.settings import option

SHOWN = 10
_NAMES = {"smape": "sMAPE"}


@dataclass(frozen=True)
class BenchSettings:
    """What grid to run, where, and by how many."""

    grid: str = option(
        "", "YAML file with models, data, horizons, candidates, baselines, seeds and settings (see docs/bench.md)."
    )
    out: str = option("tsprune-bench", "Directory for cells, tables and page. A grid that was begun there goes on.")
    folder: str = option("", "Folder of the published data sets; wins over the file's.")
    jobs: int = option(1, "Jobs at a time, one core each. With --ray 0 takes the whole cluster.")
    ray: str = option(
        "",
        "Work on a Ray cluster instead of processes: its address, auto for the one this machine belongs to, or local. "
        "Needs the extra tsprune[ray].",
    )
    only: str = option("", "'tables' makes tables and page of what is finished and runs nothing.")

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.jobs < (0 if self.ray else 1):
            raise TspruneError(f"--jobs {self.jobs} must be at least {0 if self.ray else 1}")
        if self.only not in ("", "tables"):
            raise TspruneError(f"--only {self.only!r} is unknown; use tables, or leave it out")


def run_bench(chosen: Chosen, quiet: bool) -> None:
    """Run a grid of models, data sets, horizons, candidates and seeds, and compare them.

    Or time models on every runtime: tsprune bench latency MODEL..., with options of its own (--help after it).
    """
    from tsprune.bench.benching import bench
    from tsprune.bench.spec import read

    settings = chosen.make(BenchSettings)
    if not settings.grid:
        raise TspruneError("no grid is given; name its YAML file: tsprune bench GRID.yaml (docs/bench.md has examples)")
    if settings.ray:
        from tsprune.bench.runners.ray import check

        check()
    spec = read(Path(settings.grid), settings.folder)
    out = Path(settings.out)
    summary = bench(
        spec, out, workers=settings.jobs, ray=settings.ray, progress=Progress(quiet), run=settings.only != "tables"
    )
    if summary["candidates"]:
        print(first_table((out / "table.md").read_text(encoding="utf-8")))
    for line in sentences(summary):
        print(line)
    missing = summary["missing"]
    for line in missing[:SHOWN]:
        print(f"missing: {line}")
    if len(missing) > SHOWN:
        print(f"missing: {len(missing) - SHOWN} more, see {out / 'summary.json'}")
    names = {"rows": ["results.jsonl"], "tables": ["table.md", "table.tex"]}
    for what, files in {**names, "page": ["bench.html", f"{summary['recipe']}.html"]}.items():
        if there := [str(out / name) for name in files if (out / name).exists()]:
            print(f"{what}: {', '.join(there)}")


def first_table(text: str) -> str:
    """The table over all tasks; those of the models are in the file."""
    return "\n### ".join(text.split("\n### ")[:1]).strip() + "\n"


def sentences(summary: dict[str, Any]) -> list[str]:
    """What may be said of the pruned candidate and of the choice by validation over all tasks, a line per reference."""
    from tsprune.report.words import human

    found = []
    tables = {summary["reference"]: summary["overall"], **summary["against"]}
    for reference, by_measure in tables.items():
        for measure, by_model in by_measure.items():
            one = by_model["all"]
            if "refused" in one:
                found.append(f"{_NAMES.get(measure, measure.upper())} against {human(reference)}: {one['refused']}")
                continue
            ratios = {model["name"]: model for model in one["models"]}
            for name in [name for name in (PRUNED, SPECIALIST) if name in ratios and name != reference]:
                found.append(
                    f"{_NAMES.get(measure, measure.upper())}, {_said(human(name), human(reference), ratios[name])}"
                )
    return found


def _said(name: str, reference: str, one: dict[str, Any]) -> str:
    over = many(one["tasks"], "task")
    said = f"{name} against {reference} over {over}: ratio {one['ratio']:.3f}"
    if one["low"] is None:
        return f"{said}, no interval from one data set; lower in {one['win_rate']:.0%} of the tasks"
    better, worse = one["high"] < 1, one["low"] > 1
    verdict = "better" if better else "worse" if worse else "neither is called better"
    interval = f"95 % interval over data sets {one['low']:.3f} to {one['high']:.3f}"
    return f"{said} ({interval}; {verdict}), lower in {one['win_rate']:.0%} of the tasks"
