"""Stable ranks against full singular values, and the direction against the losses of the two halves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import tiny_batch, tiny_model
from tests.toy import Toy, cast, toy, toy_batch
from tsprune.blocks.attention import Attention
from tsprune.blocks.feedforward import FeedForward
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores import stable_rank


def slow_stable_rank(queries: Tensor, keys: Tensor) -> float:
    """From all singular values of the D x D product."""
    s = torch.linalg.svdvals(queries.double().T @ keys.double())
    return float(s.square().sum() / s[0] ** 2)


def rows_of_head(block: Attention, head: int) -> tuple[Tensor, Tensor]:
    """The rows of the query and the key map of a head, from the widths of the heads."""
    widths = [block.shape.members * len(pairs) for pairs in block.shape.pairs]
    before = sum(widths[kv] for kv in block.shape.kv_of_head[:head])
    kv = block.shape.kv_of_head[head]
    start = sum(widths[:kv])
    return block.q.weight.detach()[before : before + widths[kv]], block.k.weight.detach()[start : start + widths[kv]]


@pytest.mark.parametrize("case", ["chronos2", "chronos_bolt", "shared keys", "uneven"])
def test_stable_ranks_equal_those_of_the_full_product(case: str) -> None:
    model: Forecaster = tiny_model(case) if case.startswith("chronos") else toy(case)
    found = stable_rank.stable_ranks(model)
    attentions = {path: m for path, m in model.named_modules() if isinstance(m, Attention)}
    assert list(found) == list(attentions)
    for path, block in attentions.items():
        expected = [slow_stable_rank(*rows_of_head(block, head)) for head in range(block.heads)]
        assert found[path].dtype == torch.float64
        assert found[path].tolist() == pytest.approx(expected, rel=1e-9)
        assert max(expected) - min(expected) > 0.05


def one_head(queries: Tensor, keys: Tensor) -> float:
    """Stable rank of a head with the given weights `[d, D]`."""
    block = Attention(queries.shape[1], 1, len(queries)).double()
    with torch.no_grad():
        block.q.weight.copy_(queries)
        block.k.weight.copy_(keys)
    model = Toy([], [])
    model.attention = block
    return float(stable_rank.stable_ranks(model)["attention"])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(width=st.integers(1, 6), extra=st.integers(-2, 6), seed=st.integers(0, 10_000), power=st.integers(-12, 12))
def test_stable_rank_of_random_weights(width: int, extra: int, seed: int, power: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    queries, keys = torch.randn(2, width, max(1, width + extra), generator=draw, dtype=torch.float64)
    found = one_head(queries * 10.0**power, keys)
    assert found == pytest.approx(slow_stable_rank(queries, keys), rel=1e-9)
    assert 1 - 1e-9 <= found <= min(width, width + extra if width + extra > 0 else 1) + 1e-9


@pytest.mark.parametrize("values", [[1.0], [3.0, 3.0, 3.0], [2.0, 1.0, 0.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1e-9]])
def test_stable_rank_of_known_singular_values(values: list[float]) -> None:
    """W_Q = diag(s) U^T and W_K = V^T have the product U diag(s) V^T."""
    draw = torch.Generator().manual_seed(7)
    u, v = (torch.linalg.qr(torch.randn(9, len(values), generator=draw, dtype=torch.float64))[0] for _ in range(2))
    s = torch.tensor(values, dtype=torch.float64)
    expected = sum(value**2 for value in values) / max(values) ** 2
    assert one_head(s[:, None] * u.T, v.T) == pytest.approx(expected, rel=1e-12)


def test_a_head_that_compares_nothing_has_stable_rank_zero() -> None:
    assert one_head(torch.zeros(3, 8), torch.randn(3, 8)) == 0.0


def test_when_pairs_or_channels_are_masked_then_they_are_left_out() -> None:
    model = toy("shared keys")
    path = "block.0.layer.0.attention"
    with model.masked({f"{path}/qk_pair": [0, 2, 3], f"{path}.q/in_channel": list(range(2, 12))}):
        found = stable_rank.stable_ranks(model)[path]
    block = model.get_submodule(path)
    with torch.no_grad():
        block.q.weight[:, :2] = 0
        # The second pair of the first key head: its members are two entries apart.
        block.k.weight[[1, 3]] = 0
    expected = [slow_stable_rank(*rows_of_head(block, head)) for head in range(4)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


# ---- the direction


def perfect_batch(model: Forecaster) -> Batch:
    """Windows that the model forecasts without error, so that whatever matters raises the loss."""
    batch = toy_batch()
    with torch.no_grad():
        return Batch(batch.context, model(batch.context))


def toy_with_dead_half(low: bool) -> Toy:
    """A first attention of which the heads of low or of high stable rank write nothing."""
    torch.manual_seed(11)
    feeds = [FeedForward(12, 6), FeedForward(12, 6)]
    model = Toy([Attention(12, 4, 4), Attention(12, 4, 4)], feeds).double().eval()
    block = model.block[0].branches[0].inner
    order = stable_rank.stable_ranks(model)["block.0.layer.0.attention"].argsort().tolist()
    with torch.no_grad():
        for head in order[:2] if low else order[2:]:
            block.o.weight[:, 4 * head : 4 * head + 4] = 0
    return model


@pytest.mark.parametrize("low", [True, False])
def test_the_half_that_hurts_less_goes_first(low: bool) -> None:
    model = toy_with_dead_half(low)
    ranks = stable_rank.stable_ranks(model)["block.0.layer.0.attention"]
    found = stable_rank.scores(model, [perfect_batch(model)])["block.0.layer.0.attention/head"]
    order = ranks.argsort(descending=not low)
    assert found[order].tolist() == [0.125, 0.375, 0.625, 0.875]


@pytest.mark.parametrize("case", ["chronos2", "chronos_bolt", "shared keys"])
def test_scores_follow_the_losses_without_either_half(case: str) -> None:
    if case == "shared keys":
        model, batch, kinds = toy(case), toy_batch(), ("head", "kv_group")
    else:
        model, batch, kinds = tiny_model(case).to(torch.float64), cast(tiny_batch(), torch.float64), ("head",)
    found = stable_rank.scores(model, [batch], kinds=kinds)
    heads = stable_rank.stable_ranks(model)
    for name, score in found.items():
        path, kind = name.rsplit("/", 1)
        ranks = heads[path]
        if kind == "kv_group":
            ranks = torch.stack([ranks[:2].mean(), ranks[2:].mean()])
        order = ranks.argsort().tolist()
        units, half = len(order), len(order) // 2
        losses = []
        for gone in (order[:half], order[units - half :]):
            with model.masked({name: [u for u in range(units) if u not in gone]}), torch.no_grad():
                losses.append(float(model.loss(batch).mean()))
        low = losses[0] <= losses[1]
        expected = [(place + 0.5) / units for place in range(units)]
        assert score[order if low else order[::-1]].tolist() == pytest.approx(expected)


def test_when_units_are_masked_then_only_the_others_are_ranked() -> None:
    model = toy("shared keys")
    name = "block.0.layer.0.attention/head"
    with model.masked({name: [0, 2, 3]}):
        found = stable_rank.scores(model, [toy_batch()])[name]
        assert model.unit_groups()[name].gates[0].mask.tolist() == [1, 0, 1, 1]
    assert found[1] == 0
    assert sorted(found[[0, 2, 3]].tolist()) == pytest.approx([1 / 6, 3 / 6, 5 / 6])


def test_equal_heads_share_a_rank_and_a_single_head_has_the_middle() -> None:
    order = stable_rank.Order(torch.tensor([2.0, 1.0, 2.0, 5.0]), torch.ones(4, dtype=torch.bool))
    assert order.scores(low_first=True).tolist() == [0.5, 0.125, 0.5, 0.875]
    assert order.scores(low_first=False).tolist() == [0.5, 0.875, 0.5, 0.125]
    assert order.without(low=True) == [2, 3]
    assert order.without(low=False) == [0, 1]
    single = stable_rank.Order(torch.tensor([2.0]), torch.ones(1, dtype=torch.bool))
    assert single.half == 0
    assert single.scores(low_first=True).tolist() == [0.5]
