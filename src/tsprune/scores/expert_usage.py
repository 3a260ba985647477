"""How much of the routing goes to each expert of a mixture (2505.23195, statistics variant)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._probes import Reading, Visit, branch_of, gate_sums, token_mean, token_sum
from tsprune.scores._taps import chosen_groups
from tsprune.scores._work import Totals

NEEDS = "forward"
KINDS = ("expert",)


@dataclass(frozen=True)
class Usage:
    """What the experts of one mixture got.

    Attributes:
        tokens: `[U]`, share of the tokens that are routed to each expert; adds up to the experts per token.
        mass: `[U]`, share of all combine weights that each expert got; adds up to 1, or to 0 without any token.
    """

    tokens: Tensor
    mass: Tensor


def scores(
    model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str] = KINDS, seed: int = 0
) -> dict[str, Tensor]:
    """Share of the routed mass that each expert gets: the sum of its combine weights over the sum of all of them.

    Mass rather than the number of tokens, since an expert that is often the second choice with a small weight adds
    little; `usage` gives both. An expert no token was routed to scores 0. Tokens that no other token may attend to
    (patches without an observed value) do not count.

    Args:
        model: left as it was found.
        batches: windows with targets.
        kinds: only `expert`.
        seed: not used; part of every score's signature.

    Returns:
        For each group name `[U]`, float64, in [0, 1].

    Raises:
        TspruneError: no batch, a kind this score cannot do, or one that the model does not have.
    """
    return finish(model, collect(model, batches, kinds=kinds), kinds=kinds)


def usage(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str] = KINDS) -> dict[str, Usage]:
    """Token share and mass share of every expert, from one forward pass; arguments and errors as in `scores`."""
    return usage_of(model, collect(model, batches, kinds=kinds), kinds)


def collect(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str]) -> Totals:
    """What has to be known of the windows, as sums over them: weights and tokens of every expert, number of tokens."""
    return gate_sums(model, batches, readings(model, kinds))


def readings(model: Forecaster, kinds: Sequence[str]) -> dict[str, Reading]:
    """What is read where, by group name."""
    return {
        name: Reading(group.gates[0], branch_of(model, group.path), _routed)
        for name, group in chosen_groups(model, kinds, KINDS, "expert_usage").items()
    }


def finish(model: Forecaster, totals: Totals, *, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Scores from the sums; see `scores`."""
    return {name: found.mass for name, found in usage_of(model, totals, kinds).items()}


def usage_of(model: Forecaster, totals: Totals, kinds: Sequence[str]) -> dict[str, Usage]:
    """Token share and mass share of every expert, from the sums of `collect`."""
    groups = chosen_groups(model, kinds, KINDS, "expert_usage")
    sums, _ = totals.result()
    return {name: _shares(sums.get(name), group.units) for name, group in groups.items()}


def _routed(visit: Visit) -> Tensor:
    """Weights and tokens of every expert, and the number of tokens: `[2 U + 1]`."""
    weights = visit.activation
    return token_sum(torch.cat([weights, (weights > 0).to(weights.dtype)], dim=-1), visit.live)


def _shares(sums: Tensor | None, units: int) -> Usage:
    means = token_mean(sums, 2 * units)
    mass, tokens = means[:units], means[units:]
    return Usage(tokens, mass / mass.sum() if bool(mass.any()) else mass)
