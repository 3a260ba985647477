"""SEND and the logit lens as probes."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.copier import Copier, quiet, study
from tests.tiny import tiny_batch, tiny_model
from tests.toy import attention, toy, toy_batch
from tsprune.blocks.branch import Layer
from tsprune.data.batch import Batch
from tsprune.lens import _ablating, _windowmeans, logit_lens
from tsprune.lens._rankings import rank_agreement
from tsprune.lens.logit_lens import LogitLens
from tsprune.lens.send import Send
from tsprune.models._forecaster import Forecaster

DEFINED = ("chronos2", "chronos_bolt", "chronos_t5", "moirai2", "moirai_moe", "patchtst", "time_moe", "timesfm", "toto")


def whole_batch() -> Batch:
    batch = toy_batch()
    assert batch.target is not None
    return Batch(batch.context.nan_to_num(), batch.target)


def counted(model: Forecaster) -> list[int]:
    """Counts forward passes, backward ones twice, from now on."""
    calls, losses = [0], model.row_losses

    def watched(batch: Batch) -> torch.Tensor:
        found = losses(batch)
        calls[0] += batch.rows * (3 if found.requires_grad else 1)
        return found

    model.row_losses = watched  # type: ignore[method-assign]
    return calls


# ---- SEND


def test_an_attention_that_averages_equal_values_ranks_last() -> None:
    model = toy("both sorts of networks")
    even = model.block[1].branches[0]
    inner = attention(bias=True).double()
    even._modules[even.inner_name] = inner
    with torch.no_grad():
        inner.q.weight.zero_(), inner.q.bias.zero_(), inner.v.weight.zero_()
        inner.v.bias.copy_(torch.arange(len(inner.v.bias)) / 3)
    batch = whole_batch()
    found = Send().run(study(model, [batch], [batch]), quiet)
    assert found.facts["ranked"] == ["block.1.layer.0", "block.0.layer.0"]
    send = {one.name: one.values for one in found.measures}["SEND"]
    assert send["block.1.layer.0"][0] == pytest.approx(0, abs=1e-12) and send["block.0.layer.0"][0] > 1e-6  # type: ignore[operator]
    json.dumps(found.to_json())


def test_attentions_with_one_live_key_are_marked_and_left_out() -> None:
    found = Send().run(study(tiny_model("chronos2"), [tiny_batch()]), quiet)
    assert found.facts["one_live_key"] == [f"encoder.block.{n}.layer.1" for n in (0, 1)]
    assert found.facts["agreements"]["SEND and the loss without it"]["count"] == 2
    assert {one.name: one.values for one in found.measures}["SEND"]["encoder.block.0.layer.1"] == [None]
    assert Send().refusal(tiny_model("ttm"))


def test_windows_that_are_alike_have_no_spread() -> None:
    one = whole_batch()
    assert one.target is not None
    same = Batch(one.context[:1].expand(6, -1), one.target[:1].expand(6, -1))
    found = Send().run(study(toy("both sorts of networks"), [same]), quiet)
    spread = {measure.name: measure.values for measure in found.measures}["spread of the mask gradient"]
    assert all(value[0] == pytest.approx(0, abs=1e-9) for value in spread.values())
    assert found.facts["rank_stability"] == pytest.approx(1)
    other = Send().run(study(toy("both sorts of networks"), [whole_batch()]), quiet)
    assert all(row[0] > 0.01 for row in other.measures[-1].values.values())  # type: ignore[operator]


def test_passes_of_send() -> None:
    model, batch = toy("both sorts of networks"), whole_batch()
    probe, wanted = Send(), study(model, [batch], [batch])
    calls = counted(model)
    probe.run(wanted, quiet)
    assert calls[0] / batch.rows == probe.passes(wanted)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_rank_agreement(values: list[int], seed: int) -> None:
    first = torch.tensor(values, dtype=torch.float64)
    found = rank_agreement(first, first, seed)
    if found.value is None:
        assert len(set(values)) == 1
        return
    assert found.value == pytest.approx(1) and found.exact
    assert rank_agreement(first, -first, seed).value == pytest.approx(-1)
    if len(set(values)) == len(values):
        # Only the order itself and its reverse agree so well.
        count = len(values)
        assert found.p == pytest.approx(2 / [0, 0, 2, 6, 24, 120, 720][count])


# ---- the logit lens


@pytest.mark.parametrize("family", DEFINED)
def test_a_cut_shows_the_head_what_the_layer_left(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch(2)
    assert LogitLens().refusal(model) == ""
    layers = logit_lens._layers(model)
    blocks = [model.get_submodule(name.rsplit("/", 1)[0]) for name in layers]
    assert all(isinstance(block, Layer) for block in blocks)
    left: dict[int, torch.Tensor] = {}

    def note(number: int) -> None:
        def hook(_: object, __: object, out: torch.Tensor) -> None:
            left.setdefault(number, out)

        handles.append(blocks[number].register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    with torch.no_grad(), _ablating.switched_off(model, {layers[-1]: [0]}):
        for number in (-2, -1):
            note(number)
        model.row_losses(batch)
    for handle in handles:
        handle.remove()
    assert torch.equal(left[-2], left[-1])


def test_the_last_layer_gives_the_forecast_itself() -> None:
    model, batch = tiny_model("timesfm"), tiny_batch()
    found = LogitLens().run(study(model, [batch], [batch]), quiet)
    error, distance = found.curves
    assert distance.y[-1] == 0 and distance.y[0] > 0  # type: ignore[operator]
    rows = _windowmeans.rows_of_study([batch], 16)
    forecast = model.forecast(batch, 16, [0.5])[:, 0].double().numpy()
    apart = torch.tensor(forecast - rows.target).abs().nanmean(1) / torch.tensor(rows.spread)
    assert error.y[-1] == pytest.approx(float(apart.mean()))
    assert sum(row[0] for row in found.measures[0].values.values()) == pytest.approx(error.y[-1] - error.y[0])  # type: ignore[operator, misc]


def test_a_layer_that_does_nothing_brings_nothing() -> None:
    batch = Batch(*torch.randn(3, 12, generator=torch.Generator().manual_seed(0)).repeat(1, 4).split([44, 4], 1))
    found = LogitLens().run(study(Copier(), [batch], [batch], horizon=4), quiet)
    assert found.facts["enough"] == 1 and found.curves[1].y[1] == 0
    assert found.facts["later"][1]["estimate"] == 0
    assert "After 1 of 2 layers" in found.answer


def test_tokens_have_an_entropy() -> None:
    model, batch = tiny_model("chronos_t5"), tiny_batch(2)
    found = LogitLens().run(study(model, [batch], horizon=4), quiet)
    assert len(found.facts["entropy"]) == 3
    with torch.no_grad():
        logits, labels = model(batch.context, batch.target)
        spread = torch.distributions.Categorical(logits=logits[labels >= 0].double()).entropy().mean()
    assert found.facts["entropy"][-1] == pytest.approx(float(spread))


@pytest.mark.parametrize(
    ("family", "why"), [("timer_xl", "norms the sum"), ("itransformer", "norms"), ("ttm", "widths")]
)
def test_where_the_lens_is_not_defined(family: str, why: str) -> None:
    assert why in LogitLens().refusal(tiny_model(family))


def test_passes_of_the_lens() -> None:
    model, batch = tiny_model("timesfm"), tiny_batch()
    wanted, calls = study(model, [batch], [batch]), [0]
    predict = model.predict

    def watched(batch: Batch, steps: int) -> torch.Tensor:
        calls[0] += 1
        return predict(batch, steps)

    model.predict = watched  # type: ignore[method-assign]
    LogitLens().run(wanted, quiet)
    assert calls[0] == LogitLens().passes(wanted)


# ---- what the probes share


def test_what_was_off_stays_off() -> None:
    model, batch = Copier(), Batch(torch.randn(2, 16))
    name = "block.0.layer.0.attention/head"
    with model.masked({name: [1, 2]}):
        one = model.forecast(batch, 4)
        with _ablating.switched_off(model, {name: [1]}):
            assert not bool(model.forecast(batch, 4).any())
        assert torch.equal(model.forecast(batch, 4), one)


def test_intervals_of_window_means() -> None:
    draw = torch.Generator().manual_seed(5)
    values = (torch.randn(60, 2, generator=draw) + torch.tensor([0.0, 2.0])).double().numpy()
    values -= values.mean(0) - [0, 2]
    values[3, 0] = float("nan")
    batch = Batch(torch.randn(2, 16))
    apart = _windowmeans.mean_intervals(values, study(Copier(), [batch]))
    assert not apart[0].excludes(0) and apart[1].excludes(0) and not apart[1].excludes(2)
    near = _windowmeans.mean_intervals(values, study(Copier(), [batch], horizon=16, stride=2))
    assert near[1].estimate == apart[1].estimate
    assert _windowmeans.mean_intervals(values[:3], study(Copier(), [batch], stride=1))[1].low is None


def test_rows_of_a_window_are_averaged_first() -> None:
    target = torch.randn(3, 4)
    batch = Batch(torch.randn(3, 8), target, torch.tensor([5, 5, 2]), is_target=torch.tensor([True, True, True]))
    rows = _windowmeans.rows_of_study([batch, batch], 4)
    assert rows.window.tolist() == [0, 0, 1, 2, 2, 3]
    found = rows.by_window(torch.tensor([[1.0], [3.0], [float("nan")], [1.0], [float("nan")], [7.0]]).double().numpy())
    assert found[[0, 2, 3], 0].tolist() == [2.0, 1.0, 7.0] and found[1, 0] != found[1, 0]
