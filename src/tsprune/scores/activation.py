"""How often, or how strongly, a feed-forward channel is active (2505.23195, statistics variant)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.units import UnitGroup
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._probes import Reading, Visit, branch_of, gate_sums, token_mean, token_sum
from tsprune.scores._taps import chosen_groups
from tsprune.scores._work import Totals

NEEDS = "forward"
KINDS = ("ffn_channel",)

OFF_BELOW_ZERO = ("relu", "gelu", "gelu_new", "silu")
"""Activations that are off, or nearly, for negative inputs."""


def scores(
    model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str] = KINDS, seed: int = 0
) -> dict[str, Tensor]:
    """Activity of every hidden channel h at the input of the down projection.

    Plain networks: the share of tokens with h > 0, which is in [0, 1]. Gated networks, whose h is a product, and
    networks with an activation that is as active below zero as above (tanh): the mean of |h|, since a negative h is
    not inactive. A model normally has one or the other. In a model with both, the two have no common unit; then every
    score is divided by the mean over all channels of its own sort, so that 1 is the average channel in both.

    What becomes of h afterwards is not looked at: a channel that fires but is not read can have a high score.

    Tokens that no other token may attend to do not count. Inside an expert all tokens routed to it count, and no
    others; a channel of an expert that never got a token scores 0.

    Args:
        model: left as it was found.
        batches: windows with targets.
        kinds: only `ffn_channel`.
        seed: not used; part of every score's signature.

    Returns:
        For each group name `[U]`, float64, 0 or more.

    Raises:
        TspruneError: no batch, a kind this score cannot do, or one that the model does not have.
    """
    return finish(model, collect(model, batches, kinds=kinds), kinds=kinds)


def collect(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str]) -> Totals:
    """What has to be known of the windows, as sums over them: activity of every channel, and the number of tokens."""
    return gate_sums(model, batches, readings(model, kinds))


def readings(model: Forecaster, kinds: Sequence[str]) -> dict[str, Reading]:
    """What is read where, by group name."""
    return {
        name: Reading(group.gates[0], branch_of(model, group.path), _active if counts(model, group) else _strength)
        for name, group in chosen_groups(model, kinds, KINDS, "activation").items()
    }


def finish(model: Forecaster, totals: Totals, *, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Scores from the sums; see `scores`."""
    groups = chosen_groups(model, kinds, KINDS, "activation")
    sums, _ = totals.result()
    means = {name: token_mean(sums.get(name), group.units) for name, group in groups.items()}
    counting = {name: counts(model, group) for name, group in groups.items()}
    return means if len(set(counting.values())) == 1 else _on_one_scale(means, counting)


def _active(visit: Visit) -> Tensor:
    return token_sum(visit.activation > 0, visit.live)


def _strength(visit: Visit) -> Tensor:
    return token_sum(visit.activation.abs(), visit.live)


def counts(model: Forecaster, group: UnitGroup) -> bool:
    """Whether activity is the share of tokens with h > 0, rather than the mean of |h|."""
    block = model.get_submodule(group.path)
    return isinstance(block, FeedForward) and not block.gated and block.act_name in OFF_BELOW_ZERO


def _on_one_scale(means: dict[str, Tensor], counting: dict[str, bool]) -> dict[str, Tensor]:
    """Every score over the mean of its sort."""
    typical = {}
    for sort in (True, False):
        typical[sort] = torch.cat([mean for name, mean in means.items() if counting[name] == sort]).mean()
    return {name: mean / typical[counting[name]].clamp(min=1e-300) for name, mean in means.items()}
