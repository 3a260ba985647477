"""A model written in another form: whole or not at all, and never over something that is not an earlier export."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune.errors import TspruneError
from tsprune.exports._export import Export, Request
from tsprune.registry import find
from tsprune.stages import read_json, writable, write_json, write_text

if TYPE_CHECKING:
    from tsprune.data.batch import Batch
    from tsprune.exports._card import About
    from tsprune.models._forecaster import Forecaster
    from tsprune.progress import Progress

FACTS = "export.json"
"""What was written and checked; its presence says that a directory is an export."""
CARD = "README.md"
"""The model card."""
PACKAGE = "tsprune.exports"


def form_of(name: str) -> Export:
    """The form of that name; an unknown one lists the known."""
    found: Export = find(PACKAGE, name).EXPORT
    return found


def check_export_place(out: Path) -> Path:
    """Refuse, before any work, a directory that cannot be written or holds something else than an export.

    Raises:
        TspruneError: names what is in the way.
    """
    if out.is_dir():
        if any(out.iterdir()) and not (out / FACTS).is_file():
            shown = ", ".join(sorted(entry.name for entry in out.iterdir())[:5])
            raise TspruneError(
                f"--out {out} holds {shown} and no {FACTS}, so it is no earlier export and is not replaced; choose "
                "another directory"
            )
        if (card := out / CARD).is_file() and _digest(card) != _card_digest(out):
            raise TspruneError(
                f"--out {out}: its {CARD} was edited since it was exported and would be replaced; move it away or "
                f"choose another directory (hf upload OWNER/NAME {out} . publishes it as it stands)"
            )
    elif out.exists():
        raise TspruneError(f"--out {out} is a file, expected a directory")
    writable(out.absolute().parent)
    return out


def export(
    model: Forecaster,
    form: str,
    out: Path,
    *,
    source: str,
    batches: Sequence[Batch],
    horizon: int,
    progress: Progress,
    options: Mapping[str, Any] | None = None,
    about: About | None = None,
    name: str = "",
    calibration: Sequence[Batch] = (),
    calibrated_on: str = "",
) -> dict[str, Any]:
    """Write a model in another form and check it.

    Args:
        model: in eval mode, on the CPU.
        form: one of the names in `tsprune.exports`.
        out: directory; an earlier export there is replaced when the new one is complete.
        source: directory or name that the model was loaded from.
        batches: windows to compare on.
        horizon: steps to forecast.
        progress: told what happens.
        options: see `Request`.
        about: what the model card says of the model; None looks it up.
        name: what the card calls it, `owner/name` on the hub; "" means the directory's name.
        calibration: windows that calibrated forms are fitted to, see `Request`.
        calibrated_on: where these came from, for people.

    Returns:
        What `export.json` holds.

    Raises:
        TspruneError: the form refuses the model, the place holds something else, or the check fails; then nothing is
            left behind.
    """
    from tsprune.exports._card import about_model, export_card
    from tsprune.models._loading import exchange

    kind = form_of(form)
    if reason := kind.refusal(model):
        raise TspruneError(f"--format {form}: {reason}")
    check_export_place(out)
    chosen = dict(options or {})
    known = about or about_model(model, source, base=str(chosen.get("base", "")))
    target = Path(os.path.abspath(out))
    work, old = (target.with_name(f".{target.name}.{end}") for end in ("part", "old"))
    for leftover in (work, old):
        shutil.rmtree(leftover, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        found = kind.write(Request(model, source, work, batches, horizon, progress, chosen, calibration, calibrated_on))
        facts = {"format": form, "title": kind.title, "family": model.family, "horizon": horizon, **found}
        for path in known.licence.texts:
            if not (work / path.name).exists():
                shutil.copyfile(path, work / path.name)
        write_text(work / CARD, export_card(known, kind, facts, name or target.name))
        facts["card"] = {"file": CARD, "sha256": _digest(work / CARD), "licence": known.licence.name or None}
        write_json(work / FACTS, facts)
        exchange(work, target, old)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return facts


def _digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _card_digest(out: Path) -> str:
    """What an export remembers of the card it wrote; "" where it wrote none."""
    facts = read_json(out / FACTS)
    card = facts.get("card") if isinstance(facts, Mapping) else None
    return str(card.get("sha256", "")) if isinstance(card, Mapping) else ""
