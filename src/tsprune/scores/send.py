"""SEND, how selective an attention is as a whole (SPAT, 2505.08768), and the loss change it should go with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores import ablation
from tsprune.scores._connections import connection_sums, mean_effects
from tsprune.scores._taps import chosen_groups
from tsprune.scores._work import Totals

NEEDS = "backward"
KINDS = ("attention",)


def scores(
    model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str] = KINDS, seed: int = 0
) -> dict[str, Tensor]:
    """Dispersion of the effects of an attention's connections, mean over its queries.

    With A the attention weights, g the gradient of the loss at the head outputs (before the output map) and v the
    values, S[h, i, j] = A[h, i, j] <g[h, i], v[h, j]> is the derivative of the loss with respect to a mask on the
    weight from query i to key j. The mask has no batch axis, so S is the mean over all windows, signs and all; this
    makes the score independent of batches. Then, in float64:

        p[h, i, :] = softmax of |S[h, i, :]| over the live keys of query i
        SEND = mean over i of n_i * std over live keys of (mean over h of p[h, i, :])

    with n_i the number of live keys of query i. The factor n_i is ours: without it the value falls with the length,
    and attentions of different length (self, cross, across series) could not be compared. The std is that of a
    population.

    A key is live for a query where any window lets it be attended to. In self-attention a query counts if its token
    is a live key of any query, in cross-attention always; a query without live keys never does. In attention across
    the series of a group the rows of a group are the tokens, and S is summed over time steps. Heads that are switched
    off do not count. Where maps have different sizes, because windows differ in length or groups in rows, the smaller
    are laid into the upper left corner of the largest before they are summed.

    SEND measures dispersion, not usefulness. It is linear in the loss where S is small. An attention with one live key
    (a series that is alone in its group, a decoder of one step) has the score 0 by construction, and still applies a
    linear map that may matter. Made even, an attention usually falls, but to 0 only where its values are alike, and not
    where a model that breaks has gradients that outweigh it. One in which every token attends to itself is not seen:
    each query has all its effect on one key, which scores about the root of the number of keys higher than even weights
    on the same values. See tests/test_send_degenerate.py, and compare with `module_loss_changes`.

    Args:
        model: left as it was found.
        batches: windows with targets.
        kinds: only `attention`.
        seed: not used; part of every score's signature.

    Returns:
        For each group name `[1]`, float64, 0 or more.

    Raises:
        TspruneError: no batch, a kind this score cannot do, or one that the model does not have.
    """
    return finish(model, collect(model, batches, kinds=kinds), kinds=kinds)


def collect(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str]) -> Totals:
    """What has to be known of the windows, as sums over them: S, and which keys are live."""
    groups = chosen_groups(model, kinds, KINDS, "send")
    return connection_sums(model, batches, [group.path for group in groups.values()])


def finish(model: Forecaster, totals: Totals, *, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Scores from the sums; see `scores`."""
    found = {}
    for name, group in chosen_groups(model, kinds, KINDS, "send").items():
        effects = mean_effects(model, totals, group.path)
        found[name] = torch.zeros(1, dtype=torch.float64) if effects is None else dispersion(*effects).reshape(1)
    return found


def module_loss_changes(model: Forecaster, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Exact change of the mean loss when each attention alone is switched off: `[1]`, float64, by group name.

    What SEND should go with, at the price of one forward pass for every attention.
    """
    return ablation.scores(model, batches, kinds=KINDS)


def dispersion(effects: Tensor, live: Tensor, counted: Tensor) -> Tensor:
    """SEND of one attention.

    Args:
        effects: S `[H, T, S]`, float64, signed, of the heads that count.
        live: bool `[T, S]`, which keys each query may attend to.
        counted: bool `[T]`, which queries count.

    Returns:
        `[]`, float64; 0 without heads or queries that count.
    """
    counted = counted & live.any(-1)
    if not effects.shape[0] or not bool(counted.any()):
        return torch.zeros((), dtype=torch.float64)
    live, sizes = live[counted], effects[:, counted].abs().double()
    number = live.sum(-1, keepdim=True).double()
    top = sizes.masked_fill(~live, 0).amax(-1, keepdim=True)
    # With m = exp(|S| - top) - 1, softmax minus 1/n is (m - mean m) / (n (1 + mean m)): nothing cancels for tiny S.
    excess = torch.expm1(sizes - top).masked_fill(~live, 0)
    mean = excess.sum(-1, keepdim=True) / number
    deviation = ((excess - mean) / (number * (1 + mean))).masked_fill(~live, 0).mean(0)
    spread = (deviation.square().sum(-1) / number[:, 0]).sqrt()
    return (number[:, 0] * spread).mean()
