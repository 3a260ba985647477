"""How far scores of parts of the windows agree, from one pass."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from running import called
from tests.planted import agree, built, rows_of
from tests.tiny import tiny_model
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores import ablation, fisher, hybrid, magnitude, printed, taylor, taylor_abs, wanda
from tsprune.scores._ranks import ranks, spearman
from tsprune.scores._taps import chosen_groups
from tsprune.scores._work import Totals, over_windows
from tsprune.stability import Agreement, deal, scored, told

KINDS = ("head", "ffn_channel")


# ---- ranks


def slow_ranks(values: Sequence[float]) -> list[float]:
    """Share of the others that are lower, those that are equal counting half."""
    below = [sum(other < value for other in values) for value in values]
    equal = [sum(other == value for other in values) - 1 for value in values]
    return [(b + e / 2) / (len(values) - 1) for b, e in zip(below, equal, strict=True)]


vectors = st.lists(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-5, 5)), min_size=2, max_size=12)


@given(vectors)
def test_when_values_are_ranked_then_equal_ones_share_their_mean(values: list[float]) -> None:
    assert ranks(torch.tensor(values, dtype=torch.float64)).tolist() == pytest.approx(slow_ranks(values))


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=12))
def test_when_rankings_are_compared_then_it_is_the_correlation_of_their_ranks(pairs: list[tuple[int, int]]) -> None:
    first, second = ([float(value) for value in side] for side in zip(*pairs, strict=True))
    found = spearman(torch.tensor(first), torch.tensor(second))
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(float(np.corrcoef(slow_ranks(first), slow_ranks(second))[0, 1]), abs=1e-12)


def test_when_a_score_is_no_number_then_there_is_no_correlation() -> None:
    assert spearman(torch.tensor([1.0, torch.nan, 2.0]), torch.tensor([1.0, 2.0, 3.0])) is None
    assert spearman(torch.tensor([1.0]), torch.tensor([1.0])) is None


# ---- the deal


@given(times=st.lists(st.integers(0, 9), min_size=16, max_size=60), seed=st.integers(0, 5))
def test_when_windows_are_dealt_then_each_is_in_one_cell_and_early_ones_are_early(times: list[int], seed: int) -> None:
    cells = deal(np.array(times), seed)
    assert sorted(np.concatenate(cells).tolist()) == list(range(len(times)))
    early, late = ([times[i] for cell in half for i in cell] for half in (cells[:4], cells[4:]))
    assert max(early) <= min(late)
    assert abs(len(early) - len(late)) <= 1
    for half in (cells[:4], cells[4:]):
        assert max(map(len, half)) - min(map(len, half)) <= 1


def test_when_the_seed_is_another_then_so_is_the_deal() -> None:
    first, again, other = (deal(np.arange(40), seed)[0].tolist() for seed in (1, 1, 2))
    assert first == again != other


# ---- scores and agreement


def stacked(batch: Batch, copies: int) -> Batch:
    """The windows of a batch several times over, each a little different."""
    assert batch.target is not None
    scale = torch.linspace(0.5, 2, copies).repeat_interleave(batch.rows)[:, None].to(batch.context)
    return Batch(batch.context.repeat(copies, 1) * scale, batch.target.repeat(copies, 1) * scale)


class Windows:
    """Windows by number, in batches of 5, that count how often each is asked for."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.asked = batch, Counter[int]()

    def __call__(self, chosen: np.ndarray[Any, Any]) -> list[Batch]:
        self.asked.update(chosen.tolist())
        return [rows_of(self.batch, chosen[first : first + 5].tolist()) for first in range(0, len(chosen), 5)]


@pytest.mark.parametrize("module", [fisher, printed, taylor, taylor_abs, wanda, hybrid, ablation])
def test_when_agreement_is_measured_then_scores_are_as_ever_from_one_pass(module: Any) -> None:
    model, batch = built("chronos2")
    batch = stacked(batch, 5)
    kinds = ("head",) if module is ablation else KINDS
    windows = Windows(batch)
    times = np.arange(batch.rows)
    found, agreement = scored(module, model, windows, times, kinds=kinds, seed=3)
    assert set(windows.asked.values()) == {1}
    assert len(windows.asked) == batch.rows
    expected = module.scores(model, [batch], kinds=kinds)
    for name, values in expected.items():
        assert agree(found[name], values, 1e-9), name
    # The same by scoring parts of the windows one after the other.
    parts = [module.scores(model, [rows_of(batch, range(*ends))], kinds=kinds) for ends in ((0, 10), (10, 20))]
    costs = {name: group.costs.double() for name, group in model.unit_groups().items()}
    for kind in kinds:
        names = [name for name in expected if name.endswith("/" + kind)]
        early, late = (torch.cat([part[name].abs() / costs[name] for name in names]) for part in parts)
        assert agreement[kind].early_late == pytest.approx(
            spearman(early, late), abs=0.02 if module is hybrid else 1e-9
        )
        assert agreement[kind].units == len(early)
        lowest, mean = agreement[kind].halves_lowest, agreement[kind].halves
        assert lowest is not None
        assert mean is not None
        assert -1 <= lowest <= mean <= 1


def artificial(noise: float, drift: float, additive: bool, late_sign: int = 1) -> Any:
    """A score whose value for window n is the unit's number, plus noise, plus for late windows the opposite."""

    def of_window(n: int, units: int) -> Tensor:
        draw = torch.randn(units, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        base = torch.arange(units, dtype=torch.float64)
        if n < 64:
            return 10 + base + noise * draw
        return late_sign * (10 + base + noise * draw + drift * (units - 1 - 2 * base))

    def collect(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str]) -> Totals:
        groups = chosen_groups(model, kinds)
        totals = Totals()

        def step(portion: Batch) -> list[int]:
            return [int(n) for n in portion.context[:, 0]]

        for numbers in over_windows(model, batches, step):
            for name, group in groups.items():
                totals.add(name, torch.stack([of_window(n, group.units) for n in numbers]).sum(0) * group.costs)
            totals.count(len(numbers))
        return totals

    def scores(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str], seed: int) -> dict[str, Tensor]:
        return collect(model, batches, kinds=kinds).means()

    both: dict[str, Any] = {"NEEDS": "forward", "scores": scores}
    if additive:
        both |= {"collect": collect, "finish": lambda model, totals, *, kinds: totals.means()}
    return SimpleNamespace(**both)


NUMBERED = Batch(torch.arange(128.0)[:, None].expand(-1, 4))


@pytest.mark.parametrize("additive", [True, False])
def test_when_what_matters_changes_with_time_then_it_is_called_drift(additive: bool) -> None:
    model = tiny_model("chronos2")
    windows = Windows(NUMBERED)
    score = artificial(noise=1.0, drift=1.0, additive=additive)
    _, found = scored(score, model, windows, np.arange(128), kinds=("ffn_channel",), seed=0)
    agreement = found["ffn_channel"]
    assert agreement.drifts
    assert agreement.early_late is not None
    assert agreement.early_late < -0.5
    # Random halves hold as many early as late windows, so the change is in both.
    assert set(windows.asked.values()) == ({1} if additive else {3})
    assert "changes with time (ffn_channel)" in told(found, "forward")[-1]


@pytest.mark.parametrize("noise", [0.1, 30.0])
def test_when_scores_are_only_noisy_then_nothing_is_called_drift(noise: float) -> None:
    model = tiny_model("chronos2")
    drifting = 0
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(128)
        score = artificial(noise=noise, drift=0.0, additive=True)
        _, found = scored(score, model, Windows(NUMBERED), order, kinds=("ffn_channel",), seed=seed)
        drifting += found["ffn_channel"].drifts
        assert noise > 1 or found["ffn_channel"].halves == pytest.approx(1, abs=0.01)
    assert drifting <= 2


def test_when_only_the_sign_differs_then_the_rank_decides_whether_that_counts() -> None:
    model = tiny_model("chronos2")
    score = artificial(noise=0.0, drift=0.0, additive=True, late_sign=-1)
    for rank, expected in (("magnitude", 1), ("signed", -1)):
        _, found = scored(score, model, Windows(NUMBERED), np.arange(128), kinds=("head",), seed=0, rank=rank)
        assert found["head"].early_late == pytest.approx(expected)


@pytest.mark.parametrize(("module", "count"), [(magnitude, 40), (fisher, 15)])
def test_when_there_is_nothing_to_compare_then_that_is_said(module: Any, count: int) -> None:
    model, batch = built("chronos2")
    batch = stacked(batch, 10)
    found, agreement = scored(module, model, Windows(batch), np.arange(count), kinds=KINDS, seed=0)
    assert agreement == {}
    assert found.keys() == chosen_groups(model, KINDS).keys()
    assert "not measured" in told(agreement, module.NEEDS)[0]


def test_when_there_is_one_unit_of_a_kind_then_its_agreement_is_undefined() -> None:
    lines = told({"layer": Agreement(1, None, None, None, False)}, "backward")
    assert lines == [
        "rank agreement of layer scores: undefined between random halves of the windows, undefined between early and "
        "late ones"
    ]


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(24)))
def test_when_times_come_in_any_order_then_the_earlier_half_is_early(order: list[int]) -> None:
    cells = deal(np.array(order), 0)
    assert {order[i] for cell in cells[:4] for i in cell} == set(range(12))


# ---- the command


def test_when_scores_are_written_then_agreement_is_with_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "score",
        "--model",
        "chronos2",
        "--data",
        "wide.csv",
        "--horizon",
        "8",
        "--adapt-steps",
        "0",
        "--quiet",
    ]
    arguments += ["--prune-windows", "48", "--units", "head,ffn_channel,value_dim"]
    code, out, err = called([*arguments, "--out", "a.json"], capsys)
    assert code == 0, err
    stored = json.loads(Path("a.json").read_text())
    assert set(stored["stability"]) == {"head", "ffn_channel", "value_dim"}
    assert all(-1 <= entry["early_late"] <= 1 for entry in stored["stability"].values())
    assert out.count("rank agreement of") == 3
    code, _, err = called([*arguments, "--out", "b.json", "--max-memory", "700KB"], capsys)
    assert code == 0, err
    limited = json.loads(Path("b.json").read_text())
    for name, entry in stored["groups"].items():
        found, expected = (torch.tensor(e["scores"]) for e in (limited["groups"][name], entry))
        assert agree(found, expected, 1e-4), name


def test_when_memory_is_too_small_for_one_window_then_the_command_says_so(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "score",
        "--model",
        "chronos2",
        "--data",
        "wide.csv",
        "--horizon",
        "8",
        "--adapt-steps",
        "0",
        "--quiet",
    ]
    code, _, err = called([*arguments, "--out", "a.json", "--max-memory", "1KB"], capsys)
    assert code == 2
    assert "--max-memory 1,000 bytes is too little" in err
