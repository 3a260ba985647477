"""The commands about models themselves: what there is, and bringing other formats in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune import registry
from tsprune.errors import TspruneError
from tsprune.flags import Chosen
from tsprune.settings import option

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class ModelsSettings:
    """What to list."""

    family: str = option("", "One family only. Default: all.")
    out: str = option("", "JSON file for the list; without it, it is only printed.")


@dataclass(frozen=True)
class ConvertSettings:
    """What to convert."""

    checkpoint: str = option("", "A torch file (.pth, .pt, .bin, .ckpt) of which only tensors are read.")
    model_config: str = option(
        "", "The model's public config.json. Default: sizes follow from the tensors, for Timer-XL as published."
    )
    out: str = option("converted", "Directory for config.json and model.safetensors.")


def run_models(chosen: Chosen, quiet: bool) -> None:
    """List the model families, their public checkpoints with sizes and licences, and what they can do."""
    from tsprune.catalogue import PACKAGE, describe
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
        "'mini' (chronos2) and 'mini-moe' (time_moe) are inside the package. Licences are those of the weights; read "
        "the model's own card before use.",
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


def run_convert(chosen: Chosen, quiet: bool) -> None:
    """Turn a torch checkpoint file into a directory that tsprune loads, reading nothing from it but tensors."""
    from tsprune.converting import ASSUMED, convert

    settings = chosen.make(ConvertSettings)
    if not settings.checkpoint:
        raise TspruneError("name the checkpoint file, such as: tsprune convert checkpoint.pth --out timer-xl")
    config = Path(settings.model_config) if settings.model_config else None
    written = convert(Path(settings.checkpoint), Path(settings.out), config)
    if config is None and not quiet:
        taken = ", ".join(f"{name} {value}" for name, value in ASSUMED.items())
        print(f"note: sizes follow from the tensors; not in them and taken as published: {taken}")
    print(f"model: {written}")
