"""How much of the feed-forward networks and experts a user's windows need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tsprune.blocks.experts import MixtureOfExperts
from tsprune.errors import TspruneError
from tsprune.lens._heads import ByUnit, listed
from tsprune.lens._probe import Findings, Measure, Probe, Study, Table, Tick
from tsprune.models._forecaster import Forecaster
from tsprune.scores import activation, expert_usage
from tsprune.scores._masking import open_units
from tsprune.scores._probes import Reading, Visit, branch_of, gate_sums, token_mean, token_sum
from tsprune.scores._work import Totals

IDLE = 0.05
"""A channel is idle when active on a smaller share of tokens, or weaker than this share of its network's mean."""
RARE = (0.1, 0.01, 0.001)
"""Token shares below which experts are counted (2505.23195)."""
ROUTER = "|router"


class Sparsity(Probe):
    """Activity of feed-forward channels, use of experts, and how decided the routers are."""

    title = "Sparsity"
    question = "Which feed-forward channels and experts do your series leave idle?"
    source = "2505.23195, statistics variant; entropies of routers are ours"

    def refusal(self, model: Forecaster) -> str:
        """Models without hidden channels are refused."""
        if any(group.kind == "ffn_channel" for group in model.unit_groups().values()):
            return ""
        return f"this model of family {model.family} has no feed-forward channels, so nothing can be idle"

    def passes(self, study: Study) -> float:
        """All windows, once."""
        return 1.0

    def run(self, study: Study, tick: Tick) -> Findings:
        """One number for each channel and expert, and what the routers do."""
        model = study.model
        mixtures = _mixtures(model)
        readings = activation.readings(model, ("ffn_channel",))
        if mixtures:
            readings |= expert_usage.readings(model, ("expert",))
        with _routers(model, mixtures) as routers:
            totals = gate_sums(model, study.first, readings | routers)
        tick("activity of all channels")
        channels = _channels(model, totals)
        found, rows = _feeds(model, channels)
        share = sum(row[4] for row in rows), sum(row[2] for row in rows)
        answer = f"{share[0]} of {share[1]} feed-forward channels are idle on your windows"
        if active := [value for own in found[0].values for value in found[0].values[own] if value is not None]:
            answer += f", and the mean channel is active on {100 * sum(active) / len(active):.0f} % of tokens"
        table = Table("Feed-forward networks", ("network", "activity", "channels", "mean", "idle"), rows)
        if not mixtures:
            return Findings(f"{answer}.", _there(found), tables=(table,), notes=NOTES)
        usage, routing = _experts(model, mixtures, totals)
        rare = sum(row[-2] for row in routing), sum(row[1] for row in routing)
        answer += f"; {rare[0]} of {rare[1]} experts get less than {100 * RARE[1]:g} % of tokens" + _decided(routing)
        return Findings(
            f"{answer}.",
            _there((*found, *usage)),
            tables=(table, Table("Experts and routers", ROUTING, routing)),
            notes=NOTES,
            facts={"routers": [dict(zip(ROUTING, row, strict=True)) for row in routing]},
        )


NOTES = (
    f"idle: active on fewer than {100 * IDLE:g} % of tokens, or in networks whose channels are products or can be "
    f"active below 0, a mean strength under {100 * IDLE:g} % of the network's mean",
)
ROUTING = (
    "mixture",
    "experts",
    "experts per token",
    "entropy of a token's router",
    "entropy of mean usage",
    "experts in effect",
    *(f"below {100 * share:g} %" for share in RARE),
)


def _mixtures(model: Forecaster) -> dict[str, MixtureOfExperts]:
    return {path: module for path, module in model.named_modules() if isinstance(module, MixtureOfExperts)}


@contextmanager
def _routers(model: Forecaster, mixtures: Mapping[str, MixtureOfExperts]) -> Iterator[dict[str, Reading]]:
    """Readings of how undecided the router is at each token; what watched before is back afterwards."""
    before = {path: mixture.watch for path, mixture in mixtures.items()}
    readings = {}
    try:
        for path, mixture in mixtures.items():
            router = _Router()
            mixture.watch = router.note
            readings[f"{path}{ROUTER}"] = Reading(mixture.expert_gate, branch_of(model, path), router.read)
        yield readings
    finally:
        for path, mixture in mixtures.items():
            mixture.watch = before[path]


class _Router:
    """Keeps the shares of the last call, which the gate behind the router is shown without."""

    def __init__(self) -> None:
        self.shares: Tensor | None = None

    def note(self, _: Tensor, shares: Tensor, __: Tensor) -> None:
        self.shares = shares.detach()

    def read(self, visit: Visit) -> Tensor:
        """Entropies in nats summed over tokens, and their number: `[2]`."""
        if self.shares is None:
            raise TspruneError("a router was asked for its shares before it was given tokens")
        return token_sum(torch.special.entr(self.shares).sum(-1, keepdim=True), visit.live)


def _channels(model: Forecaster, totals: Totals) -> dict[str, Tensor]:
    """Activity of the channels of each network, by its path."""
    sums, _ = totals.result()
    groups = {name: group for name, group in model.unit_groups().items() if group.kind == "ffn_channel"}
    return {group.path: token_mean(sums.get(name), group.units) for name, group in groups.items()}


def _feeds(model: Forecaster, channels: Mapping[str, Tensor]) -> tuple[tuple[Measure, Measure], list[list[Any]]]:
    """Measures of the networks of either sort; a row for each network, experts of one mixture together."""
    groups = {group.path: group for group in model.unit_groups().values() if group.kind == "ffn_channel"}
    shares: ByUnit = {}
    strengths: ByUnit = {}
    rows: dict[tuple[str, str], list[Any]] = {}
    for path, values in channels.items():
        counts = activation.counts(model, groups[path])
        (shares if counts else strengths)[path] = listed(values)
        idle = values < (IDLE if counts else IDLE * values.mean())
        # An expert without a token has a mean of 0, under which nothing can be.
        idle |= values == 0
        place, sort = path.split(".experts.")[0], "share of tokens" if counts else "strength"
        row = rows.setdefault((place, sort), [place, sort, 0, 0.0, 0])
        row[2] += len(values)
        row[3] += float(values.sum())
        row[4] += int(idle.sum())
    table = [[*row[:3], row[3] / row[2], row[4]] for row in rows.values()]
    return (
        Measure("activity", "ffn_channel", shares, "high", "share of tokens on which a channel is above 0"),
        Measure("strength", "ffn_channel", strengths, "high", "mean over tokens of |h| at the input of the last map"),
    ), table


def _experts(
    model: Forecaster, mixtures: Mapping[str, MixtureOfExperts], totals: Totals
) -> tuple[tuple[Measure, Measure], list[list[Any]]]:
    """Use of every expert; a row for each mixture."""
    sums, _ = totals.result()
    tokens: ByUnit = {}
    mass: ByUnit = {}
    rows: list[list[Any]] = []
    for name, usage in expert_usage.usage_of(model, totals, ("expert",)).items():
        path = name.rpartition("/")[0]
        mixture = mixtures[path]
        tokens[path], mass[path] = listed(usage.tokens), listed(usage.mass)
        count = int(open_units(mixture.expert_gate).sum())
        nats = float(torch.special.entr(usage.mass).sum())
        each = float(token_mean(sums.get(f"{path}{ROUTER}"), 1))
        rare = [int((usage.tokens < share).sum()) for share in RARE]
        rows.append([path, count, mixture.top_k, _of_most(each, count), _of_most(nats, count), math.exp(nats), *rare])
    return (
        Measure("tokens of an expert", "expert", tokens, "high", "share of tokens that are sent to it"),
        Measure("mass of an expert", "expert", mass, "high", "share of all combine weights that it gets"),
    ), rows


def _of_most(nats: float, count: int) -> float | None:
    """Entropy over that of `count` equal shares."""
    return nats / math.log(count) if count > 1 else None


def _decided(routing: list[list[Any]]) -> str:
    """What the routers do on average, from 0 for always one expert to 1 for all alike."""
    known = [(row[3], row[4]) for row in routing if row[3] is not None]
    if not known:
        return ""
    token, mean = (sum(pair[place] for pair in known) / len(known) for place in (0, 1))
    return f", at a single token routers have {token:.2f} of the entropy of equal shares, and over all {mean:.2f}"


def _there(measures: tuple[Measure, ...]) -> list[Measure]:
    return [measure for measure in measures if measure.values]


PROBE = Sparsity()
