"""What SEND sees of attentions that stop selecting, one at a time, in a trained model and by closed forms.

Even attention lowers it, in time to the last place. Attention of every token to itself raises it: all of a query's
effect is then on one key, and that is dispersion. SEND is no detector of such attentions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from importlib.resources import files

import pandas as pd
import pytest
import torch
from torch import Tensor

import tsprune
from tests.toy import attention, toy, toy_batch
from tsprune.blocks.attention import Attention
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores import send

TIME = [f"encoder.block.{n}.layer.0/attention" for n in range(4)]
SERIES = [f"encoder.block.{n}.layer.1/attention" for n in range(4)]
ROWS, CONTEXT, HORIZON = 8, 96, 16


@cache
def trained() -> tuple[Forecaster, Batch]:
    """The bundled model and windows of the bundled series, two at a time together."""
    table = pd.read_csv(str(files("tsprune") / "bundled" / "bike_sharing.csv"))
    series = torch.tensor(table["registered"].to_numpy(), dtype=torch.float32)
    starts = torch.linspace(0, len(series) - CONTEXT - HORIZON, ROWS).long().tolist()
    windows = torch.stack([series[start : start + CONTEXT + HORIZON] for start in starts])
    return tsprune.load("mini").eval(), Batch(
        windows[:, :CONTEXT], windows[:, CONTEXT:], torch.arange(ROWS) // 2
    )


@cache
def whole() -> dict[str, float]:
    return sends(trained()[0])


def sends(model: Forecaster) -> dict[str, float]:
    return {name: float(value) for name, value in send.scores(model, [trained()[1]]).items()}


def changed(name: str, change: Callable[[Attention], None]) -> Forecaster:
    model = copy.deepcopy(trained()[0])
    block = model.get_submodule(name.rpartition("/")[0]).inner
    assert isinstance(block, Attention)
    with torch.no_grad():
        change(block)
    return model


def even(block: Attention) -> None:
    """Queries that ask for nothing: equal weights on all keys."""
    block.q.weight.zero_()


def to_itself(block: Attention) -> None:
    """Queries that are the keys, and long: a token is nearest to itself."""
    block.q.weight.copy_(10 * block.k.weight / block.k.weight.norm() * len(block.k.weight) ** 0.5)


def weight_on_itself(model: Forecaster, name: str) -> float:
    """Mean attention of a token to itself."""
    block = model.get_submodule(name.rpartition("/")[0]).inner
    found: list[float] = []

    def watch(weights: Tensor, *_: object) -> None:
        found.append(float(weights.diagonal(dim1=-2, dim2=-1).mean()))

    block.watch = watch
    with torch.no_grad():
        model.loss(trained()[1])
    block.watch = None
    return found[0]


@pytest.mark.parametrize("name", TIME)
def test_attention_in_time_that_becomes_even_falls_to_the_last_place_of_its_sort(name: str) -> None:
    found = sends(changed(name, even))
    assert found[name] < whole()[name] / 1.5
    assert min(TIME, key=lambda one: found[one]) == name


@pytest.mark.parametrize("name", SERIES)
def test_attention_across_series_that_becomes_even_falls_but_need_not_be_last(name: str) -> None:
    """Even weights on different values still differ in effect, and others of its sort may hardly matter."""
    assert sends(changed(name, even))[name] < whole()[name]


@pytest.mark.parametrize("name", [*TIME, SERIES[0]])
def test_attention_to_oneself_is_not_seen(name: str) -> None:
    model = changed(name, to_itself)
    assert weight_on_itself(model, name) > 0.8
    assert sends(model)[name] > whole()[name]


@pytest.mark.parametrize("layer", range(3))
def test_among_attentions_that_select_an_even_one_ranks_last_wherever_it_is(layer: int) -> None:
    """Its values differ, unlike those of an attention whose output is constant."""
    model = toy("three")
    del model
    torch.manual_seed(6)
    blocks = [attention(bias=True) for _ in range(3)]
    for number, block in enumerate(blocks):
        with torch.no_grad():
            block.q.weight.mul_(0 if number == layer else 20)
            block.q.bias.zero_()
    found = send_of(blocks)
    assert min(range(3), key=lambda number: found[number]) == layer
    assert found[layer] > 0


def send_of(blocks: list[Attention]) -> list[float]:
    raise NotImplementedError


# ---- closed forms


def linear(effects: Tensor) -> float:
    count, keys = effects.shape
    everywhere = torch.ones(count, keys, dtype=torch.bool)
    return float(send.dispersion(effects[None], everywhere, everywhere[:, 0]))


@pytest.mark.parametrize("keys", [4, 16, 64])
def test_one_key_of_n_scores_as_the_root_of_n_where_even_weights_do_not(keys: int) -> None:
    """For small effects, with values of one size s: all weight on one key gives s sqrt(n - 1) / n, and even weights,
    s / n on each key, give 0; of different sizes, their deviation over n."""
    size = 1e-6
    alone = size * torch.eye(keys, dtype=torch.float64)
    assert linear(alone) == pytest.approx(size * math.sqrt(keys - 1) / keys, rel=1e-4)
    assert linear(torch.full((keys, keys), size / keys, dtype=torch.float64)) == 0
    values = size * torch.randn(keys, keys, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    deviation = float(values.abs().std(-1, correction=0).mean())
    assert linear(values / keys) == pytest.approx(deviation / keys, rel=1e-4)
    assert linear(values / keys) < linear(values.diag().diag())
