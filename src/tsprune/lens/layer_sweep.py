"""Runs of neighbouring layers off: what a stack can do without, and whether its middle matters least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tsprune.blocks.branch import Layer
from tsprune.data.batch import Batch
from tsprune.lens import _ablating as ablating
from tsprune.lens import _batched as batched
from tsprune.lens._probe import Curve, Findings, Measure, Probe, Study, Table, Tick
from tsprune.models._forecaster import Forecaster

PARTS = {"attention": ("attention",), "feed-forward": ("ffn",), "both": ("attention", "ffn")}
ALL_STARTS = 8
"""Layers of a stack up to which every run is tried."""

Run = tuple[int, int]
"""First layer and number of layers."""


@dataclass(frozen=True)
class Stack:
    """Layers one behind the other.

    Args:
        path: where they are in the model.
        layers: groups of the attentions and feed-forward parts of each, by kind.
        paths: paths of the layers.
    """

    path: str
    layers: Sequence[Mapping[str, Sequence[str]]]
    paths: Sequence[str]

    @property
    def longest(self) -> int:
        """Length of the longest run that is tried: half of the layers."""
        return max(1, len(self.layers) // 2)

    @property
    def every(self) -> bool:
        """Whether every run is tried, rather than the best of one length made longer."""
        return len(self.layers) <= ALL_STARTS

    def starts(self, length: int) -> range:
        """First layers of all runs of that length."""
        return range(len(self.layers) - length + 1)

    def longer(self, run: Run) -> list[Run]:
        """The two runs that are a layer longer and hold the run, or at the ends of the stack the two nearest ones."""
        first, length = run
        low = min(max(0, first - 1), len(self.layers) - length - 2)
        return [(low, length + 1), (low + 1, length + 1)]

    def parts(self) -> list[str]:
        """Which of `PARTS` there are."""
        kinds = {kind for layer in self.layers for kind in layer}
        return [part for part, wanted in PARTS.items() if kinds.issuperset(wanted)]

    def kept(self, run: Run, part: str) -> dict[str, list[int]]:
        """Everything but these parts of these layers."""
        first, length = run
        chosen = self.layers[first : first + length]
        return {name: [] for layer in chosen for kind in PARTS[part] for name in layer.get(kind, ())}

    def tried(self) -> int:
        """Runs that are tried for each part."""
        count = len(self.layers)
        if self.every:
            return sum(len(self.starts(length)) for length in range(1, self.longest + 1))
        return count + 2 * (self.longest - 1)


@dataclass
class Sweep:
    """How much the loss grows, by run, for one part of one stack."""

    stack: Stack
    part: str
    first: dict[Run, float] = field(default_factory=dict)
    later: dict[Run, float] = field(default_factory=dict)

    def best(self, length: int) -> Run:
        """The run of that length that is missed least on the first windows."""
        return min((run for run in self.first if run[1] == length), key=lambda run: (self.first[run], run))

    def runs(self, length: int) -> list[Run]:
        """Runs of that length to try, once all shorter ones were: what comes next may depend on what was found."""
        if self.stack.every or length == 1:
            return [(start, length) for start in self.stack.starts(length)]
        return self.stack.longer(self.best(length - 1))

    @property
    def alone(self) -> list[float]:
        """Growth without each layer alone."""
        return [self.first[start, 1] for start in self.stack.starts(1)]


class LayerSweep(Probe):
    """See the module."""

    title = "Runs of layers off"
    question = "How many neighbouring layers can be missed, and do the middle ones matter least?"
    source = (
        "2602.01605, blocks of middle layers without attention, feed-forward parts or both; ours: every start instead "
        "of picked ones, chosen on the first windows and measured again on later ones"
    )

    def refusal(self, model: Forecaster) -> str:
        """Refuses a model without layers one behind the other."""
        found = stacks(model)
        return "" if found else "the model has no two layers one behind the other of which anything is left"

    def passes(self, study: Study) -> float:
        """One for the intact model and one for each run; the best of each length once more on the later windows."""
        found = stacks(study.model)
        first = sum(len(stack.parts()) * stack.tried() for stack in found)
        again = sum(len(stack.parts()) * stack.longest for stack in found)
        share = ablating.windows(study.later) / ablating.windows(study.first)
        return 1 + first + (1 + again) * share

    def run(self, study: Study, tick: Tick) -> Findings:
        """Sweep every part of every stack; the model is left as it was found."""
        model = study.model
        whole = float(ablating.losses(model, study.first).mean())
        tick("loss of the intact model")
        later = float(ablating.losses(model, study.later).mean())
        found = [Sweep(stack, part) for stack in stacks(model) for part in stack.parts()]
        for sweep in found:
            for length in range(1, sweep.stack.longest + 1):
                runs = sweep.runs(length)
                sweep.first |= _growths(model, study.first, sweep, runs, whole)
                for first, _ in runs:
                    tick(f"{sweep.stack.path}: {sweep.part} of {length} layers from {first} on")
            best = [sweep.best(length) for length in range(1, sweep.stack.longest + 1)]
            sweep.later = _growths(model, study.later, sweep, best, later)
        return _findings(model, found)


def stacks(model: Forecaster) -> list[Stack]:
    """The model's stacks of two or more layers, in network order."""
    groups = ablating.groups_of(model, "attention", "ffn")
    by_path: dict[str, list[tuple[str, dict[str, list[str]]]]] = {}
    for path, module in model.named_modules():
        if not isinstance(module, Layer):
            continue
        own: dict[str, list[str]] = {}
        for name, group in groups.items():
            if name.startswith(f"{path}."):
                own.setdefault(group.kind, []).append(name)
        if own:
            by_path.setdefault(path.rpartition(".")[0], []).append((path, own))
    return [
        Stack(path, [own for _, own in layers], [own_path for own_path, _ in layers])
        for path, layers in by_path.items()
        if len(layers) > 1
    ]


def _growths(
    model: Forecaster, batches: Sequence[Batch], sweep: Sweep, runs: Sequence[Run], intact: float
) -> dict[Run, float]:
    several = [sweep.stack.kept(run, sweep.part) for run in runs]
    return dict(zip(runs, batched.growths_of(model, batches, several, intact), strict=True))


def thirds(values: Sequence[float]) -> tuple[float, float] | None:
    """Means of the middle third and of the rest; None for fewer than three layers."""
    count = len(values)
    if count < 3:
        return None
    edge = max(1, count // 3)
    middle, ends = values[edge : count - edge], [*values[:edge], *values[count - edge :]]
    return sum(middle) / len(middle), sum(ends) / len(ends)


def _findings(model: Forecaster, found: Sequence[Sweep]) -> Findings:
    curves, rows = [], []
    for sweep in found:
        lengths = range(1, sweep.stack.longest + 1)
        best = [sweep.best(length) for length in lengths]
        name = f"{sweep.stack.path}, {sweep.part}"
        curves.append(Curve(name, list(lengths), [ablating.number(sweep.later[run]) for run in best]))
        if sweep.stack.every:
            curves.append(_average(sweep, name))
        rows += [_row(sweep, run) for run in best]
    notes = [
        "the best run of each length was chosen on the first windows, its curve is of later ones",
        "attention means all attentions of a layer whole, output biases included; norms that come last stay",
    ]
    if greedy := [s.stack.path for s in found if not s.stack.every and s.part == "both"]:
        notes.append(
            f"{', '.join(greedy)}: too many layers to try every run, so the best run of each length was made "
            "longer by a layer at either end"
        )
    return Findings(
        answer=_answer(found),
        measures=[_alone(found, part) for part in PARTS if any(s.part == part for s in found)],
        curves=curves,
        axes=("neighbouring layers off", f"loss, as a multiple ({ablating.growth_words(model)})"),
        tables=[
            Table(
                "Best run of each length",
                ["stack", "off", "layers", "from", "to", "first windows", "later windows"],
                rows,
            ),
            _middle(found),
        ],
        notes=notes,
        facts={
            "growth": {
                f"{s.stack.path}, {s.part}": [[*run, ablating.number(v)] for run, v in s.first.items()] for s in found
            }
        },
    )


def _average(sweep: Sweep, name: str) -> Curve:
    """Over all starts, as what a run somewhere costs."""
    lengths = range(1, sweep.stack.longest + 1)
    runs = {n: [v for run, v in sweep.first.items() if run[1] == n] for n in lengths}
    return Curve(
        f"{name}, mean of all starts (first windows)",
        list(lengths),
        [ablating.number(sum(values) / len(values)) for values in runs.values()],
        [ablating.number(min(values)) for values in runs.values()],
        [ablating.number(max(values)) for values in runs.values()],
        control=True,
    )


def _row(sweep: Sweep, run: Run) -> list[Any]:
    first, length = run
    ends = [first, first + length - 1]
    return [
        sweep.stack.path,
        sweep.part,
        length,
        *ends,
        ablating.number(sweep.first[run]),
        ablating.number(sweep.later[run]),
    ]


def _alone(found: Sequence[Sweep], part: str) -> Measure:
    values = {
        path: [ablating.number(growth)]
        for sweep in found
        if sweep.part == part
        for path, growth in zip(sweep.stack.paths, sweep.alone, strict=True)
    }
    words = "mean loss of the windows without that part of the layer alone, as a multiple of the intact model's"
    return Measure(f"loss without one layer's {part}" if part != "both" else "loss without one layer", "layer", values,
                   "high", words)  # fmt: skip


def _middle(found: Sequence[Sweep]) -> Table:
    """Single layers by depth: the middle third beside the rest."""
    rows = []
    for sweep in found:
        if (means := thirds(sweep.alone)) is not None:
            rows.append([sweep.stack.path, sweep.part, *(ablating.number(mean) for mean in means)])
    return Table("One layer off: mean over the middle third and over the others", ["stack", "off", "middle", "others"],
                 rows)  # fmt: skip


def _answer(found: Sequence[Sweep]) -> str:
    said = []
    for sweep in found:
        means = thirds(sweep.alone) if sweep.part == sweep.stack.parts()[-1] else None
        if means is not None:
            least = "matter less than" if means[0] < means[1] else "do not matter less than"
            said.append(f"in {sweep.stack.path} the middle layers {least} the others")
    if not said:
        return "The stacks are too short to have a middle."
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]} (loss without one layer)."


PROBE = LayerSweep()
