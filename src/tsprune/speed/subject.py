"""One model on one device, as runtimes see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tsprune.data.batch import Batch
from tsprune.evaluation.cost import flops, random_batch
from tsprune.models._forecaster import Forecaster


def short_names(sources: Sequence[str]) -> list[str]:
    """Names for people: of directories, only the parts in which they differ; all different.

    Args:
        sources: directories, and names that are none, all different.
    """
    parts = {source: Path(source).parts for source in sources if Path(source).is_dir()}
    if len(parts) == 1:
        parts = {source: own[-1:] for source, own in parts.items()}
    while len(parts) > 1 and all(len(own) > 1 for own in parts.values()):
        if len({own[0] for own in parts.values()}) == 1:
            parts = {source: own[1:] for source, own in parts.items()}
        elif len({own[-1] for own in parts.values()}) == 1:
            parts = {source: own[:-1] for source, own in parts.items()}
        else:
            break
    names = [str(Path(*parts[source])) if parts.get(source) else source for source in sources]
    return names if len(set(names)) == len(names) else list(sources)


@dataclass
class Subject:
    """A model that is timed.

    Args:
        name: for people.
        source: where it is loaded from.
        folder: of its own, for what runtimes write; shared by devices.
        context: steps of context L.
        horizon: steps of forecast H.
        device: where it runs.
        window_rows: series that each of its windows has.
    """

    name: str
    source: str
    folder: Path
    context: int
    horizon: int
    device: str = "cpu"
    window_rows: int = 1

    @cached_property
    def model(self) -> Forecaster:
        """The model, loaded when it is first asked for: a runtime with files of its own never asks."""
        from tsprune.models import load

        return load(self.source, device=self.device)

    def on_cpu(self) -> Forecaster:
        """The model on the CPU, a copy of its own where it runs elsewhere."""
        from tsprune.models import load

        return self.model if self.device == "cpu" else load(self.source)

    @cached_property
    def flops(self) -> int:
        """Operations of the forecast of one window."""
        return flops(self.model, self.context, self.horizon)

    @cached_property
    def checkpoint_bytes(self) -> int:
        """Size of config, plan and weights on disk."""
        from tsprune.models._loading import locate
        from tsprune.models._weightfiles import CONFIG, PLAN

        folder = locate(self.source)
        return sum(
            path.stat().st_size
            for path in folder.iterdir()
            if path.name in (CONFIG, PLAN) or path.name.endswith((".safetensors", ".safetensors.index.json"))
        )

    def batch(self, windows: int) -> Batch:
        """Standard normal contexts, always the same for a number of windows."""
        return random_batch(self, windows, self.context, self.horizon).to(self.device)
