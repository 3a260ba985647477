"""Head norms, channel activity and expert usage against loops over windows, tokens and units."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.toy import CASES, EXPERTS, PATCH, Toy, case_of, rows_of, toy, toy_batch, windows_of
from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch
from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.feedforward import FeedForward
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores import activation, expert_usage, head_norm

cases = pytest.mark.parametrize("case", CASES)


# ---- the reference: one window at a time, one token at a time


def inputs_of(model: Forecaster, batch: Batch, wanted: type | tuple[type, ...]) -> dict[str, Tensor]:
    """First input of every module of a type, from one forward pass."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            found[name] = given[0].detach()

        return keep

    handles = [m.register_forward_pre_hook(hook(n)) for n, m in model.named_modules() if isinstance(m, wanted)]
    with torch.no_grad():
        model.loss(batch)
    for handle in handles:
        handle.remove()
    return found


def counts(model: Forecaster, context: Tensor, length: int, token: int) -> bool:
    """Whether a token of a row counts: patches are filled from the right, what follows the context always counts."""
    size = PATCH if isinstance(model, Toy) else 8
    patches = -(-len(context) // size)
    if length == 1 or token >= patches:
        return True
    end = len(context) - (patches - 1 - token) * size
    return not bool(torch.isnan(context[max(0, end - size) : end]).all())


def tokens_of(model: Forecaster, batch: Batch, x: Tensor) -> list[tuple[int, int]]:
    return [
        (row, token)
        for row in range(len(x))
        for token in range(x.shape[1])
        if counts(model, batch.context[row], x.shape[1], token)
    ]


def columns_of(block: Attention, unit: int, kind: str) -> list[int]:
    """Columns of the output map that belong to a unit, from the heads' own widths."""
    found, start = [], 0
    for head, kv in enumerate(block.shape.kv_of_head):
        width = block.shape.values[kv]
        if unit == (head if kind == "head" else kv):
            found += list(range(start, start + width))
        start += width
    return found


def slow_head_norms(model: Forecaster, batch: Batch, kind: str) -> dict[str, Tensor]:
    ratios: dict[str, list[list[float]]] = {}
    for window in windows_of(batch):
        streams, inner = inputs_of(model, window, Branch), inputs_of(model, window, nn.Linear)
        for name, group in model.unit_groups().items():
            if group.kind != kind:
                continue
            block = model.get_submodule(group.path)
            x, v = streams[group.path.rpartition(".")[0]], inner[f"{group.path}.o"]
            for row, token in tokens_of(model, window, x):
                parts = []
                for unit in range(group.units):
                    columns = columns_of(block, unit, kind)
                    written = block.o.weight.detach()[:, columns].double() @ v[row, token, columns].double()
                    parts.append(float(written.norm() / x[row, token].double().norm()))
                ratios.setdefault(name, []).append(parts)
    return {name: torch.tensor(values, dtype=torch.float64).mean(0) for name, values in ratios.items()}


def slow_activity(model: Forecaster, batch: Batch) -> dict[str, Tensor]:
    """Plain and gated networks on their own scales."""
    values: dict[str, list[Tensor]] = {}
    for window in windows_of(batch):
        for path, h in inputs_of(model, window, nn.Linear).items():
            if not path.endswith(".wo"):
                continue
            block = model.get_submodule(path[:-3])
            assert isinstance(block, FeedForward)
            routed = ".experts." in path
            tokens = [(i,) for i in range(len(h))] if routed else tokens_of(model, window, h)
            for place in tokens:
                one = h[place].double()
                values.setdefault(f"{path[:-3]}/ffn_channel", []).append(
                    one.abs() if block.gated else (one > 0).double()
                )
    return {name: torch.stack(rows).mean(0) for name, rows in values.items()}


# ---- head norms


@cases
@pytest.mark.parametrize("kind", ["head", "kv_group"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_head_norms_equal_a_loop_over_tokens(case: str, kind: str, dtype: torch.dtype, tolerance: float) -> None:
    model, batch = case_of(case, dtype)
    expected = slow_head_norms(model, batch, kind)
    if not expected:
        assert kind == "kv_group"
        return
    found = head_norm.scores(model, [batch], kinds=(kind,))
    assert list(found) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=tolerance, atol=0)
        assert float(values.min()) > 1e-4, name


def test_when_windows_begin_with_empty_patches_then_these_do_not_count() -> None:
    """The same series with four empty patches more in front has the same scores."""
    model = toy("shared keys")
    model.causal = False
    for layer in model.block:
        for branch in layer.branches:
            if isinstance(branch.inner, Attention):
                # Without positions nothing else can tell where a window begins.
                branch.inner.q.weight.data.zero_()
                if branch.inner.q.bias is not None:
                    branch.inner.q.bias.data.zero_()
    batch = rows_of(toy_batch(), [1, 2])
    empty = torch.full((2, 4 * PATCH), torch.nan, dtype=torch.float64)
    longer = Batch(torch.cat([empty, batch.context], 1), batch.target)
    for score, kind in ((head_norm, "head"), (activation, "ffn_channel")):
        short, long = (score.scores(model, [b], kinds=(kind,)) for b in (batch, longer))
        for name in short:
            torch.testing.assert_close(long[name], short[name], rtol=1e-12, atol=0)


def test_when_masks_are_on_then_head_norms_are_those_of_the_masked_model() -> None:
    model, batch = case_of("shared keys")
    path = "block.0.layer.0.attention"
    kept = {f"{path}/head": [0, 2, 3], f"{path}.o/out_channel": list(range(1, 12)), f"{path}/value_dim": [0, 2, 4, 5]}
    with model.masked(kept):
        by_head = head_norm.scores(model, [batch])[f"{path}/head"]
        by_group = head_norm.scores(model, [batch], kinds=("kv_group",))[f"{path}/kv_group"]
    inside = model.get_submodule(path)
    with torch.no_grad():
        inside.o.weight[0] = 0
        inside.o.bias[0] = 0
        for head, columns in ((1, [0, 1, 2, 3]), (0, [1, 3]), (2, [2, 3]), (3, [2, 3])):
            inside.o.weight[:, [4 * head + column for column in columns]] = 0
    expected = slow_head_norms(model, batch, "head")[f"{path}/head"]
    torch.testing.assert_close(by_head, expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(
        by_group, slow_head_norms(model, batch, "kv_group")[f"{path}/kv_group"], rtol=1e-11, atol=0
    )
    assert float(by_head[1]) == 0.0


def test_when_the_residual_input_is_zero_then_the_token_does_not_count() -> None:
    model, batch = case_of("shared keys")
    with torch.no_grad():
        model.embed.bias.zero_()
    context = batch.context[[1, 1]].clone()
    context[1, : 6 * PATCH] = 0.0
    zeros = Batch(context, batch.target[[1, 1]])
    x = inputs_of(model, zeros, Branch)["block.0.layer.0"]
    v = inputs_of(model, zeros, nn.Linear)["block.0.layer.0.attention.o"]
    counted = [(0, token) for token in range(7)] + [(1, 6)]
    assert float(x[1, :6].abs().max()) == 0.0 < float(v[1, :6].abs().min())
    weight = model.get_submodule("block.0.layer.0.attention").o.weight.detach()
    ratios = [
        [(weight[:, 4 * h : 4 * h + 4] @ v[t][4 * h : 4 * h + 4]).norm() / x[t].norm() for h in range(4)]
        for t in counted
    ]
    found = head_norm.scores(model, [zeros])["block.0.layer.0.attention/head"]
    torch.testing.assert_close(found, torch.tensor(ratios, dtype=torch.float64).mean(0), rtol=1e-11, atol=0)


# ---- activity


@cases
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_activity_equals_a_loop_over_tokens(case: str, dtype: torch.dtype, tolerance: float) -> None:
    model, batch = case_of(case, dtype)
    expected = slow_activity(model, batch)
    if case == "both sorts of networks":
        gated, plain = (
            [name for name in expected if model.get_submodule(name.partition("/")[0]).gated == sort]
            for sort in (True, False)
        )
        for own in (gated, plain):
            mean = torch.cat([expected[name] for name in own]).mean()
            expected |= {name: expected[name] / mean for name in own}
    found = activation.scores(model, [batch])
    never = [name for name in found if name not in expected]
    assert all(f".experts.{EXPERTS - 1}/" in name and not bool(found[name].any()) for name in never)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=tolerance, atol=0)
    # Neither all off nor all on.
    assert float(torch.cat(list(expected.values())).std()) > 1e-2


def test_when_the_activation_is_odd_then_activity_is_a_size() -> None:
    model, batch = case_of("shared keys")
    torch.manual_seed(0)
    for layer in model.block:
        branch = layer.branches[1]
        branch.mlp = FeedForward(12, 7, act="tanh").double()
    found = activation.scores(model, [batch])
    h = inputs_of(model, rows_of(batch, [1, 2]), nn.Linear)["block.0.layer.1.mlp.wo"]
    some = activation.scores(model, [rows_of(batch, [1, 2])])["block.0.layer.1.mlp/ffn_channel"]
    torch.testing.assert_close(some, h.abs().mean((0, 1)), rtol=1e-12, atol=0)
    assert len(found["block.1.layer.1.mlp/ffn_channel"]) == 7


def test_when_there_are_more_tokens_than_half_precision_can_count_then_none_is_lost() -> None:
    model, _ = case_of("uneven", torch.bfloat16)
    wi = model.block[0].branches[1].inner.wi
    with torch.no_grad():
        wi.weight[3], wi.bias[3] = 0, 1
    batch = toy_batch(200, torch.float32)
    found = activation.scores(model, [batch])["block.0.layer.1.mlp/ffn_channel"]
    assert float(found[3]) == 1.0
    tokens = 200 * 7 - 3
    assert all(abs(value * tokens - round(value * tokens)) < 1e-6 for value in found.tolist())
    assert any(0.3 < value < 0.7 for value in found.tolist())


# ---- experts


def slow_usage(model: Forecaster, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Mass and token shares from the router's own logits, token by token."""
    mass: dict[str, Tensor] = {}
    tokens: dict[str, Tensor] = {}
    number: dict[str, int] = {}
    for window in windows_of(batch):
        for path, x in inputs_of(model, window, MixtureOfExperts).items():
            mixture = model.get_submodule(path)
            for row, token in tokens_of(model, window, x):
                shares = (mixture.gate.weight.detach().double() @ x[row, token].double()).softmax(0)
                best = sorted(range(EXPERTS), key=lambda e: float(shares[e]), reverse=True)[:2]
                mass.setdefault(path, torch.zeros(EXPERTS, dtype=torch.float64))[best] += shares[best]
                tokens.setdefault(path, torch.zeros(EXPERTS, dtype=torch.float64))[best] += 1
                number[path] = number.get(path, 0) + 1
    return {f"{p}/expert": (mass[p] / mass[p].sum(), tokens[p] / number[p]) for p in mass}


def test_expert_usage_equals_a_loop_over_tokens() -> None:
    model, batch = case_of("experts")
    expected = slow_usage(model, batch)
    found, both = expert_usage.scores(model, [batch]), expert_usage.usage(model, [batch])
    assert list(found) == list(expected) == ["block.0.layer.1.mlp/expert", "block.1.layer.1.mlp/expert"]
    for name, (mass, tokens) in expected.items():
        torch.testing.assert_close(found[name], mass, rtol=1e-11, atol=0)
        torch.testing.assert_close(both[name].mass, mass, rtol=1e-11, atol=0)
        torch.testing.assert_close(both[name].tokens, tokens, rtol=1e-11, atol=0)
        assert float(tokens.sum()) == pytest.approx(2)
        # Mass and tokens are different numbers, and the last expert is the one that gets nothing.
        assert not torch.allclose(tokens / 2, mass, rtol=1e-3)
        assert float(mass[-1]) == 0.0 < float(mass[:-1].min())


def test_when_an_expert_is_masked_then_the_others_take_its_tokens() -> None:
    model, batch = case_of("experts")
    name = "block.0.layer.1.mlp/expert"
    before = expert_usage.usage(model, [batch])[name]
    with model.masked({name: [1, 2, 3, 4]}):
        after = expert_usage.usage(model, [batch])[name]
    assert float(before.tokens[0]) > 0 == float(after.tokens[0])
    assert float(after.tokens.sum()) == pytest.approx(2)
    assert float(after.tokens[4]) > 0


# ---- units that cannot matter


@cases
def test_a_dead_head_and_a_channel_that_never_fires_rank_last(case: str) -> None:
    model, batch = case_of(case)
    groups = model.unit_groups()
    heads = next(name for name, group in groups.items() if group.kind == "head")
    channels = next(name for name, group in groups.items() if group.kind == "ffn_channel")
    attention, feed = (model.get_submodule(groups[name].path) for name in (heads, channels))
    first = feed.wi_0 if feed.gated else feed.wi
    with torch.no_grad():
        attention.o.weight[:, columns_of(attention, 1, "head")] = 0
        first.weight[4] = 0
        if first.bias is not None:
            first.bias[4] = 0
    for found, unit in (
        (head_norm.scores(model, [batch])[heads], 1),
        (activation.scores(model, [batch])[channels], 4),
    ):
        # A random channel may be as dead as the planted one.
        assert found[unit] == 0 == found.min()
        assert int((found > 0).sum()) > len(found) / 2
