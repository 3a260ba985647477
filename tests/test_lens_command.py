"""The lens as a command: windows, probes, what is kept, the page, and wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
import tsprune
from running import called, wide
from tsprune import lens
from tsprune.errors import TspruneError
from tsprune.lens._run import look
from tsprune.lens._study import halves, study_of
from tsprune.preparing import Prepared, prepare
from tsprune.settings import TaskSettings

QUICK = ("weight_spectra", "sparsity", "send", "logit_lens")


def ready(length: int = 240, family: str = "chronos2", **changes: Any) -> Prepared:
    settings_ = {"horizon": 8, "context": 32} | changes
    return prepare(TaskSettings(**settings_), panel=tsprune.read(wide(length=length)), model=tiny.tiny_model(family))


@settings(max_examples=30, deadline=None)
@given(st.integers(120, 400), st.integers(2, 24))
def test_targets_of_first_and_later_windows_share_no_step(length: int, horizon: int) -> None:
    windows = ready(length, horizon=horizon, split="ratio 40/40/20").split.validation()
    early, late = halves(windows)
    for series in np.unique(windows.series_index):
        ends = early.origin[early.series_index == series] + horizon
        starts = late.origin[late.series_index == series]
        if len(ends) and len(starts):
            assert ends.max() <= starts.min()
    assert len(early) + len(late) <= len(windows)


def test_short_validation_part_takes_the_end_of_train_first() -> None:
    one = ready(split="holdout")
    study, notes = study_of(one, 4, 4)
    assert "last windows of the train part measure" in notes[0]
    assert study.first and study.later and study.blocks is not None
    rows = sum(len(batch.context) for batch in study.first)
    assert 2 <= rows <= 8


def test_every_probe_says_what_it_is() -> None:
    for name in lens.names():
        probe = lens.find(name)
        assert probe.title and probe.source and probe.question.endswith("?"), name


def test_findings_are_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ready()
    found = look(one, tmp_path, probes=QUICK, windows=8, later=8)
    assert list(found["probes"]) == list(QUICK)
    stored = json.loads((tmp_path / "lens.json").read_text())
    assert stored == json.loads(json.dumps(found))
    page = (tmp_path / "lens.html").read_text()
    for probe in found["probes"].values():
        assert probe["answer"] and probe["title"] in page
    # A second look takes everything from what is there.
    for name in QUICK:
        monkeypatch.setattr(type(lens.find(name)), "run", None)
    again = look(one, tmp_path, probes=QUICK, windows=8, later=8)
    assert again["probes"] == found["probes"]


def test_probe_that_does_not_apply_says_so(tmp_path: Path) -> None:
    one = ready(family="ttm")
    names = [name for name in lens.names() if lens.find(name).refusal(one.model)]
    assert names
    with pytest.raises(TspruneError, match=f"--probes {names[0]}: .*leave it out"):
        look(one, tmp_path, probes=[names[0]])
    with pytest.raises(TspruneError, match="'nonsense' is not among the lens"):
        look(one, tmp_path, probes=["nonsense"])


def test_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["lens", "chronos2", "--data", "wide.csv", "--horizon", "8", "--context", "32", "--windows", "8"]
    code, out, err = called([*start, "--later", "8", "--probes", "weight_spectra,sparsity"], capsys)
    assert code == 0 and "Sparsity: " in out and "page: tsprune-lens/lens.html" in out
    assert "forward pass" in err
    for more, says in (
        (["--windows", "0"], "--windows 0 and --later 64 must be at least 1"),
        (["--probes", "nonsense"], "--probes: 'nonsense' is not among the lens"),
    ):
        code, _, err = called([*start[:-2], "--quiet", *more], capsys)
        assert code == 2 and says in err
