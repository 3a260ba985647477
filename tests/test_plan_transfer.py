"""A plan found on one set of series or one model, applied to another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
import tsprune
from running import called, wide
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.plan import Plan, PlanGroup
from tsprune.preparing import prepare
from tsprune.repair import repair
from tsprune.settings import PruneSettings, TaskSettings
from tsprune.slimming import make_plan, slim
from tsprune.stages import read_json
from tsprune.transfer import check_fit, unused

TASK = ["--horizon", "8", "--validation-windows", "16", "--prune-windows", "16"]
HERE = ["--data", "wide.csv", "--model", "chronos2"]


@pytest.fixture
def found(place: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """`found.json`: a plan for chronos2, and `other/`, a model of the same shape with other weights."""
    tsprune.save(tiny.tiny_model("chronos2", seed=5), "other")
    model = tsprune.load("chronos2")
    kept = {name: list(range(1, group.units, 2)) for name, group in model.unit_groups().items() if group.units > 1}
    heads = {name: units for name, units in kept.items() if name.endswith(("/head", "/ffn_channel"))}
    made = make_plan(
        model, heads, base_model="chronos2", base_fingerprint=tsprune.models.fingerprint(model), score="taylor",
        schedule="by hand", data_fingerprint="elsewhere",
    )  # fmt: skip
    made.write("found.json")
    wide(length=260, seed=3).to_csv("other.csv", index=False)
    return place


def same(a: Forecaster, b: Forecaster) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_when_a_plan_is_applied_to_another_model_and_other_series_then_it_is_cut_as_the_plan_says(
    found: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prune", *TASK, "--data", "other.csv", "--model", "other", "--plan", "found.json", "--no-repair"]
    code, out, err = called(arguments, capsys)
    assert code == 0
    before, after = Plan.read("found.json"), Plan.read("pruned/plan.json")
    assert after.kept == before.kept
    assert (after.base_model, after.score) == ("other", "taylor")
    assert after.schedule == "transferred from a plan for chronos2 (by hand)"
    assert same(tsprune.load("pruned/model"), slim(tsprune.load("other"), before))
    assert read_json(Path("pruned/equivalence.json"))["relative_float64"] < 1e-9
    assert f"{after.parameters['after']:,} parameters" in out
    assert "the plan was made for chronos2, with other weights than other" in err
    assert "found on other series" in err


def test_when_repair_is_on_then_what_stays_is_refitted_on_the_series_here(
    found: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = called(["prune", *TASK, *HERE, "--plan", "found.json"], capsys)
    assert code == 0
    assert "other weights" not in err
    plan = Plan.read("found.json")
    ready = prepare(TaskSettings(data="wide.csv", model="chronos2", horizon=8, validation_windows=16))
    wanted = slim(repair(ready.model, plan.kept, ready.macro_batch(0, 16)), plan)
    assert same(tsprune.load("pruned/model"), wanted)
    assert not same(tsprune.load("pruned/model"), slim(ready.model, plan))
    assert Plan.read("pruned/plan.json").schedule.endswith(", repaired by least squares")


def test_when_a_directory_is_named_then_its_plan_is_taken(found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("found.json").rename("run/plan.json")
    code, _, _ = called(["prune", *TASK, *HERE, "--plan", "run", "--out", "again"], capsys)
    assert code == 0
    assert Plan.read("again/plan.json").kept == Plan.read("run/plan.json").kept


def test_when_a_round_setting_comes_with_a_plan_then_it_is_said_to_be_without_effect(
    found: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = called(["prune", *TASK, *HERE, "--plan", "found.json", "--rounds", "3"], capsys)
    assert code == 0
    assert "note: the plan decides which units go; without effect: --rounds" in err


def test_when_options_are_sorted_then_only_those_about_choosing_units_are_void() -> None:
    assert unused(["data", "repair", "prune_windows", "score", "units", "out"]) == ["--score", "--units"]
    assert {"ratio", "rounds", "tolerance"} <= set(PruneSettings.__dataclass_fields__)


def _edit(path: Path, **changes: object) -> None:
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | changes))


WRONG = {
    "with scores": (["--scores", "s.json"], "--plan says which units stay, and so does --scores"),
    "with keep": (["--keep", "0.5"], "--plan says which units stay, and so does --keep"),
    "no file": (["--plan", "none.json"], "--plan none.json: no such file"),
    "no plan": (["--plan", "wide.csv"], "--plan wide.csv: not valid JSON"),
    "other family": (["--model", "chronos_bolt"], "is for a model of the family chronos2"),
    "other size": (["--model", "larger"], "does not fit, "),
    "slim already": (["--model", "slim"], "units, the model has"),
}


@pytest.mark.parametrize("name", WRONG)
def test_when_a_plan_does_not_fit_then_one_line_says_why_and_nothing_is_written(
    name: str, found: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tsprune.save(tiny.tiny_model("chronos2", num_heads=4), "larger")
    tsprune.save(slim(tsprune.load("chronos2"), Plan.read("found.json")), "slim")
    more, says = WRONG[name]
    code, out, err = called(["prune", *TASK, *HERE, "--plan", "found.json", *more], capsys)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, len(errors)) == (2, "", 1)
    assert says in errors[0]
    assert not Path("pruned").exists()


def test_when_a_plan_leaves_fewer_units_than_a_group_needs_then_it_is_refused_by_name(
    found: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tsprune.load("chronos2")
    plan = Plan.read("found.json")
    name = next(iter(plan.groups))
    groups = model.unit_groups()
    strict = groups | {name: replace(groups[name], floor=2)}
    monkeypatch.setattr(type(model), "unit_groups", lambda self: strict)
    with pytest.raises(TspruneError, match=r"fewer units than they need: .*keeps 1, needs 2"):
        check_fit(plan, model, Path("found.json"))
    # Where the layer around it goes as a whole, nothing of it is needed.
    layer = next(entry for entry in groups if entry.endswith("/layer") and name.startswith(entry[:-6] + "."))
    gone = replace(plan, groups=dict(plan.groups) | {layer: PlanGroup("layer", 1, ())})
    check_fit(gone, model, Path("found.json"))


def test_when_a_plan_takes_all_heads_of_a_decoders_cross_attentions_then_it_is_refused(found: Path) -> None:
    model = tsprune.load("chronos_bolt")
    sets = model.essential()
    assert sets
    names = [name for name in model.unit_groups() if name.endswith("/head") and name[:-5] in sets[0]]
    whole = {name: list(range(model.unit_groups()[name].units)) for name in names}
    check_fit(make_plan(model, whole | {names[0]: []}, base_model="bolt"), model, Path("p.json"))
    with pytest.raises(TspruneError, match=r"--plan p.json takes every head .* keep one"):
        check_fit(make_plan(model, dict.fromkeys(names, ()), base_model="bolt"), model, Path("p.json"))
