"""How selective each attention is as a whole (SEND), beside what its removal really does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from tsprune.blocks.attention import Attention
from tsprune.blocks.folded import FoldedAttention
from tsprune.data.batch import Batch
from tsprune.lens._heads import windows_in
from tsprune.lens._probe import Findings, Measure, Probe, Study, Table, Tick
from tsprune.lens._rankings import RankAgreement, rank_agreement
from tsprune.lens._windowmeans import share_of_first
from tsprune.models._forecaster import Forecaster
from tsprune.scores import ablation, taylor
from tsprune.scores import send as send_score
from tsprune.scores._connections import connection_sums, mean_effects
from tsprune.scores._ranks import spearman
from tsprune.scores._work import Totals, combined, split_windows

PARTS = 5
"""Parts of the first windows between which the mask gradient is compared."""
KINDS = ("attention",)


@dataclass(frozen=True)
class _Seen:
    """What one pass of mask gradients shows, by group name.

    Args:
        send: the score.
        noise: spread of the mask gradient between parts over its mean; None with one part or a mean of 0.
        alone: whether no query has more than one live key.
        stability: mean rank correlation of the score between pairs of parts; None where there is none.
    """

    send: Mapping[str, float]
    noise: Mapping[str, float | None]
    alone: Mapping[str, bool]
    stability: float | None


class Send(Probe):
    """SEND of every attention, its Taylor term, the spread of its mask gradient, and the loss without it."""

    title = "Whole attentions"
    question = "Which attentions select something, and does the loss notice when one of them is off?"
    source = (
        "SEND: SPAT (arXiv 2505.08768), with live keys and a factor for the length as in `tsprune.scores.send`; the "
        "comparison with removal is ours"
    )

    def refusal(self, model: Forecaster) -> str:
        """Without attention there is nothing to rank."""
        if any(group.kind == "attention" for group in model.unit_groups().values()):
            return ""
        return f"this {model.family} model has no attention with heads left"

    def passes(self, study: Study) -> float:
        """Two backward passes with their forward passes, and one pass for each attention on first and later windows."""
        attentions = len(_names(study.model))
        later = (1 + attentions) * share_of_first(study)
        return 3 + 3 + 1 + attentions + later

    def run(self, study: Study, tick: Tick) -> Findings:
        """Scores on the first windows; removal on the first and on the later ones."""
        model = study.model
        seen = _mask_gradients(model, _parts(study.first))
        tick("mask gradients")
        terms = _numbers(taylor.scores(model, study.first, kinds=KINDS))
        tick("Taylor terms")
        removed = _numbers(ablation.scores(model, study.first, kinds=KINDS))
        tick("each attention off, first windows")
        again = _numbers(ablation.scores(model, study.later, kinds=KINDS)) if windows_in(study.later) else {}
        tick("each attention off, later windows")
        return _findings(study, seen, terms, removed, again)


def _mask_gradients(model: Forecaster, parts: Sequence[Batch]) -> _Seen:
    """SEND over all parts and what differs between them, one forward and backward pass in all."""
    names = _names(model)
    paths = {name: name.rsplit("/", 1)[0] for name in names}
    sums = [connection_sums(model, [part], list(paths.values())) for part in parts]
    whole = combined(sums)
    by_part = [send_score.finish(model, one, kinds=KINDS) for one in sums]
    noise, alone = {}, {}
    for name, path in paths.items():
        found = mean_effects(model, whole, path)
        live = None if found is None else found[1][found[2]]
        alone[name] = live is None or not live.numel() or int(live.sum(-1).max()) <= 1
        noise[name] = _noise(model, sums, path)
    choosing = [name for name in names if not alone[name]]
    vectors = [torch.cat([one[name] for name in choosing]) for one in by_part] if choosing else []
    pairs = [
        value
        for number, first in enumerate(vectors)
        for second in vectors[number + 1 :]
        if (value := spearman(first, second)) is not None
    ]
    stability = sum(pairs) / len(pairs) if pairs else None
    return _Seen(_numbers(send_score.finish(model, whole, kinds=KINDS)), noise, alone, stability)


def _noise(model: Forecaster, sums: Sequence[Totals], path: str) -> float | None:
    """Root mean square over parts of |S of the part - mean S|, over |mean S|, in the Frobenius norm."""
    maps = [found[0] for one in sums if (found := mean_effects(model, one, path)) is not None]
    if len(maps) < 2:
        return None
    size = [max(one.shape[axis] for one in maps) for axis in range(3)]
    laid = torch.zeros(len(maps), *size, dtype=torch.float64)
    for number, one in enumerate(maps):
        laid[number, : one.shape[0], : one.shape[1], : one.shape[2]] = one
    mean = laid.mean(0)
    if not float(mean.norm()):
        return None
    return float((laid - mean).square().flatten(1).sum(1).mean().sqrt() / mean.norm())


def _findings(
    study: Study,
    seen: _Seen,
    terms: Mapping[str, float],
    removed: Mapping[str, float],
    again: Mapping[str, float],
) -> Findings:
    names = list(seen.send)
    choosing = [name for name in names if not seen.alone[name]]

    def agreement(first: Mapping[str, float], second: Mapping[str, float], over: Sequence[str]) -> RankAgreement:
        return rank_agreement(_vector(first, over), _vector(second, over), study.seed)

    agreements = {
        "SEND and the loss without it": agreement(seen.send, removed, choosing),
        "Taylor term and the loss without it": agreement(terms, removed, names),
    }
    if again:
        agreements |= {
            "SEND and the loss without it on later windows": agreement(seen.send, again, choosing),
            "Taylor term and the loss without it on later windows": agreement(terms, again, names),
            "the loss without it on first and later windows": agreement(removed, again, names),
        }
    ranked = sorted(names, key=lambda name: (seen.send[name], name))
    return Findings(
        answer=_answer(agreements, [name for name in ranked if not seen.alone[name]]),
        measures=_measures(seen, terms, removed, again),
        tables=[_ranked(ranked, seen, terms, removed, again), _agreed(agreements)],
        notes=_notes(seen, names, windows_in(study.first)),
        facts={
            "ranked": [name.rsplit("/", 1)[0] for name in ranked],
            "one_live_key": [name.rsplit("/", 1)[0] for name in names if seen.alone[name]],
            "rank_stability": seen.stability,
            "agreements": {name: asdict(value) for name, value in agreements.items()},
        },
    )


def _answer(agreements: Mapping[str, RankAgreement], ranked: Sequence[str]) -> str:
    found = agreements["SEND and the loss without it"]
    if not ranked:
        return "No attention has more than one live key, so that none selects anything: SEND says nothing here."
    lowest = ranked[0].rsplit("/", 1)[0]
    if found.value is None or found.p is None:
        return (
            f"Too few attentions choose among keys to compare SEND with their removal; the lowest SEND is at {lowest}."
        )
    sure = found.p < 0.05 and found.value > 0
    says = "SEND goes with" if sure else "It is not shown that SEND goes with"
    return (
        f"{says} what removal does on these data: rank correlation {found.words()} over {found.count} attentions; the "
        f"lowest SEND is at {lowest}."
    )


def _measures(
    seen: _Seen, terms: Mapping[str, float], removed: Mapping[str, float], again: Mapping[str, float]
) -> list[Measure]:
    def values(found: Mapping[str, float | None] | Mapping[str, float]) -> dict[str, list[float | None]]:
        return {name.rsplit("/", 1)[0]: [value] for name, value in found.items()}

    own = {name: None if seen.alone[name] else value for name, value in seen.send.items()}
    loss = "change of the mean loss, in the loss's own unit, when this attention alone is off"
    shown = [
        Measure("SEND", "attention", values(own), "high", "dispersion of the effects of connections, see the source"),
        Measure("loss change without it", "attention", values(removed), "high", f"{loss}; first windows"),
        Measure("Taylor term", "attention", values(terms), "high", "size of the derivative in a gate on its output"),
        Measure("spread of the mask gradient", "attention", values(seen.noise), "",
                "spread of the map between parts of the windows over the size of its mean; above 1 it is mostly noise"),
    ]  # fmt: skip
    if again:
        shown.insert(2, Measure("loss change without it, later", "attention", values(again), "high", f"{loss}; later"))
    return shown


def _ranked(
    ranked: Sequence[str],
    seen: _Seen,
    terms: Mapping[str, float],
    removed: Mapping[str, float],
    again: Mapping[str, float],
) -> Table:
    head = ["attention", "SEND", "loss change", "loss change, later", "Taylor term", "spread", "remark"]
    rows = [
        [
            name.rsplit("/", 1)[0],
            seen.send[name],
            removed[name],
            again.get(name),
            terms[name],
            seen.noise[name],
            "one live key: SEND is 0 by construction" if seen.alone[name] else "",
        ]
        for name in ranked
    ]
    return Table("Attentions, lowest SEND first", head, rows)


def _agreed(agreements: Mapping[str, RankAgreement]) -> Table:
    head = ["rank correlation of", "value", "low", "high", "p", "p from all orders", "attentions"]
    rows = [[name, a.value, a.low, a.high, a.p, a.exact, a.count] for name, a in agreements.items()]
    return Table("Do the rankings agree?", head, rows)


def _notes(seen: _Seen, names: Sequence[str], windows: int) -> list[str]:
    notes = ["SEND measures dispersion, not use: an attention that averages evenly may still matter"]
    alone = sum(seen.alone[name] for name in names)
    if alone:
        notes.append(
            f"{alone} of {len(names)} attentions have one live key in every window: their SEND is 0 by construction, "
            "they are left out of its correlations and still apply a linear map"
        )
    if seen.stability is not None:
        notes.append(f"between parts of the windows the SEND rankings correlate by {seen.stability:.2f} on average")
    elif windows < 2:
        notes.append("one window only: nothing is known of the spread between windows")
    return notes


def _parts(batches: Sequence[Batch]) -> list[Batch]:
    """The batches, cut further so that there are at least five parts where there are windows enough."""
    size = max(1, windows_in(batches) // PARTS)
    return [part for batch in batches for part in split_windows(batch, size)]


def _names(model: Forecaster) -> list[str]:
    """Groups of whole attentions that have heads left, or are folded, which have one live key as well."""
    found = []
    for name, group in model.unit_groups().items():
        inner = getattr(model.get_submodule(group.path), "inner", None)
        if group.kind == "attention" and isinstance(inner, Attention | FoldedAttention):
            found.append(name)
    return found


def _numbers(found: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value[0]) for name, value in found.items()}


def _vector(values: Mapping[str, float], names: Sequence[str]) -> Tensor:
    return torch.tensor([values[name] for name in names], dtype=torch.float64)


PROBE = Send()
