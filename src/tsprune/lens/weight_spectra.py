"""How a head compares queries and keys, from the singular values of W_Q^T W_K."""

from __future__ import annotations

import torch
from torch import Tensor

from tsprune.lens._heads import ByUnit, attentions, by_block, listed, middle, rising, without_heads
from tsprune.lens._probe import Findings, Measure, Probe, Study, Table, Tick
from tsprune.models._forecaster import Forecaster
from tsprune.scores.stable_rank import compared, triangle

NAMES = ("stable rank", "nuclear norm", "spectral gap", "skew share")
WORDS = (
    "|M|_F^2 / |M|_2^2 of M = W_Q^T W_K, 1 to the head width; which end matters less differs by layer (2602.01605)",
    "sum of the singular values of M",
    "first over second singular value of M; none where there is no second",
    "|(M - M^T) / 2|_F^2 / |M|_F^2, 0 where a comparison reads the same both ways, 1 where it turns its sign",
)


class WeightSpectra(Probe):
    """Singular values of what each head compares by, from the weights alone."""

    title = "Spectra of the weights"
    question = "In how many directions does each head compare queries and keys?"
    source = "2602.01605, stable ranks of heads and its diagnostics; the exact form by triangular factors is ours"

    def refusal(self, model: Forecaster) -> str:
        """Models without heads are refused."""
        return without_heads(model)

    def passes(self, study: Study) -> float:
        """None: only weights are read."""
        return 0.0

    def run(self, study: Study, tick: Tick) -> Findings:
        """Four numbers for each head."""
        values: dict[str, ByUnit] = {name: {} for name in NAMES}
        widths = []
        for path, attention in attentions(study.model).items():
            heads = compared(attention)
            widths += [len(queries) for queries, _ in heads]
            numbers = torch.stack([spectrum(queries, keys) for queries, keys in heads], dim=1)
            for name, own in zip(NAMES, numbers, strict=True):
                values[name][path] = listed(own)
        ranks, skew = rising(values["stable rank"]), rising(values["skew share"])
        low, high = ranks[0], ranks[-1]
        answer = (
            f"The median of {len(ranks)} heads compares queries and keys in {middle(ranks):.2f} of at most "
            f"{max(widths)} directions (stable rank; lowest {low.value:.2f} in {low}, highest {high.value:.2f} in "
            f"{high})"
        )
        if skew:
            answer += f", and {100 * middle(skew):.0f} % of what the median head compares by is one-way (skew)"
        measures = [Measure(name, "head", values[name], words=said) for name, said in zip(NAMES, WORDS, strict=True)]
        rows = [[path, *(by_block(values[name])[path] for name in NAMES)] for path in values["stable rank"]]
        table = Table("Median head of each attention", ("attention", *NAMES), rows)
        return Findings(answer + ".", measures, tables=(table,), notes=_notes(study.model))


def spectrum(queries: Tensor, keys: Tensor) -> Tensor:
    """Stable rank, nuclear norm, spectral gap and skew share of M = W_Q^T W_K, exact, without forming M.

    Singular values are those of R_Q R_K^T with the triangular factors of W^T = Q R. With C = W_K W_Q^T, tr(M M) is
    tr(C C), and |(M - M^T) / 2|^2 = (|M|^2 - tr(M M)) / 2. A head that compares nothing has stable rank and nuclear
    norm 0 and neither gap nor share.

    Args:
        queries: W_Q of a head, `[d, D]`, float64.
        keys: W_K of the same, `[d, D]`.

    Returns:
        `[4]`, NaN where there is no number.
    """
    product = triangle(queries) @ triangle(keys).T
    s = torch.linalg.svdvals(product) if product.numel() else product.new_zeros(1)
    squares, none = s.square().sum(), s.new_tensor(torch.nan)
    if not s[0] > 0:
        return torch.stack([s[0], s[0], none, none])
    crossed = keys @ queries.T
    skew = ((squares - (crossed * crossed.T).sum()) / (2 * squares)).clamp(0, 1)
    # Beyond this a second value is rounding of a matrix of rank one.
    apart = len(s) > 1 and bool(s[1] > s[0] * len(s) * torch.finfo(s.dtype).eps)
    return torch.stack([squares / s[0].square(), s.sum(), s[0] / s[1] if apart else none, skew])


def _notes(model: Forecaster) -> list[str]:
    found = ["the same for every series: weights alone are read, and the gain of the norm before them is left out"]
    blocks = list(attentions(model).values())
    missed = {
        "positions": any(block.shape.members == 2 or block.has_table for block in blocks),
        "norms of queries and keys": any(block.q_norm is not None for block in blocks),
        "learned factors of queries": any(block.query_scale is not None for block in blocks),
        "biases of queries and keys": any(block.q.bias is not None for block in blocks),
    }
    left = [what for what, there in missed.items() if there]
    return [*found, f"not looked at: {', '.join(left)}"] if left else found


PROBE = WeightSpectra()
