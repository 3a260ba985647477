"""SEND against autograd through an explicit mask on the attention weights, and plain loops for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.toy import FORMS, case_of, rows_of, toy, windows_of
from tsprune.blocks.across import AcrossSeriesAttention
from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores import send

CASES = ("chronos2", "chronos2 groups", "chronos_bolt", "shared keys", "experts", "uneven", *FORMS)


# ---- the reference


@contextmanager
def explicit_masks(attentions: Mapping[str, Attention]) -> Iterator[dict[str, Tensor]]:
    """Attention in plain steps, with a factor of 1 on every weight: `[H, T, S]` without a batch axis."""
    masks: dict[str, Tensor] = {}

    def plain(path: str, attention: Attention) -> Any:
        def attend(
            query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, *, live: Any = None, causal: bool = False
        ) -> Tensor:
            assert not causal, "the cases carry their order in the mask"
            heads = []
            mask = torch.ones(query.shape[1], query.shape[2], key.shape[2], dtype=query.dtype, requires_grad=True)
            masks[path] = mask
            for head, kv in enumerate(attention.shape.kv_of_head):
                logits = attention.scale * query[:, head] @ key[:, kv].mT
                if added is not None:
                    bias = added.expand(len(query), query.shape[1], *logits.shape[1:]) if added.ndim == 4 else added
                    logits = logits + bias[:, head]
                heads.append((logits.softmax(-1) * mask[head]) @ value[:, kv])
            return torch.stack(heads, 1)

        return attend

    for path, attention in attentions.items():
        attention._attend = plain(path, attention)  # type: ignore[method-assign]
        # Somebody who looks: a single query goes the long way, too.
        attention.watch = lambda *_: None
    try:
        yield masks
    finally:
        for attention in attentions.values():
            del attention._attend
            attention.watch = None


def slow_effects(model: Forecaster, batch: Batch) -> dict[str, Tensor]:
    """Mean over windows of the derivative of their losses, window by window, padded to the largest map."""
    attentions = {
        p: m.inner for p, m in model.named_modules() if isinstance(m, Branch) and isinstance(m.inner, Attention)
    }
    total: dict[str, Tensor] = {}
    windows = windows_of(batch)
    for window in windows:
        with explicit_masks(attentions) as masks:
            losses = model.loss(window)
            gradients = torch.autograd.grad(losses.sum(), list(masks.values()))
        for path, gradient in zip(masks, gradients, strict=True):
            before = total.get(path, torch.zeros(1, 1, 1, dtype=gradient.dtype))
            size = [max(a, b) for a, b in zip(before.shape, gradient.shape, strict=True)]
            grown = torch.zeros(size, dtype=gradient.dtype)
            for part in (before, gradient):
                grown[: part.shape[0], : part.shape[1], : part.shape[2]] += part
            total[path] = grown
    return {path: values / len(windows) for path, values in total.items()}


def slow_dispersion(effects: Tensor, allowed: list[list[int]], queries: list[int]) -> float:
    """SEND by its formula: `allowed` are the live keys of each query."""
    heads = len(effects)
    total = 0.0
    for query in queries:
        keys = allowed[query]
        mean = [0.0] * len(keys)
        for head in range(heads):
            powers = [math.exp(abs(float(effects[head, query, key]))) for key in keys]
            mean = [m + power / sum(powers) / heads for m, power in zip(mean, powers, strict=True)]
        middle = sum(mean) / len(keys)
        total += len(keys) * math.sqrt(sum((m - middle) ** 2 for m in mean) / len(keys))
    return total / len(queries)


def seen_patches(batch: Batch, size: int) -> list[bool]:
    """For each patch of the context, whether any row has a value in it."""
    length = batch.context.shape[1]
    ends = range(length, 0, -size)
    return [not bool(torch.isnan(batch.context[:, max(0, end - size) : end]).all()) for end in ends][::-1]


def live_keys(
    case: str, path: str, model: Forecaster, batch: Batch, shape: torch.Size
) -> tuple[list[list[int]], list[int]]:
    """Live keys of each query, and the queries that count, from what is missing in the data."""
    length, keys = shape[1:]
    block = model.get_submodule(path).inner
    if isinstance(block, AcrossSeriesAttention):
        return [list(range(keys))] * length, list(range(length))
    seen = seen_patches(batch, 8 if case.startswith("chronos") else 4)
    seen += [True] * (keys - len(seen))
    live = [
        [j for j in range(keys) if seen[j] and (j <= i or case not in ("shared keys", "norm last"))]
        for i in range(length)
    ]
    crossing = "EncDec" in getattr(model.get_submodule(path), "inner_name", "")
    return live, [i for i in range(length) if crossing or seen[i]]


@pytest.mark.parametrize("case", CASES)
def test_send_equals_autograd_through_explicit_masks(case: str) -> None:
    model, batch = case_of(case)
    found = send.scores(model, [batch])
    effects = slow_effects(model, batch)
    alone = []
    for name, score in found.items():
        path = name.rpartition("/")[0]
        if path not in effects:
            alone.append(name)
            assert float(score) == 0.0
            continue
        live, queries = live_keys(case, path, model, batch, effects[path].shape)
        expected = slow_dispersion(effects[path], live, queries)
        assert float(score) == pytest.approx(expected, rel=1e-9), name
        assert expected > 1e-6
    # Series without a group and a decoder of one step attend to themselves alone.
    assert len(alone) == (2 if case in ("chronos2", "chronos_bolt") else 0)


def test_when_windows_hide_different_keys_then_a_key_is_live_where_any_shows_it() -> None:
    model, batch = case_of("uneven")
    late = rows_of(batch, [0, 4])
    effects = slow_effects(model, late)
    for name, score in send.scores(model, [late]).items():
        path = name.rpartition("/")[0]
        live, queries = live_keys("uneven", path, model, late, effects[path].shape)
        assert queries == list(range(1, 7))
        assert float(score) == pytest.approx(slow_dispersion(effects[path], live, queries), rel=1e-9)


def test_when_batches_have_different_lengths_then_maps_meet_in_the_upper_left_corner() -> None:
    model, batch = case_of("shared keys")
    short = Batch(batch.context[[1, 2], 8:], batch.target[[1, 2]])
    long = rows_of(batch, [3])
    parts = [slow_effects(model, one) for one in (long, short)]
    for name, score in send.scores(model, [long, short]).items():
        path = name.rpartition("/")[0]
        whole = parts[0][path] / 3
        whole[:, :5, :5] += parts[1][path] * 2 / 3
        expected = slow_dispersion(whole, [list(range(i + 1)) for i in range(7)], list(range(7)))
        assert float(score) == pytest.approx(expected, rel=1e-9)


def test_when_heads_are_masked_then_send_is_that_of_the_heads_that_stay() -> None:
    model, batch = case_of("shared keys")
    path = "block.1.layer.0.attention"
    for kept in ({f"{path}/head": [1, 2]}, {f"{path}/kv_group": [1]}):
        with model.masked(kept):
            masked = send.scores(model, [batch])["block.1.layer.0/attention"]
        smaller = toy("shared keys")
        branch = smaller.block[1].layer[0]
        branch.attention = branch.attention.cut({name.rpartition("/")[2]: units for name, units in kept.items()})
        slim = send.scores(smaller, [batch])["block.1.layer.0/attention"]
        torch.testing.assert_close(masked, slim, rtol=1e-9, atol=0)
        assert float(masked) > 0


def test_a_dead_attention_and_one_that_tells_no_keys_apart_score_zero() -> None:
    model, batch = case_of("uneven")
    names = list(send.scores(model, [batch]))
    with torch.no_grad():
        first, second = (layer.branches[0].inner for layer in model.block)
        first.o.weight.zero_()
        # Equal weights on equal values: no connection stands out.
        second.q.weight.zero_()
        second.v.weight.zero_()
    second.v.bias = torch.nn.Parameter(torch.randn(second.v.out_features, dtype=torch.float64))
    found = send.scores(model, [batch])
    assert float(found[names[0]]) == 0.0
    # Rows hide different keys, whose weights differ between windows for that reason only.
    whole = send.scores(model, [rows_of(batch, [1, 2, 3])])
    assert float(whole[names[1]]) < 1e-12


def test_when_no_head_is_left_then_the_attention_scores_zero() -> None:
    model, batch = case_of("uneven")
    for layer in model.block:
        branch = layer.layer[0]
        branch.attention = branch.attention.cut({"head": []})
    found = send.scores(model, [batch])
    assert list(found) == ["block.0.layer.0/attention", "block.1.layer.0/attention"]
    assert all(float(value) == 0.0 for value in found.values())


# ---- the formula


@settings(max_examples=40, deadline=None, derandomize=True)
@given(heads=st.integers(1, 3), length=st.integers(1, 4), keys=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_dispersion_equals_its_formula(heads: int, length: int, keys: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scale = 10 ** (4 * torch.rand((), generator=draw, dtype=torch.float64) - 2)
    effects = scale * torch.randn(heads, length, keys, generator=draw, dtype=torch.float64)
    live = torch.rand(length, keys, generator=draw) < 0.7
    live[0, 0] = True
    counted = torch.rand(length, generator=draw) < 0.7
    counted[0] = True
    queries = [i for i in range(length) if counted[i] and bool(live[i].any())]
    expected = slow_dispersion(effects, [live[i].nonzero().flatten().tolist() for i in range(length)], queries)
    assert float(send.dispersion(effects, live, counted)) == pytest.approx(expected, rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("scale", [1e-6, 1e-9, 1e-13])
def test_send_of_tiny_effects_is_linear_in_them(scale: float) -> None:
    """For small |S|: SEND = mean over queries of the std over keys of the head mean of |S|."""
    effects = torch.randn(3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones(6, 7, dtype=torch.bool)
    expected = effects.abs().mean(0).std(-1, correction=0).mean() * scale
    found = send.dispersion(scale * effects, everywhere, everywhere[:, 0])
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_huge_effects_do_not_overflow() -> None:
    effects = torch.tensor([[[5000.0, 1.0, 2.0, 3.0]]], dtype=torch.float64)
    found = send.dispersion(effects, torch.ones(1, 4, dtype=torch.bool), torch.ones(1, dtype=torch.bool))
    # All of the softmax is on one of four keys.
    assert float(found) == pytest.approx(4 * math.sqrt((0.75**2 + 3 * 0.25**2) / 4))


@pytest.mark.parametrize("length", [4, 16, 64])
def test_send_does_not_fall_with_the_length(length: int) -> None:
    """|S| from one distribution (half normal): the std over keys is what it was, whatever their number."""
    effects = 1e-3 * torch.randn(1, 4000, length, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    everywhere = torch.ones(4000, length, dtype=torch.bool)
    found = float(send.dispersion(effects, everywhere, everywhere[:, 0]))
    assert found == pytest.approx(1e-3 * math.sqrt(1 - 2 / math.pi), rel=0.25)


# ---- the truth it should go with


@pytest.mark.parametrize("case", ["chronos_bolt", "experts"])
def test_module_loss_changes_are_those_of_removed_modules(case: str) -> None:
    model, batch = case_of(case)
    found = send.module_loss_changes(model, [batch])
    assert list(found) == list(send.scores(model, [batch]))
    with torch.no_grad():
        base = model.loss(batch).mean()
        for name, change in found.items():
            branch = model.get_submodule(name.rpartition("/")[0])
            handle = branch.register_forward_hook(lambda _, given, __: given[0])
            expected = model.loss(batch).mean() - base
            handle.remove()
            assert change.shape == (1,)
            assert float(change) == pytest.approx(float(expected), rel=1e-9)
