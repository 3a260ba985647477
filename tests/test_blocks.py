"""Blocks alone: masked equals slim, biases and gated networks included, and gates that cost nothing."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsprune.blocks.across import AcrossSeriesAttention, Groups, SingleStepAttention
from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch
from tsprune.blocks.feedforward import FeedForward, activation
from tsprune.blocks.gate import Tap
from tsprune.blocks.norms import RMSNorm
from tsprune.blocks.patching import InstanceScale, context_patches
from tsprune.blocks.positions import relative_buckets, rotary_table
from tsprune.blocks.units import Block, check_kept
from tsprune.errors import TspruneError

T = TypeVar("T", bound=Block)
WIDTH, HEADS, CHANNELS = 10, 4, 7
subsets = st.sets(st.integers(0, HEADS - 1)).map(sorted)
channels = st.sets(st.integers(0, CHANNELS - 1)).map(sorted)


def shake(block: T, seed: int = 0) -> T:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.5)
    return block.eval()


def inputs(rows: int = 3, length: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def masked(block: Block, units: int, kept: list[int], run: object) -> Tensor:
    group = block.unit_groups("x")[0]
    keep = torch.zeros(units, dtype=torch.bool)
    keep[kept] = True
    group.set_mask(keep)
    try:
        return run(block)  # type: ignore[operator, no-any-return]
    finally:
        group.set_mask(None)


def close(left: Tensor, right: Tensor) -> bool:
    return float((left - right).detach().abs().max()) <= 1e-5 * max(float(right.detach().std()), 1e-3)


@settings(max_examples=40, deadline=None)
@given(
    kept=subsets, bias=st.booleans(), table=st.booleans(), rotary=st.booleans(), cross=st.booleans(), hide=st.booleans()
)
def test_attention_with_some_heads_masked_equals_attention_without_them(
    kept: list[int], bias: bool, table: bool, rotary: bool, cross: bool, hide: bool
) -> None:
    block = shake(Attention(WIDTH, HEADS, 4, scale=1.0, buckets=8 if table else 0, bias=bias))
    x, memory = inputs(), inputs(length=5, seed=2) if cross else None
    seen = 5 if cross else 6
    mask = None
    if hide:
        mask = torch.ones(3, 1, 1, seen, dtype=torch.bool)
        mask[0, ..., :2] = False
        mask[1] = False
    buckets = relative_buckets(6, seen, bidirectional=True, buckets=8, max_distance=10) if table else None
    positions = rotary_table(torch.arange(6), 4) if rotary and not cross else None

    def run(attention: Attention) -> Tensor:
        return attention(x, memory=memory, mask=mask, rotary=positions, buckets=buckets)  # type: ignore[no-any-return]

    slim = block.keep("head", kept)
    assert slim.heads == len(kept)
    assert close(run(slim), masked(block, HEADS, kept, run))
    assert not torch.isnan(run(slim)).any()


@settings(max_examples=40, deadline=None)
@given(kept=channels, bias=st.booleans(), gated=st.booleans(), act=st.sampled_from(["relu", "gelu_new", "silu"]))
def test_feed_forward_with_some_channels_masked_equals_it_without_them(
    kept: list[int], bias: bool, gated: bool, act: str
) -> None:
    block = shake(FeedForward(WIDTH, CHANNELS, act=act, gated=gated, bias=bias))
    slim = block.keep("ffn_channel", kept)
    x = inputs()
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in block.parameters()) or len(kept) == 7
    assert close(slim(x), masked(block, CHANNELS, kept, lambda b: b(x)))


@settings(max_examples=25, deadline=None)
@given(kept=subsets, ids=st.lists(st.integers(-2, 2), min_size=1, max_size=6), hide=st.booleans())
def test_attention_across_series_with_heads_masked_equals_it_without_them(
    kept: list[int], ids: list[int], hide: bool
) -> None:
    block = shake(AcrossSeriesAttention(WIDTH, HEADS, 4, scale=1.0, bias=True))
    x, groups = inputs(len(ids)), Groups.of(torch.tensor(ids))
    observed = torch.ones(len(ids), 6, dtype=torch.bool)
    observed[0, :3] = not hide

    def run(attention: AcrossSeriesAttention) -> Tensor:
        return attention(x, groups=groups, observed=observed)  # type: ignore[no-any-return]

    assert close(run(block.keep("head", kept)), masked(block, HEADS, kept, run))


def test_attention_across_series_equals_dense_attention_within_each_group() -> None:
    block = shake(AcrossSeriesAttention(WIDTH, HEADS, 4, scale=1.0))
    x, ids = inputs(5), torch.tensor([4, 1, 4, 4, 1])
    found = block(x, groups=Groups.of(ids))
    same = (ids[:, None] == ids[None, :])[None, None]
    dense = Attention.forward(block, x.transpose(0, 1), mask=same.expand(6, 1, 5, 5)).transpose(0, 1)
    torch.testing.assert_close(found, dense)


def test_a_row_alone_gives_the_same_with_and_without_groups() -> None:
    block = shake(AcrossSeriesAttention(WIDTH, HEADS, 4))
    x = inputs(1)
    torch.testing.assert_close(block(x), Attention.forward(block, x.transpose(0, 1)).transpose(0, 1))


def test_single_step_attention_equals_full_attention_over_one_position() -> None:
    block = shake(SingleStepAttention(WIDTH, HEADS, 4, scale=1.0, buckets=8))
    x = inputs(length=1)
    buckets = relative_buckets(1, 1, bidirectional=False, buckets=8)
    torch.testing.assert_close(block(x), Attention.forward(block, x, buckets=buckets))


@pytest.mark.parametrize("bias", [False, True])
def test_a_branch_whose_inner_block_is_empty_passes_its_input_or_adds_its_bias(bias: bool) -> None:
    inner = shake(Attention(WIDTH, HEADS, 4, bias=bias))
    branch = Branch("attention", inner.keep("head", []), RMSNorm(WIDTH), WIDTH)
    x = inputs()
    assert torch.equal(branch(x), x + inner.o.bias if bias else x)
    left = branch.tidy()
    assert (left.inner is None) == (not bias)
    assert torch.equal(left(x), branch(x))


def test_a_branch_removed_whole_is_the_identity_and_has_no_parameters() -> None:
    branch = Branch("mlp", shake(FeedForward(WIDTH, CHANNELS, bias=True)), RMSNorm(WIDTH), WIDTH)
    gone = branch.keep("ffn", [])
    x = inputs()
    assert torch.equal(gone(x), x)
    assert list(gone.parameters()) == []
    assert not torch.equal(branch(x), x)


@pytest.mark.parametrize("kept", [[0, 0], [4], [-1]])
def test_units_that_do_not_exist_or_repeat_are_refused(kept: list[int]) -> None:
    with pytest.raises(TspruneError, match="head: unit"):
        Attention(WIDTH, HEADS, 4).keep("head", kept)


def test_a_kind_of_unit_the_block_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(TspruneError, match="ffn_channel"):
        Attention(WIDTH, HEADS, 4).keep("ffn_channel", [0])


def test_kept_units_come_back_sorted() -> None:
    assert check_kept([2, 0, 1], 3, "units") == [0, 1, 2]


def test_a_tap_leaves_the_forward_bit_equal_and_collects_per_row_gate_gradients() -> None:
    block = shake(FeedForward(WIDTH, CHANNELS)).double()
    x = inputs().double()
    plain = block(x)
    block.gate.tap = Tap(CHANNELS)
    tapped = block(x)
    assert torch.equal(plain, tapped)
    tapped.square().sum().backward()
    assert block.gate.tap.gradient is not None
    for row in range(3):
        gate = torch.ones(CHANNELS, dtype=torch.float64, requires_grad=True)
        block.wo(block.act(block.wi(x[row])) * gate).square().sum().backward()
        torch.testing.assert_close(block.gate.tap.gradient[row], gate.grad)


def test_a_tap_adds_up_over_several_uses_of_its_gate() -> None:
    block = shake(FeedForward(WIDTH, CHANNELS))
    gradients = []
    for uses in ((1,), (2,), (1, 2)):
        block.gate.tap = Tap(CHANNELS)
        torch.stack([block(inputs(seed=seed)).square().sum() for seed in uses]).sum().backward()
        assert block.gate.tap.gradient is not None
        gradients.append(block.gate.tap.gradient)
    torch.testing.assert_close(gradients[0] + gradients[1], gradients[2])


def test_half_precision_with_every_key_hidden_gives_no_nan() -> None:
    block = shake(Attention(WIDTH, HEADS, 4, scale=1.0, buckets=8)).to(torch.float16)
    with torch.no_grad():
        block.relative_attention_bias.weight.fill_(-300.0)
    hidden = torch.zeros(3, 1, 1, 6, dtype=torch.bool)
    buckets = relative_buckets(6, 6, bidirectional=True, buckets=8)
    assert torch.isfinite(block(inputs().half(), mask=hidden, buckets=buckets)).all()


def test_instance_scale_ignores_missing_values_and_survives_empty_and_constant_rows() -> None:
    nan = torch.nan
    scale = InstanceScale(torch.tensor([[1.0, nan, 3.0], [5.0, 5.0, 5.0], [nan, nan, nan]]))
    assert scale.location[:, 0].tolist() == [2.0, 5.0, 0.0]
    torch.testing.assert_close(scale.scale[:, 0], torch.tensor([1.0, 1e-5, 1.0]))


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=8), arcsinh=st.booleans())
def test_scaling_there_and_back_returns_the_values(values: list[float], arcsinh: bool) -> None:
    x = torch.tensor([values], dtype=torch.float64)
    scale = InstanceScale(x, arcsinh=arcsinh)
    torch.testing.assert_close(scale.invert(scale.apply(x)[:, None])[:, 0], x, rtol=1e-6, atol=1e-6)


def test_patches_are_filled_on_the_left_and_missing_values_are_zero() -> None:
    values = torch.tensor([[1.0, torch.nan, 3.0, 4.0, 5.0]])
    patches, held = context_patches(values, ~torch.isnan(values), 4, 4)
    assert patches.tolist() == [[[0, 0, 0, 1], [0, 3, 4, 5]]]
    assert held.tolist() == [[[False, False, False, True], [False, True, True, True]]]


def test_relative_buckets_are_exact_when_near_and_shared_when_far() -> None:
    found = relative_buckets(1, 200, bidirectional=True)[0]
    assert found[:9].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24]
    assert set(found[128:].tolist()) == {31}
    assert set(relative_buckets(1, 200, bidirectional=False)[0].tolist()) == {0}


def test_an_unknown_activation_lists_the_known_ones() -> None:
    with pytest.raises(TspruneError, match=r"snake.*relu"):
        activation("snake")


def test_gradients_are_right_where_every_key_is_masked() -> None:
    attention, x = shake(Attention(WIDTH, HEADS, 6)).double(), inputs().double()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    mask = torch.ones(len(x), 1, 1, x.shape[1], dtype=torch.bool)
    mask[1] = False
    # Nothing to attend to means uniform weights: the same as attending by zero queries.
    expected = torch.zeros_like(x)
    rows = {0: attention.q.weight, 1: torch.zeros_like(attention.q.weight), 2: attention.q.weight}
    for row, queries in rows.items():
        q, k, v = (
            (x[row] @ w.T).view(-1, HEADS, 6).transpose(0, 1) for w in (queries, attention.k.weight, attention.v.weight)
        )
        mixed = (q @ k.transpose(1, 2) / 6**0.5).softmax(-1) @ v
        expected[row] = mixed.transpose(0, 1).flatten(1) @ attention.o.weight.T
    parameters = [attention.v.weight, attention.o.weight]
    wanted = torch.autograd.grad((expected * weight).sum(), parameters)
    found = torch.autograd.grad((attention(x, mask=mask) * weight).sum(), parameters)
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other)
