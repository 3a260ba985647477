"""How many directions the attention matrices of a user's windows have, head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.lens._heads import ByUnit, attentions, by_block, listed, middle, rising, windows_in, without_heads
from tsprune.lens._maps import AttentionMap, map_sums
from tsprune.lens._probe import Findings, Measure, Probe, Study, Table, Tick
from tsprune.models._forecaster import Forecaster
from tsprune.scores._ranks import spearman
from tsprune.scores._work import split_windows
from tsprune.scores.stable_rank import stable_ranks

WINDOWS = 16
"""Windows whose matrices are decomposed, spread evenly over those of the study."""
ROWS = 64
"""Matrices of one attention and window, where a window is several rows of the network."""
QUERIES = 256
"""Rows of one matrix."""


class AttentionSpectra(Probe):
    """Singular values of attention matrices after the softmax."""

    title = "Spectra of attention"
    question = "How many different mixtures of the context does each head make on your series?"
    source = "ours, as the rival of stable ranks of weights (2602.01605); effective rank after Roy and Vetterli 2007"

    def refusal(self, model: Forecaster) -> str:
        """Models without heads are refused."""
        return without_heads(model)

    def passes(self, study: Study) -> float:
        """Some windows, once."""
        windows = windows_in(study.first)
        return min(WINDOWS, windows) / max(1, windows)

    def run(self, study: Study, tick: Tick) -> Findings:
        """Stable and effective rank of every head."""
        model, windows = study.model, spread_windows(study.first, WINDOWS)
        large: set[str] = set()

        def read(path: str, seen: AttentionMap) -> dict[str, Tensor]:
            if seen.weights.shape[2] > QUERIES:
                large.add(path)
            return {path: rank_sums(seen)}

        sums = map_sums(model, windows, read)
        tick(f"attention matrices of {len(windows)} windows")
        heads = {path: block.heads for path, block in attentions(model).items()}
        # Stable rank, effective rank and the most there could be of every head, then the number of matrices.
        totals = {path: sums.get(path, torch.zeros(2 * h + 2, dtype=torch.float64)) for path, h in heads.items()}
        means = {path: total[:-1] / total[-1] for path, total in totals.items()}
        stable = {path: listed(means[path][:h]) for path, h in heads.items()}
        effective = {path: listed(means[path][h : 2 * h]) for path, h in heads.items()}
        most = {path: listed(means[path][2 * h :])[0] for path, h in heads.items()}
        agreement = _agreement(stable, stable_ranks(model))
        middles = by_block(stable), by_block(effective)
        rows = [[path, *(found[path] for found in middles), most[path]] for path in heads]
        title = "Median head of each attention, and the rank that is possible"
        return Findings(
            _answer(stable, effective, most, len(windows), agreement),
            (
                Measure("stable rank of attention", "head", stable, words=f"|A|_F^2 / |A|_2^2 of {MATRICES}"),
                Measure("effective rank of attention", "head", effective, words=f"exp(-sum p ln p), {SHARES}"),
            ),
            tables=(Table(title, ("attention", "stable rank", "effective rank", "possible"), rows),),
            notes=_notes(study, len(windows), stable, bool(large)),
            facts={"windows": len(windows), "agreement_with_weights": agreement, "possible": most},
        )


MATRICES = "attention matrices A after the softmax, queries by keys, mean over windows; 1 where all queries mix alike"
SHARES = "p the singular values of A over their sum; 1 to the smaller of queries and keys"


def spread_windows(batches: Sequence[Batch], most: int) -> list[Batch]:
    """At most so many windows as batches of one, evenly spread from the first to the last."""
    count = windows_in(batches)
    wanted = set(_spread(count, most).tolist())
    singles = (window for batch in batches for window in split_windows(batch, 1))
    return [window for number, window in enumerate(singles) if number in wanted]


def _spread(count: int, most: int) -> Tensor:
    """At most so many of the numbers below `count`, evenly spread, both ends among them."""
    steps = min(count, most)
    return torch.linspace(0, max(0, count - 1), steps, dtype=torch.float64).round().long()


def rank_sums(seen: AttentionMap) -> Tensor:
    """Sums over the matrices of a call: `[2 H + 2]`, float64 on the CPU.

    Stable rank and effective rank of every head, the highest rank that is possible, and the number of matrices. Rows of
    queries that do not count and columns of keys that nobody sees are left out; a matrix of a single row or column has
    rank 1 whatever a head does and is not counted.
    """
    rows, heads = seen.weights.shape[:2]
    total = torch.zeros(2 * heads + 2, dtype=torch.float64)
    if min(seen.weights.shape[2:]) < 2:
        return total
    for row in _spread(rows, ROWS).tolist():
        queries = (seen.counted[row] & seen.live[row].any(-1)).nonzero().flatten()
        keys = seen.live[row, queries].any(0).nonzero().flatten()
        if min(len(queries), len(keys)) < 2:
            continue
        queries = queries[_spread(len(queries), QUERIES).to(queries.device)]
        live = seen.live[row, queries][:, keys]
        matrices = seen.weights[row][:, queries][..., keys].masked_fill(~live, 0)
        s = torch.linalg.svdvals(matrices.to(device="cpu", dtype=torch.float64))
        stable = s.square().sum(-1) / s[:, 0].square()
        effective = torch.special.entr(s / s.sum(-1, keepdim=True)).sum(-1).exp()
        total += torch.cat([stable, effective, s.new_tensor([float(s.shape[-1]), 1.0])])
    return total


def _agreement(stable: ByUnit, weights: dict[str, Tensor]) -> float | None:
    """Rank correlation over heads of the stable ranks of attention and of weights."""
    both = [
        (one, two)
        for path, own in stable.items()
        for one, two in zip(own, weights[path].tolist(), strict=True)
        if one is not None
    ]
    return spearman(*torch.tensor(both, dtype=torch.float64).reshape(-1, 2).T) if both else None


def _answer(
    stable: ByUnit, effective: ByUnit, most: Mapping[str, float | None], windows: int, agreement: float | None
) -> str:
    ranks, spread = rising(stable), rising(effective)
    if not ranks:
        return "No attention has two queries and two keys on these windows, so every matrix has rank 1."
    low, high = spread[0], spread[-1]
    possible = median(value for value in most.values() if value is not None)
    answer = (
        f"On {windows} windows the attention of the median head has stable rank {middle(ranks):.2f} and effective rank "
        f"{middle(spread):.2f} of {possible:.1f} possible (from {low.value:.2f} in {low} to {high.value:.2f} in {high})"
    )
    if agreement is not None:
        answer += f"; the stable ranks of the weights order the heads with rank correlation {agreement:.2f} to this"
    return answer + "."


def _notes(study: Study, windows: int, stable: ByUnit, large: bool) -> list[str]:
    notes = []
    if windows < windows_in(study.first):
        notes.append(f"{windows} of {windows_in(study.first)} windows are looked at, spread evenly")
    if large:
        notes.append(f"of a matrix with more than {QUERIES} queries, {QUERIES} are taken, spread evenly")
    if alike := [path for path, own in stable.items() if all(value is None for value in own)]:
        notes.append(f"always of rank 1, since there is one query or one key: {', '.join(alike)}")
    return notes


PROBE = AttentionSpectra()
