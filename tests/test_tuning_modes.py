"""What trains in each mode, dropout, and that a mode is early-stopped, resumable and as expensive as the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from tests.sines import VALIDATION, Counted, Killed, Sines, dying, same, weights
from tests.tiny import FAMILIES, tiny_model
from tsprune.data.batch import Batch
from tsprune.dropouts import dropout_rates, set_dropout
from tsprune.errors import TspruneError
from tsprune.finetuning import Tuned, finetune
from tsprune.flags import validated
from tsprune.models._forecaster import Forecaster
from tsprune.models.chronos_bolt import ChronosBolt
from tsprune.pruning import validation_loss
from tsprune.settings import RATES, FinetuneSettings
from tsprune.slimming import slim
from tsprune.tuning_modes import trainee

every_family = pytest.mark.parametrize("family", FAMILIES)
HEAD = FinetuneSettings(
    tuning="head", steps=6, search_steps=4, learning_rates=(1e-3, 1e-2), batch=6, evaluations=3, patience=9
)


def tune(model: Forecaster, settings: FinetuneSettings, train: Any = None, **more: Any) -> Tuned:
    return finetune(model, train or Sines(), VALIDATION, settings, **more)


# ---- full


def plain_loop(model: Forecaster, steps: int, rate: float, batch: int, seed: int) -> Forecaster:
    """Full fine-tuning written out: AdamW, warm-up over a tenth, down to a tenth, clipped at 1."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    torch.manual_seed(seed)
    model.train()
    for step in range(steps):
        draw = np.random.default_rng(np.random.SeedSequence([seed, step, 11]))
        picked = np.sort(draw.choice(300, size=batch, replace=False))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / max(1, steps // 10), 1 - 0.9 * step / steps)
        optimizer.zero_grad()
        model.loss(Sines().batch(picked)).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@every_family
def test_when_everything_trains_without_a_teacher_then_it_is_bit_equal_to_the_plain_loop(family: str) -> None:
    model = tiny_model(family, seed=1, dropout_rate=0.2)
    settings = FinetuneSettings(
        steps=5, search_steps=0, learning_rates=(4e-3,), batch=8, evaluations=1, averaging=0.0, distill=0.0
    )
    tuned = tune(model, settings, seed=3)
    expected = plain_loop(tiny_model(family, seed=1, dropout_rate=0.2), 5, 4e-3, 8, 3)
    assert tuned.best.best_step == 5
    assert same(weights(tuned.model), weights(expected))


# ---- head


@every_family
def test_when_the_head_trains_then_every_other_tensor_stays_bit_equal(family: str) -> None:
    model = tiny_model(family, seed=1, dropout_rate=0.1)
    tuned = tune(model, HEAD)
    before, after = weights(model), weights(tuned.model)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert tuned.best.best_step > 0
    assert changed == {name for name in before if name.startswith("output_patch_embedding.")}
    assert tuned.best.validation_loss == validation_loss(tuned.model, VALIDATION) < validation_loss(model, VALIDATION)
    # What comes back is an ordinary model: it can be trained whole.
    assert all(p.requires_grad for p in tuned.model.parameters())
    assert dropout_rates(tuned.model) == dropout_rates(model)


def test_when_only_the_head_trains_then_nothing_else_gets_a_gradient() -> None:
    subject = trainee(tiny_model("chronos2"), HEAD)
    subject.network.loss(VALIDATION[0]).mean().backward()
    found = {name for name, p in subject.network.named_parameters() if p.grad is not None}
    assert found == set(subject.tensors())
    assert len(subject.parameters()) == 6


def test_when_a_rate_is_absurd_then_head_mode_gives_the_model_back_as_it_came() -> None:
    model = tiny_model("chronos2", seed=1)
    tuned = tune(model, replace(HEAD, learning_rates=(50.0, 80.0)))
    assert tuned.best.best_step == 0
    assert same(weights(tuned.model), weights(model))


@pytest.mark.parametrize("at", range(1, 8))
def test_when_head_mode_is_killed_at_a_validation_then_it_continues_to_bit_equal_weights(
    at: int, tmp_path: Path
) -> None:
    model = tiny_model("chronos2", dropout_rate=0.2)
    expected = tune(model, HEAD, seed=1)
    with pytest.raises(Killed):
        tune(model, HEAD, seed=1, directory=tmp_path, report=dying(at))
    torch.manual_seed(99 + at)
    found = tune(model, HEAD, seed=1, directory=tmp_path)
    assert same(weights(found.model), weights(expected.model))
    assert found.trials == expected.trials


@pytest.mark.parametrize("at", [2, 6, 11])
def test_when_head_mode_is_killed_between_validations_then_it_ends_the_same(at: int, tmp_path: Path) -> None:
    model = tiny_model("chronos_bolt", dropout_rate=0.2)
    expected = tune(model, HEAD, seed=1)
    with pytest.raises(Killed):
        tune(model, HEAD, Counted(at), seed=1, directory=tmp_path)
    found = tune(model, HEAD, seed=1, directory=tmp_path)
    assert same(weights(found.model), weights(expected.model))


def test_when_the_head_trains_then_checkpoints_hold_the_head_alone(tmp_path: Path) -> None:
    model = tiny_model("chronos2")
    tune(model, HEAD, directory=tmp_path)
    own = {name: tuple(p.shape) for name, p in model.named_parameters() if name.startswith("output_patch_embedding.")}
    path = next(tmp_path.glob("full-*.safetensors"))
    with safe_open(path, framework="pt") as file:
        names = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert {name: shape for name, shape in names.items() if name.startswith("extra.mean.")} == {
        f"extra.mean.{name}": shape for name, shape in own.items()
    }
    assert [shape for name, shape in names.items() if name.startswith("model.")] == list(own.values())


def test_when_the_mode_differs_then_a_checkpoint_is_not_continued(tmp_path: Path) -> None:
    model = tiny_model("chronos2")
    tune(model, HEAD, directory=tmp_path)
    full = replace(HEAD, tuning="full")
    found, expected = tune(model, full, directory=tmp_path), tune(model, full)
    assert same(weights(found.model), weights(expected.model))


class Headless(ChronosBolt):
    head_paths = ()


def test_when_a_family_names_no_head_then_head_mode_is_refused() -> None:
    model = Headless(tiny_model("chronos_bolt").config)
    with pytest.raises(TspruneError, match=r"--tuning head: family chronos_bolt .* use --tuning full or lora"):
        tune(model, HEAD)


@every_family
def test_when_a_family_names_its_head_then_it_is_the_last_module_before_the_forecast(family: str) -> None:
    model = tiny_model(family)
    (path,) = model.head_paths
    heard: list[torch.Size] = []
    model.get_submodule(path).register_forward_hook(lambda _, __, out: heard.append(out.shape))
    model.loss(VALIDATION[0])
    assert heard[0][-1] % len(model.levels) == 0


# ---- channels that were zeroed in place


def test_when_channels_were_pruned_by_zeroing_then_tuning_keeps_them_zero() -> None:
    model = tiny_model("chronos2", seed=1)
    layer: Any = model.get_submodule("output_patch_embedding.output_layer")
    layer.dead = {"in_channel": (1, 4), "out_channel": (0, 7)}
    with torch.no_grad():
        layer.weight[[0, 7]] = 0
        layer.weight[:, [1, 4]] = 0
        layer.bias[[0, 7]] = 0
    for tuning in ("full", "head"):
        found: Any = tune(model, replace(HEAD, tuning=tuning)).model.get_submodule(  # type: ignore[arg-type]
            "output_patch_embedding.output_layer"
        )
        assert not torch.equal(found.weight, layer.weight)
        assert not found.weight[[0, 7]].any()
        assert not found.weight[:, [1, 4]].any()
        assert not found.bias[[0, 7]].any()


# ---- dropout


def places(model: nn.Module) -> Iterator[float]:
    """Every rate, found by looking at each kind of module that drops something."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            yield module.p
        if isinstance(getattr(module, "dropout", None), float):
            yield module.dropout  # type: ignore[misc]


@every_family
def test_when_dropout_is_set_then_it_is_set_everywhere_and_the_model_keeps_its_own(family: str) -> None:
    model = tiny_model(family, dropout_rate=0.1)
    assert {*places(model)} == {0.1}
    subject = trainee(model, FinetuneSettings(dropout=0.35))
    assert {*places(subject.network)} == {0.35}
    assert len([*places(subject.network)]) == len([*places(model)]) == len(dropout_rates(model)) > 8
    tuned = subject.ordinary(subject.values())
    assert {*places(tuned)} == {*places(model)} == {0.1}
    assert {*places(trainee(model, FinetuneSettings()).network)} == {0.1}


@every_family
def test_when_dropout_is_set_then_training_is_that_of_a_model_built_with_it(family: str) -> None:
    settings = FinetuneSettings(steps=4, search_steps=0, learning_rates=(4e-3,), batch=8, evaluations=1)
    built = tune(tiny_model(family, seed=1, dropout_rate=0.3), settings)
    told = tune(tiny_model(family, seed=1, dropout_rate=0.0), replace(settings, dropout=0.3))
    without = tune(tiny_model(family, seed=1, dropout_rate=0.3), replace(settings, dropout=0.0))
    assert same(weights(built.model), weights(told.model))
    assert not same(weights(built.model), weights(without.model))


def test_when_rates_differ_by_module_then_each_gets_its_own_back() -> None:
    model = tiny_model("chronos2", dropout_rate=0.1)
    path = next(iter(dropout_rates(model)))
    own = dropout_rates(model) | {path: 0.7}
    set_dropout(model, own)
    assert dropout_rates(model) == own
    with pytest.raises(TspruneError, match=r"--dropout 1 must be 0 or more and below 1"):
        set_dropout(model, 1.0)


# ---- settings


def test_when_no_rate_is_given_then_every_mode_searches_as_many() -> None:
    assert len({len(rates) for rates in RATES.values()}) == 1
    for tuning, rates in RATES.items():
        settings = FinetuneSettings(tuning=tuning)  # type: ignore[arg-type]
        assert settings.rates == rates
        assert settings.searched_rates == 3
        assert replace(settings, learning_rates=(0.1,)).rates == (0.1,)
        assert replace(settings, learning_rates=(0.1,)).searched_rates == 0
        assert replace(settings, search_steps=0).searched_rates == 0


@every_family
def test_when_head_mode_tunes_a_slim_model_then_its_trunk_stays(family: str) -> None:
    model = tiny_model(family, seed=1)
    name = next(name for name, group in model.unit_groups().items() if group.kind == "ffn_channel")
    small = slim(model, {name: [0, 3]})
    tuned = tune(small, HEAD)
    assert tuned.model.kept == small.kept
    assert tuned.model.parameter_count() == small.parameter_count()
    assert same(
        {n: v for n, v in weights(tuned.model).items() if not n.startswith("output_patch_embedding.")},
        {n: v for n, v in weights(small).items() if not n.startswith("output_patch_embedding.")},
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tuning": "adapter"}, r"--tuning"),
        ({"dropout": 1.0}, r"--dropout 1 must be 0 or more and below 1"),
        ({"dropout": -0.1}, r"--dropout -0.1"),
        ({"distill": 1.0}, r"--distill 1 must be 0 or more and below 1; 0 is off"),
        ({"distill": -0.5}, r"--distill -0.5"),
        ({"lora_rank": 0}, r"--lora-rank 0"),
        ({"lora_alpha": 0.0}, r"--lora-alpha 0"),
        ({"learning_rates": (1e-3, -1.0)}, r"--learning-rates"),
    ],
)
def test_when_a_setting_means_nothing_then_its_flag_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(TspruneError, match=said):
        FinetuneSettings(**values)
    with pytest.raises(TspruneError, match=said):
        validated(FinetuneSettings, values)


def test_when_settings_come_as_text_then_dropout_may_be_left_open() -> None:
    assert validated(FinetuneSettings, {"tuning": "head", "dropout": "0.2"}).dropout == 0.2
    assert validated(FinetuneSettings, {}).dropout is None


def test_when_windows_have_gaps_then_head_mode_trains_all_the_same() -> None:
    class Gaps(Sines):
        def batch(self, indices: Any) -> Batch:
            found = super().batch(indices)
            context = found.context.clone()
            context[:, ::5] = torch.nan
            return Batch(context, found.target)

    assert tune(tiny_model("chronos2", seed=1), HEAD, Gaps()).best.best_step > 0
