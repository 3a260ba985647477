"""What holds for every score by statistics: batches, precision, the model left alone, refusals."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.toy import case_of, rows_of
from tsprune.blocks.attention import Attention
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.registry import find
from tsprune.scores import activation, expert_usage, head_norm, send, stable_rank

MINE = {
    "head_norm": "head",
    "activation": "ffn_channel",
    "expert_usage": "expert",
    "stable_rank": "head",
    "send": "attention",
}


def score_of(name: str, model: Forecaster, batches: Sequence[Batch]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = find("tsprune.scores", name).scores(model, batches, kinds=(MINE[name],), seed=0)
    return found


def able(case: str) -> list[str]:
    return [name for name in MINE if name != "expert_usage" or case == "experts"]


@functools.cache
def whole_scores(case: str, name: str) -> dict[str, Tensor]:
    model, batch = case_of(case)
    return score_of(name, model, [batch])


@pytest.mark.parametrize("case", ["chronos2 groups", "chronos_bolt", "shared keys", "experts"])
@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data())
def test_scores_do_not_depend_on_how_windows_are_batched(case: str, data: st.DataObject) -> None:
    model, batch = case_of(case)
    rows: list[list[int]] = []
    ids = list(range(batch.rows)) if batch.group_ids is None else batch.group_ids.tolist()
    for window in dict.fromkeys(ids):
        own = [row for row, i in enumerate(ids) if i == window]
        if rows and data.draw(st.booleans()):
            rows[data.draw(st.integers(0, len(rows) - 1))] += own
        else:
            rows.append(own)
    for name in able(case):
        split = score_of(name, model, [rows_of(batch, own) for own in rows])
        for group, values in whole_scores(case, name).items():
            torch.testing.assert_close(split[group], values, rtol=1e-9, atol=1e-15)


def state_of(model: Forecaster) -> tuple[Any, ...]:
    gates = {gate for group in model.unit_groups().values() for gate in group.gates}
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        {gate: (gate.mask, gate.tap, gate.probe) for gate in gates},
        {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in model.named_modules()},
        {name: m.watch for name, m in model.named_modules() if isinstance(m, Attention)},
        torch.get_rng_state(),
    )


def same(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    tensors = all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    return tensors and before[1:-1] == after[1:-1] and torch.equal(before[-1], after[-1])


@pytest.mark.parametrize("name", MINE)
def test_a_score_leaves_the_model_as_it_found_it(name: str) -> None:
    model, batch = case_of("experts", torch.float32)
    model.train()
    model.embed.eval()
    model.out.weight.requires_grad_(False)
    before = state_of(model)
    score_of(name, model, [batch])
    assert same(before, state_of(model))


@pytest.mark.parametrize("name", MINE)
def test_when_the_loss_fails_midway_then_the_model_is_as_it_was(name: str) -> None:
    model, batch = case_of("experts", torch.float32)
    before = state_of(model)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    handle = model.out.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        score_of(name, model, [batch])
    handle.remove()
    assert same(before, state_of(model))


@pytest.mark.parametrize("name", MINE)
def test_half_precision_models_get_scores_close_to_those_in_full(name: str) -> None:
    model, batch = case_of("experts", torch.float32)
    full = score_of(name, model, [batch])
    half = score_of(name, model.to(torch.bfloat16), [batch])
    for group, values in full.items():
        assert half[group].dtype == values.dtype == torch.float64
        torch.testing.assert_close(half[group], values, rtol=0.15, atol=0.05 * float(values.max()))


@pytest.mark.parametrize("name", MINE)
def test_a_kind_that_a_score_cannot_do_is_refused_with_those_it_can(name: str) -> None:
    model, batch = case_of("experts")
    module = find("tsprune.scores", name)
    with pytest.raises(TspruneError, match=f"{name}.*'layer'.*{', '.join(module.KINDS)}"):
        module.scores(model, [batch], kinds=("layer",), seed=0)
    with pytest.raises(TspruneError, match="at least one batch"):
        score_of(name, model, [])


@pytest.mark.parametrize("module", [head_norm, activation, expert_usage, stable_rank, send])
def test_collect_and_finish_make_the_scores(module: Any) -> None:
    model, batch = case_of("experts")
    kinds = (module.KINDS[0],)
    found = module.finish(model, module.collect(model, [batch], kinds=kinds), kinds=kinds)
    assert all(torch.equal(found[n], values) for n, values in module.scores(model, [batch], kinds=kinds).items())
