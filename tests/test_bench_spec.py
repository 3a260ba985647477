"""Grids from YAML: what is read, what is refused and how it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tables import Write
from tsprune.bench.recipes._recipe import everything
from tsprune.bench.spec import SETTINGS, Spec, of, read
from tsprune.errors import TspruneError

SMALL: dict[str, Any] = {"models": ["mini"], "data": ["ETTh1"], "folder": "there"}


def spec(**changes: Any) -> Spec:
    return of(SMALL | changes)


def test_everything_that_may_be_said(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "models": ["mini", {"name": "other", "path": "mini-moe", "steps": 7, "context": 64}],
                "data": [
                    "ETTh1",
                    {"name": "ETTm1", "protocol": {"stride": 5}, "validation-windows": 9},
                ],
                "horizons": [24, 48],
                "candidates": ["prune-then-finetune", "full_finetuning", "patchtst_scratch"],
                "baselines": "drift",
                "seeds": [3, 4],
                "shares": [0.5, 1],
                "scratch": {"context": 96, "steps": 10, "small": True},
                "steps": 5,
                "settings": {"context": 128},
                "latency": False,
            }
        )
    )
    found = read(path, "folder")
    assert (found.name, found.folder, found.latency) == ("long", "folder", False)
    assert found.candidates == ("full_finetuning", "patchtst_scratch", "prune_then_finetune")
    assert (found.tuned(), found.fresh()) == (("full_finetuning", "prune_then_finetune"), ("patchtst_scratch",))
    first, second = found.models
    assert (first.name, first.path, second.name, second.path) == ("mini", "mini", "other", "mini-moe")
    # What stands nearer wins: data over model over grid.
    task, _, tuning = found.sections(second, found.data[1])
    assert (task.context, task.validation_windows, task.threads, tuning.steps) == (64, 9, 1, 7)
    task, _, tuning = found.sections(first, found.data[0])
    assert (task.context, task.validation_windows, tuning.steps) == (128, 512, 5)
    assert found.protocol_of(found.data[1], 48).to_json()["stride"] == 5
    assert of(found.to_json()) == found


def test_jobs_cover_the_grid_and_nothing_twice() -> None:
    grid = spec(
        models=["mini", "mini-moe"], data=["ETTh1", "ETTh2"], horizons=[24, 48], seeds=[0, 1, 2], shares=[0.5, 1.0],
        candidates=["full_finetuning", "prune_then_finetune", "patchtst_scratch"],
    )  # fmt: skip
    jobs = everything(grid, lambda job, name: None)
    assert len({repr(job) for job in jobs}) == len(jobs)
    kinds = [job.kind for job in jobs]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"baselines": 8, "tuned": 48, "scratch": 24}
    assert all(job.wanted[0] == "zero_shot" for job in jobs if job.kind == "tuned")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": None}, "models is missing"),
        ({"models": []}, "models is empty"),
        ({"data": []}, "data is empty"),
        ({"modles": ["mini"]}, "did you mean 'models'"),
        ({"stepps": 5}, "did you mean 'steps'"),
        ({"models": [{"name": "mini", "stepps": 5}]}, "did you mean 'models.steps'"),
        ({"models": [{"steps": 5}]}, "neither name nor path"),
        ({"models": ["mini", "mini"]}, "holds 'mini' twice"),
        ({"data": [3]}, "expected a name or lines"),
        ({"data": ["ETTh9"]}, "does not know the data set 'ETTh9'"),
        ({"data": [{"name": "ETTh1", "read": 3}]}, "read of data 'ETTh1'"),
        ({"data": [{"name": "x", "file": "x.csv", "read": {"seasn": 3}}], "protocol": "panel"}, "read.season"),
        ({"folder": ""}, "no file and the grid no folder"),
        ({"horizons": [9.5]}, "horizons holds 9.5"),
        ({"horizons": [-3]}, "at least 1"),
        ({"seeds": [True]}, "seeds holds True"),
        ({"seeds": [-1]}, "must not be negative"),
        ({"seeds": [1, 1]}, "seeds holds 1 twice"),
        ({"shares": [0]}, "above 0 and at most at 1"),
        ({"shares": [1.5]}, "above 0 and at most at 1"),
        ({"candidates": ["full_finetuning"]}, "prune_then_finetune is missing"),
        ({"candidates": ["nonsense", "prune_then_finetune"]}, "'nonsense' is not among the candidates"),
        ({"baselines": ["nonsense"]}, "'nonsense' is not among the baselines"),
        ({"recipe": "nonsense"}, "'nonsense' is not among the recipes"),
        ({"protocol": "nonsense"}, "'nonsense' is not among the protocols"),
        ({"protocol_settings": {"strides": 3}}, "has no setting 'strides'"),
        ({"protocol_settings": 3}, "protocol_settings is 3"),
        ({"reference": "lora"}, "reference 'lora' is neither"),
        ({"steps": "many"}, "--steps is 'many'"),
        ({"steps": 0}, "--steps 0 must be at least 1"),
        ({"scratch": {"epochs": 3}}, "unknown key 'scratch.epochs'"),
        ({"scratch": {"steps": -3}}, "scratch.steps is -3"),
        ({"scratch": {"small": 3}}, "scratch.small is 3"),
        ({"latency": "yes please"}, "latency is 'yes please'"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TspruneError) as caught:
        spec(**changes)
    assert says in str(caught.value)


def test_faults_of_the_file_name_it(write: Write, tmp_path: Path) -> None:
    faults = {"models: [": "not valid YAML", "- a\n- b": "expected lines", "steps: 1\nsteps: 2": "twice"}
    for text, says in faults.items():
        path = write(text, "grid.yaml")
        with pytest.raises(TspruneError, match=says) as caught:
            read(path)
        assert str(path) in str(caught.value)
    with pytest.raises(TspruneError, match="nowhere.yaml: cannot be read"):
        read(tmp_path / "nowhere.yaml")


@given(st.lists(st.sampled_from([name for name in SETTINGS if name != "loss"]), unique=True, max_size=4))
def test_every_setting_may_stand_at_the_top(names: list[str]) -> None:
    from dataclasses import fields

    from tsprune.bench.spec import SECTIONS

    defaults = {entry.name: entry.default for section in SECTIONS for entry in fields(section)}
    values = {name: defaults[name] for name in names if defaults[name] not in ((), None, "")}
    found = spec(**values)
    assert set(found.settings) == set(values)
    made = found.sections(found.models[0], found.data[0])
    assert all(getattr(part, name) == value for name, value in values.items() for part in made if hasattr(part, name))
