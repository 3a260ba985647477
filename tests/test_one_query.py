"""One query through the key and value maps against keys and values of every token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import tiny_batch, tiny_model
from tsprune.blocks.attention import Attention
from tsprune.blocks.onequery import alone, fits
from tsprune.evaluation.cost import flops
from tsprune.models._forecaster import Forecaster


def made(**options: object) -> Attention:
    torch.manual_seed(4)
    found = Attention(12, 3, 4, **options).double().eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_()
    return found


def by_tokens(attention: Attention, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
    """The same with a watch on the weights, which needs keys and values."""
    attention.watch = lambda *_: None
    try:
        return attention(x, memory=memory, mask=mask)
    finally:
        attention.watch = None


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hidden", ["none", "some", "all"])
def test_one_query_gives_what_all_tokens_give(scale: float | None, bias: bool, hidden: str) -> None:
    attention = made(scale=scale)
    if bias:
        attention.v.bias = nn.Parameter(torch.randn(12, dtype=torch.float64))
    x, memory = torch.randn(2, 1, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    mask = None if hidden == "none" else torch.arange(5).lt(3 if hidden == "some" else 0).expand(2, 1, 1, 5)
    assert alone(x, memory, cached=False, turned=False) and fits(attention)
    expected = by_tokens(attention, x, memory, mask)
    assert torch.allclose(attention(x, memory=memory, mask=mask), expected, rtol=0, atol=1e-12)


def test_weights_get_the_same_gradients() -> None:
    attention = made()
    x, memory = torch.randn(2, 1, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    found = []
    for way in (lambda: attention(x, memory=memory), lambda: by_tokens(attention, x, memory, None)):
        attention.zero_grad()
        way().square().sum().backward()
        found.append([parameter.grad.clone() for parameter in attention.parameters() if parameter.grad is not None])
    assert len(found[0]) == len(found[1]) == 4
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*found, strict=True))


def test_dropout_keeps_the_bias_of_the_values_with_the_weights_that_are_left() -> None:
    attention = made(dropout=0.5).train()
    attention.v.bias = nn.Parameter(torch.randn(12, dtype=torch.float64))
    x, memory = torch.randn(2, 1, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    torch.manual_seed(1)
    first = attention(x, memory=memory)
    torch.manual_seed(1)
    assert torch.allclose(first, by_tokens(attention, x, memory, None), rtol=0, atol=1e-12)


@pytest.mark.parametrize("why", ["pair gate", "value gate", "channel gate", "hook", "half", "shared"])
def test_where_somebody_looks_or_heads_share_keys_every_token_gets_its_own(why: str) -> None:
    attention = made(kv_heads=1) if why == "shared" else made()
    assert fits(attention) == (why != "shared")
    if why == "pair gate":
        attention.pair_gate.mask = torch.ones(12)
    elif why == "value gate":
        attention.value_gate.probe = lambda *_: None
    elif why == "channel gate":
        attention.k.gate_of("in_channel").mask = torch.ones(12)
    elif why == "hook":
        attention.v.register_forward_hook(lambda *_: None)
    assert not fits(attention.half() if why == "half" else attention)


def test_two_queries_a_cache_and_rotary_positions_need_keys() -> None:
    one, memory = torch.zeros(2, 1, 12), torch.zeros(2, 5, 12)
    assert alone(one, memory, cached=False, turned=False)
    assert not alone(one.expand(2, 2, 12), memory, cached=False, turned=False)
    assert not alone(one, None, cached=False, turned=False)
    assert not alone(one, memory, cached=True, turned=False)
    assert not alone(one, memory, cached=False, turned=True)


def test_the_decoder_of_chronos_bolt_makes_no_keys_of_the_context() -> None:
    model: Forecaster = tiny_model("chronos_bolt")
    batch = tiny_batch()
    few = flops(model, 64, 8)
    expected = model.forecast(batch, 8)
    crossing = [module for module in model.modules() if isinstance(module, Attention)]
    for attention in crossing:
        attention.watch = lambda *_: None
    assert torch.allclose(model.forecast(batch, 8), expected, rtol=1e-4, atol=1e-4)
    assert few < flops(model, 64, 8)
