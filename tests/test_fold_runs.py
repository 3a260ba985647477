"""`--fold` on its way through the commands: what is written, said, resumed and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tsprune
import tsprune.folding
import tsprune.progress
from running import FAST, SMALL, called, fill, no_figures, wide
from tsprune.errors import TspruneError
from tsprune.foldwork import notes_of
from tsprune.models import fingerprint, load
from tsprune.plan import Plan, PlanGroup
from tsprune.specializing import kept_model

PRUNE = [
    "prune", "--data", "wide.csv", "--horizon", "8", "--rounds", "2", "--prune-windows", "16", "--adapt-steps", "0",
    "--validation-windows", "16",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("folding"))


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_prune_folds_what_it_cut_and_the_plan_counts_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*PRUNE, "--model", "chronos2", "--out", "cut"]
    assert called(arguments, capsys)[0] == 0
    before, plain = Plan.read("cut/plan.json"), load("cut/model")
    code, out, err = called([*arguments, "--fold"], capsys)
    assert code == 0
    model, plan, facts = load("cut/model"), Plan.read("cut/plan.json"), content(here / "cut" / "folding.json")
    # This pruning takes so many heads of the second that its product is smaller than one map.
    paths = [f"encoder.block.{layer}.layer.1.self_attention" for layer in (0, 1)]
    assert [(entry["path"], entry["form"]) for entry in facts["places"]] == [
        (paths[0], "one map"), (paths[1], "two thin maps"),
    ]  # fmt: skip
    assert list(model.folded) == paths[:1]
    assert plan.folded == Plan.read("cut/model/plan.json").folded == tuple(model.folded)
    gone = {f"{paths[1]}/qk_pair": PlanGroup("qk_pair", 18, ())}
    assert plan.groups == before.groups | gone
    assert not model.unit_groups().keys() & gone.keys()
    assert facts["before"] == before.parameters["after"] == plain.parameter_count()
    assert facts["after"] == plan.parameters["after"] == model.parameter_count() < plain.parameter_count()
    assert plan.flops["after"] == facts["flops"]["after"] < facts["flops"]["before"] == before.flops["after"]
    assert facts["equivalence"]["relative_float64"] <= 1e-12
    assert "note: --fold: 1 attention of one live key became one linear map and 1 attention" in err
    assert f"-> {facts['after']:,} parameters" in out
    assert "parameters (" in called(["plan", "show", "cut"], capsys)[1].split("1 attention folded")[0]
    # A series more is what the folded map cannot know of.
    code, _, err = called(["evaluate", "--model", "cut/model", "--data", "wide.csv", "--together"], capsys)
    assert code
    assert "folded for single series" in err
    # The plan cuts another model, which is folded where that is asked for.
    transfer = ["prune", "--model", "chronos2", "--data", "wide.csv", "--horizon", "8", "--plan", "cut", "--out", "to"]
    assert called([*transfer, "--prune-windows", "16"], capsys)[0] == 0
    assert not load("to/model").folded
    assert Plan.read("to/plan.json").folded == ()
    # The same directory without the option holds nothing of it any more.
    assert called(arguments, capsys)[0] == 0
    assert not (here / "cut" / "folding.json").exists()
    assert fingerprint(load("cut/model")) == fingerprint(plain)


@pytest.mark.parametrize(
    ("model", "more", "says"),
    [("chronos2", ["--together"], "several series"), ("twice", [], "were folded before")],
)
def test_prune_says_where_nothing_can_be_folded(
    model: str, more: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if model == "twice":
        whole = tsprune.load("chronos_bolt")
        tsprune.save(tsprune.folding.fold(whole, single_series=True)[0], model)
    code, _, err = called([*PRUNE, "--model", model, "--out", f"left-{model}", "--fold", *more], capsys)
    assert code == 0
    assert "note: --fold: nothing was folded" in err
    assert says in err
    assert content(here / f"left-{model}" / "folding.json")["why"]


def test_a_run_folds_what_it_compares_and_takes_the_same_tunings(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["specialize", *FAST, "--data", "wide.csv", "--model", "chronos_bolt", "--out", "run"]
    with no_figures():
        assert called(arguments, capsys)[0] == 0
        plain, stages = content(here / "run" / "results.json"), set((here / "run" / "stages").iterdir())
        code, _, err = called([*arguments, "--fold"], capsys)
    assert code == 0
    results, after = content(here / "run" / "results.json"), set((here / "run" / "stages").iterdir())
    assert "folding" not in plain
    assert {path.name.rsplit("-", 1)[0] for path in after - stages} == {
        "fold-full-finetuning", "fold-random-prune-finetune", "fold-prune-then-finetune", "validate", "test",
    }  # fmt: skip
    tuned = {"full_finetuning", "random_prune_finetune", "prune_then_finetune"}
    assert set(results["folding"]) == tuned
    old, new = ({entry["name"]: entry for entry in found["candidates"]} for found in (plain, results))
    assert set(new) == set(old)
    for name, entry in new.items():
        assert entry["validation"]["mse"] == pytest.approx(old[name]["validation"]["mse"], rel=1e-4)
        if name not in tuned:
            assert entry["parameters"] == old[name]["parameters"]
            continue
        facts = results["folding"][name]
        assert facts["words"] in entry["notes"]
        assert entry["parameters"] == facts["after"] < facts["before"] == old[name]["parameters"]
        # Idle queries and keys, which are all that leaves thin maps, are never computed.
        fewer = any(place["form"] == "one map" for place in facts["places"])
        assert entry["flops"] < old[name]["flops"] if fewer else entry["flops"] == old[name]["flops"]
        assert facts["equivalence"]["relative_float64"] <= 1e-12
    plan = Plan.read(here / "run" / "plan.json")
    folded = next(path.name for path in after if path.name.startswith("fold-prune"))
    assert plan.parameters["after"] == results["folding"]["prune_then_finetune"]["after"]
    assert plan.folded == Plan.read(here / "run" / "stages" / folded / "model" / "plan.json").folded
    # A baseline may win over tiny models, and the untuned one over the tuned: then it is handed back as it came.
    best = kept_model(results["chosen"], {name: {"metrics": entry["validation"]} for name, entry in new.items()})
    kept, listed = load(here / "run" / "model"), results["folding"].get(best, {"places": []})["places"]
    assert kept.parameter_count() == new[best]["parameters"]
    assert list(kept.folded) == [place["path"] for place in listed if place["form"] == "one map"]
    assert ("note: --fold: the untuned model is handed back as it came" in err) == (best == "zero_shot")


def test_joint_series_are_not_folded_and_the_setting_is_one_of_python_too(place: Path) -> None:
    lines: list[str] = []
    settings = SMALL | {"model": str(place / "chronos2"), "out": place / "joint", "together": True, "fold": True}
    with no_figures():
        done = tsprune.specialize(settings.pop("model"), wide(), progress=_Listening(lines), **settings)
    assert "folding" not in done.results
    assert not done.model.folded
    assert sum("nothing was folded" in line for line in lines) == 3


class _Listening(tsprune.progress.Progress):
    """Keeps what is said."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(quiet=True)
        self.lines = lines

    def say(self, line: str) -> None:
        """One line."""
        self.lines.append(line)


def test_rounding_and_refusals_are_noted() -> None:
    place = {"path": "a", "form": "one map", "across": True}
    facts = {"words": "said", "why": "", "equivalence": {"relative": 2e-4}, "places": [place]}
    assert notes_of(facts) == [
        "said",
        "rounding of the folded weights moves forecasts by 2.0e-04 of their spread",
        "folded for single series: refuses --together and covariates",
    ]
    facts |= {"equivalence": {"relative": 1e-6}, "places": [place | {"across": False}]}
    assert notes_of(facts) == ["said"]


def test_predicting_refuses_groups_aloud(here: Path) -> None:
    folded = tsprune.folding.fold(tsprune.load("chronos2"), single_series=True)[0]
    table = pd.read_csv("wide.csv")
    assert len(tsprune.predict(folded, table, horizon=4))
    with pytest.raises(TspruneError, match="folded for single series"):
        tsprune.predict(folded, table, horizon=4, together=True)
