"""Weights laid out for the CPU's kernels: the same forecasts, always of the weights as they are now."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.tiny import ALL_FAMILIES, tiny_batch, tiny_model
from tsprune.blocks import linear
from tsprune.blocks import prepacked as module
from tsprune.blocks.attention import Attention
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.gate import gates_set
from tsprune.blocks.linear import ChannelLinear
from tsprune.blocks.prepacked import WORTH, Linear, Packed, available, prepacked
from tsprune.evaluation.cost import flops
from tsprune.slimming import slim

pytestmark = pytest.mark.skipif(not available(), reason="this torch has no oneDNN kernels")


@pytest.fixture(autouse=True)
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny maps would stay plain."""
    monkeypatch.setattr(module, "LEAST", 1)


def test_small_products_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    few, wide, layer = torch.randn(1, 8), torch.randn(200, 8), Linear(8, 700)
    with torch.no_grad():
        assert not module.fits(few, layer.weight) and module.fits(few, layer.weight, module.LARGE)
        assert module.fits(wide, layer.weight) and not module.fits(wide[:0], layer.weight, module.LARGE)


@contextmanager
def products() -> Iterator[list[int]]:
    """How many maps each product in the block was of."""
    seen: list[int] = []
    product, several = Packed.product, Packed.products

    def counted(self: Packed, x: Tensor, *given: Any) -> Tensor:
        seen.append(1)
        return product(self, x, *given)

    def all_counted(self: Packed, x: Tensor, maps: list[nn.Linear]) -> Sequence[Tensor]:
        seen.append(len(maps))
        return several(self, x, maps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Packed, "product", counted)
        patch.setattr(Packed, "products", all_counted)
        yield seen


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_forecasts_the_same(family: str) -> None:
    model = tiny_model(family)
    batch = replace(tiny_batch(3), target=None)
    torch.manual_seed(0)
    before = model.forecast(batch, model.native_horizon)
    with model.prepacked(), products() as seen:
        torch.manual_seed(0)
        inside = model.forecast(batch, model.native_horizon)
    torch.manual_seed(0)
    after = model.forecast(batch, model.native_horizon)
    assert seen
    assert torch.equal(before, after)
    assert not any(vars(part).get("packed") for part in model.modules())
    if family == "chronos_t5":
        # Rounding may turn a token, of which a path then goes on; so does any other order of sums.
        return
    assert float((inside - before).abs().max()) <= 1e-4 * float(before.std())


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 9),
    inputs=st.integers(1, 20),
    outputs=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    bias=st.booleans(),
)
def test_products_of_maps_alone_and_together(tokens: int, inputs: int, outputs: list[int], bias: bool) -> None:
    maps = [Linear(inputs, width, bias=bias) for width in outputs]
    x = torch.randn(2, tokens, inputs)
    with torch.no_grad():
        expected = [F.linear(x, one.weight, one.bias) for one in maps]
        for found, wanted in zip(Packed().products(x, maps), expected, strict=True):
            assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)
        for one, wanted in zip(maps, expected, strict=True):
            assert torch.allclose(Packed().product(x, one.weight, one.bias), wanted, rtol=1e-5, atol=1e-5)
            rectified = Packed().product(x, one.weight, one.bias, "relu")
            assert torch.allclose(rectified, wanted.relu(), rtol=1e-5, atol=1e-5)


def changed(layer: Linear, how: str) -> None:
    with torch.no_grad():
        if how == "in place":
            layer.weight.mul_(2.0)
        elif how == "row":
            layer.weight[1] = 0
        elif how == "replaced":
            layer.weight = nn.Parameter(layer.weight + 1)
        elif how == "loaded":
            layer.load_state_dict({name: tensor + 1 for name, tensor in layer.state_dict().items()})
        elif how == "optimiser":
            layer.weight.grad = torch.ones_like(layer.weight)
            torch.optim.SGD([layer.weight], 0.1).step()
        elif how == "bias":
            layer.bias.add_(1.0)


def made(packed: Packed, x: Tensor, maps: list[Linear]) -> Tensor:
    """By the way of one map, or by that of several."""
    if len(maps) == 1:
        return packed.product(x, maps[0].weight, maps[0].bias)
    return torch.cat(list(packed.products(x, maps)), -1)


@pytest.mark.parametrize("how", ["in place", "row", "replaced", "loaded", "optimiser", "bias"])
@pytest.mark.parametrize("others", [0, 2])
def test_a_changed_weight_is_laid_out_again(how: str, others: int) -> None:
    maps = [Linear(6, 5) for _ in range(1 + others)]
    packed, x = Packed(), torch.randn(4, 6)
    with torch.no_grad():
        before = made(packed, x, maps)
        changed(maps[0], how)
        after = made(packed, x, maps)
        expected = torch.cat([F.linear(x, one.weight, one.bias) for one in maps], -1)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.allclose(after, expected, atol=1e-5)


def test_queries_keys_and_values_come_from_one_product_where_tokens_are_few() -> None:
    attention = Attention(16, 4, 4, kv_heads=2, bias=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        plain = attention(x)
        with prepacked(attention), products() as seen:
            few = attention(x)
            assert seen == [3, 1]
            attention(torch.randn(1, linear.FEW + 1, 16))
            assert seen == [3, 1, 1, 1, 1, 1]
    assert torch.allclose(few, plain, atol=1e-5)


def test_both_inputs_of_a_gated_network_come_from_one_product() -> None:
    network = FeedForward(12, 8, act="silu", gated=True).eval()
    x = torch.randn(3, 12)
    with torch.no_grad():
        plain = network(x)
        with prepacked(network), products() as seen:
            found = network(x)
    assert seen == [2, 1]
    assert torch.allclose(found, plain, atol=1e-5)


def test_masks_and_hooks_still_see_what_they_should() -> None:
    network = FeedForward(12, 8).eval()
    x, mask = torch.randn(3, 12), torch.tensor([1.0, 0, 1, 0, 1, 1, 0, 1])
    heard: list[Tensor] = []
    with torch.no_grad(), prepacked(network):
        with gates_set("mask", {network.gate: mask}):
            masked = network(x)
        expected = F.linear(F.relu(F.linear(x, network.wi.weight)) * mask, network.wo.weight)
        assert torch.allclose(masked, expected, atol=1e-5)
        handle = network.wi.register_forward_hook(lambda _, __, out: heard.append(out))
        network(x)
        handle.remove()
        with gates_set("mask", {network.wi.gate_of("out_channel"): mask}):
            channels = network(x)
        assert torch.allclose(channels, expected, atol=1e-5)
    assert len(heard) == 1 and heard[0].min() < 0


def test_nothing_is_laid_out_where_a_gradient_is_wanted_or_the_type_is_another() -> None:
    layer = ChannelLinear(6, 5)
    with prepacked(layer), products() as seen:
        layer(torch.randn(4, 6)).sum().backward()
        with torch.no_grad():
            layer(torch.randn(6))
            layer(torch.randn(0, 6))
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(torch.randn(4, 6)).dtype == torch.bfloat16
            layer.double()
            layer(torch.randn(4, 6, dtype=torch.float64))
    assert not seen and layer.weight.grad is not None


def test_few_rows_do_not_pay() -> None:
    layer = Linear(6, 5)
    with prepacked(layer, WORTH - 1):
        assert layer.packed is None
    with prepacked(layer, WORTH):
        assert layer.packed is not None
        with prepacked(layer):
            pass
        assert layer.packed is not None
    assert layer.packed is None
    with prepacked("no network"):
        pass


def test_copies_and_slim_models_have_their_own() -> None:
    model = tiny_model("chronos_bolt")
    batch = replace(tiny_batch(2), target=None)
    group = next(group for group in model.unit_groups().values() if group.kind == "ffn_channel")
    kept = {group.name: range(1, group.units)}
    expected = slim(model, kept).forecast(batch, 4)
    with model.prepacked():
        model.forecast(batch, 4)
        smaller, twin = slim(model, kept), copy.deepcopy(model)
        again = pickle.loads(pickle.dumps(model))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(1.1)
        found, other = smaller.forecast(batch, 4), twin.forecast(batch, 4)
        assert torch.equal(again.forecast(batch, 4), model.forecast(batch, 4))
    close = 1e-4 * float(expected.std())
    assert torch.allclose(found, expected, rtol=0, atol=close)
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(1.1)
    assert torch.allclose(other, plain.forecast(batch, 4), rtol=0, atol=close)


def test_operations_are_counted_all_the_same() -> None:
    model = tiny_model("chronos_bolt")
    plain = flops(model, 32, 4)
    with model.prepacked():
        assert flops(model, 32, 4) == plain
