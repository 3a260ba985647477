"""What holds for every probe of structure, in every family: passes as said, model left alone, plain data."""

from __future__ import annotations

import json

import pytest
import torch

from tests.looking import look, rows_passed, study_of
from tests.test_statistics_contract import same, state_of
from tests.tiny import ALL_FAMILIES, tiny_batch, tiny_model
from tests.toy import case_of
from tsprune import lens
from tsprune.blocks.attention import Attention
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._work import count_windows

MINE = ("weight_spectra", "attention_spectra", "attention_entropy", "head_rank", "sparsity")


def windows_for(model: Forecaster) -> list[Batch]:
    """Windows that the family takes, in two batches of different size."""
    steps, context = min(8, model.native_horizon), min(40, model.context_length)
    batches = [tiny_batch(rows, context, steps, seed) for seed, rows in enumerate((2, 3))]
    # One that only compares series needs several in a window.
    together = 3 if model.family == "itransformer" else model.window_rows
    if together == 1:
        return batches
    own = [tiny_batch(together * n, context, steps) for n in (1, 2)]
    groups = [torch.arange(one.rows) // together for one in own]
    return [Batch(one.context, one.target, ids) for one, ids in zip(own, groups, strict=True)]


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_probe_answers_for_every_family_or_says_why_not(family: str) -> None:
    model = tiny_model(family)
    batches = windows_for(model)
    windows = sum(map(count_windows, batches))
    each = sum(one.rows for one in batches) / windows
    heads = {path: m.heads for path, m in model.named_modules() if isinstance(m, Attention)}
    for name in MINE:
        probe = lens.find(name)
        assert probe.question.endswith("?")
        reason = probe.refusal(model)
        assert bool(reason) == (not heads and name != "sparsity")
        if reason:
            assert family in reason
            assert not reason.endswith(".")
            continue
        ticks: list[str] = []
        with rows_passed(model) as passed:
            found = look(name, model, batches, ticks.append)
        study = study_of(model, batches)
        assert sum(passed) / each == pytest.approx(windows * probe.passes(study))
        assert len(ticks) == round(probe.passes(study) - 0.2)
        assert found.answer.endswith(".")
        assert json.loads(json.dumps(found.to_json(), allow_nan=False))["answer"] == found.answer
        for one in found.measures:
            if one.unit == "head":
                assert {path: len(own) for path, own in one.values.items()} == {
                    path: heads[path] for path in (one.values if "last" in one.name else heads)
                }
        if heads and name != "sparsity":
            assert any(value is not None for one in found.measures for own in one.values.values() for value in own)


@pytest.mark.parametrize("name", MINE)
def test_a_probe_leaves_the_model_as_it_found_it(name: str) -> None:
    model, batch = case_of("experts", torch.float32)
    model.train()
    model.out.weight.requires_grad_(False)
    before = state_of(model)
    look(name, model, [batch])
    assert same(before, state_of(model))
    assert all(getattr(module, "watch", None) is None for module in model.modules())
