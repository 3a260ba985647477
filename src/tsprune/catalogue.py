"""Which families there are, what they can do, and which public checkpoints they read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune import registry
from tsprune.errors import TspruneError
from tsprune.flags import Chosen
from tsprune.settings import option

if TYPE_CHECKING:
    from rich.table import Table

    from tsprune.models._forecaster import Forecaster

PACKAGE = "tsprune.models"
ABILITIES = {
    "multivariate": "related series",
    "past_covariates": "past covariates",
    "known_covariates": "known covariates",
    "missing_values": "missing values",
    "quantiles": "quantiles",
}


@dataclass(frozen=True)
class ModelsSettings:
    """What to list."""

    family: str = option("", "One family only. Default: all.")
    out: str = option("", "JSON file for the list; without it, it is only printed.")


def describe(name: str) -> dict[str, Any]:
    """What is known about one family, as JSON-shaped data.

    Args:
        name: of a family in `tsprune.models`.

    Returns:
        `family`, `about` (one sentence), `abilities`, `losses`, `pretraining_corpora` (None: unknown), `checkpoints`
        (`name`, `millions`, `licence` of the weights, `note`), and `presets` that `tsprune pretrain` knows.
    """
    module = registry.find(PACKAGE, name)
    kind: type[Forecaster] = module.FAMILY
    able = kind.capabilities
    folder = Path(__file__).parent / "bundled" / "configs"
    presets = [path.stem.removeprefix(f"{kind.family}-") for path in sorted(folder.glob(f"{kind.family}-*.json"))]
    return {
        "family": kind.family,
        "about": (module.__doc__ or "").strip().split("\n")[0],
        "abilities": [words for ability, words in ABILITIES.items() if getattr(able, ability)],
        "losses": list(kind.objectives),
        "pretraining_corpora": None if kind.pretraining_corpora is None else list(kind.pretraining_corpora),
        "checkpoints": [asdict(checkpoint) for checkpoint in kind.checkpoints],
        "presets": presets,
    }


def run_models(chosen: Chosen, quiet: bool) -> None:
    """List the model families, their public checkpoints with sizes and licences, and what they can do."""
    from tsprune.stages import writable_file, write_json

    settings = chosen.make(ModelsSettings)
    out = Path(settings.out)
    if settings.out:
        writable_file(out)
        if out.suffix != ".json":
            raise TspruneError(f"--out {settings.out} ends in {out.suffix or 'nothing'!r}, expected .json")
    wanted = [settings.family] if settings.family else registry.names(PACKAGE)
    found = [describe(name) for name in wanted]
    _show(found)
    if settings.out:
        write_json(out, {"families": found})
        if not quiet:
            print(f"written to {out}")


def _show(found: list[dict[str, Any]]) -> None:
    import shutil
    import sys

    from rich.console import Console

    wide = max(100, shutil.get_terminal_size((120, 24)).columns)
    console = Console() if sys.stdout.isatty() else Console(width=wide, no_color=True, highlight=False)
    for family in found:
        console.print(f"[bold]{family['family']}[/bold]  {family['about']}", highlight=False)
        able = ", ".join(family["abilities"]) or "single series without gaps"
        more = f"; losses: {', '.join(family['losses'])}" if len(family["losses"]) > 1 else ""
        console.print(f"  takes and gives: {able}{more}", highlight=False)
        if family["checkpoints"]:
            console.print(_table(family["checkpoints"]))
        else:
            console.print("  no public checkpoint: trained on your own series", highlight=False)
        console.print()
    console.print(
        "Take one with --model NAME (from the hub or its cache) or --model DIRECTORY; "
        "'mini' is inside the package. Licences are those of the weights; read the model's own card before use.",
        highlight=False,
    )


def _table(checkpoints: list[dict[str, Any]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=True, show_edge=False)
    for head, justify in (("checkpoint", "left"), ("parameters", "right"), ("licence", "left"), ("note", "left")):
        table.add_column(head, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for entry in checkpoints:
        table.add_row(entry["name"], f"{entry['millions']:.2f} M", entry["licence"], entry["note"])
    return table
