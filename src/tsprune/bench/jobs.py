"""One piece of work of a grid, and what it gives. Jobs are independent of each other and small enough to be lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tsprune.errors import TspruneError
from tsprune.evaluation.timeblocks import Blocks

if TYPE_CHECKING:
    from tsprune.bench.spec import DataEntry, ModelEntry, Spec
    from tsprune.evaluation.metrics import RowErrors

_BLOCKS = "block_"
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Job:
    """What one process does at a time.

    Args:
        kind: what is done, a name in `tsprune.bench.kinds`.
        model: name of a model; None where none plays a part.
        data: name of a data set.
        horizon: steps to forecast; 0 where the protocol fixes it.
        share: of the training windows.
        seed: None where nothing draws.
        wanted: what is to be measured: candidates or baselines.
        more: what else the kind needs, JSON-able.
    """

    kind: str
    model: str | None
    data: str
    horizon: int
    share: float
    seed: int | None
    wanted: tuple[str, ...]
    more: Mapping[str, Any] = field(default_factory=dict)

    def cell(self) -> dict[str, Any]:
        """Where its rows stand in the grid."""
        return {key: value for key, value in asdict(self).items() if key not in ("kind", "wanted", "more")}

    def only(self, wanted: tuple[str, ...]) -> Job:
        """The same for some of what it is to measure."""
        return replace(self, wanted=wanted)

    def words(self) -> str:
        """For people."""
        parts = [self.kind if self.model is None else self.model, self.data, f"horizon {self.horizon}"]
        parts = parts if self.horizon else parts[:-1]
        parts += [f"share {self.share:g}"] if self.share != 1 else []
        parts += [f"seed {self.seed}"] if self.seed is not None else []
        return ", ".join([*parts, *map(str, self.more.get("words", ()))])


@dataclass(frozen=True)
class Result:
    """What was found about one candidate or baseline.

    Args:
        row: for the tidy file, without the place in the grid.
        arrays: errors by row of windows and the blocks they lie in; empty where nothing can be compared by window.
        plan: JSON text of the plan by which the model was cut; "" for one that is whole, or none.
        seconds: of work.
        protocol: how it was judged, a paragraph; "" where the row speaks for itself.
        benchmark: result rows of a benchmark whose data these are, by its column names.
    """

    row: Mapping[str, Any]
    arrays: Arrays = field(default_factory=dict)
    plan: str = ""
    seconds: float = 0.0
    protocol: str = ""
    benchmark: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Done:
    """What a job gives back.

    Args:
        results: by candidate or baseline.
        refused: reasons by candidate that this model or these data do not allow.
    """

    results: Mapping[str, Result]
    refused: Mapping[str, str] = field(default_factory=dict)


def entries(spec: Spec, job: Job) -> tuple[ModelEntry | None, DataEntry]:
    """The model and the data set of a job as the grid has them."""
    model = next((entry for entry in spec.models if entry.name == job.model), None)
    return model, next(entry for entry in spec.data if entry.name == job.data)


def packed(rows: RowErrors, blocks: Blocks) -> Arrays:
    """Errors and blocks as arrays."""
    sizes = np.array([blocks.count, blocks.overlap, blocks.kind == "origins"], np.int64)
    return {**vars(rows), f"{_BLOCKS}unit": blocks.unit.astype(np.int32), f"{_BLOCKS}sizes": sizes}


def unpacked(arrays: Arrays) -> tuple[RowErrors, Blocks]:
    """What `packed` packed."""
    from tsprune.evaluation.metrics import RowErrors

    count, overlap, origins = (int(number) for number in arrays[f"{_BLOCKS}sizes"])
    rows = RowErrors(**{name: value for name, value in arrays.items() if not name.startswith(_BLOCKS)})
    kind = "origins" if origins else "series"
    return rows, Blocks(arrays[f"{_BLOCKS}unit"].astype(np.int64), count, overlap, kind)  # type: ignore[arg-type]


def joined(parts: list[Arrays]) -> tuple[RowErrors, Blocks]:
    """Errors of several seeds on the same windows: rows of one origin stay in one block, whatever the seed.

    Raises:
        TspruneError: the windows differ.
    """
    from tsprune.evaluation.metrics import RowErrors

    found = [unpacked(part) for part in parts]
    first = found[0][1]
    for _, other in found[1:]:
        if not np.array_equal(other.unit, first.unit):
            raise TspruneError("seeds were measured on different windows")
    unit = np.concatenate([blocks.unit for _, blocks in found])
    return RowErrors.joined([rows for rows, _ in found]), replace(first, unit=unit)
