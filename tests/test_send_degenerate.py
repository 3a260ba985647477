"""What SEND sees of attentions that stop selecting, one at a time, in a trained model and by closed forms.

Even attention lowers it, in time to the last place. That is no law: on windows of few patches, and across series,
where a window has few keys, it can stay or rise, since a model that is broken has larger gradients. Attention of every
token to itself raises it: all of a query's effect is then on one key, and that is dispersion.
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
from tests.toy import HEAD, PATCH, WIDTH, Toy, attention, toy_batch
from tsprune.blocks.attention import Attention
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.positions import rotary_table
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores import send

TIME = [f"encoder.block.{n}.layer.0/attention" for n in range(4)]
SERIES = [f"encoder.block.{n}.layer.1/attention" for n in range(4)]
ROWS, CONTEXT, HORIZON = 24, 256, 16


@cache
def trained() -> tuple[Forecaster, Batch]:
    """The bundled model and windows of the bundled series, two at a time together."""
    table = pd.read_csv(str(files("tsprune") / "bundled" / "bike_sharing.csv"))
    series = torch.tensor(table["registered"].to_numpy(), dtype=torch.float32)
    starts = torch.linspace(0, len(series) - CONTEXT - HORIZON, ROWS).long().tolist()
    windows = torch.stack([series[start : start + CONTEXT + HORIZON] for start in starts])
    return tsprune.load("mini").eval(), Batch(windows[:, :CONTEXT], windows[:, CONTEXT:], torch.arange(ROWS) // 2)


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
    block.q.weight.copy_(30 * block.k.weight / block.k.weight.norm() * len(block.k.weight) ** 0.5)


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
    assert found[name] < whole()[name] / 1.3
    assert min(TIME, key=lambda one: found[one]) == name


@pytest.mark.parametrize("name", SERIES)
def test_attention_across_series_that_becomes_even_falls_but_need_not_be_last(name: str) -> None:
    """Even weights on different values still differ in effect, and others of its sort may hardly matter."""
    assert sends(changed(name, even))[name] < whole()[name]


@pytest.mark.parametrize("name", TIME)
def test_attention_to_oneself_is_not_seen(name: str) -> None:
    model = changed(name, to_itself)
    assert weight_on_itself(model, name) > 0.7  # the rest is on patches that are alike
    assert sends(model)[name] > 2 * whole()[name]


class SideBySide(Toy):
    """The attentions read the same tokens, and what they say is added up: none stands nearer to the loss."""

    def forward(self, context: Tensor) -> Tensor:
        x = self.embed(context.nan_to_num().view(len(context), -1, PATCH).to(self.dtype))
        given = {"mask": self.allowed(context)[:, None], "rotary": rotary_table(torch.arange(x.shape[1]), HEAD)}
        said = [layer.branches[0].inner(layer.branches[0].layer_norm(x), **given) for layer in self.block]
        return self.out((x + torch.stack(said).sum(0)).mean(1))


@pytest.mark.parametrize("seed", range(5))
def test_among_attentions_that_select_a_planted_even_one_ranks_last_wherever_it_is(seed: int) -> None:
    """All read and write alike, and differ in what they look at. Values differ, so that no score is 0."""
    for planted in range(3):
        torch.manual_seed(seed)
        model = SideBySide([attention() for _ in range(3)], [FeedForward(WIDTH, 2) for _ in range(3)]).double().eval()
        with torch.no_grad():
            for number, layer in enumerate(model.block):
                inner, first = layer.branches[0].inner, model.block[0].branches[0].inner
                inner.v.weight.copy_(first.v.weight)
                inner.o.weight.copy_(first.o.weight)
                inner.q.weight.mul_(0 if number == planted else 20)
        found = [float(value) for value in send.scores(model, [toy_batch()]).values()]
        assert min(range(3), key=found.__getitem__) == planted
        assert found[planted] > 1e-5


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
