"""Original models in memory are taken over by config and tensors alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tsprune
from tests.tiny import ALL_FAMILIES, tiny_batch, tiny_model
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.predicting import as_model


class Original:
    """Stands for a network of another package: a config object and tensors under public names."""

    def __init__(self, model: Forecaster) -> None:
        self.config = SimpleNamespace(to_dict=lambda: dict(model.config))
        self.tensors = model.tensors_to_public()

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors


class Pipeline:
    """Stands for what such packages wrap around a network."""

    def __init__(self, network: Any) -> None:
        self.model = network


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_network_and_a_pipeline_around_it_become_the_same_model(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    for upstream in (Original(model), Pipeline(Original(model)), Pipeline(Pipeline(Original(model)))):
        taken = tsprune.load(upstream)
        assert taken.family == family
        assert torch.equal(taken.forecast(batch, 16), model.forecast(batch, 16))
        assert as_model(upstream).family == family


def test_the_tensors_are_copies() -> None:
    model = tiny_model("chronos_bolt")
    upstream = Original(model)
    taken = tsprune.load(upstream)
    before = taken.forecast(tiny_batch(), 16)
    for tensor in upstream.tensors.values():
        tensor.detach().zero_()
    assert torch.equal(taken.forecast(tiny_batch(), 16), before)


def test_a_config_can_be_given_where_the_object_has_none() -> None:
    model = tiny_model("chronos2")
    upstream = Original(model)
    del upstream.config
    with pytest.raises(TspruneError, match=r"Original in memory.*config="):
        tsprune.load(upstream)
    taken = tsprune.load(upstream, config=model.config, dtype="float64")
    assert taken.dtype == torch.float64


def test_tensors_that_do_not_fit_the_config_are_named() -> None:
    upstream = Original(tiny_model("chronos2"))
    name = next(iter(upstream.tensors))
    del upstream.tensors[name]
    with pytest.raises(TspruneError, match=f"1 missing: {name}"):
        tsprune.load(upstream)


def test_objects_that_are_no_models_are_refused() -> None:
    with pytest.raises(TspruneError, match="no config that a family recognises"):
        tsprune.load(object())
    with pytest.raises(TspruneError, match="model is a int"):
        as_model(3)
    with pytest.raises(TspruneError, match=r"config=.*belongs to a model in memory"):
        tsprune.load("mini", config={})
