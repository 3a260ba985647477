"""Forms of attention and residual branches that families need, against plain computations and against their cuts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.toy import FORMS, toy, toy_batch
from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.keycache import KeyCache
from tsprune.blocks.norms import ChannelBatchNorm, QueryScale, RMSNorm
from tsprune.blocks.positions import causal_mask, rotary_table
from tsprune.slimming import slim

D, H, W = 10, 3, 4


def attention(**options: object) -> Attention:
    torch.manual_seed(1)
    found = Attention(D, H, W, **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return found


def tokens(rows: int = 2, length: int = 6) -> Tensor:
    return torch.randn(rows, length, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def turn(vector: Tensor, position: int, turned: int, neighbours: bool, theta: float = 10000.0) -> Tensor:
    """One head's vector turned by complex numbers, pair by pair."""
    out = vector.clone()
    for pair in range(turned // 2):
        first, second = (2 * pair, 2 * pair + 1) if neighbours else (pair, pair + len(vector) // 2)
        angle = position * theta ** (-2 * pair / turned)
        whole = complex(vector[first], vector[second]) * np.exp(1j * angle)
        out[first], out[second] = whole.real, whole.imag
    return out


def plain(block: Attention, x: Tensor, positions: Tensor, *, turned: int, bias: Tensor | None, causal: bool) -> Tensor:
    """Attention head by head, token by token."""
    rows, length, _ = x.shape
    out = torch.zeros_like(x)
    for b in range(rows):
        joined = torch.zeros(length, H * W, dtype=x.dtype)
        for h in range(H):
            own = slice(h * W, (h + 1) * W)
            query, key, value = (layer(x[b])[:, own] for layer in (block.q, block.k, block.v))

            def placed(part: Tensor, norm: nn.Module | None, b: int = b) -> Tensor:
                if norm is not None and not block.norm_last:
                    part = norm(part)
                if turned:
                    turns = [turn(v, int(positions[b, t]), turned, block.shape.neighbours) for t, v in enumerate(part)]
                    part = torch.stack(turns)
                return norm(part) if norm is not None and block.norm_last else part

            query, key = placed(query, block.q_norm), placed(key, block.k_norm)
            if block.query_scale is not None:
                query = query * F.softplus(block.query_scale.weight) * 1.442695041 / W**0.5
            for t in range(length):
                logits = torch.tensor(
                    [
                        block.scale * (query[t] @ key[s])
                        + (0 if bias is None else bias[b, h, t, s] * (block.scale if block.scaled_table else 1))
                        if s <= t or not causal
                        else -torch.inf
                        for s in range(length)
                    ],
                    dtype=x.dtype,
                )
                joined[t, own] = logits.softmax(0) @ value
        out[b] = block.o(joined)
    return out


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_rotary_pairs_positions_of_each_row_and_order_are_those_of_the_definition(
    neighbours: bool, causal: bool
) -> None:
    block, x = attention(rotary=True, neighbours=neighbours, bias=True, out_bias=False), tokens()
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [7, 9, 10, 11, 20, 21]])
    turned = W // 2 if neighbours else W
    table = rotary_table(positions, W, neighbours=neighbours, turned=turned)
    wanted = plain(block, x, positions, turned=turned, bias=None, causal=causal)
    torch.testing.assert_close(block(x, rotary=table, causal=causal), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("last", [False, True])
@torch.no_grad()
def test_norms_of_heads_come_before_or_after_the_positions_and_before_the_scale(last: bool) -> None:
    block, x = attention(rotary=True, qk_norm=lambda: RMSNorm(W), norm_last=last, query_scale=True), tokens()
    positions = torch.arange(6).expand(2, -1)
    wanted = plain(block, x, positions, turned=W, bias=None, causal=False)
    torch.testing.assert_close(block(x, rotary=rotary_table(positions, W)), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
@torch.no_grad()
def test_a_table_of_biases_can_differ_by_row_and_be_scaled(scaled: bool) -> None:
    block, x = attention(buckets=2, scaled_table=scaled), tokens()
    buckets = torch.randint(0, 2, (2, 6, 6), generator=torch.Generator().manual_seed(3))
    bias = block.relative_attention_bias.weight[buckets].permute(0, 3, 1, 2)
    wanted = plain(block, x, torch.zeros(2, 6), turned=0, bias=bias, causal=True)
    torch.testing.assert_close(block(x, buckets=buckets, causal=True), wanted, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_keys_can_be_turned_by_a_table_of_their_own() -> None:
    block, x = attention(rotary=True), tokens()
    table = rotary_table(torch.arange(6), W)
    stretched = (table[0] * 1.7, table[1] * 1.7)
    with_scale = block(x, rotary=(table[0] * 1.7, table[1] * 1.7), key_rotary=(table[0] / 1.7, table[1] / 1.7))
    torch.testing.assert_close(with_scale, block(x, rotary=table), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(block(x, rotary=stretched), block(x, rotary=table))


@pytest.mark.parametrize("steps", [1, 2])
@torch.no_grad()
def test_a_cache_gives_what_the_whole_sequence_gives(steps: int) -> None:
    block, x = attention(rotary=True, kv_heads=1), tokens()
    table = rotary_table(torch.arange(6), W)
    whole = block(x, rotary=table, causal=True)
    cache, parts = KeyCache(), []
    for start in range(0, 6, steps):
        now = slice(start, start + steps)
        parts.append(block(x[:, now], rotary=(table[0][now], table[1][now]), causal=True, cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert cache.length == 6


@torch.no_grad()
def test_a_cache_of_cross_attention_keeps_the_memory() -> None:
    block, x, memory = attention(), tokens(), tokens(2, 4) + 1
    cache = KeyCache()
    first = block(x[:, :1], memory=memory, cache=cache)
    torch.testing.assert_close(first, block(x[:, :1], memory=memory))
    again = block(x[:, 1:], memory=torch.full_like(memory, torch.nan), cache=cache)
    torch.testing.assert_close(again, block(x[:, 1:], memory=memory))


def test_padding_attends_to_itself_and_nobody_else_to_it() -> None:
    allowed = causal_mask(torch.tensor([[False, False, True, True], [True, True, True, True]]))
    assert allowed[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert torch.equal(allowed[1, 0], torch.ones(4, 4, dtype=torch.bool).tril())


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_what_is_cut_computes_what_was_masked(which: str, seed: int) -> None:
    model, batch, draw = toy(which), toy_batch(), np.random.default_rng(seed)
    kept = {}
    for name, group in model.unit_groups().items():
        if draw.random() < 0.6:
            count = int(draw.integers(group.floor, group.units + 1)) if draw.random() < 0.9 else group.floor
            kept[name] = sorted(draw.choice(group.units, count, replace=False).tolist())
    smaller = slim(model, kept)
    with model.masked(kept):
        wanted = model(batch.context)
    torch.testing.assert_close(smaller(batch.context), wanted, rtol=1e-10, atol=1e-11)


def test_a_norm_that_comes_last_stays_when_its_branch_goes_and_the_others_leave() -> None:
    last, both = toy("norm last"), toy("normed heads")
    gone = {name: [] for name in last.unit_groups() if name.endswith("/layer")}
    left = {name for name, _ in slim(last, gone).named_parameters()}
    assert {name.split(".")[4] for name in left if name.startswith("block")} == {"layer_norm"}
    left = {name for name, _ in slim(both, gone).named_parameters()}
    assert not any(name.startswith("block") for name in left)


def test_with_normed_heads_no_pair_leaves_alone() -> None:
    kinds = {group.kind for group in attention(qk_norm=lambda: RMSNorm(W)).unit_groups("a")}
    assert kinds == {"head", "value_dim", "in_channel", "out_channel"}
    names = {group.name for group in attention(qk_norm=lambda: RMSNorm(W)).unit_groups("a")}
    assert "a.q/out_channel" not in names
    assert "a.k/out_channel" not in names


def test_batch_norm_of_channels_uses_its_running_statistics_when_forecasting() -> None:
    norm = ChannelBatchNorm(3)
    x = torch.randn(4, 5, 3) * torch.tensor([1.0, 2.0, 3.0]) + 1
    trained = norm(x)
    torch.testing.assert_close(trained.mean((0, 1)), torch.zeros(3), atol=1e-5, rtol=0)
    norm.eval()
    wanted = (x - norm.batchnorm.running_mean) / (norm.batchnorm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), wanted, rtol=1e-5, atol=1e-5)


def test_a_query_scale_of_zero_is_the_usual_one() -> None:
    x = torch.randn(2, H, 5, 16)
    torch.testing.assert_close(QueryScale(16)(x), x / 4, rtol=1e-6, atol=1e-7)


def test_a_sandwiched_branch_without_channels_adds_nothing() -> None:
    branch = Branch("mlp", FeedForward(D, 4), RMSNorm(D), D, closing=RMSNorm(D)).double()
    x = tokens()
    group = branch.inner.unit_groups("m")[0]  # type: ignore[union-attr]
    group.set_mask(torch.zeros(4, dtype=torch.bool))
    assert torch.equal(branch(x), x)


@pytest.mark.parametrize("causal", [False, True])
def test_over_a_single_key_queries_and_keys_get_exactly_no_gradient(causal: bool) -> None:
    torch.manual_seed(1)
    width = 33  # At narrow heads the rounding of the fused kernel happens to cancel out.
    block, x = Attention(D, H, width, bias=True), tokens(rows=64, length=1).float()
    out = block(x, causal=causal)
    torch.testing.assert_close(out, block.o(block.v(x)))
    out.pow(3).sum().backward()
    for part in (block.q, block.k):
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in part.parameters())
    assert block.v.weight.grad is not None
    assert bool(block.v.weight.grad.any())
