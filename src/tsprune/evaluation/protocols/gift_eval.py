"""GIFT-Eval (Aksu et al. 2024): data sets in the layout of that benchmark, its windows and its result rows.

Sources: `src/gift_eval/data.py`, the README and the result files of SalesforceAIResearch/gift-eval (2025).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tsprune.data.panel import Panel, Series
from tsprune.data.split import Split
from tsprune.data.steps import parse_frequency
from tsprune.data.windows import Grouping, WindowSet
from tsprune.data.words import many
from tsprune.errors import TspruneError
from tsprune.evaluation.forecasts import Floats, Forecasts, forecasts_of, naive_errors, windows_at
from tsprune.evaluation.metrics import DECILES
from tsprune.evaluation.protocols import _gift_rules as gift
from tsprune.evaluation.protocols._protocol import Part, Protocol

if TYPE_CHECKING:
    import pandas as pd

    from tsprune.evaluation.evaluate import Predictor

_DIMENSION = re.compile(r".*_dim(\d+)")


@dataclass(frozen=True)
class GiftEval(Protocol):
    """One data set and term of GIFT-Eval, or data of one's own judged by its rules.

    Args:
        data: name of the data set as its folder is called, such as "ett1/H" or "m4_weekly"; what follows the slash is
            the frequency.
        horizon: steps to forecast; 0 takes the benchmark's, which follows from frequency and term.
        term: "short", "medium" or "long": 1, 10 or 15 prediction lengths.
        frequency: step of data of one's own whose name does not carry it.
        domain: domain of data of one's own, for the result row.
        covariates: whether past covariates (`past_feat_dynamic_real`) are read; most models cannot use them.

    Raises:
        TspruneError: for an unknown term or frequency, or where the horizon cannot be derived.
    """

    data: str = "m4_weekly"
    horizon: int = 0
    term: Literal["short", "medium", "long"] = "short"
    frequency: str = ""
    domain: str = ""
    covariates: bool = False

    headline: ClassVar[tuple[str, ...]] = ("mase", "wql")

    def __post_init__(self) -> None:
        """Derive frequency and horizon, as the benchmark does."""
        published = gift.SETS.get(gift.result_name(self.data))
        named = self.data.split("/", 1)[1] if "/" in self.data else ""
        frequency = self.frequency or named or (published.frequency if published else "")
        if not frequency:
            raise TspruneError(
                f"the step of {self.data!r} is not known, and with it the horizon; put it into the name "
                f"({self.data + '/H'!r}) or give a frequency, such as 15T, H, D, W or M"
            )
        wanted = gift.prediction_length(self.data, frequency, self.term) if not self.horizon else self.horizon
        if published and self.horizon not in (0, gift.prediction_length(self.data, frequency, self.term)):
            raise TspruneError(
                f"{self.data} has a horizon of {gift.prediction_length(self.data, frequency, self.term)} in term "
                f"{self.term}; leave out the horizon, or give the data another name to judge them in your own way"
            )
        if wanted < 1:
            raise TspruneError(f"the horizon is {wanted}, expected at least 1 step")
        gift.family(frequency)
        object.__setattr__(self, "frequency", frequency)
        object.__setattr__(self, "horizon", wanted)
        if not self.domain:
            object.__setattr__(self, "domain", published.domain if published else "")

    def read(self, source: str | PathLike[str] | pd.DataFrame) -> Panel:
        """As `Protocol.read`; `source` is the folder that holds the data sets, or that of the data set itself.

        Read are folders of `datasets.save_to_disk` and gluonts files (Arrow, Parquet, JSON lines) with the fields
        `target` (one or two dimensions), `start`, and if there `item_id`, `freq` and `past_feat_dynamic_real`. Variates
        become series of their own, `<item>_dim0` and so on.
        """
        from tsprune.data.recordsets import is_records, load_records

        if not isinstance(source, str | PathLike):
            raise TspruneError(f"{self.data} is read from a folder or file, found a {type(source).__name__}")
        inner = Path(source) / self.data
        place = inner if is_records(inner) else Path(source)
        return self._panel(load_records(place), str(place))

    def splits(self, panel: Panel, context: int, *, grouping: Grouping = "none") -> tuple[Split, ...]:
        """As `Protocol.splits`; always one, whose test part holds all windows.

        Validation is the horizon before the first window, train is what lies before that: a series that is too short
        for both is train up to its first window.
        """
        if context < 1:
            raise TspruneError(f"--context {context}, expected at least 1 step")
        if grouping == "all" and not panel.aligned:
            raise TspruneError(
                "--together (grouping 'all') needs series over the same steps; these differ in start or length"
            )
        shortest = int(panel.lengths.min())
        count = gift.window_count(self.data, shortest, self.horizon)
        first = panel.lengths - count * self.horizon
        if int(first.min()) < 1:
            raise TspruneError(
                f"series {panel.ids[int(np.argmin(first))]!r} has {shortest} steps, expected more than the "
                f"{count * self.horizon} of {many(count, 'window')} of horizon {self.horizon}; give a shorter term or "
                "leave the series out"
            )
        train = np.where(first - self.horizon >= 1, first - self.horizon, first)
        notes: tuple[str, ...] = ()
        if late := int((train == first).sum()):
            notes = (f"{many(late, 'series', 'series')} too short for a validation part; all before the test is train",)
        name = f"GIFT-Eval {self.term}: {many(count, 'window')} of {self.horizon} steps"
        return (Split(panel, self.horizon, context, name, train, first, panel.lengths.copy(), 1, grouping, notes),)

    def windows(self, split: Split, part: Part = "test") -> WindowSet:
        """As `Protocol.windows`, one horizon apart."""
        return self.every(split, part, self.horizon)

    def naive_errors(self, windows: WindowSet) -> Floats:
        """As `Protocol.naive_errors`: over all that lies before each window."""
        return naive_errors(windows, windows.panel.season(), short=1)

    def forecasts(self, model: Predictor, split: Split, *, batch_size: int = 256) -> Forecasts:
        """Forecasts of all test windows at the deciles, in the units of the data."""
        count = int((split.test_end - split.validation_end)[0]) // self.horizon
        series = np.repeat(np.arange(len(split.panel.series)), count)
        origins = split.validation_end[series] + np.tile(np.arange(count), len(split.panel.series)) * self.horizon
        windows = windows_at(split, series, origins)
        return forecasts_of(model, windows, DECILES, split.panel.season(), short=1, batch_size=batch_size)

    def result_rows(self, found: Sequence[Forecasts], model: str) -> list[dict[str, Any]]:
        """The line of `all_results.csv`, by the benchmark's column names.

        Args:
            found: what `forecasts` gave for the split.
            model: name of the model.
        """
        from tsprune.evaluation.entrywise import gluonts_measures

        rows = []
        for forecasts in found:
            values = {f"eval_metrics/{name}": value for name, value in gluonts_measures(forecasts).items()}
            rows.append(
                {
                    "dataset": f"{gift.result_name(self.data)}/{self._label()}/{self.term}",
                    "model": model,
                    **values,
                    "domain": self.domain,
                    "num_variates": self._variates(forecasts.ids),
                }
            )
        return rows

    def rules(self) -> dict[str, str]:
        """As `Protocol.rules`."""
        return {
            "data": f"Term {self.term} at frequency {self.frequency}; variates count as series of their own.",
            "split": (
                f"The test part is a tenth of the shortest series in windows of {self.horizon} steps, at least 1 and "
                f"at most 20 (M4: 1); the {self.horizon} steps before it are validation, everything earlier is train."
            ),
            "windows": "Each series has as many test windows, one horizon apart; contexts reach back before a window.",
            "scaling": "Models see series z-scored by their train part; result rows are in the units of the data.",
            "measures": (
                f"MASE divides by the mean absolute seasonal-naive error (season {gift.season(self.frequency)}) of all "
                "that lies before each window. Result rows average over steps as gluonts does, take the median for the "
                "mean, and draw exponential tails beyond the deciles for MSIS."
            ),
        }

    def _label(self) -> str:
        return self.data.split("/", 1)[1] if "/" in self.data else self.frequency

    def _variates(self, ids: Sequence[str]) -> int:
        found = [_DIMENSION.fullmatch(name) for name in set(ids)]
        return 1 + max(int(match[1]) for match in found if match) if found and all(found) else 1

    def _panel(self, table: Any, source: str) -> Panel:
        from tsprune.data.recordsets import arrays, schema_frequency

        if "target" not in table.column_names:
            raise TspruneError(f"{source}: has no field 'target', found {', '.join(table.column_names)}")
        self._check_frequency(table, schema_frequency(table), source)
        targets = arrays(table, "target")
        names = table.column("item_id").to_pylist() if "item_id" in table.column_names else range(len(targets))
        starts = table.column("start").to_pylist() if "start" in table.column_names else [None] * len(targets)
        repairs: list[str] = []
        past = [{} for _ in targets] if not self.covariates else self._past(table, targets, source)
        if "past_feat_dynamic_real" in table.column_names and not self.covariates:
            repairs.append("past covariates (past_feat_dynamic_real) were ignored; covariates=True would use them")
        series = []
        for name, target, start, extra in zip(names, targets, starts, past, strict=True):
            variates = (
                [(str(name), target)]
                if target.ndim == 1
                else [(f"{name}_dim{d}", target[d]) for d in range(len(target))]
            )
            stamp = _start(start, str(name), source)
            series += [Series(one, _finite(values), extra, start=stamp) for one, values in variates]
        if wild := sum(int(np.isinf(np.asarray(target, np.float64)).sum()) for target in targets):
            repairs.append(f"{many(wild, 'infinite value')} taken as missing")
        dated = all(one.start is not None for one in series)
        alias = _alias(self.frequency, [one.start for one in series]) if dated else ""
        season = gift.season(self.frequency)
        return Panel(tuple(series), alias, tuple(repairs), {}, source, season)

    def _check_frequency(self, table: Any, declared: str, source: str) -> None:
        found = table.column("freq")[0].as_py() if "freq" in table.column_names else declared
        if found and gift.family(found) != gift.family(self.frequency):
            raise TspruneError(
                f"{source}: the data have frequency {found!r}, the protocol {self.frequency!r}; give the data set a "
                "name or frequency that fits"
            )

    def _past(self, table: Any, targets: list[NDArray[Any]], source: str) -> list[dict[str, NDArray[np.float32]]]:
        from tsprune.data.recordsets import arrays

        if "past_feat_dynamic_real" not in table.column_names:
            raise TspruneError(f"{source}: has no field 'past_feat_dynamic_real'; leave covariates out")
        found = []
        for target, values in zip(targets, arrays(table, "past_feat_dynamic_real"), strict=True):
            lines = np.atleast_2d(values)
            if lines.shape[-1] != target.shape[-1]:
                raise TspruneError(
                    f"{source}: past_feat_dynamic_real has {lines.shape[-1]} steps, its target {target.shape[-1]}"
                )
            found.append({f"past {row}": _finite(line) for row, line in enumerate(lines)})
        return found


def _finite(values: NDArray[Any]) -> NDArray[np.float32]:
    """Single precision, infinite values missing."""
    plain = np.asarray(values, np.float32)
    return np.where(np.isinf(plain), np.float32(np.nan), plain)


def _start(value: Any, name: str, source: str) -> pd.Timestamp | None:
    import pandas as pd

    if value is None:
        return None
    try:
        stamp = pd.Timestamp(value[0] if isinstance(value, list) else value)
    except (ValueError, TypeError):
        raise TspruneError(f"{source}: series {name!r} starts at {value!r}, expected a date") from None
    return stamp.tz_localize(None) if stamp.tzinfo else stamp


def _alias(frequency: str, starts: Sequence[pd.Timestamp | None]) -> str:
    """The alias of the step; periods that are named by their first day are dated by it."""
    step = parse_frequency(frequency)
    if step.end and all(start is not None and start.day == 1 for start in starts):
        return re.sub(r"E(?=-|$)", "S", step.alias)
    return step.alias


PROTOCOL = GiftEval
