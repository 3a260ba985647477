"""Pretraining from scratch: what it writes, what it continues, what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import tiny
import tsprune
from running import wide
from tsprune.data.corpus import Corpus
from tsprune.errors import TspruneError
from tsprune.models._recognising import family_of
from tsprune.pretraining import (
    Pretraining,
    make_optimizers,
    mini_config,
    preset,
    pretrain,
    window_batch,
    without_outliers,
)
from tsprune.progress import Progress
from tsprune.settings import PretrainSettings

SHORT = PretrainSettings(
    steps=6, decay_steps=2, warmup_steps=1, batch=8, precision="float32", checkpoint_every=2, learning_rate=1e-3
)


def config_file(folder: Path, family: str = "chronos2", **changes: Any) -> str:
    path = folder / f"{family}.json"
    path.write_text(json.dumps(tiny.tiny_config(family, **changes)), encoding="utf-8")
    return str(path)


def run(out: Path, settings: PretrainSettings = SHORT, family: str = "chronos2", corpus: str = "") -> Path:
    out.parent.mkdir(exist_ok=True)
    return pretrain(family, config_file(out.parent, family), settings, out, corpus, 0, Progress(quiet=True))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model" / "model.safetensors"))


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_pretrained_model_loads_and_forecasts(family: str, optimizer: str, tmp_path: Path) -> None:
    written = run(tmp_path / "out", replace(SHORT, optimizer=optimizer), family)
    assert written == tmp_path / "out" / "model"
    model = tsprune.load(written)
    assert model.family == family
    found = tsprune.predict(model, tsprune.read(wide()), 4, levels=(0.5,))
    assert np.isfinite(found["0.5"]).all()
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.float16}


def test_same_seed_gives_the_same_weights_and_another_gives_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, replace(SHORT, seed=seed))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_run_stopped_between_checkpoints_ends_with_the_same_weights(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole")
    usual = Pretraining.one_step

    def step(self: Pretraining) -> float:
        if self.step == stop:
            raise KeyboardInterrupt
        return usual(self)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "one_step", step)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    assert not (tmp_path / "cut" / "model").exists()
    run(tmp_path / "cut")
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_finished_run_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "out")
    before = weights(tmp_path / "out")
    monkeypatch.setattr(Pretraining, "one_step", lambda self: pytest.fail("a step was made again"))
    run(tmp_path / "out")
    assert same(weights(tmp_path / "out"), before)


def test_longer_run_continues_a_shorter_one(tmp_path: Path) -> None:
    """The rate is constant up to the decay, so that a run cut before its decay belongs to the longer one."""
    longer = replace(SHORT, steps=8)
    run(tmp_path / "whole", longer)
    run(tmp_path / "grown", replace(SHORT, steps=4, decay_steps=0))
    run(tmp_path / "grown", longer)
    assert same(weights(tmp_path / "grown"), weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"batch": 16}, "--batch 8"), ({"seed": 3}, "--seed 0"), ({"learning_rate": 0.5}, "--learning-rate 0.001")],
)
def test_checkpoint_of_other_settings_is_not_continued(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    run(tmp_path / "out")
    with pytest.raises(TspruneError, match=says):
        run(tmp_path / "out", replace(SHORT, steps=8, **change))


def test_checkpoint_of_another_size_or_family_is_not_continued(tmp_path: Path) -> None:
    run(tmp_path / "out")
    with pytest.raises(TspruneError, match=r"checkpoint\.safetensors"):
        run(tmp_path / "out", family="chronos_bolt")
    wider = config_file(tmp_path, d_ff=28)
    with pytest.raises(TspruneError, match=r"checkpoint\.safetensors"):
        pretrain("chronos2", wider, SHORT, tmp_path / "out", "", 0, Progress(quiet=True))


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run(tmp_path / "out")
    path = tmp_path / "out" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TspruneError, match=r"checkpoint\.safetensors"):
        run(tmp_path / "out")


def corpus(folder: Path, seed: int = 0) -> str:
    folder.mkdir()
    wide(3, 300, seed).to_csv(folder / "waves.csv", index=False)
    return str(folder)


def test_real_series_take_part_and_are_not_exchanged_midway(tmp_path: Path) -> None:
    one = corpus(tmp_path / "one")
    run(tmp_path / "mixed", corpus=one)
    run(tmp_path / "pure")
    assert not same(weights(tmp_path / "mixed"), weights(tmp_path / "pure"))
    with pytest.raises(TspruneError, match="--corpus"):
        run(tmp_path / "mixed", replace(SHORT, steps=8))
    run(tmp_path / "mixed", replace(SHORT, steps=8), corpus=one)


def test_log_has_every_step_once_after_a_restart(tmp_path: Path) -> None:
    out = tmp_path / "out"
    long = replace(SHORT, steps=120, checkpoint_every=70, groups=0.0)
    run(out, long)
    lines = (out / "log.jsonl").read_text()
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [50, 100]
    # As if killed at step 110, with the checkpoint of step 70 and half a line in the log.
    shutil.rmtree(out)
    model = Pretraining(tiny.tiny_model("chronos2"), out, long, None)
    model.step = 70
    model.save()
    (out / "log.jsonl").write_text(lines + '{"step": 1')
    again = Pretraining(tiny.tiny_model("chronos2"), out, long, None)
    assert again.resume()
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [50]


def test_finished_model_is_the_average_of_the_weights(tmp_path: Path) -> None:
    trained = Pretraining(tiny.tiny_model("chronos2"), tmp_path, SHORT, None)
    first = trained.one_step()
    assert np.isfinite(first)
    named = dict(trained.model.state_dict())
    assert any(not torch.equal(trained.average[name], named[name]) for name in named)
    written = load_file(trained.write_model(torch.float32) / "model.safetensors")
    assert same(written, trained.average)


def test_rate_rises_stays_and_falls() -> None:
    settings = PretrainSettings(steps=100, warmup_steps=10, decay_steps=20, learning_rate=1.0)
    rates = [Pretraining._rate(_Holder(settings), step) for step in range(101)]  # type: ignore[arg-type]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert set(rates[10:80]) == {1.0}
    assert rates[80:] == pytest.approx(np.arange(20, -1, -1) / 20)


class _Holder:
    def __init__(self, settings: PretrainSettings) -> None:
        self.settings = settings


def test_every_parameter_has_one_optimizer() -> None:
    model = tiny.tiny_model("chronos2")
    for name, count in (("muon", 2), ("adamw", 1)):
        optimizers = make_optimizers(model, replace(SHORT, optimizer=name))
        assert len(optimizers) == count
        ids = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in model.parameters())


@given(level=st.floats(-100, 100), spread=st.floats(0.1, 10), gap=st.integers(0, 20), jump=st.sampled_from([0.0, 1e4]))
def test_windows_lose_far_targets_and_nothing_else(level: float, spread: float, gap: int, jump: float) -> None:
    draw = np.random.default_rng(0)
    values = (level + spread * draw.standard_normal((3, 48))).astype(np.float32)
    values[0, :gap] = np.nan
    values[1, 40] += jump
    past, target, usable = window_batch(values, 32, 16, 15.0)
    assert past.shape == (3, 32) and target.shape == (3, 16)
    assert usable.tolist() == [True] * 3
    assert torch.isnan(target).sum() == (1 if jump else 0)
    assert torch.isnan(target[1, 8]) == bool(jump)


def test_constant_and_nearly_empty_windows_are_not_used() -> None:
    values = np.random.default_rng(0).standard_normal((3, 48)).astype(np.float32)
    values[0] = 5.0
    values[1, :25] = np.nan
    assert window_batch(values, 32, 16, 15.0)[2].tolist() == [False, False, True]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_batches_depend_on_seed_and_step_alone(family: str, tmp_path: Path) -> None:
    real = Corpus.from_folder(corpus(tmp_path / "real"))
    settings = replace(SHORT, groups=0.5)
    one, two = (Pretraining(tiny.tiny_model(family), tmp_path, settings, real) for _ in range(2))
    grouped = 0
    for step in (5, 1, 5, 0, 3, 8):
        first, second = one.draw(step), two.draw(step)
        two.draw(step + 1)
        assert torch.equal(torch.nan_to_num(first.context), torch.nan_to_num(second.context))
        assert first.target is not None and second.target is not None
        assert torch.equal(torch.nan_to_num(first.target), torch.nan_to_num(second.target))
        grouped += first.group_ids is not None
        assert first.context.shape[1] <= one.model.context_length
        assert first.target.shape[1] <= one.model.native_horizon
    assert (grouped > 0) == one.model.capabilities.multivariate


PRESETS = sorted(path.stem for path in (Path(tsprune.__file__).parent / "bundled" / "configs").glob("*.json"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_small_model_of_its_family(name: str) -> None:
    family, _, size = name.partition("-")
    config = preset(family, size)
    kind = family_of(config, None, Path(name))
    assert kind.family == family
    with torch.device("meta"):
        model = kind.from_config(config)
    assert 1e5 < model.parameter_count() < 6e6


def test_an_unknown_preset_lists_the_known() -> None:
    assert preset("chronos2", "mini") == mini_config()
    with pytest.raises(TspruneError, match="--size 'huge' is no preset of chronos2; use mini"):
        preset("chronos2", "huge")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"precision": "int8"}, "--precision"),
        ({"optimizer": "sgd"}, "--optimizer"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"averaging": 1.5}, "--averaging"),
        ({"groups": -0.1}, "--groups"),
        ({"warmup_steps": -1}, "--warmup-steps"),
        ({"steps": 10}, "exceed --steps 10"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(TspruneError, match=says):
        PretrainSettings(**change)


def test_windows_that_nobody_could_forecast_do_not_rule_a_step() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0, 2.5, 1e7], requires_grad=True)
    assert without_outliers(losses).tolist() == [1.0, 2.0, 3.0, 2.5]
    assert without_outliers(losses[:4]).tolist() == [1.0, 2.0, 3.0, 2.5]
    assert without_outliers(torch.full((3,), 2.0)).tolist() == [2.0, 2.0, 2.0]


def test_steps_whose_windows_are_all_unfit_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit(values: Any, context: int, horizon: int, farthest: float) -> tuple[torch.Tensor, ...]:
        past, target, _ = window_batch(values, context, horizon, farthest)
        return past, target, torch.zeros(len(past), dtype=torch.bool)

    model = tiny.tiny_model("chronos_bolt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr("tsprune.pretraining.window_batch", unfit)
    training = Pretraining(model, tmp_path, replace(SHORT, steps=50, checkpoint_every=50), None)
    training.run(lambda step, loss: None)
    assert training.step == 50
    assert all(torch.equal(value, before[name]) for name, value in training.model.state_dict().items())
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] is None


def test_contexts_are_long_enough_to_learn_from_where_a_value_is_a_token(tmp_path: Path) -> None:
    model = tiny.tiny_model("time_moe")
    training = Pretraining(model, tmp_path, replace(SHORT, batch=2), None)
    lengths = {training.draw(step).context.shape[1] for step in range(60)}
    assert len(lengths) > 2
    assert min(lengths) >= 16


@pytest.mark.parametrize(
    "family", [name for name in tiny.ALL_FAMILIES if tiny.tiny_model(name).capabilities.multivariate]
)
def test_families_that_relate_series_learn_from_groups_of_them(family: str, tmp_path: Path) -> None:
    model = tiny.tiny_model(family)
    training = Pretraining(model, tmp_path, replace(SHORT, groups=1.0, batch=16), None)
    batches = [training.draw(step) for step in range(6)]
    assert all(batch.group_ids is not None for batch in batches)
    known = [batch for batch in batches if batch.future is not None and not bool(batch.future.isnan().all())]
    assert bool(known) == model.capabilities.known_covariates
    assert all(np.isfinite(training.one_step()) for _ in range(6))
