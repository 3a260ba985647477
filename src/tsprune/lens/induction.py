"""Heads that find where the present came up before and look at what followed: induction heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tsprune.errors import TspruneError
from tsprune.lens import _tiles
from tsprune.lens._ablating import groups_of, switched_off
from tsprune.lens._heads import windows_in
from tsprune.lens._probe import Curve, Findings, Measure, Probe, Study, Table, Tick
from tsprune.lens._tiles import HeadScores, Tiles
from tsprune.models._forecaster import Forecaster

if TYPE_CHECKING:
    from tsprune.models.chronos_t5 import ChronosT5

TOKENS = "chronos_t5"
HIGH, VOTES = 0.3, 2.0
"""From which the source calls a head an induction head: the prefix score, and for tokens its z-score. Here the first
is asked of the weight on all copies."""
CHANCES = 3
"""How many times the weight of even attention it must be as well, which matters in short contexts."""
ORDERS = 3
"""Random orders of switching heads off."""
Head = tuple[str, int]


@dataclass(frozen=True)
class _Bench:
    """The repeating context of one model and how well the model goes on with it.

    Args:
        rows: rows of the context.
        unit: of the error, for people.
        error: of each row, with the model as it is at that moment.
    """

    rows: int
    unit: str
    error: Callable[[], NDArray[np.float64]]


class Induction(Probe):
    """Scores on random patterns that repeat, and the error of going on with them without the heads."""

    title = "Induction heads"
    question = "Which heads look at what followed the last time, and does the model need them to go on with a pattern?"
    source = (
        "repeated random tokens in arXiv 2602.01605 (released code) for Chronos-T5; for patches of values our analogue"
    )

    def refusal(self, model: Forecaster) -> str:
        """It takes attention over tokens that stand for single patches of one series."""
        if not groups_of(model, "head"):
            return f"this {model.family} model has no attention heads left"
        if model.window_rows != 1:
            return f"this {model.family} model takes windows of {model.window_rows} series, not patterns of one"
        if model.family == TOKENS:
            from tsprune.lens._repeatedtokens import RepeatedTokens

            short = RepeatedTokens.of(cast("ChronosT5", model), 0) is None
            return f"a context of {model.context_length} tokens is too short to repeat a pattern" if short else ""
        _, why = _tiles.token_patches(model)
        return f"this {model.family} model cannot be shown repeating patches: {why}" if why else ""

    def passes(self, study: Study) -> float:
        """Over 16 or 32 rows of random patterns: one pass for each head, and five orders of several heads, at most."""
        model, heads = study.model, len(_heads(study.model))
        forwards = 2 + heads + (2 + ORDERS) * len(_amounts(heads))
        if model.family == TOKENS:
            from tsprune.lens._repeatedtokens import ROWS as TOKEN_ROWS

            return forwards * TOKEN_ROWS / max(1, windows_in(study.first))
        return (forwards * _tiles.ROWS + _tiles.mapping_rows(model)) / max(1, windows_in(study.first))

    def run(self, study: Study, tick: Tick) -> Findings:
        """The user's series are not needed: the pattern shows what a head can do, not whether the series ask for it."""
        model = study.model
        bench, scores, votes = _measured(model, study.seed)
        tick("attention to repeated patterns")
        intact = bench.error()
        without: dict[Head, NDArray[np.float64]] = {}
        for name, unit in _heads(model):
            with switched_off(model, {f"{name}/head": [unit]}):
                without[name, unit] = bench.error() - intact
        tick("each head off")
        order = sorted(_scored(scores), key=lambda head: (-float(scores[head[0]].score[head[1]]), head))
        curves = _curves(model, bench, order, intact, study.seed)
        tick("several heads off")
        return _findings(model, bench, scores, votes, intact, without, order, curves)


def _heads(model: Forecaster) -> list[Head]:
    return [(group.path, unit) for group in groups_of(model, "head").values() for unit in range(group.units)]


def _scored(scores: Mapping[str, HeadScores]) -> list[Head]:
    return [(path, unit) for path, found in scores.items() for unit in range(len(found.score))]


def _measured(model: Forecaster, seed: int) -> tuple[_Bench, dict[str, HeadScores], dict[str, Tensor]]:
    """The bench, scores of heads by path of the attention, and for tokens their copy scores."""
    if model.family == TOKENS:
        from tsprune.lens._repeatedtokens import RepeatedTokens, token_scores

        t5 = cast("ChronosT5", model)
        tokens = RepeatedTokens.of(t5, seed)
        if tokens is None:
            raise TspruneError(f"a context of {model.context_length} steps holds no pattern of tokens twice")
        bench = _Bench(len(tokens.pattern), "surprise at the next token, in nats", lambda: tokens.surprise(t5))
        return bench, *token_scores(t5, tokens)
    tiles = Tiles.of(model, seed)
    places, _ = _tiles.token_patches(model)
    bench = _Bench(_tiles.ROWS, "RMSE in standard deviations of the context", lambda: _tiles.errors(model, tiles))
    return bench, _tiles.head_scores(model, tiles, places), {}


def _amounts(heads: int) -> list[int]:
    """Numbers of heads to switch off: doubling, at most 32, and not more than there are."""
    return [2**power for power in range(6) if 2**power <= heads]


def _curves(
    model: Forecaster, bench: _Bench, order: Sequence[Head], intact: NDArray[np.float64], seed: int
) -> list[Curve]:
    """Error by number of heads off: highest score first, lowest first, and in random orders."""
    generator = np.random.default_rng(seed)
    mixed = [[order[place] for place in generator.permutation(len(order))] for _ in range(ORDERS)]
    amounts = _amounts(len(order))

    def along(heads: Sequence[Head]) -> list[float]:
        found = [float(intact.mean())]
        for amount in amounts:
            off: dict[str, list[int]] = {}
            for path, unit in heads[:amount]:
                off.setdefault(f"{path}/head", []).append(unit)
            with switched_off(model, off):
                found.append(float(bench.error().mean()))
        return found

    x = [0.0, *map(float, amounts)]
    drawn = np.array([along(heads) for heads in mixed])
    return [
        Curve("highest induction score first", x, along(order)),
        Curve("lowest first", x, along(order[::-1]), control=True),
        Curve("random order", x, drawn.mean(0).tolist(), drawn.min(0).tolist(), drawn.max(0).tolist(), control=True),
    ]


def _is_high(scores: HeadScores, votes: Tensor | None, unit: int) -> bool:
    looks = float(scores.score[unit]) > max(HIGH, CHANCES * scores.chance)
    return looks and (votes is None or float(votes[unit]) > VOTES)


def _findings(
    model: Forecaster,
    bench: _Bench,
    scores: Mapping[str, HeadScores],
    votes: Mapping[str, Tensor],
    intact: NDArray[np.float64],
    without: Mapping[Head, NDArray[np.float64]],
    order: Sequence[Head],
    curves: Sequence[Curve],
) -> Findings:
    high = [head for head in order if _is_high(scores[head[0]], votes.get(head[0]), head[1])]
    return Findings(
        answer=_answer(bench, order, high, without, float(intact.mean()), curves),
        measures=_measures(model, bench, scores, votes, without),
        curves=curves,
        axes=("heads off", bench.unit),
        tables=[_table(bench, scores, votes, without, order)],
        notes=_notes(model, scores),
        facts={
            "induction_heads": [list(head) for head in high],
            "order": [list(head) for head in order],
            "error": float(intact.mean()),
            "asked_by": {path: found.how for path, found in scores.items()},
            "chance": {path: found.chance for path, found in scores.items()},
        },
    )


def _answer(
    bench: _Bench,
    order: Sequence[Head],
    high: Sequence[Head],
    without: Mapping[Head, NDArray[np.float64]],
    intact: float,
    curves: Sequence[Curve],
) -> str:
    if not order:
        return "No attention runs over the tokens of the context, so that no head can be an induction head."
    # Where about as many are off as there are induction heads.
    place = max(number for number, x in enumerate(curves[0].x) if x <= max(1, len(high)))
    worst, control, amount = curves[0].y[place], curves[2].y[place], int(curves[0].x[place])
    text = (
        f"{len(high)} of {len(order)} heads look at what followed the last time; on repeated patterns the error "
        f"({bench.unit}) is {intact:.3f}, {worst:.3f} without the {amount} of the highest score and {control:.3f} "
        f"without {amount} random ones"
    )
    if not high:
        return f"{text}."
    path, unit = max(high, key=lambda head: float(without[head].mean()))
    return f"{text}; alone, head {unit} of {path} matters most (+{float(without[path, unit].mean()):.3f})."


def _measures(
    model: Forecaster,
    bench: _Bench,
    scores: Mapping[str, HeadScores],
    votes: Mapping[str, Tensor],
    without: Mapping[Head, NDArray[np.float64]],
) -> list[Measure]:
    groups = {group.path: group.units for group in groups_of(model, "head").values()}

    def of(pick: Callable[[HeadScores], Tensor]) -> dict[str, list[float | None]]:
        return {
            path: pick(scores[path]).tolist() if path in scores else [None] * units for path, units in groups.items()
        }

    changes: dict[str, list[float | None]] = {
        path: [float(without[path, unit].mean()) for unit in range(units)] for path, units in groups.items()
    }
    found = [
        Measure("induction score", "head", of(lambda s: s.score), "", "weight on all that followed the same before"),
        Measure("prefix score", "head", of(lambda s: s.prefix), "", "weight on what followed the last occurrence"),
        Measure("match score", "head", of(lambda s: s.match), "", "weight on the last occurrence itself"),
        Measure("error on repeats without it", "head", changes, "high", f"change of the {bench.unit}"),
    ]
    if votes:
        copy: dict[str, list[float | None]] = {
            path: votes[path].tolist() if path in votes else [None] * units for path, units in groups.items()
        }
        found.insert(3, Measure("copy score", "head", copy, "", "z-score of the right token in the head's own logits"))
    return found


def _table(
    bench: _Bench,
    scores: Mapping[str, HeadScores],
    votes: Mapping[str, Tensor],
    without: Mapping[Head, NDArray[np.float64]],
    order: Sequence[Head],
) -> Table:
    head = ["attention", "head", "induction", "prefix", "match", "even weights", "error without it", "asked by"]
    head += ["copy score"] if votes else []
    rows = []
    for path, unit in order[:20]:
        found = scores[path]
        numbers = [float(one[unit]) for one in (found.score, found.prefix, found.match)]
        row = [path, unit, *numbers, found.chance, float(without[path, unit].mean()), found.how]
        rows.append([*row, float(votes[path][unit])] if votes else row)
    return Table(f"Heads by induction score (the first 20); error: {bench.unit}", head, rows)


def _notes(model: Forecaster, scores: Mapping[str, HeadScores]) -> list[str]:
    notes = ["random patterns show what a head can do; whether your series ask for it, parroting tells"]
    asked = {found.how for found in scores.values()}
    if "context" in asked:
        notes.append(
            "where attention has no order, tokens of the context are asked, of which each has its successor before its "
            "eyes: a head that reads the neighbour instead finds no high score, one that finds copies does"
        )
    if "forecast" in asked:
        notes.append("where tokens of the forecast attend to the context, these are asked, as if last in the context")
    left = [group.path for group in groups_of(model, "head").values() if group.path not in scores]
    if left:
        notes.append(
            f"{len(left)} attentions do not run over the tokens of the context and have no score: {left[0]} ..."
        )
    return notes


PROBE = Induction()
