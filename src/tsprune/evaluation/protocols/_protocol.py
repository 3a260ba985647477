"""What every protocol can do; by itself, the common ground of all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tsprune.data.panel import Panel
from tsprune.data.reading import ReadOptions
from tsprune.data.split import Split
from tsprune.data.windows import Grouping, WindowSet
from tsprune.data.words import listed, many
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    import pandas as pd

    from tsprune.evaluation.evaluate import Evaluation, Predictor, Progress

Part = Literal["validation", "test"]

_NAMES = {"smape": "sMAPE"}


@dataclass(frozen=True)
class Protocol(ABC):
    """One task under the rules of a protocol: a data set and a horizon.

    The way through: `read`, `splits` for the context of a model, then `measure` for every model on every split.
    Rows of several splits are joined by `RowErrors.joined` and compared in `Blocks.of` their windows.

    Args:
        data: name of the data set.
        horizon: steps H to forecast.
    """

    data: str = ""
    horizon: int = 0

    headline: ClassVar[tuple[str, ...]] = ()
    """The measures that speak, the first one first; names from `metrics.MEASURES`."""
    knows_source: ClassVar[bool] = False
    """Whether `read("")` finds the data by itself."""

    @property
    def name(self) -> str:
        """The file's name."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @abstractmethod
    def read(self, source: str | PathLike[str] | pd.DataFrame) -> Panel:
        """The data set.

        Args:
            source: the folder of a published data set, or a file or table of one's own.

        Raises:
            TspruneError: if it is not there or cannot be read.
        """

    @abstractmethod
    def splits(self, panel: Panel, context: int, *, grouping: Grouping = "none") -> tuple[Split, ...]:
        """Cut-offs, one split after the other in time.

        Args:
            panel: what `read` gave.
            context: steps L that the model looks back.
            grouping: "none", or "all" for windows over all series at once.

        Raises:
            TspruneError: if the data do not allow it.
        """

    @abstractmethod
    def rules(self) -> dict[str, str]:
        """The rules by topic, one sentence or more each: data, split, windows, scaling, measures."""

    def windows(self, split: Split, part: Part = "test") -> WindowSet:
        """The windows of a part that count; TspruneError if there is none."""
        return self.every(split, part, 1)

    @staticmethod
    def every(split: Split, part: Part, stride: int) -> WindowSet:
        """The windows of a part, their origins `stride` steps apart."""
        return split.test(stride) if part == "test" else split.validation(stride)

    def scale_ends(self, split: Split, part: Part = "test") -> NDArray[np.int64]:
        """First step after what MASE's denominators are taken from `[S]`: all that lies before the part."""
        return split.validation_end if part == "test" else split.train_end

    def naive_errors(self, windows: WindowSet) -> NDArray[np.float64] | None:
        """MASE's denominators `[target rows]` where they differ from window to window; None: as `scale_ends` says."""
        return None

    def measure(
        self,
        model: Predictor,
        split: Split,
        part: Part = "test",
        *,
        batch_size: int = 256,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Score a model on the windows that count; arguments and errors as in `evaluate.measure`."""
        from tsprune.evaluation.evaluate import measure

        windows = self.windows(split, part)
        return measure(
            model,
            windows,
            split,
            batch_size=batch_size,
            progress=progress,
            scale_ends=self.scale_ends(split, part),
            naive_errors=self.naive_errors(windows),
        )

    def describe(self, splits: Sequence[Split] = ()) -> str:
        """The protocol as one paragraph, with the borders and window counts of splits where they are given."""
        said = [f"Protocol {self.name}: {self.data}, horizon {self.horizon}.", *self.rules().values()]
        for number, split in enumerate(splits, 1):
            cut = self._cut(split)
            fold = f"Fold {number}: train" if len(splits) > 1 else "Train"
            said.append(
                f"{fold} ends before {cut['train_end']}, validation before {cut['validation_end']}, test before "
                f"{cut['test_end']}; context {cut['context']}, {many(cut['series'], 'series', 'series')}, "
                f"{many(cut['windows'], 'test window')}."
            )
        said.append(f"Headline: {', '.join(_NAMES.get(name, name.upper()) for name in self.headline)}.")
        return " ".join(said)

    def to_json(self, splits: Sequence[Split] = ()) -> dict[str, Any]:
        """Name, settings, rules and headline as plain data, and the cut-offs of splits where they are given."""
        settings = asdict(self)
        if "options" in settings:
            usual = asdict(ReadOptions())
            settings["options"] = {k: _plain(v) for k, v in settings["options"].items() if v != usual[k]}
        return {
            "protocol": self.name,
            **settings,
            "headline": list(self.headline),
            "rules": self.rules(),
            "cuts": [self._cut(split) for split in splits],
        }

    def _cut(self, split: Split) -> dict[str, Any]:
        numbers = {"context": split.context, "series": len(split.panel.series), "windows": len(self.windows(split))}
        return {**split.describe(), **numbers, "notes": list(split.notes)}


def published_file(source: object, stems: Sequence[str], data: str) -> Path:
    """The file of a published data set, plain or gzipped, within a folder.

    Raises:
        TspruneError: there is none; names what was looked for.
    """
    if not isinstance(source, str | PathLike):
        raise TspruneError(f"{data} is read from the folder that holds its file, found a {type(source).__name__}")
    folder = Path(source)
    wanted = [f"{stem}.csv{end}" for stem in stems for end in ("", ".gz")]
    for name in wanted:
        if (folder / name).is_file():
            return folder / name
    raise TspruneError(
        f"{folder} holds no file of {data}: expected {' or '.join(wanted)}; give the folder with the published data"
    )


def refuse_unknown(known: Iterable[str], data: str, protocol: str, cure: str) -> None:
    """Raise TspruneError where a name is not that of a published data set; lists those that are."""
    there = list(known)
    if data not in there:
        raise TspruneError(
            f"protocol {protocol} does not know the data set {data!r}; known: {listed(there, 20)}; {cure}"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
