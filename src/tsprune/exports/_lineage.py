"""Where weights came from, step by step: the model itself, what it was cut or tuned from, and so on back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsprune.exports._runfacts import run_facts
from tsprune.models._loading import BUNDLED, HUB_ID
from tsprune.models._weightfiles import CONFIG, PLAN
from tsprune.plan import Plan

if TYPE_CHECKING:
    from tsprune.models._forecaster import Checkpoint, Forecaster


@dataclass(frozen=True)
class Ancestor:
    """One step on the way back.

    Args:
        source: as it was given or recorded: name, hub id with or without revision, or directory.
        directory: a local directory, None for names.
        checkpoint: what its family says of it, None where it is not listed.
        cached: whether the hub's cache holds it, so that it is a hub id for certain.
    """

    source: str
    directory: Path | None
    checkpoint: Checkpoint | None = None
    cached: bool = False

    @property
    def bundled(self) -> bool:
        """Whether it is inside the package."""
        return self.source in BUNDLED

    @property
    def hub_id(self) -> str:
        """`owner/name` without a revision, where it is known to be one; else ""."""
        listed = self.checkpoint is not None and HUB_ID.fullmatch(self.checkpoint.name) is not None
        return self.source.split("@")[0] if listed or self.cached else ""

    @property
    def name(self) -> str:
        """What others may be told: of a path only its last part."""
        if self.bundled or self.checkpoint is not None or self.cached:
            return self.source
        if self.directory is not None:
            return self.directory.resolve().name
        plain = HUB_ID.fullmatch(self.source) or "/" not in self.source
        return self.source if plain else Path(self.source).name

    def file(self, name: str) -> Path | None:
        """A file of it that is on this machine, nothing is fetched."""
        if self.directory is not None:
            path = self.directory / name
            return path if path.is_file() else None
        return None if self.bundled else _cached(self.source, name)


def lineage(model: Forecaster, source: str) -> tuple[Ancestor, ...]:
    """The source, then what it came from, as far as is recorded; at least one.

    A plan in its directory names the model that was cut, results of a run beside it the one that was tuned. A model
    trained from scratch has no ancestors.

    Args:
        model: the checkpoints that its family publishes are known.
        source: directory or name that it was loaded from.
    """
    found: list[Ancestor] = []
    seen: set[str] = set()
    while source:
        directory = Path(source).expanduser()
        local = source not in BUNDLED and directory.is_dir()
        key = str(directory.resolve()) if local else source
        if key in seen:
            break
        seen.add(key)
        listed = {one.name: one for one in model.checkpoints}
        known = None if local else listed.get(source) or listed.get(source.split("@")[0])
        cached = not local and source not in BUNDLED and _cached(source, CONFIG) is not None
        found.append(Ancestor(source, directory if local else None, known, cached))
        source = _before(found[-1], model if len(found) == 1 else None)
    return tuple(found)


def _before(one: Ancestor, model: Forecaster | None) -> str:
    """What a model came from, as recorded; "" where nothing is, or what lies beside it is told of another model."""
    plan = one.file(PLAN)
    if plan is not None and (named := Plan.read(plan).base_model):
        return named
    run = None if one.directory is None else run_facts(str(one.directory))
    if run is None or (model is not None and run.other_than(model)):
        return ""
    return run.base


def _cached(source: str, name: str) -> Path | None:
    """A file of a hub repository in the local cache."""
    if not HUB_ID.fullmatch(source) or source.startswith("."):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = source.partition("@")
    try:
        found = try_to_load_from_cache(repository, name, revision=revision or None)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
