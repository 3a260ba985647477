"""What two plans share, against enumeration of every random plan, and the commands that show it."""

from __future__ import annotations

import itertools
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from running import called
from tsprune.errors import TspruneError
from tsprune.plan import Plan, PlanGroup
from tsprune.plandiff import diff, expected_jaccard, jaccard
from tsprune.report.agreement import agreement_map

Groups = dict[str, tuple[int, list[int]]]


def plan(groups: Groups, **changes: Any) -> Plan:
    """A plan from `name: (units, kept)`."""
    facts: dict[str, Any] = {
        "base_model": "base",
        "base_fingerprint": "f",
        "family": "chronos2",
        "score": "fisher",
        "schedule": "one shot",
        "data_fingerprint": "d",
        "seed": 0,
        "parameters": {"before": 1000, "after": 600},
        "flops": {"before": 10, "after": 6},
    }
    made = {name: PlanGroup(name.rsplit("/", 1)[1], units, tuple(kept)) for name, (units, kept) in groups.items()}
    return Plan(**(facts | changes), groups=made)


def enumerated(pools: list[tuple[int, int, int]]) -> Fraction | None:
    """The mean Jaccard index over every pair of plans with these sizes; the first may be fixed by symmetry."""
    first = {(place, unit) for place, (_, a, _) in enumerate(pools) for unit in range(a)}
    choices = [itertools.combinations(range(units), b) for units, _, b in pools]
    total, count = Fraction(0), 0
    for drawn in itertools.product(*(list(choice) for choice in choices)):
        second = {(place, unit) for place, units in enumerate(drawn) for unit in units}
        if not first | second:
            return None
        total += Fraction(len(first & second), len(first | second))
        count += 1
    return total / count


def pool() -> st.SearchStrategy[tuple[int, int, int]]:
    return st.integers(1, 5).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n)))


@settings(max_examples=80, deadline=None)
@given(pools=st.lists(pool(), min_size=1, max_size=3))
def test_when_plans_are_random_then_the_expected_index_is_the_mean_over_all_of_them(
    pools: list[tuple[int, int, int]],
) -> None:
    wanted, found = enumerated(pools), expected_jaccard(pools)
    if wanted is None:
        assert found is None
    else:
        assert found == pytest.approx(float(wanted), rel=1e-9, abs=1e-12)


def test_when_groups_are_large_then_the_expected_index_is_near_the_ratio_of_the_means() -> None:
    # For many units the intersection concentrates at a * b / n.
    pools = [(4096, 2048, 1024)] * 40
    both = 40 * 2048 * 1024 / 4096
    assert expected_jaccard(pools) == pytest.approx(both / (40 * (2048 + 1024) - both), rel=1e-3)


def test_when_a_set_is_empty_then_the_index_is_zero_and_without_any_unit_it_is_none() -> None:
    assert jaccard(0, 0, 3) == 0.0
    assert jaccard(0, 0, 0) is None
    assert expected_jaccard([(4, 0, 2)]) == 0.0
    assert expected_jaccard([(4, 0, 0)]) is None


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Groups, Groups]:
    names = ["enc.0/head", "enc.0.ff/ffn_channel", "enc.1/head", "enc.1.ff/ffn_channel"]
    made: tuple[Groups, Groups] = ({}, {})
    for name in names:
        units = draw(st.integers(1, 6))
        for groups in made:
            groups[name] = (units, sorted(draw(st.sets(st.integers(0, units - 1)))))
    return made


@settings(max_examples=80, deadline=None)
@given(pair=pairs())
def test_when_two_plans_are_compared_then_every_index_is_that_of_the_sets(pair: tuple[Groups, Groups]) -> None:
    found = diff(plan(pair[0]), plan(pair[1]))

    def sets(names: list[str], gone: bool) -> tuple[set[Any], set[Any]]:
        both = []
        for groups in pair:
            there = {(name, unit) for name in names for unit in groups[name][1]}
            everything = {(name, unit) for name in names for unit in range(groups[name][0])}
            both.append(everything - there if gone else there)
        return both[0], both[1]

    asked = {name: [name] for name in pair[0]} | {
        kind: [name for name in pair[0] if name.endswith(kind)] for kind in ("head", "ffn_channel")
    }
    for name, names in (asked | {"all": list(pair[0])}).items():
        entry = found.all if name == "all" else {**found.groups, **found.kinds}[name]
        assert entry is not None
        for gone, index in ((False, entry.kept), (True, entry.removed)):
            a, b = sets(names, gone)
            assert index == (len(a & b) / len(a | b) if a | b else None)
        chance = expected_jaccard([(n, len(k), len(pair[1][g][1])) for g, (n, k) in pair[0].items() if g in names])
        assert entry.kept_by_chance_in_groups == chance
    turned = diff(plan(pair[1]), plan(pair[0]))
    assert {name: entry.kept for name, entry in turned.groups.items()} == {
        name: entry.kept for name, entry in found.groups.items()
    }


def test_when_a_plan_is_compared_with_itself_then_all_is_shared_and_chance_is_below() -> None:
    one = plan({"a.0/head": (6, [0, 2]), "a.1/head": (6, [1, 2, 3])})
    found = diff(one, one)
    assert found.all is not None and found.notes == ()
    assert (found.all.kept, found.all.removed, found.all.both) == (1.0, 1.0, 5)
    # Chance is coarser over the kind than with the sizes of every group, which it must respect, and both are below 1.
    assert found.all.kept_by_chance == pytest.approx(float(enumerated([(12, 5, 5)]) or 0))
    assert found.all.kept_by_chance_in_groups == pytest.approx(float(enumerated([(6, 2, 2), (6, 3, 3)]) or 0))


def test_when_only_one_plan_names_a_group_then_it_is_whole_in_the_other_and_that_is_said() -> None:
    found = diff(plan({"a.0/head": (4, [0])}), plan({"a.0/head": (4, [0]), "a.0.ff/ffn_channel": (8, [0, 1])}))
    assert found.groups["a.0.ff/ffn_channel"].first == 8
    assert found.groups["a.0.ff/ffn_channel"].kept == 2 / 8
    assert "1 groups are not named in the first plan" in found.notes[0]


def test_when_a_layer_is_gone_then_so_are_the_units_inside_but_not_those_of_a_namesake() -> None:
    groups: Groups = {"a.1/layer": (1, [0]), "a.1.self/head": (4, [0, 1]), "a.10.self/head": (4, [2])}
    found = diff(plan(groups), plan(groups | {"a.1/layer": (1, [])}))
    assert (found.groups["a.1.self/head"].first, found.groups["a.1.self/head"].second) == (2, 0)
    assert found.groups["a.10.self/head"].kept == 1.0


def test_when_the_models_differ_then_the_groups_are_named() -> None:
    one = plan({"a.0/head": (4, [0]), "a.1/head": (4, [0])})
    with pytest.raises(TspruneError, match="different families, chronos2 .* and chronos_bolt"):
        diff(one, plan({}, family="chronos_bolt"))
    with pytest.raises(TspruneError, match=r"1 of their groups do not match: a.1/head \(head, 4 units, in the other 6"):
        diff(one, plan({"a.0/head": (4, [0]), "a.1/head": (6, [0])}))
    other = plan({"a.0/head": (4, [0])}, parameters={"before": 500, "after": 300}, base_model="small")
    with pytest.raises(TspruneError, match=r"small: 500.*a.1/head \(in one plan only\)"):
        diff(one, other)
    assert diff(one, plan({name: (4, [1]) for name in one.groups}, base_fingerprint="g")).notes == (
        "the plans are for other weights: base and base",
    )


def test_when_plans_are_arranged_by_layer_then_every_cell_has_its_own_counts() -> None:
    one = plan({"a.0.self/head": (4, [0, 1]), "a.0.ff/ffn_channel": (8, [0]), "a.1.self/head": (4, [])})
    other = plan({"a.0.self/head": (4, [1, 2]), "a.0.ff/ffn_channel": (8, []), "a.1.self/head": (4, [])})
    found = diff(one, other)
    facts = [json.loads(entry.to_json()) for entry in found.plans]
    arranged = agreement_map((facts[0], facts[1]))
    assert arranged.layers == ("a.0", "a.1")
    cells = {
        (layer, column): c
        for layer, row in zip(arranged.layers, arranged.cells, strict=True)
        for column, c in row.items()
    }
    assert {(layer, c.units, c.first, c.second, c.both, c.jaccard) for (layer, _), c in cells.items()} == {
        ("a.0", 4, 2, 2, 1, 1 / 3),
        ("a.0", 8, 1, 0, 0, 0.0),
        ("a.1", 4, 0, 0, 0, None),
    }


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two plans: a.json, and one in a directory."""
    monkeypatch.chdir(tmp_path)
    plan({"a.0/head": (4, [0, 1]), "a.1/head": (4, [0])}).write("a.json")
    Path("run").mkdir()
    plan({"a.0/head": (4, [1, 2]), "a.1/head": (4, [0])}, score="<b>taylor</b>").write("run/plan.json")
    return tmp_path


def test_when_diff_is_called_then_numbers_are_printed_and_written(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = called(["plan", "diff", "a.json", "run", "--out", "diff.json"], capsys)
    assert (code, err) == (0, "")
    entry = diff(Plan.read("a.json"), Plan.read("run/plan.json")).to_dict()
    assert json.loads(Path("diff.json").read_text()) == entry
    heads = next(line for line in out.splitlines() if line.startswith("heads"))
    chance = [f"({entry['kinds']['head'][f'{what}_by_chance']:.2f})" for what in ("kept", "removed")]
    assert heads.split() == ["heads", "8", "3", "3", "2", "0.50", chance[0], "0.67", chance[1]]
    assert re.search(r"^a\.0 +2 2 \| 1 0\.33$", out, re.M)
    code, out, _ = called(["plan", "diff", "a.json", "run", "--out", "diff.html"], capsys)
    assert code == 0
    page = Path("diff.html").read_text()
    assert "&lt;b&gt;taylor" in page and "<b>taylor" not in page and "2 2 | 1 0.33" in page


def test_when_show_is_called_then_the_plan_is_summed_up(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(["plan", "show", "run"], capsys)
    assert code == 0
    assert "1,000 -> 600 parameters (60%)" in out and "heads: 3 of 8 kept" in out
    assert re.search(r"^a\.1 +1/4$", out, re.M)


def test_when_no_plan_command_is_given_then_help_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(["plan"], capsys)
    assert code == 0 and "diff" in out and "show" in out


WRONG = {
    "nothing": (["plan", "diff"], "FIRST is missing"),
    "only one": (["plan", "diff", "a.json"], "SECOND is missing"),
    "no file": (["plan", "diff", "a.json", "b.json"], "SECOND b.json: no such file"),
    "no plan inside": (["plan", "show", "empty"], "PLAN empty: the directory has no plan.json"),
    "no plan": (["plan", "show", "broken.json"], "PLAN broken.json: not valid JSON"),
    "other ending": (["plan", "diff", "a.json", "run", "--out", "x.txt"], "--out x.txt ends in '.txt'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_when_a_plan_cannot_be_had_then_one_line_says_so(
    name: str, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("broken.json").write_text("{")
    arguments, says = WRONG[name]
    code, out, err = called(arguments, capsys)
    assert (code, out) == (2, "")
    assert says in err and len(err.splitlines()) == 1
