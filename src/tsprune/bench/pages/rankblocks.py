"""The page's blocks on ranks, win rates and what may be told apart."""

from __future__ import annotations

from tsprune.bench.pages import ranks
from tsprune.bench.pages.layout import measure_name
from tsprune.bench.pages.matrixfigure import matrix_figure
from tsprune.bench.pages.rankfigures import critical_difference_figure, rank_figure
from tsprune.bench.pages.sheet import Block, Bullets, Figure, Text
from tsprune.bench.pages.tasking import Grid, Matrix
from tsprune.data.words import many
from tsprune.report.words import human


def rank_blocks(grid: Grid) -> list[Block]:
    """Mean ranks and win rates over all tasks; every task counts, which describes and tests nothing."""
    matrix = grid.matrix(grid.summary["measure"])
    if not matrix.errors.size or len(matrix.methods) < 2:
        return [Text(_why(matrix))]
    order, _ = ranks.mean_ranks(matrix)
    sorted_matrix = Matrix(matrix.tasks, tuple(matrix.methods[i] for i in order), matrix.errors[:, order])
    numbered = [f"{human(name)}  {place}" for place, name in enumerate(sorted_matrix.methods, 1)]
    rates = [[float(rate) for rate in line] for line in ranks.win_rates(sorted_matrix)]
    tasks = many(len(matrix.tasks), "task")
    what = "once per model" if len(grid.models) > 1 else "data sets and horizons"
    picture = matrix_figure(
        numbered, [str(place) for place in range(1, len(numbered) + 1)], rates, "Share of tasks won by the row",
        name="wins", middle=0.5, high_is_good=True, text=lambda rate: f"{100 * rate:.0f}",
    )  # fmt: skip
    blocks: list[Block] = [
        Figure(
            rank_figure(matrix, "ranks"),
            f"on {tasks} ({what}), by {measure_name(grid.summary['measure'])} averaged over seeds. A larger circle "
            "means more tasks with that rank; the bar and the number are the mean.",
            "Ranks",
        ),
        Figure(
            picture,
            "Percent of tasks on which the row's error is below the column's, ties counting half. Columns are numbered "
            "like rows. Blue: the row wins more often than not.",
            "Win rates.",
        ),
    ]
    return blocks + ([Bullets(matrix.notes, note=True)] if matrix.notes else [])


def difference_blocks(grid: Grid) -> list[Block]:
    """The critical-difference diagram over data sets, or why there is none."""
    matrix = grid.matrix(grid.summary["measure"], by_data=True)
    if not matrix.errors.size or len(matrix.methods) < 2:
        return [Text(_why(matrix))]
    ranking = ranks.rank(matrix)
    how = Text(
        "Tasks of one data set share their series and are no independent witnesses. So errors are averaged first: over "
        "seeds, then geometrically over horizons and models, and every data set speaks once.",
    )
    notes = [Bullets(ranking.notes, note=True)] if ranking.notes else []
    if ranking.refused or ranking.friedman is None:
        return [how, Text(f"No diagram and no groups: {ranking.refused}."), *notes]
    tested = ranking.friedman
    kind = "exact" if tested.exact else "with Iman and Davenport's correction"
    apart = len(ranking.apart)
    return [
        how,
        Text(
            f"Friedman's test that all rank alike, {kind}: p {_p(tested.p_value)}. {many(apart, 'pair')} of "
            f"{len(ranking.p_values)} {'is' if apart == 1 else 'are'} told apart."
        ),
        Figure(
            critical_difference_figure(ranking, "cd"),
            f"Mean ranks over {many(ranking.tasks, 'data set')}, 1 being the best. An orange bar joins methods no two "
            f"of which are told apart at {ranking.alpha:g} by Wilcoxon's signed-rank tests of the logarithms of "
            "errors, after Holm's correction for all pairs. Nemenyi's difference is shown for comparison: what it "
            "tells apart depends on which others are in the pool, so the bars are not made from it.",
            "Critical differences.",
        ),
        *notes,
    ]


def _why(matrix: Matrix) -> str:
    if len(matrix.methods) < 2 and matrix.tasks:
        return "No figure: there is only one candidate, so there is nothing to rank."
    return "No figure: there is no task yet that every candidate was measured on."


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"
