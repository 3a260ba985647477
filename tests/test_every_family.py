"""The whole way with a tiny model of every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tsprune
from tests.running import SMALL, wide
from tests.tiny import ALL_FAMILIES, tiny_model
from tsprune.errors import TspruneError
from tsprune.preparing import prepare
from tsprune.progress import Progress
from tsprune.settings import PruneSettings, TaskSettings
from tsprune.stagework import adapted, usual_units


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_specialist_is_made_judged_saved_and_forecasts(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    loss = model.objectives[-1]
    settings = SMALL | {"horizon": min(8, model.native_horizon), "loss": loss, "tolerance": 1.0, "test_windows": 16}
    done = tsprune.specialize(model, wide(), out=tmp_path / "run", seed=1, **settings)
    assert model.objective == "own"
    names = [candidate["name"] for candidate in done.results["candidates"]]
    assert {"zero_shot", "full_finetuning", "random_prune_finetune", "prune_then_finetune"} <= set(names)
    sizes = {candidate["name"]: candidate["parameters"] for candidate in done.results["candidates"]}
    assert sizes["prune_then_finetune"] < sizes["full_finetuning"]
    assert done.results["equivalence"]["relative_float64"] < 1e-9
    again = tsprune.load(tmp_path / "run" / "model")
    assert again.objective == (loss if done.results["chosen"] != "zero_shot" else again.objective)
    table = tsprune.predict(again, wide(), 5)
    assert len(table) == 10
    assert np.isfinite(table.drop(columns=["id", "timestamp"]).to_numpy()).all()


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_usual_units_are_those_that_the_model_has_and_the_score_can_judge(family: str) -> None:
    model = tiny_model(family)
    present = {group.kind for group in model.unit_groups().values()}
    assert set(usual_units(model, "fisher")) == {"head", "ffn_channel", "expert"} & present
    if "head" not in present:
        with pytest.raises(TspruneError, match="head_norm can judge head"):
            usual_units(model, "head_norm")
    else:
        assert usual_units(model, "head_norm") == ("head",)


def test_the_brief_tuning_can_train_the_head_alone() -> None:
    ready = prepare(TaskSettings(horizon=8, context=32), panel=tsprune.read(wide()), model=tiny_model("ttm"))
    settings = PruneSettings(adapt_steps=6, adapt_rate=1e-2, adapt_tuning="head")
    found = adapted(ready, settings, Progress(quiet=True))
    before = dict(ready.model.named_parameters())
    changed = {name.split(".")[0] for name, p in found.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(ready.model.head_paths)


def test_an_unknown_loss_lists_those_of_the_family() -> None:
    with pytest.raises(TspruneError, match="--loss 'mse' is not among the losses of family chronos_bolt: own"):
        prepare(TaskSettings(loss="mse", horizon=8), panel=tsprune.read(wide()), model=tiny_model("chronos_bolt"))
