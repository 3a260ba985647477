"""What a probe is asked and what it gives back.

Letters: U units of a block, N windows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tsprune.data.batch import Batch

if TYPE_CHECKING:
    from tsprune.evaluation.timeblocks import Blocks
    from tsprune.models._forecaster import Forecaster
    from tsprune.preparing import Prepared

Unit = Literal["head", "attention", "ffn", "layer", "ffn_channel", "expert"]
Tick = Callable[[str], None]
"""Told that a share of the work is done, with a note."""


@dataclass(frozen=True)
class Study:
    """What probes look at: a model and windows of a user's series. Test windows are never among them.

    Args:
        ready: data, split and model; `ready.model` is looked at and left as it was found.
        first: validation windows on which a probe measures and chooses, in batches.
        later: later validation windows, which confirm what was chosen on the first; no target of the two overlaps.
        seed: of everything that draws.
        blocks: which of the later windows depend on each other, in their order; None leaves intervals out.
        rows: what to call the target rows of the first windows, in their order; empty where they have no names.
        alone: mean loss of the first windows without a unit alone, by group and number. A probe that measures it puts
            it there, and those after it need not measure it again.
    """

    ready: Prepared
    first: Sequence[Batch]
    later: Sequence[Batch]
    seed: int = 0
    blocks: Blocks | None = None
    rows: Sequence[str] = ()
    alone: dict[tuple[str, int], float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def model(self) -> Forecaster:
        """The model that is looked at."""
        return self.ready.model

    @property
    def horizon(self) -> int:
        """Steps to forecast."""
        return self.ready.horizon


@dataclass(frozen=True)
class Measure:
    """A number for each unit.

    Args:
        name: for people, such as `loss change without it`.
        unit: what the numbers are of.
        values: by path of the block in the model, `[U]`; None where a unit has none.
        needed: whether high values mean that the unit is needed ("high"), low ones ("low"), or neither ("").
        words: what is measured in what unit, and the source.
    """

    name: str
    unit: Unit
    values: Mapping[str, Sequence[float | None]]
    needed: Literal["high", "low", ""] = ""
    words: str = ""


@dataclass(frozen=True)
class Curve:
    """Something over how much has been taken away.

    Args:
        name: for people.
        x: amounts, such as the number of heads that are off.
        y: what was found.
        low: lower ends of intervals; empty without.
        high: upper ends.
        control: whether this is a control, such as random order, that others are compared with.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    control: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Trace:
    """One line of a picture.

    Args:
        name: for people.
        start: step of the first value; 0 is the first step to forecast.
        values: one for each step; None where there is none.
        role: what it is: of the context, what came, the intact model's forecast, or another one.
    """

    name: str
    start: int
    values: Sequence[float | None]
    role: Literal["context", "truth", "forecast", "other"]


@dataclass(frozen=True)
class Picture:
    """Series over time in one small figure.

    Args:
        title: what is shown.
        traces: its lines.
        words: what else there is to say of it.
    """

    title: str
    traces: Sequence[Trace]
    words: str = ""


@dataclass(frozen=True)
class Findings:
    """What a probe found, JSON-able by `to_json`.

    Args:
        answer: one plain sentence.
        measures: numbers by unit, drawn as heat maps of layers and units.
        curves: drawn in one figure; the label of its axes is `axes`.
        axes: labels of x and y.
        tables: further numbers.
        pictures: series and forecasts, drawn as small figures.
        notes: what was left out or stands in for something, one line each.
        facts: anything else that other probes or tests read.
    """

    answer: str
    measures: Sequence[Measure] = ()
    curves: Sequence[Curve] = ()
    axes: tuple[str, str] = ("", "")
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


class Probe(ABC):
    """Something to find out about a model on a user's series.

    Attributes:
        title: for people.
        question: what it answers, one sentence ending in a question mark.
        source: paper and place, or what is ours.
    """

    title: ClassVar[str]
    question: ClassVar[str]
    source: ClassVar[str]

    def refusal(self, model: Forecaster) -> str:
        """Why the probe does not apply to a model, one sentence without a full stop; "" where it does."""
        return ""

    @abstractmethod
    def passes(self, study: Study) -> float:
        """Cost in forward passes over the study's first windows, said before it starts; a backward pass counts 2."""

    @abstractmethod
    def run(self, study: Study, tick: Tick) -> Findings:
        """Find out; calls `tick` about as often as a forward pass over the first windows ends."""
