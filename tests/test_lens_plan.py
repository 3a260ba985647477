"""From the lens to a plan, from the plan to a smaller model; and what the scores of the lens can prune."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import tsprune
from running import called
from tests.tiny import tiny_batch, tiny_model
from tsprune.lens import what_may_go
from tsprune.plan import Plan
from tsprune.scores import stable_rank
from tsprune.slimming import equivalence

TASK = ["--data", "wide.csv", "--horizon", "8", "--context", "32", "--quiet"]
LOOK = ["lens", "chronos2", *TASK, "--windows", "8", "--later", "8", "--probes", "heads_at,what_may_go"]
ROUNDS = ["--prune-windows", "8", "--validation-windows", "8", "--adapt-steps", "0", "--rounds", "2", "--keep", "0.85"]


@pytest.mark.parametrize(("source", "percent"), [("heads_at", "1"), ("what_may_go", "5")])
def test_findings_become_a_plan_and_the_plan_a_smaller_model(
    place: Path, capsys: pytest.CaptureFixture[str], source: str, percent: str
) -> None:
    code, out, err = called([*LOOK, "--write-plan", "found.json", "--plan-from", source, "--within", percent], capsys)
    assert code == 0, err
    plan, facts = Plan.read("found.json"), json.loads(Path("tsprune-lens/lens.json").read_text())
    facts = facts["probes"][source]["facts"]
    if source == "heads_at":
        gone = [tuple(head) for head in facts["removable"][percent]["together"]]
    else:
        gone = [(step["group"], step["unit"]) for step in facts["steps"][: facts["within"][percent]]]
        assert plan.parameters["after"] == facts["parameters"] - facts["steps"][facts["within"][percent] - 1]["removed"]
    assert gone and plan.score == source and f"within {percent} %" in plan.schedule and not plan.indexed
    # A group that is not named stays whole, or lies inside one that goes.
    assert all(unit not in plan.kept[name] for name, unit in gone if name in plan.kept)
    assert plan.flops["after"] < plan.flops["before"] and plan.parameters["after"] < plan.parameters["before"]
    assert (
        "plan: found.json" in out
        and "tsprune prune --model chronos2 --data wide.csv --horizon 8 --plan found.json" in out
    )

    code, out, err = called(["plan", "show", "found.json"], capsys)
    assert code == 0 and f"score {source}" in out
    cut = ["prune", "--model", "chronos2", *TASK, "--plan", "found.json", "--out", "cut", "--no-repair"]
    code, out, err = called(cut, capsys)
    assert code == 0, err
    whole, slim = tsprune.load("chronos2"), tsprune.load("cut/model")
    assert slim.parameter_count() == plan.parameters["after"] < whole.parameter_count()
    heads = {name: group.units for name, group in slim.unit_groups().items() if group.kind == "head"}
    if source == "heads_at":
        left = whole.unit_groups()
        assert sum(heads.values()) == sum(g.units for g in left.values() if g.kind == "head") - len(gone)
    found = equivalence(whole, slim, plan, tiny_batch(), 8)
    assert found["relative"] <= 1e-5 and found["relative_float64"] <= 1e-9
    # What was switched off one by one is what the plan takes.
    off: dict[str, list[int]] = {name: list(range(group.units)) for name, group in whole.unit_groups().items()}
    for name, unit in gone:
        off[name].remove(unit)
    with whole.masked(off):
        expected = whole.forecast(tiny_batch(), 8)
    assert torch.allclose(slim.forecast(tiny_batch(), 8), expected, rtol=1e-4, atol=1e-4)


def test_plans_that_cannot_be_are_refused_before_any_work(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tsprune.save(tiny_model("ttm"), place / "ttm")
    for arguments, says in (
        ([*LOOK, "--write-plan", "p.json", "--within", "2"], "--within 2 is not among .*: 0, 1, 5"),
        ([*LOOK[:-1], "sparsity", "--write-plan", "p.json"], "--plan-from heads_at, which --probes leaves out"),
        (["lens", "ttm", *TASK, "--write-plan", "p.json"], "--plan-from heads_at: .* use --plan-from what_may_go"),
        ([*LOOK, "--write-plan", "."], "--write-plan . is a directory"),
        ([*LOOK, "--write-plan", "p.json", "--plan-from", "send"], "--plan-from"),
    ):
        code, _, err = called(arguments, capsys)
        assert code == 2, err
        assert re.search(says, err), err
    assert not (place / "tsprune-lens").exists()


def test_where_nothing_may_go_no_plan_is_written(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(what_may_go, "MOST", 0.0)
    look = [*LOOK[:-1], "what_may_go", "--write-plan", "p.json", "--plan-from", "what_may_go"]
    code, _, err = called(look, capsys)
    assert code == 2 and "nothing may go with a loss within 1 %" in err and "no plan was written" in err
    assert not Path("p.json").exists() and Path("tsprune-lens/lens.json").exists()


# ---- pruning by the scores that the lens shows


@pytest.mark.parametrize("family", ["chronos2", "chronos_bolt"])
@pytest.mark.parametrize(
    ("score", "units", "goes"),
    [
        ("send", "attention", "attention"),
        ("send", "", "attention"),
        ("ablation", "head", "head"),
        ("ablation", "attention", "attention"),
        ("ablation", "layer", "layer"),
        ("stable_rank", "head", "head"),
        ("stable_rank", "", "head"),
    ],
)
def test_scores_of_the_lens_prune_what_they_can_rank(
    place: Path, capsys: pytest.CaptureFixture[str], family: str, score: str, units: str, goes: str
) -> None:
    named = ["--units", units] if units else []
    code, _, err = called(["prune", "--model", family, "--score", score, *named, *TASK, *ROUNDS, "--out", "p"], capsys)
    assert code == 0, err
    plan, slim = Plan.read("p/plan.json"), tsprune.load("p/model")
    groups = tsprune.load(family).unit_groups()
    gone = {groups[name].kind for name, kept in plan.kept.items() if len(kept) < groups[name].units}
    assert goes in gone
    # Only what was to go, and what lies inside of it.
    assert gone <= {"head", "attention", "qk_pair", "value_dim"} or goes == "layer"
    assert slim.parameter_count() == plan.parameters["after"] <= 0.85 * plan.parameters["before"]
    assert plan.flops["after"] < plan.flops["before"]
    assert json.loads(Path("p/equivalence.json").read_text())["relative_float64"] <= 1e-9
    model = tsprune.load(family)
    assert all(any(f"{path}/head" in slim.unit_groups() for path in paths) for paths in model.essential())


@pytest.mark.parametrize(
    ("score", "units", "able"),
    [
        ("send", "head", "attention"),
        ("send", "attention,layer", "attention"),
        ("stable_rank", "attention", "head, kv_group"),
        ("stable_rank", "layer", "head, kv_group"),
    ],
)
def test_what_a_score_cannot_rank_is_refused_by_both_flags(
    place: Path, capsys: pytest.CaptureFixture[str], score: str, units: str, able: str
) -> None:
    code, _, err = called(["prune", "--model", "chronos2", "--score", score, "--units", units, *TASK, *ROUNDS], capsys)
    assert code == 2 and "--units" in err and "--score" in err
    assert f"the score {score} has no value for units of kind" in err and f"it can score {able}" in err


def test_the_score_says_which_end_of_the_stable_ranks_goes_first(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = called(["score", "--model", "chronos2", "--score", "stable_rank", *TASK, *ROUNDS[:6]], capsys)
    assert code == 0 and "heads of low stable rank go first in" in out
    model = tsprune.load("chronos2")
    orders = stable_rank.orders(model, ("head",))
    low = {name: order.scores(low_first=place_ % 2 == 0) for place_, (name, order) in enumerate(orders.items())}
    (line,) = stable_rank.told(model, low)
    count = len(orders)
    assert f"low stable rank go first in {count - count // 2} of {count}" in line
    assert all(name.rpartition("/")[0] in line for name in list(orders)[1::2])
