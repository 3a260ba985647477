"""How many directions a head compares queries and keys in, from its weights (2602.01605, section on stable ranks)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsprune.blocks.attention import Attention
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._masking import live_units, losses_under, open_units, weight_in_use
from tsprune.scores._taps import chosen_groups
from tsprune.scores._work import Totals

NEEDS = "forward"
KINDS = ("head", "kv_group")


def scores(
    model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str] = ("head",), seed: int = 0
) -> dict[str, Tensor]:
    """Rank of the stable rank inside each attention, from the end that matters less there.

    The stable rank of W_Q^T W_K orders the heads of an attention, but whether those of low or of high stable rank
    matter more differs from layer to layer: published orders are split about evenly. So every attention is asked: its
    lower and its upper half are switched off in turn, and the half without which the loss is lower goes first (low
    first if equal). That takes two forward passes for each attention and batch. Give training or validation windows,
    never test windows.

    Positions (rotary or relative), norms of queries and keys and the gain of the norm before are not looked at. A
    key/value group has the mean stable rank of its heads.

    Args:
        model: left as it was found.
        batches: windows with targets, which choose the direction.
        kinds: `head`, `kv_group` or both.
        seed: not used; part of every score's signature.

    Returns:
        For each group name `[U]`, float64: (rank + 1/2) / U in the order of removal, ties sharing their mean rank,
        so that attentions of all sizes have the mean 1/2. Units switched off at present score 0 and have no rank.

    Raises:
        TspruneError: no batch, a kind this score cannot do, or one that the model does not have.
    """
    return finish(model, collect(model, batches, kinds=kinds), kinds=kinds)


def collect(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str]) -> Totals:
    """What has to be known of the windows, as sums over them: the loss without each half of each attention."""
    choices = {
        f"{name} without the {half} half": {name: order.without(low=half == "lower")}
        for name, order in orders(model, kinds).items()
        if order.half
        for half in ("lower", "upper")
    }
    return losses_under(model, batches, choices)


def finish(model: Forecaster, totals: Totals, *, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Scores from the sums; see `scores`."""
    losses, _ = totals.result()
    found = {}
    for name, order in orders(model, kinds).items():
        without = [losses[f"{name} without the {half} half"] for half in ("lower", "upper")] if order.half else []
        found[name] = order.scores(low_first=not without or bool(without[0] <= without[1]))
    return found


def told(model: Forecaster, scores: Mapping[str, Tensor]) -> list[str]:
    """Which end of the stable ranks goes first in how many attentions, by the scores: one line for people."""
    low: list[str] = []
    high: list[str] = []
    for name, order in orders(model, sorted({name.rpartition("/")[2] for name in scores})).items():
        if name in scores and order.half and len(set(order.ranks[order.live].tolist())) > 1:
            first = bool(torch.equal(scores[name], order.scores(low_first=True)))
            (low if first else high).append(name.rpartition("/")[0])
    if not low and not high:
        return []
    names = f": {', '.join(high)}" if high else ""
    return [
        f"direction, by the loss without either half: heads of low stable rank go first in {len(low)} of "
        f"{len(low) + len(high)} attentions, those of high stable rank in {len(high)}{names}"
    ]


def orders(model: Forecaster, kinds: Sequence[str]) -> dict[str, Order]:
    """The order of stable ranks of every group of the wanted kinds."""
    heads = stable_ranks(model)
    found = {}
    for name, group in chosen_groups(model, kinds, KINDS, "stable_rank").items():
        attention = model.get_submodule(group.path)
        if isinstance(attention, Attention):
            ranks = heads[group.path]
            if group.kind == "kv_group":
                ranks = _group_means(ranks, torch.tensor(attention.shape.kv_of_head), group.units)
            found[name] = Order(ranks, live_units(group))
    return found


def stable_ranks(model: Forecaster) -> dict[str, Tensor]:
    """Stable rank of W_Q^T W_K of every head: `[H]`, float64, by the path of the attention.

    sr = |W_Q^T W_K|_F^2 / |W_Q^T W_K|_2^2 = tr(G_K G_Q) / lambda_max(G_K G_Q) with the d x d Gram matrices
    G = W W^T, between 1 and the head width; 0 for a head that compares nothing. The eigenvalues come from the
    triangular factors of the weights, square roots of the Gram matrices, so nothing of residual width is formed. Heads
    of a key/value group share W_K. Masked query/key pairs and channels are left out.
    """
    return {
        path: _stable_ranks(module)
        for path, module in model.named_modules()
        if isinstance(module, Attention) and module.heads
    }


def _stable_ranks(attention: Attention) -> Tensor:
    found = []
    for queries, keys in compared(attention):
        product = triangle(queries) @ triangle(keys).T
        squares = torch.linalg.svdvals(product).square() if product.numel() else product.new_zeros(1)
        largest = squares.max()
        found.append(squares.sum() / largest if largest > 0 else largest)
    return torch.stack(found)


def compared(attention: Attention) -> list[tuple[Tensor, Tensor]]:
    """The rows W_Q and W_K `[d, D]` of each head, float64 on the CPU; what is masked is 0."""
    shape = attention.shape
    queries, keys = weight_in_use(attention.q), weight_in_use(attention.k)
    pairs = open_units(attention.pair_gate)
    queries, keys = queries * pairs[shape.pair_of_q][:, None], keys * pairs[shape.pair_of_k][:, None]
    kv_of_key = shape.kv_of_pair[shape.pair_of_k]
    return [(queries[shape.head_of_q == head], keys[kv_of_key == kv]) for head, kv in enumerate(shape.kv_of_head)]


def triangle(weight: Tensor) -> Tensor:
    """R `[min(d, D), d]` of W^T = Q R, for a weight W `[d, D]`; R^T R is the Gram matrix W W^T."""
    upper: Tensor = torch.linalg.qr(weight.T, mode="r")[1]
    return upper


def _group_means(ranks: Tensor, kv_of_head: Tensor, units: int) -> Tensor:
    total = torch.zeros(units, dtype=torch.float64).index_add(0, kv_of_head, ranks)
    return total / kv_of_head.bincount(minlength=units).clamp(min=1)


@dataclass(frozen=True)
class Order:
    """The units of one attention in the order of their stable ranks.

    Attributes:
        ranks: `[U]`, stable ranks.
        live: bool `[U]`, units that are not switched off.
    """

    ranks: Tensor
    live: Tensor

    @property
    def ascending(self) -> list[int]:
        """Live units, lowest stable rank first, equal ones by number."""
        units = self.live.nonzero().flatten()
        return [int(unit) for unit in units[torch.argsort(self.ranks[units], stable=True)]]

    @property
    def half(self) -> int:
        """How many units make a half; the middle one of an odd number is in neither."""
        return int(self.live.sum()) // 2

    def without(self, *, low: bool) -> list[int]:
        """Units that stay when one half goes."""
        units = self.ascending
        return sorted(units[self.half :] if low else units[: len(units) - self.half])

    def scores(self, *, low_first: bool) -> Tensor:
        """`[U]`, see the module's `scores`."""
        found = torch.zeros(len(self.ranks), dtype=torch.float64)
        values = self.ranks[self.live] if low_first else -self.ranks[self.live]
        below = (values[None] < values[:, None]).sum(1)
        same = (values[None] == values[:, None]).sum(1)
        found[self.live] = (below + same / 2).double() / max(1, len(values))
        return found
