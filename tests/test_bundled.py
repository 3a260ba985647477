"""The models inside the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tsprune
from tsprune.evaluation.baselines.seasonal_naive import SeasonalNaive
from tsprune.evaluation.evaluate import measure
from tsprune.models._loading import BUNDLED
from tsprune.preparing import prepare
from tsprune.settings import TaskSettings

FOLDER = Path(tsprune.__file__).parent / "bundled"
FAMILIES = {"mini": "chronos2", "mini-moe": "time_moe"}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_is_small_has_a_card_and_says_what_it_has_seen(name: str) -> None:
    model = tsprune.load(name)
    assert model.family == FAMILIES[name]
    assert model.parameter_count() < 6e6
    assert (FOLDER / name / "model.safetensors").stat().st_size < 12e6
    card = (FOLDER / name / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "tsprune pretrain --family" in card and "licence of the weights" in card
    corpora = json.loads((FOLDER / name / "config.json").read_text())["pretraining_corpora"]
    assert model.pretraining_corpora == tuple(corpora)
    assert not any(word in entry.lower() for entry in corpora for word in ("ett", "weather", "bike"))


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_beats_seasonal_naive_on_the_sample_without_tuning(name: str) -> None:
    ready = prepare(TaskSettings(model=name, horizon=24, validation_windows=48))
    windows, _ = ready.validation
    own, naive = (measure(m, windows, ready.split).metrics for m in (ready.model, SeasonalNaive(24)))
    assert own["mse"] is not None and naive["mse"] is not None
    assert own["mse"] < 0.8 * naive["mse"]
    assert own["mae"] is not None and naive["mae"] is not None
    assert own["mae"] < naive["mae"]
