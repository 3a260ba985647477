"""How widely each head spreads its attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tsprune.lens._heads import ByUnit, Unit, attentions, listed, rising, windows_in, without_heads
from tsprune.lens._maps import AttentionMap, in_portions, map_sums
from tsprune.lens._probe import Findings, Measure, Probe, Study, Table, Tick
from tsprune.models._forecaster import Forecaster
from tsprune.scores._probes import token_sum

SHARP = 0.64
"""Normalised entropy below which a head is called sharp: published are 4.0 nats over 513 keys, whose most is 6.24."""
DIFFUSE = 0.9
"""From here on a head is called diffuse; ours."""
SHARE = 0.3
"""Of the heads in each list; published is that the 30 % most diffuse can go."""
LAST = "|last"


class AttentionEntropy(Probe):
    """Entropy of the rows of attention, head by head."""

    title = "Entropy of attention"
    question = "Which heads look at a few places of your series, and which at everything alike?"
    source = "2602.01605, attention entropy of heads; the mean over queries and the norm by live keys are ours"

    def refusal(self, model: Forecaster) -> str:
        """Models without heads are refused."""
        return without_heads(model)

    def passes(self, study: Study) -> float:
        """All windows, after one that shows how many fit into memory."""
        return entropy_passes(study)

    def run(self, study: Study, tick: Tick) -> Findings:
        """Normalised entropy of every head, and of the last query in cross-attention."""
        sums, units = entropy_of(study, tick)
        entropy: ByUnit = {}
        last: ByUnit = {}
        for path, block in attentions(study.model).items():
            entropy[path] = _means(sums, path, block.heads)
            if f"{path}{LAST}" in sums:
                last[path] = _means(sums, f"{path}{LAST}", block.heads)
        measures = [Measure("attention entropy", "head", entropy, "low", f"{WORDS}, mean over queries and windows")]
        if last:
            measures.append(Measure("entropy of the last query", "head", last, "low", f"{WORDS}, cross-attention only"))
        return Findings(
            _answer(units), measures, tables=(_labels(entropy),), notes=_notes(entropy), facts=_facts(units)
        )


def entropy_passes(study: Study) -> float:
    """Cost of `entropy_of` in forward passes over the first windows."""
    return 1 + 1 / max(1, windows_in(study.first))


def entropy_of(study: Study, tick: Tick) -> tuple[dict[str, Tensor], list[Unit]]:
    """Sums of entropies over the first windows, see `_sums`, and the heads that have one, the sharpest first."""
    model = study.model
    sums = map_sums(model, in_portions(model, study.first), _sums)
    tick(f"attention of {windows_in(study.first)} windows")
    return sums, rising({path: _means(sums, path, block.heads) for path, block in attentions(model).items()})


WORDS = "-sum p ln p over the keys a query may see, over ln of their number: 0 for one key alone, 1 for all alike"


def entropies(weights: Tensor, live: Tensor) -> Tensor:
    """Entropy of attention rows over live keys, over the logarithm of their number.

    Args:
        weights: `[B, H, T, S]`; rows are scaled to sum to 1 over live keys.
        live: bool `[B, T, S]`.

    Returns:
        `[B, H, T]`, float32 or better, in [0, 1]; NaN where fewer than two keys are live.
    """
    wide = torch.float64 if weights.dtype == torch.float64 else torch.float32
    p = weights.to(wide).masked_fill(~live[:, None], 0)
    total = p.sum(-1)
    nats = torch.special.entr(p).sum(-1) / total + total.log()
    most = live.sum(-1)[:, None].to(wide).log()
    return torch.where(most > 0, nats / most, torch.nan).clamp(0, 1)


def _sums(path: str, seen: AttentionMap) -> dict[str, Tensor]:
    """Sums over queries by head, and the number of queries: `[H + 1]`; of the last queries alone in cross-attention."""
    counted = seen.counted & (seen.live.sum(-1) > 1)
    values = entropies(seen.weights, seen.live).transpose(1, 2)
    found = {path: token_sum(values, counted)}
    if seen.crossing:
        found[f"{path}{LAST}"] = token_sum(values[:, -1], counted[:, -1])
    return found


def _means(sums: Mapping[str, Tensor], name: str, heads: int) -> list[float | None]:
    total = sums.get(name, torch.zeros(heads + 1, dtype=torch.float64))
    return listed(total[:-1] / total[-1])


def label(value: float | None) -> str:
    """What a head with that entropy is called."""
    if value is None:
        return "no choice"
    return "sharp" if value < SHARP else "diffuse" if value >= DIFFUSE else "between"


def _labels(entropy: ByUnit) -> Table:
    """How many heads of each attention are called what."""
    names = ("sharp", "between", "diffuse", "no choice")
    called = {path: [label(value) for value in own] for path, own in entropy.items()}
    rows = [[path, *(own.count(name) for name in names)] for path, own in called.items()]
    return Table("Sharp and diffuse heads", ("attention", *names), rows)


def _facts(units: list[Unit]) -> dict[str, Any]:
    """The sharpest and the most diffuse heads, the most extreme first; no head is in both lists."""
    count = min(max(1, round(SHARE * len(units))), -(-len(units) // 2))
    named = [{"path": one.path, "head": one.unit, "entropy": one.value, "label": label(one.value)} for one in units]
    return {"sharpest": named[:count], "most_diffuse": named[::-1][: min(count, len(units) - count)]}


def _answer(units: list[Unit]) -> str:
    if not units:
        return "No query has a choice between keys on these windows, so no head is sharp or diffuse."
    called = [label(one.value) for one in units]
    low, high = units[0], units[-1]
    return (
        f"Sharp are {called.count('sharp')} of {len(units)} heads (entropy below {SHARP} of that of uniform "
        f"attention), diffuse {called.count('diffuse')} ({DIFFUSE} or more); the sharpest is {low} "
        f"({low.value:.2f}), the most diffuse {high} ({high.value:.2f})."
    )


def _notes(entropy: ByUnit) -> list[str]:
    alone = [path for path, own in entropy.items() if all(value is None for value in own)]
    return [f"left out, since every query sees one key at most: {', '.join(alone)}"] if alone else []


PROBE = AttentionEntropy()
