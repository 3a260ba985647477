"""Every guard finds the leak that was planted, and is silent about data as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
import tsprune
from running import called, wide
from tsprune.data.batch import Batch
from tsprune.data.panel import Panel, Series
from tsprune.data.scaling import Scaler
from tsprune.data.split import Split
from tsprune.data.windows import WindowSet
from tsprune.errors import TspruneError
from tsprune.evaluation.giveaways import find_giveaways
from tsprune.evaluation.leakage import Finding, check, check_data, refuse_own
from tsprune.preparing import prepare
from tsprune.settings import TaskSettings

GUARDS = ["scaler", "windows", "copies", "covariates", "pretraining"]
HORIZON = 6


class Model:
    pretraining_corpora = ("simulated",)


def walk(length: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    season = 3 * np.sin(2 * np.pi * np.arange(length) / 12)
    return (season + 0.2 * np.cumsum(draw.standard_normal(length)) + draw.standard_normal(length)).astype(np.float32)


def panel(*values: np.ndarray, **columns: Any) -> Panel:
    """Series `s0`, `s1`, ...; `columns` are the `past` and `known` covariates of each."""
    made = [
        Series(f"s{k}", one, **{key: each[k] for key, each in columns.items()}, start=pd.Timestamp("2024-01-01"))
        for k, one in enumerate(values)
    ]
    return Panel(tuple(made), frequency="h")


def split_of(data: Panel, spec: str = "ratio 70/10/20", **more: Any) -> Split:
    return Split.make(data, HORIZON, 24, spec, **more)


def said(findings: list[Finding], guard: str) -> Finding:
    (one,) = (finding for finding in findings if finding["guard"] == guard)
    return one


def checked(split: Split, **parts: WindowSet) -> list[Finding]:
    used = {"train": split.train(), "validation": split.validation(), "test": split.test()}
    return check(split, Model(), used | parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("grouping", ["none", "all"])
@pytest.mark.parametrize("spec", ["auto", "holdout", "ratio 60/20/20", "date 2024-01-10 2024-01-13"])
def test_data_as_they_are_pass_every_guard(grouping: str, spec: str) -> None:
    series = [walk(400, seed) for seed in range(3)] + [np.full(400, 7.25, np.float32)]
    series[1][5:40] = np.nan
    known = [{"hour": (np.arange(410) % 24).astype(np.float32), "load": walk(410, 50 + k)} for k in range(4)]
    past = [{"wind": walk(400, 90 + k)} for k in range(4)]
    findings = check(split_of(panel(*series, known=known, past=past), spec, grouping=grouping), Model())  # type: ignore[arg-type]
    assert [finding["guard"] for finding in findings] == GUARDS
    assert [finding["verdict"] for finding in findings] == ["ok"] * 4 + ["unknown"]
    refuse_own(findings)


def test_a_scaler_that_saw_more_than_the_train_part_is_found() -> None:
    data = panel(walk(400, 0), walk(400, 1))
    split = split_of(data)
    split.__dict__["scaler"] = Scaler.fit(data, data.lengths)
    finding = said(checked(split), "scaler")
    assert finding["verdict"] == "found" and "not that of its train part alone" in finding["words"]
    with pytest.raises(TspruneError, match="error in tsprune"):
        refuse_own([finding])
    honest = split_of(data)
    other = replace(honest.test(), scaler=Scaler.fit(data, honest.validation_end))
    assert "test windows are not scaled" in said(checked(honest, test=other), "scaler")["words"]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("moved", [-1, 1])
def test_a_target_one_step_outside_its_part_is_found(part: str, moved: int) -> None:
    split = split_of(panel(walk(400, 0), walk(300, 1)))
    windows: WindowSet = getattr(split, part)()
    origin = windows.origin.copy()
    if (part, moved) == ("train", -1):
        origin[0] = -1
    else:
        origin[-1 if moved > 0 else 0] += moved
    finding = said(checked(split, **{part: replace(windows, origin=origin)}), "windows")
    assert finding["verdict"] == "found" and f"1 of {len(windows):,} {part} windows" in finding["words"]
    with pytest.raises(TspruneError, match="error in tsprune"):
        refuse_own([finding])


def test_a_context_that_reaches_past_its_origin_is_found() -> None:
    class Ahead(WindowSet):
        def batch(self, indices: Any) -> Batch:
            chosen = np.asarray(indices)
            early = replace(self.subset(chosen), origin=self.origin[chosen] + 1)
            return WindowSet.batch(early, np.arange(len(chosen)))

    split = split_of(panel(walk(400, 0)))
    own = split.test()
    fields = {name: getattr(own, name) for name in own.__dataclass_fields__}
    assert "does not end at its origin" in said(checked(split, test=Ahead(**fields)), "windows")["words"]


@pytest.mark.parametrize("spec", ["ratio 70/10/20", "holdout"])
def test_a_copy_of_another_length_leaks_where_each_series_is_cut_by_its_own(spec: str) -> None:
    long = walk(500, 0)
    data = panel(long, 2 * long[:300] + 1, walk(400, 1))
    finding = said(checked(split_of(data, spec)), "copies")
    assert finding["verdict"] == "found"
    assert "of the test part of 's1' are in the train part of 's0'" in finding["words"]
    ends = split_of(data, spec)
    inside = min(300, int(ends.train_end[0])) - int(ends.validation_end[1])
    assert f"{inside} steps of the test part" in finding["words"]


def test_the_same_copy_cut_at_the_same_dates_does_not_leak_but_is_said() -> None:
    long = walk(500, 0)
    finding = said(checked(split_of(panel(long, -long), "ratio 70/10/20")), "copies")
    assert finding["verdict"] == "ok"
    assert finding["words"] == "1 pair of series hold the same values in the same parts and count twice: 's0' and 's1'"


@pytest.mark.parametrize("shift", [40, -40])
def test_a_series_that_runs_ahead_of_another_leaks(shift: int) -> None:
    whole = walk(540, 0)
    ahead, behind = whole[40:], whole[:500]
    data = panel(ahead, behind) if shift > 0 else panel(behind, ahead)
    words = said(checked(split_of(data)), "copies")["words"]
    first, second = ("s1", "s0") if shift > 0 else ("s0", "s1")
    assert f"of the test part of '{first}' are in the validation part of '{second}'" in words


@pytest.mark.parametrize(("lead", "known", "leaks"), [
    (0, True, True), (1, True, True), (HORIZON, True, True), (HORIZON + 1, True, False),
    (-1, True, True), (1 - HORIZON, True, True), (-HORIZON, True, False), (-24, True, False),
    (0, False, False), (1, False, True), (HORIZON, False, True), (-1, False, False),
])  # fmt: skip
@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_a_covariate_that_holds_the_target_is_found_at_the_leads_that_leak(
    lead: int, known: bool, leaks: bool, scale: float
) -> None:
    whole = walk(500, 0)
    target, column = whole[50:350], (scale * whole[50 + lead : 360 + lead] + 2).astype(np.float32)
    target, column = target.copy(), column.copy()
    target[30], column[90:95] = np.nan, np.nan
    columns = {"known": [{"x": column, "y": walk(310, 9)}]} if known else {"past": [{"x": column[:300]}]}
    finding = said(check_data(split_of(panel(target, **columns))), "covariates")
    assert finding["verdict"] == ("found" if leaks else "ok")
    if leaks:
        when = f"{abs(lead)} step" if lead else "at the same step"
        assert "'x' is exactly the target" in finding["words"] and when in finding["words"]
        assert "'y'" not in finding["words"]
        moves = known and lead <= 0
        assert ("move it from --known-covariates to --past-covariates" in finding["words"]) == moves


def test_forecasts_overwritten_by_what_came_are_found_in_the_judged_part() -> None:
    target = walk(400, 0)
    column = (target + np.random.default_rng(1).standard_normal(400)).astype(np.float32)
    column[280:] = target[280:]
    finding = said(check_data(split_of(panel(target, known=[{"forecast": column}]))), "covariates")
    assert finding["verdict"] == "found" and "'forecast'" in finding["words"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), noise=st.floats(0.003, 1.0), rate=st.sampled_from([0.02, 0.3, 5.0]))
def test_covariates_that_only_resemble_the_target_are_not(seed: int, noise: float, rate: float) -> None:
    draw = np.random.default_rng(seed)
    steps = np.arange(300)
    calendar = np.sin(2 * np.pi * steps / 24)
    target = (10 + 4 * calendar + noise * draw.standard_normal(300)).astype(np.float32)
    sales = draw.poisson(rate, 300).astype(np.float32)
    holiday = ((steps % 97 == 5) | (sales > 3 * rate + 3)).astype(np.float32)
    columns = {"calendar": calendar, "time": steps, "flat": np.ones(300), "near": target + noise * draw.random(300)}
    known = [{name: one.astype(np.float32) for name, one in columns.items()} | {"holiday": holiday}] * 3
    flat = np.zeros(300, np.float32)
    flat[100] = 1
    data = panel(target, sales, flat, known=known)
    assert find_giveaways(data, 24, np.full(3, 210)) == []


def test_time_itself_does_not_give_a_trend_away() -> None:
    steps = np.arange(300, dtype=np.float32)
    known = [{"time": steps, "empty": np.full(300, np.nan, np.float32)}] * 2
    assert find_giveaways(panel(3 * steps + 7, np.sqrt(steps), known=known), 6, np.full(2, 200)) == []


def test_the_giveaway_names_only_the_series_it_gives_away() -> None:
    shared = walk(310, 3)
    data = panel(walk(300, 1), shared[:300], known=[{"x": shared}, {"x": shared}])
    (found,) = find_giveaways(data, HORIZON, np.full(2, 200))
    assert (found.series, found.lead, found.known) == (("s1",), 0, True)


def test_a_run_refuses_or_says_what_the_guards_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = wide(1)
    frame["hint"] = 2 * frame["a"] + 1
    options = tsprune.ReadOptions(value_columns=("a",), known_covariates=("hint",))
    task = TaskSettings(horizon=8, validation_windows=8)
    model = tiny.tiny_model("chronos2")
    with pytest.raises(TspruneError, match="move it from --known-covariates to --past-covariates.*--allow-leakage"):
        prepare(task, panel=tsprune.read(frame, options), model=model)
    allowed = prepare(replace(task, allow_leakage=True), panel=tsprune.read(frame, options), model=model)
    assert allowed.notes[0].startswith("LEAKAGE: known covariate: column 'hint'")
    assert said(allowed.leakage, "covariates")["verdict"] == "found"
    # It changes no number, so finished stages stand.
    plain = tsprune.read(wide(1))
    either = [prepare(replace(task, allow_leakage=way), panel=plain, model=model).identity for way in (False, True)]
    assert either[0] == either[1]
    frame.to_csv(tmp_path / "hint.csv", index=False)
    tsprune.save(model, tmp_path / "chronos2")
    flags = ["--data", str(tmp_path / "hint.csv"), "--model", str(tmp_path / "chronos2"), "--horizon", "8"]
    flags += ["--value-columns", "a", "--known-covariates", "hint", "--out", str(tmp_path / "found.json")]
    code, _, err = called(["evaluate", *flags], capsys)
    assert code != 0 and "column 'hint' is exactly the target at the same step" in err
    code, _, err = called(["evaluate", *flags, "--allow-leakage"], capsys)
    assert code == 0 and "note: LEAKAGE: known covariate" in err and "possible pretraining overlap: unknown" in err
    assert '"guard": "covariates"' in (tmp_path / "found.json").read_text(encoding="utf-8")
